"""Runs a Dag of a file on the real Airflow of this interpreter (``dag.test()``) and reads back what a user would see."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DAGS = HERE / "dags"
EXAMPLES = HERE.parents[1] / "dags_examples"
AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])
RETRY_GETS_THE_OLD_EVENT = AIRFLOW == (3, 0)
"""Airflow 3.0's dag.test() resumes the retry of a deferred task with the event of its first try, so that it fails again; its
scheduler does not (README, Versions)."""
OURS = ("airflow_provider_llamachat", "dags_examples", str(DAGS))


@dataclass
class Result:
    """The end of a run: its state, its tasks' states, and every XCom."""

    state: str
    tasks: dict[str, list[str]]
    tries: dict[str, int]
    xcoms: dict[tuple[str, str, int], Any]

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """One XCom; a KeyError names those that there are."""
        if (task_id, key, map_index) not in self.xcoms:
            raise KeyError(f"{(task_id, key, map_index)} is not among {sorted(self.xcoms)}")
        return self.xcoms[task_id, key, map_index]

    def keys(self, task_id: str) -> set[str]:
        """The keys that a task pushed."""
        return {key for task, key, _ in self.xcoms if task == task_id}


@contextlib.contextmanager
def own_warnings_only() -> Iterator[None]:
    """Let Airflow and its dependencies warn as they like, and fail for what this package or its Dags warn of or cause."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    ours = [warning for warning in caught if any(part in warning.filename for part in OURS)]
    assert not ours, [f"{warning.filename}:{warning.lineno} {warning.message}" for warning in ours]


def load(file: Path) -> dict[str, Any]:
    """Return the Dags in ``file``, parsed by Airflow itself; import errors and warnings fail."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef]  # where Airflow 2 and 3.0 have it
    # Airflow 3.3 runs only Dags of a bundle that it knows: the Dags folder of this test run.
    link = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]) / file.name
    if not link.exists():
        link.symlink_to(file)
    with own_warnings_only():
        bag = DagBag(dag_folder=str(link))
    assert not bag.import_errors, bag.import_errors
    assert bag.dags, f"no Dag in {file}"
    return dict(bag.dags)


def run(file: Path, dag_id: str, conf: dict[str, Any] | None = None) -> Result:
    """Run one Dag to its end in this process, with deferred tasks' triggers in line."""
    dag = load(file)[dag_id]
    with own_warnings_only():
        made = dag.test(run_conf=conf or {})
    tasks: dict[str, list[str]] = {}
    tries: dict[str, int] = {}
    for ti in made.get_task_instances():
        tasks.setdefault(ti.task_id, []).append(str(getattr(ti.state, "value", ti.state)))
        tries[ti.task_id] = max(tries.get(ti.task_id, 0), ti.try_number)
    return Result(str(getattr(made.state, "value", made.state)), tasks, tries, dict(_xcoms(made.run_id, dag_id)))


def _xcoms(run_id: str, dag_id: str) -> Iterator[tuple[tuple[str, str, int], Any]]:
    from airflow.utils.session import create_session

    try:
        from airflow.models.xcom import XComModel as XCom
    except ImportError:
        from airflow.models.xcom import XCom  # type: ignore[no-redef]  # where Airflow 2 has it
    with create_session() as session:
        for row in session.query(XCom).filter(XCom.run_id == run_id, XCom.dag_id == dag_id):
            value = row.value
            if isinstance(value, bytes):
                value = value.decode()
            if isinstance(value, str):
                with contextlib.suppress(ValueError):
                    value = json.loads(value)
            yield (row.task_id, row.key, row.map_index), value
