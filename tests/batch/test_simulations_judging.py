"""The judge of the simulations finds each promise that is broken on purpose, and the loop ends what it is killed in."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_llamachat.batch import engine, records, sessions
from airflow_provider_llamachat.batch.budget import Budget
from airflow_provider_llamachat.batch.lanes import Lanes
from airflow_provider_llamachat.batch.progress import Meter
from airflow_provider_llamachat.batch.sessions import Preparer
from airflow_provider_llamachat.conversation.history import count_turns
from airflow_provider_llamachat.conversation.question import Trace
from airflow_provider_llamachat.exceptions import ServerError
from tests.batch.simulation.judging import judge
from tests.batch.simulation.lives import live
from tests.batch.simulation.loop import Clock, DeadlockError, EndlessError, KilledError, run


def forgets(patch: pytest.MonkeyPatch) -> None:
    """Each attempt asks as if it was the first."""
    patch.setattr(sessions, "begin", lambda session, *_, **__: Trace(count_turns(session.events)))


def does_not_look(patch: pytest.MonkeyPatch) -> None:
    """What an earlier attempt may have asked is not looked for."""
    prepare = Preparer.prepare

    async def prepare_new(self: Preparer, item: Any) -> Any:
        if self.is_in_doubt(item.position):
            raise ServerError("The session cannot be read.")
        return await prepare(self, item)

    patch.setattr(Preparer, "prepare", prepare_new)


def mixes_up(patch: pytest.MonkeyPatch) -> None:
    """Answers land in the lines of other prompts."""
    made = records.line

    def swapped(*arguments: Any, **options: Any) -> Any:
        right = made(*arguments, **options)
        return right | {"answer": right["answer"] and right["answer"].replace("number 01", "number 02")}

    patch.setattr(records, "line", swapped)


def never_stops(patch: pytest.MonkeyPatch) -> None:
    """The budget has always a place."""
    patch.setattr(Budget, "reserve", lambda self, key: True)


def hurries(patch: pytest.MonkeyPatch) -> None:
    """Prompts that share a session do not wait for each other."""
    patch.setattr(engine, "Lanes", lambda items, scope, *, shared: Lanes(items, scope, shared=False))


def miscounts(patch: pytest.MonkeyPatch) -> None:
    """A prompt that is retried counts twice."""
    patch.setattr(Meter, "reopen", lambda self, count, usages=(): None)


def crashes(patch: pytest.MonkeyPatch) -> None:
    """An error that is not one of the provider's."""
    patch.setattr(Preparer, "saw", lambda self, prepared, turn: vars(self)["missing"])


@pytest.mark.parametrize(
    ("sabotage", "words"),
    [
        (forgets, "paid twice"),
        (does_not_look, "lost: "),
        (mixes_up, "wrong answer"),
        (never_stops, "over budget"),
        (hurries, "sent into a busy session"),
        (miscounts, "the meter counted"),
        (crashes, "ended by KeyError"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_promise_is_found(
    sabotage: Callable[[pytest.MonkeyPatch], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    assert any(words in violation for seed in range(60) for violation in judge(live(seed)).violations)


async def _wait_for_ever() -> None:
    await asyncio.Event().wait()


async def _go_on(ended: list[str], name: str, started: list[str] | None = None) -> None:
    if started is not None:
        started.append(name)
    try:
        for _ in itertools.count():
            await asyncio.sleep(0)
    finally:
        ended.append(name)


def test_a_deadlock_and_an_endless_loop_are_found() -> None:
    with pytest.raises(DeadlockError):
        run(_wait_for_ever(), Clock(), None, lambda: None)
    with pytest.raises(EndlessError):
        run(_go_on([], "endless"), Clock(), None, lambda: None)


@pytest.mark.parametrize("step", [2, 3, 50])
def test_a_kill_ends_every_task_after_it_was_told(step: int) -> None:
    started: list[str] = []
    ended: list[str] = []

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(_go_on(ended, f"task {number}", started))

    with pytest.raises(KilledError):
        run(work(), Clock(), step, functools.partial(ended.append, "killed"))
    assert ended[0] == "killed"
    assert set(ended[1:]) == set(started)
    assert step == 2 or len(started) == 3


def test_time_passes_in_an_instant() -> None:
    clock = Clock(5.0)

    async def sleep() -> float:
        await asyncio.sleep(1e6)
        return clock.now

    assert run(sleep(), clock, None, lambda: None) == pytest.approx(1e6 + 5.0)
