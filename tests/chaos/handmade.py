"""Schedules made by hand, for tests that need one thing to go wrong and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.chaos.plans import INDEX, Kill, Schedule, Task

SETTINGS: dict[str, Any] = {"survives_disconnect": True, "records": "start", "turn_latency": 0.3}
BATCH: dict[str, Any] = {
    "index_ids": [INDEX],
    "delete_sessions": True,
    "output_path": "results.jsonl",
    "on_interrupted": "fail",
    "turn_timeout": 15.0,
}
ASK: dict[str, Any] = {"turn_timeout": 15.0, "on_interrupted": "fail", "log_answer": True, "deferrable": False}


@dataclass(frozen=True, slots=True)
class Handmade(Schedule):
    """A schedule whose kills are given.

    :ivar kills: by task and number of its process, from 0.
    """

    kills: dict[tuple[str, int], Kill] = field(default_factory=dict)

    def kill(self, task: str, process: int, *, last: bool) -> Kill | None:
        """See :meth:`~tests.chaos.plans.Schedule.kill`."""
        return self.kills.get((task, process))


def make(*tasks: Task, kills: dict[tuple[str, int], Kill] | None = None, **changes: Any) -> Handmade:
    """A schedule of these tasks, without faults, on an Airflow with a task state store."""
    values: dict[str, Any] = {
        "seed": 1,
        "shape": "worker",
        "settings": SETTINGS,
        "faults": (),
        "store": True,
        "connection": {"timeout": 1.0, "max_retries": 2, "history_lag": 0},
        "kill_rate": 0.0,
        "backoff": False,
        "debug": True,
    }
    return Handmade(**{**values, **changes}, tasks=tasks, kills=kills or {})


def conversation(**changes: Any) -> Handmade:
    """Create, ask on the worker, ask in the triggerer, delete; the first process of each question is killed while its turn runs."""
    # The triggerer's process is the second of its task; it dies with the third event of the stream.
    kills = {("ask_0", 0): Kill("KILL", point="recv", number=4), ("ask_1", 1): Kill("KILL", point="recv", number=4)}
    tasks = (
        Task("create", "create", 1, {"index_ids": [INDEX]}),
        Task("ask_0", "ask", 1, ASK, (3,)),
        Task("ask_1", "ask", 1, {**ASK, "deferrable": True}, (4,)),
        Task("delete", "delete", 1),
    )
    return make(*changes.pop("tasks", tasks), **{"kills": kills, **changes})


def batch(**changes: Any) -> Handmade:
    """A batch of three questions."""
    return make(Task("batch", "batch", 1, BATCH, (5, 6, 7)), shape="batch", **changes)
