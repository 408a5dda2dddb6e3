"""One task's tries as Airflow would make them, without an Airflow in between: for what no Dag run can time exactly."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn


class Store(dict[str, Any]):
    """A task state store in memory.

    :ivar broken: every access fails.
    """

    broken = False

    def get(self, key: str, default: Any = None) -> Any:
        self._check()
        return super().get(key, default)

    def set(self, key: str, value: Any) -> None:
        self._check()
        self[key] = value

    def _check(self) -> None:
        if self.broken:
            raise RuntimeError("the store is down")


class TaskInstance(SimpleNamespace):
    """What operators need of a task instance; keeps what is pushed."""

    dag_id, task_id, run_id, map_index = "dag", "task", "run", -1
    pushes: dict[str, Any]
    refuses = False

    def xcom_push(self, key: str, value: Any) -> None:
        if self.refuses:
            raise RuntimeError("the API server is down")
        self.pushes[key] = value


def a_try(task: Any, number: int, max_tries: int | None = None, store: Store | None = None) -> Any:
    """The context of try ``number``; clearing a task raises ``max_tries`` by the tries it used."""
    tries = task.retries if max_tries is None else max_tries
    context = {"ti": TaskInstance(try_number=number, max_tries=tries, pushes={}), "task": task}
    return context if store is None else {**context, "task_state_store": store}


class TimedOut(BaseException):
    """What a signal handler raises, as Airflow's does when a task's time is over."""


@contextlib.contextmanager
def on_alarm(handle: Callable[[], object]) -> Iterator[None]:
    """Let SIGALRM call ``handle``."""
    before = signal.signal(signal.SIGALRM, lambda *_: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def time_out() -> NoReturn:
    raise TimedOut
