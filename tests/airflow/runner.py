"""Runs a Dag of a file as users do in their tests; what this package warns of fails."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from airflow_provider_llamachat.testing import dagruns

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
    with own_warnings_only():
        dags = dagruns.load(file)
    assert dags, f"no Dag in {file}"
    return dags


def run(file: Path, dag_id: str, conf: dict[str, Any] | None = None) -> Result:
    """Run one Dag to its end as the fixture ``llamacloud_run_dag`` does, in the database of the whole test run."""
    dag = load(file)[dag_id]
    with own_warnings_only():
        made = dagruns.run(dag, conf)
    tasks: dict[str, list[str]] = {}
    tries: dict[str, int] = {}
    for name, state in made.tasks.items():
        task_id = name.partition("[")[0]
        tasks.setdefault(task_id, []).append(state)
        tries[task_id] = max(tries.get(task_id, 0), made.tries[name])
    return Result(made.state, tasks, tries, made.xcoms)
