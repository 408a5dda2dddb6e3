"""What tasks stored in Airflow's metadata database, read through Airflow's models. Each function runs a fixed number of statements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.models import renderedtifields
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import and_, exists, or_, select, tuple_, union

from airflow_provider_llamachat.airflow_support.conversation_link import LlamaCloudConversationLink

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

QUESTIONS = ("SendChatMessageOperator", "LlamaChatDecoratedOperator")
BATCHES = ("ChatBatchOperator",)
LINK_KEY = LlamaCloudConversationLink().xcom_key
"""Tasks of subclasses push this XCom when they end, and are recognized by it."""
RUNS_PER_PAGE = 50
TASKS_PER_PAGE = 100
MAX_CHART_ROWS = 50_000
"""Maximum number of rows that charts are made of. A question has one, and a batch may have two."""
SHOWN_XCOMS = ("usage", "return_value", "sources", "session_id", "skipped_index_ids", "results")
SHOWN_FIELDS = ("prompt", "session_id", "index_ids")

OF_RUN = and_(DagRun.dag_id == TaskInstance.dag_id, DagRun.run_id == TaskInstance.run_id)
OF_TASK = and_(
    XComModel.dag_run_id == DagRun.id,
    XComModel.task_id == TaskInstance.task_id,
    XComModel.map_index == TaskInstance.map_index,
)
"""Joins: the task instances of a run, and the XComs of a task instance."""
LISTED = (DagRun.id, TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state)
ALSO_SHOWN = (TaskInstance.operator, TaskInstance.try_number, TaskInstance.start_date, TaskInstance.duration)


@dataclass(frozen=True)
class Period:
    """A span of time, by the date after which Airflow may start a run. None: no limit."""

    since: datetime | None = None
    until: datetime | None = None

    def limits(self) -> list[Any]:
        """Return conditions for a query of runs."""
        return [
            *([] if self.since is None else [DagRun.run_after >= self.since]),
            *([] if self.until is None else [DagRun.run_after < self.until]),
        ]


@dataclass(frozen=True)
class Asking:
    """The Dags and operators that asked.

    :ivar dag_ids: Dags.
    :ivar subclasses: Dag and class name of operators that are not the provider's own. What one Dag pushes says nothing about another's.
    """

    dag_ids: frozenset[str]
    subclasses: frozenset[tuple[str, str]]

    def condition(self) -> Any:
        """Return the condition by which a query of task instances finds those that ask."""
        named = TaskInstance.operator.in_(QUESTIONS + BATCHES)
        own = tuple_(TaskInstance.dag_id, TaskInstance.operator).in_(self.subclasses)
        return or_(named, own) if self.subclasses else named


@dataclass
class Task:
    """A task instance, and what it pushed and rendered, as far as a query asks for it."""

    run: int
    task_id: str
    map_index: int
    state: str | None
    operator: str | None = None
    try_number: int = 0
    start_date: datetime | None = None
    duration: float | None = None
    xcoms: dict[str, Any] = field(default_factory=dict)
    rendered: Mapping[str, Any] = field(default_factory=dict)


def asking(session: Session, *limits: Any) -> Asking:
    """Find what asked in the runs that fulfil these conditions: one statement."""
    ours = select(TaskInstance.dag_id, TaskInstance.operator).join(DagRun, OF_RUN).where(*limits)
    by_name = ours.where(TaskInstance.operator.in_(QUESTIONS + BATCHES))
    by_link = ours.join(XComModel, OF_TASK).where(XComModel.key == LINK_KEY)
    rows = session.execute(union(by_name, by_link)).all()
    subclasses = frozenset((row[0], row[1]) for row in rows if row[1] and row[1] not in QUESTIONS + BATCHES)
    return Asking(frozenset(row[0] for row in rows), subclasses)


def runs(session: Session, period: Period, found: Asking, dag_ids: Iterable[str], offset: int) -> list[Any]:
    """Return one more run than a page has, newest first: one statement."""
    asked = exists().where(OF_RUN, found.condition())
    query = (
        select(
            DagRun.id, DagRun.dag_id, DagRun.run_id, DagRun.state, DagRun.run_after, DagRun.start_date, DagRun.end_date
        )
        .where(DagRun.dag_id.in_(set(dag_ids)), *period.limits(), asked)
        .order_by(DagRun.run_after.desc(), DagRun.id.desc())
        .offset(offset)
        .limit(RUNS_PER_PAGE + 1)
    )
    return list(session.execute(query).all())


def tasks_of_runs(session: Session, run_ids: list[int], found: Asking) -> list[Task]:
    """Return the tasks that ask in these runs, with usage and manifest: one statement."""
    return _with_usage(session, found, DagRun.id.in_(run_ids))[0]


def tasks_of_period(
    session: Session, period: Period, found: Asking, dag_ids: Iterable[str]
) -> tuple[dict[int, Any], list[Task], bool]:
    """Return the runs of a period by id, the newest tasks that ask in them, with usage and manifest, and whether older ones are missing.

    Two statements, because twenty thousand tasks would repeat what a thousand runs say.
    """
    limits = [DagRun.dag_id.in_(set(dag_ids)), *period.limits()]
    runs_of = select(DagRun.id, DagRun.dag_id, DagRun.run_after).where(*limits)
    newest = DagRun.run_after.desc()
    tasks, is_cut = _with_usage(session, found, *limits, order_by=newest, most=MAX_CHART_ROWS)
    return {row.id: row for row in session.execute(runs_of).all()}, tasks, is_cut


def conversation(
    session: Session, dag_id: str, run_id: str, *, task_id: str | None, map_index: int | None, offset: int
) -> list[Task]:
    """Return a page of the tasks that ask in a run, and one more, with everything that is shown: four statements."""
    of_run = (DagRun.dag_id == dag_id, DagRun.run_id == run_id)
    query = _tasks(asking(session, *of_run), *LISTED, *ALSO_SHOWN).where(*of_run)
    if task_id is not None:
        query = query.where(TaskInstance.task_id == task_id)
    if map_index is not None:
        query = query.where(TaskInstance.map_index == map_index)
    # Tasks that have not started come last, on every database.
    query = query.order_by(
        TaskInstance.start_date.is_(None), TaskInstance.start_date, TaskInstance.task_id, TaskInstance.map_index
    )
    found = [Task(*row) for row in session.execute(query.offset(offset).limit(TASKS_PER_PAGE + 1)).all()]
    by_key = {(task.task_id, task.map_index): task for task in found}
    names = {task.task_id for task in found}
    # A task may be mapped a thousand times, and each value may be long.
    indexes = {task.map_index for task in found}
    pushed = select(XComModel.task_id, XComModel.map_index, XComModel.key, XComModel.value).where(
        XComModel.dag_run_id == (found[0].run if found else -1),
        XComModel.task_id.in_(names),
        XComModel.map_index.in_(indexes),
        XComModel.key.in_(SHOWN_XCOMS),
    )
    for row in session.execute(pushed).all():
        if task := by_key.get((row[0], row[1])):
            task.xcoms[row[2]] = row[3]
    for query in _rendered(dag_id, run_id, names, indexes):
        for row in session.execute(query).all():
            if (task := by_key.get((row[0], row[1]))) and isinstance(row[2], dict):
                task.rendered = {name: row[2].get(name) for name in SHOWN_FIELDS}
    return found


def _rendered(dag_id: str, run_id: str, names: set[str], indexes: set[int]) -> Iterator[Select[Any]]:
    """Select the rendered fields of tasks, with task id and map index."""

    def of_tasks(key: Any) -> ColumnElement[bool]:
        return and_(key.dag_id == dag_id, key.run_id == run_id, key.task_id.in_(names), key.map_index.in_(indexes))

    fields = renderedtifields.RenderedTaskInstanceFields
    # Since 3.4, they belong to an attempt, and those of earlier runs are kept apart.
    keyed = getattr(renderedtifields, "LegacyRenderedTaskInstanceFields", fields)
    yield select(keyed.task_id, keyed.map_index, keyed.rendered_fields).where(of_tasks(keyed))
    if keyed is not fields:
        of_attempt = fields.task_instance_id == TaskInstance.id
        query = select(TaskInstance.task_id, TaskInstance.map_index, fields.rendered_fields)
        yield query.join(TaskInstance, of_attempt).where(of_tasks(TaskInstance))


def _tasks(found: Asking, *columns: Any) -> Select[Any]:
    return select(*columns).select_from(DagRun).join(TaskInstance, OF_RUN).where(found.condition())


def _with_usage(
    session: Session, found: Asking, *limits: Any, order_by: Any = None, most: int | None = None
) -> tuple[list[Task], bool]:
    # Only a batch's return value is its manifest. An answer may be long, and is not needed for the counts.
    manifest = and_(XComModel.key == "return_value", TaskInstance.operator.not_in(QUESTIONS))
    pushed = and_(OF_TASK, or_(XComModel.key == "usage", manifest))
    query = _tasks(found, *LISTED, XComModel.key, XComModel.value).join(XComModel, pushed, isouter=True)
    tasks: dict[tuple[int, str, int], Task] = {}
    rows = session.execute(query.where(*limits).order_by(order_by).limit(most and most + 1)).all()
    for row in rows[:most]:
        run, task_id, map_index, state, key, value = row
        task = tasks.get((run, task_id, map_index))
        if task is None:
            task = tasks[run, task_id, map_index] = Task(run, task_id, map_index, state)
        if key is not None:
            task.xcoms[key] = value
    return list(tasks.values()), most is not None and len(rows) > most
