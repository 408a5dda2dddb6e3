"""Rows in Airflow's metadata database, as tasks of this provider leave them. As a script, it fills the database of an Airflow."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

NOW = datetime.now(UTC).replace(microsecond=0)
QUESTION = "What was the revenue in Q3?"
ANSWER = "Revenue in Q3 was 4.2 million, 12 % above Q2."
SOURCES = [
    {
        "tool": "retrieve",
        "index_id": "idx-filings",
        "file_name": "report-q3.pdf",
        "pages": [2, 3],
        "score": 0.91,
        "text": "Revenue in Q3: 4.2 million.",
    },
    {"tool": "grep", "index_id": "idx-filings", "file_name": "notes.md", "pages": [1, 1], "text": "Q3 was good."},
]
MANIFEST = {
    "total": 3,
    "answered": 1,
    "failed": 1,
    "interrupted": 1,
    "unasked": 0,
    "total_input_tokens": 30,
    "total_output_tokens": 12,
    "output_path": None,
    "sessions_opened": 3,
    "sessions_deleted": 0,
    "kept": 0,
    "settled": 0,
    "rate_limited": 0,
    "seconds": 1.5,
    "try_number": 1,
}


def usage(outcome: str = "answered", *, adopted: bool | None = False, tokens: int = 10) -> dict[str, Any]:
    """What a question pushes as ``usage``."""
    counts = {"total_input_tokens": 10 * tokens, "total_output_tokens": tokens, "turns": 2, "duration_ms": 1500.0}
    return {**counts, "try_number": 1, "outcome": outcome, "adopted": adopted}


def line(position: int, outcome: str, **values: Any) -> dict[str, Any]:
    """A line of a batch's results."""
    return {
        "position": position,
        "id": f"q{position}",
        "outcome": outcome,
        "prompt": QUESTION,
        "answer": ANSWER if outcome == "answered" else None,
        "sources": [],
        "session_id": f"ses-{position}",
        "usage": usage(tokens=4) if outcome == "answered" else None,
        "error": None if outcome == "answered" else {"type": "ChatTurnFailedError", "message": "model overloaded"},
        **values,
    }


@dataclass
class Asked:
    """A task instance: what it is, and what it left."""

    task_id: str
    operator: str = "SendChatMessageOperator"
    state: str | None = "success"
    map_index: int = -1
    xcoms: dict[str, Any] = field(
        default_factory=lambda: {"return_value": ANSWER, "usage": usage(), "sources": SOURCES}
    )
    rendered: dict[str, Any] | None = field(
        default_factory=lambda: {"prompt": QUESTION, "session_id": "ses-1", "index_ids": ["idx-filings"]}
    )


FAILED = Asked("failed", state="failed", xcoms={"usage": usage("failed", adopted=None)})
INTERRUPTED = Asked("interrupted", state="failed", xcoms={"usage": usage("interrupted", adopted=None)})
BATCH = Asked(
    "batch",
    operator="ChatBatchOperator",
    xcoms={
        "return_value": MANIFEST,
        "results": [line(0, "answered"), line(1, "failed"), line(2, "interrupted")],
    },
    rendered={"prompts": [QUESTION] * 3},
)


def add_dag(session: Session, dag_id: str) -> None:
    """Add a Dag that one may read."""
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel

    if session.get(DagBundleModel, "dags-folder") is None:
        session.add(DagBundleModel(name="dags-folder"))
        session.flush()
    if session.get(DagModel, dag_id) is None:
        values = {"dag_id": dag_id, "bundle_name": "dags-folder", "is_stale": False, "fileloc": "/dags/some.py"}
        session.add(DagModel(**values))  # type: ignore[no-untyped-call]  # Airflow does not type it
        session.flush()


def add_runs(session: Session, dag_id: str, runs: dict[str, tuple[datetime, list[Asked]]]) -> None:
    """Add runs with their tasks: run id to the date after which it may start, and tasks."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import insert, select

    add_dag(session, dag_id)
    made: dict[Any, list[dict[str, Any]]] = {
        DagRun: [],
        TaskInstance: [],
    }
    for run_id, (when, _) in runs.items():
        times = {"run_after": when, "start_date": when, "end_date": when + timedelta(seconds=30), "logical_date": None}
        made[DagRun].append(
            {
                "dag_id": dag_id,
                "run_id": run_id,
                "run_type": "manual",
                "state": "success",
                "log_template_id": None,
                **times,
            }
        )
    pushed: list[dict[str, Any]] = []
    rendered: list[dict[str, Any]] = []
    session.execute(insert(DagRun.__table__), made.pop(DagRun))
    ids = dict(session.execute(select(DagRun.run_id, DagRun.id).where(DagRun.dag_id == dag_id)).all())
    for run_id, (when, tasks) in runs.items():
        for number, asked in enumerate(tasks):
            key = {"dag_id": dag_id, "run_id": run_id, "task_id": asked.task_id, "map_index": asked.map_index}
            began = when + timedelta(seconds=number)
            made[TaskInstance].append(
                {
                    "operator": asked.operator,
                    "state": asked.state,
                    "try_number": 1,
                    "max_tries": 0,
                    "pool": "default_pool",
                    "pool_slots": 1,
                    "queue": "default",
                    "priority_weight": 1,
                    "executor_config": {},
                    "start_date": began,
                    "end_date": began + timedelta(seconds=2),
                    "duration": 2.0,
                    **key,
                    **({"region_index": asked.map_index} if hasattr(TaskInstance, "region_index") else {}),  # since 3.4
                }
            )
            pushed += [
                {"dag_run_id": ids[run_id], "key": name, "value": value, "timestamp": began, **key}
                for name, value in asked.xcoms.items()
            ]
            if asked.rendered is not None:
                rendered.append({"rendered_fields": asked.rendered, **key})
    for model, values in made.items():
        if values:
            session.execute(insert(model.__table__), values)
    _add_values(session, dag_id, pushed, rendered)
    session.commit()


def _add_values(session: Session, dag_id: str, pushed: list[dict[str, Any]], rendered: list[dict[str, Any]]) -> None:
    from airflow.models import xcom
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import insert, select

    names = ("dag_id", "run_id", "task_id", "map_index")
    if is_by_attempt := hasattr(xcom, "XComModelV2"):  # since 3.4
        columns = [getattr(TaskInstance, name) for name in names]
        found = session.execute(select(TaskInstance.id, *columns).where(TaskInstance.dag_id == dag_id))
        ids = {tuple(key): attempt for attempt, *key in found}
        for row in (*pushed, *rendered):
            row["task_instance_id"] = ids[tuple(row.pop(name) for name in names)]
            row.pop("dag_run_id", None)
    of_xcoms = xcom.XComModelV2 if is_by_attempt else xcom.XComModel
    for model, rows in ((of_xcoms, pushed), (RenderedTaskInstanceFields, rendered)):
        if rows:
            session.execute(insert(model.__table__), rows)


def questions(count: int) -> list[Asked]:
    """Tasks that each ask one question."""
    return [Asked(f"ask_{number:02}") for number in range(count)]


def main() -> None:
    """Add runs to the Airflow of this environment: ``python -m tests.view.rows RUNS QUESTIONS DAG_ID``."""
    from airflow.utils.session import create_session

    runs, count, dag_id = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    with create_session() as session:
        whole = {f"run_{number:04}": (NOW - timedelta(minutes=40 * number), questions(count)) for number in range(runs)}
        add_runs(session, dag_id, whole)


if __name__ == "__main__":
    main()
