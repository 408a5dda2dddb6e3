"""An event loop on which time passes in an instant, and which can be killed at any of its steps."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from airflow_provider_llamachat.batch import engine
from airflow_provider_llamachat.batch.progress import Meter
from airflow_provider_llamachat.client import calls
from airflow_provider_llamachat.conversation import ask

MOST_STEPS = 60_000
"""Steps of the event loop after which an attempt counts as endless."""


class KilledError(BaseException):
    """The process was killed."""


class DeadlockError(BaseException):
    """Every task waits for another one."""


class EndlessError(BaseException):
    """The tasks go on without coming to an end."""


@dataclass
class Clock:
    """The time in a simulation."""

    now: float = 1_000_000.0

    def time(self) -> float:
        """What :func:`time.time` and :func:`time.monotonic` return."""
        return self.now


class Selector(selectors.SelectSelector):
    """Moves the clock instead of waiting, and counts the steps of its loop.

    :param kill_at: the step before which the process is killed. None means never.
    :param on_kill: called when the process is killed.
    """

    def __init__(self, clock: Clock, kill_at: int | None, on_kill: Callable[[], None]) -> None:
        super().__init__()
        self.kill_at = kill_at
        self._clock = clock
        self._on_kill = on_kill
        self._steps = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let the time pass until the next timer of the loop."""
        self._steps += 1
        if self._steps == self.kill_at:
            self._on_kill()
            raise KilledError
        if self._steps == MOST_STEPS:
            self._on_kill()
            raise EndlessError
        if timeout is None:
            self._on_kill()
            raise DeadlockError
        if timeout > 0:
            # A little more, because the loop compares times that were rounded.
            self._clock.now += timeout + 1e-6
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own."""

    def __init__(self, clock: Clock, kill_at: int | None, on_kill: Callable[[], None]) -> None:
        self._timer = Selector(clock, kill_at, on_kill)
        self._clock = clock
        super().__init__(self._timer)
        # What fails because the process was killed concerns nobody.
        self.set_exception_handler(lambda _loop, _context: None)

    def time(self) -> float:
        """The time of the clock."""
        return self._clock.now

    def spare(self) -> None:
        """Do not kill it any more."""
        self._timer.kill_at = None


def run(work: Coroutine[Any, Any, Any], clock: Clock, kill_at: int | None, on_kill: Callable[[], None]) -> Any:
    """Return the result of ``work``. All its tasks have ended afterwards, also if it was killed.

    :param on_kill: called when it is killed. From then on, nothing that its tasks do may have an effect.
    :raises KilledError: it was killed.
    :raises DeadlockError: it cannot go on.
    :raises EndlessError: it does not end.
    """
    loop = VirtualLoop(clock, kill_at, on_kill)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            return runner.run(work)
        finally:
            # What comes now is not part of its life: the runner cancels the tasks that are left, and waits until they have ended.
            loop.spare()
            # A kill at the very end leaves an order to stop in the loop, which would stop the runner's work instead.
            loop.call_soon(loop.stop)
            loop.run_forever()


async def _in_a_step(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    await asyncio.sleep(0.001)
    result = function(*arguments, **named)
    await asyncio.sleep(0)
    return result


@contextmanager
def virtual_time(clock: Clock, rng: random.Random) -> Iterator[list[Meter]]:
    """Let the engine live by ``clock`` within the block, without threads, and silently. Yield the meters that it makes."""
    meters: list[Meter] = []
    measured = functools.partial(Meter, clock=clock.time)

    def meter(*arguments: Any) -> Meter:
        meters.append(measured(*arguments))
        return meters[-1]

    def pause(attempt: int, retry_after: float | None = None) -> float:
        return max(rng.uniform(0.5, 1.0) * 2.0 ** (attempt - 1), retry_after or 0.0)

    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "time", clock.time)
            patch.setattr(time, "monotonic", clock.time)
            patch.setattr(asyncio, "to_thread", _in_a_step)
            # These hold the real clock, or the real random numbers, since they were imported.
            patch.setattr(engine, "Meter", meter)
            patch.setattr(ask, "ask", functools.partial(ask.ask, now=clock.time))
            patch.setattr(calls, "pause", pause)
            yield meters
    finally:
        logging.disable(disabled)
