"""For every server of the family and whatever happens to a task: a prompt is paid for once, and what is handed over is its answer."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.conversation.steps import Post, ReadHistory, Remember
from tests.unit.services import RECORDS, SURE, Attempt, Life, Service, Turn

SOAK_EXAMPLES = int(os.environ.get("SOAK_EXAMPLES") or 0)
"""Examples of each property, if not the usual number."""

KINDS = ["429", "500", "503", "504", "reset", "html", "stall", "cut", "error", "connect"]
_FAULT = st.tuples(st.sampled_from(KINDS), st.booleans()).map(
    lambda fault: (fault[0], {"cut": True, "error": True, "connect": False}.get(*fault))
)
_CRASHES: dict[str, Any] = {
    "crash_after": st.none() | st.integers(0, 12),
    "crash_at": st.sampled_from([None, None, "before", "taken", "learning", "answered"]),
    "gap": st.sampled_from([0.0, 1.0, 4.0, 9.0, 30.0, 400.0]),
}
_ATTEMPT = st.builds(
    Attempt,
    **_CRASHES,
    loses_result=st.booleans(),
    is_deferred=st.booleans(),
    restarts=st.lists(st.builds(Attempt, **_CRASHES), max_size=2),
)
ATTEMPTS = st.lists(_ATTEMPT, max_size=3).map(lambda attempts: [*attempts, Attempt()])
WITHIN: dict[str, Any] = {
    "lag": st.sampled_from([0.0, 0.5, 3.0, 6.0, 9.5]),
    "record": st.sampled_from(sorted(RECORDS)),
    "survives": st.booleans(),
    "echoes": st.booleans(),
    "takes": st.sampled_from([0.2, 5.0, 40.0]),
    "text": st.sampled_from(["stream", "history", "malformed"]),
    "has_conflicts": st.booleans(),
    "faults": st.lists(_FAULT, max_size=4),
    "earlier": st.integers(0, 3),
    "outages": st.lists(st.tuples(st.floats(0, 60), st.floats(0, 90)), max_size=2),
}
UNSETTLED: dict[str, Any] = WITHIN | {
    "window": st.none() | st.integers(1, 14),
    "foreign": st.lists(st.floats(-12, 90), max_size=3),
}


def check(life: Life) -> None:
    assert life.service.paid <= 1
    ours = {turn.answer for turn in life.service.turns if turn.is_ours}
    if life.service.window is not None and not life.service.earlier:
        # See test_a_window_that_shows_nothing_but_somebody_elses_turn: such answers are only known to exist.
        ours |= {turn.answer for turn in life.service.turns}
    assert all(turn.answer in ours for turn in life.answers)
    for before, step in zip([None, *life.steps], life.steps, strict=False):
        assert not isinstance(step, Post) or (isinstance(before, Remember) and before.is_intent)


@settings(deadline=None, max_examples=SOAK_EXAMPLES or 50)
@given(service=st.builds(Service, **UNSETTLED), attempts=ATTEMPTS)
def test_a_prompt_is_paid_for_once_and_its_answer_is_ours(service: Service, attempts: list[Attempt]) -> None:
    check(Life(service).run(attempts))


@settings(deadline=None, max_examples=SOAK_EXAMPLES or 37)
@given(
    service=st.builds(Service, **WITHIN | {"lag": st.floats(0, 4.5), "takes": st.floats(0.1, 5.0)}), attempts=ATTEMPTS
)
def test_a_history_that_is_written_when_a_turn_ends_is_no_more_than_late(
    service: Service, attempts: list[Attempt]
) -> None:
    service.written_at_end = service.survives = True
    check(Life(service).run(attempts))


@settings(deadline=None, max_examples=SOAK_EXAMPLES or 50)
@given(service=st.builds(Service, **WITHIN), attempts=ATTEMPTS, is_at_end=st.booleans())
def test_an_answer_that_the_server_shows_is_returned(
    service: Service, attempts: list[Attempt], is_at_end: bool
) -> None:
    service.survives = True
    service.faults = [fault for fault in service.faults if fault[0] != "error"][:2]
    if is_at_end:
        service.written_at_end, service.takes = True, min(service.takes, 0.2)
        service.lag = min(service.lag, 9.0)
    service.outages = [(start, min(end, start + 20.0)) for start, end in service.outages]
    life = Life(service).run([*attempts, Attempt(gap=200.0), Attempt(gap=200.0), Attempt()])
    check(life)
    assert life.answers, life.problems


@settings(deadline=None, max_examples=SOAK_EXAMPLES or 37)
@given(
    service=st.builds(Service, **WITHIN | {"record": st.sampled_from(sorted(SURE))}),
    attempts=ATTEMPTS,
)
def test_without_a_store_a_retry_knows_its_turn_by_the_last_prompt(service: Service, attempts: list[Attempt]) -> None:
    check(Life(service, has_store=False).run(attempts))


@settings(deadline=None, max_examples=SOAK_EXAMPLES or 25)
@given(
    service=st.builds(Service, **WITHIN | {"lag": st.floats(0, 20), "faults": st.lists(st.just(("cut", True)))}),
    attempts=st.lists(st.builds(Attempt, gap=st.floats(0, 30), is_deferred=st.booleans()), min_size=1, max_size=4),
)
def test_an_accepted_prompt_is_never_posted_again_however_late_the_history_is(
    service: Service, attempts: list[Attempt]
) -> None:
    check(Life(service).run(attempts))


@settings(deadline=None, max_examples=SOAK_EXAMPLES or 25)
@given(
    foreign=st.lists(st.floats(-12, 60), max_size=8),
    lag=st.sampled_from([0.0, 3.0, 9.0]),
    takes=st.floats(0.1, 20.0),
)
def test_a_session_that_others_keep_busy_is_asked_once_when_it_is_free(
    foreign: list[float], lag: float, takes: float
) -> None:
    service = Service(has_conflicts=True, foreign=sorted(foreign), lag=lag, takes=takes)
    life = Life(service).run([Attempt()])
    check(life)
    assert (service.paid, life.problems) == (1, [])


@pytest.mark.parametrize("free_at", [1012.0, 1017.0, 1024.0, 1060.0])
def test_a_late_trigger_asks_soon_after_a_long_turn_of_another_task(free_at: float) -> None:
    service = Service()
    service.turns.append(Turn("theirs", "not ours", 999.0, free_at, is_ours=False))
    late = Attempt(is_deferred=True, restarts=[Attempt(crash_after=0, gap=5.0)])
    life = Life(service).run([late])
    assert (service.paid, life.problems) == (1, [])
    assert service.turns[-1].starts < free_at + life.lag + 15.0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_properties_hold_for_random_examples() -> None:
    # A build always draws the same examples (tests/conftest.py). This search draws others, and prints how to repeat it.
    chosen = random.SystemRandom().randrange(10**9)
    again = {"HYPOTHESIS_PROFILE": "soak", "SOAK_EXAMPLES": os.environ.get("SOAK_EXAMPLES") or "1000"}
    command = ["-m", "pytest", "-q", "--show-capture=no", "-m", "not long", f"--hypothesis-seed={chosen}", __file__]
    print(*(f"{name}={value}" for name, value in again.items()), "python", *command)
    environment = {**os.environ, **again}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:]


@pytest.mark.parametrize("record", sorted(RECORDS))
@pytest.mark.parametrize("is_deferred", [False, True])
@pytest.mark.parametrize("lag", [0.0, 9.0])
def test_a_turn_without_a_fault_costs_one_post_and_a_worker_reads_nothing(
    record: str, is_deferred: bool, lag: float
) -> None:
    service = Service(record=record, lag=lag, takes=20.0)
    life = Life(service).run([Attempt(is_deferred=is_deferred)])
    assert [turn.answer for turn in life.answers] == ["ours 1"]
    assert service.posts == 1
    assert any(isinstance(step, ReadHistory) for step in life.steps) is is_deferred
    assert service.clock - 1000.0 < 21.0 + (lag + 6.0 if is_deferred else 0.0)


TAKEN = ("reset", True)


@pytest.mark.parametrize("crash_at", ["taken", "learning", "answered"])
@pytest.mark.parametrize("gap", [0.1, 2.9])
def test_a_trigger_that_is_replaced_within_a_moment_looks_before_it_posts(crash_at: str, gap: float) -> None:
    first = Attempt(crash_at=crash_at, gap=gap)
    life = Life(Service()).run([Attempt(is_deferred=True, restarts=[first])])
    assert (life.service.paid, [turn.answer for turn in life.answers]) == (1, ["ours 1"])


@pytest.mark.parametrize(
    ("service", "attempts", "has_store"),
    [
        # No store, and the recorded form may be ours but is not surely ours: another task's prompt could look like that.
        (lambda: Service(record="prefix", faults=[TAKEN]), [Attempt(crash_after=2), Attempt()], False),
        # No store, and somebody else's turn is the last one when the retry begins.
        (lambda: Service(faults=[TAKEN], foreign=[6.0]), [Attempt(crash_after=2, gap=20.0), Attempt()], False),
        # The history is later than the connection says, and nobody saw the prompt being taken.
        (lambda: Service(lag=20.0, faults=[TAKEN]), [Attempt()], True),
        # It is written when a turn ends, and the turn is longer than that.
        (lambda: Service(written_at_end=True, takes=15.0, faults=[TAKEN], has_conflicts=False), [Attempt()], True),
    ],
)
def test_the_documented_limits_hold(service: Callable[[], Service], attempts: list[Attempt], has_store: bool) -> None:
    assert Life(service(), has_store=has_store).run(attempts).service.paid == 2


def test_a_window_with_only_another_clients_turn_is_mistaken_for_an_unused_session() -> None:
    # Nothing in such a history tells that it lost its beginning, and the end of ours was seen.
    service = Service(window=4, echoes=False, foreign=[1.0])
    life = Life(service).run([Attempt(is_deferred=True)])
    assert life.service.paid == 1
    assert not life.answers[0].answer.startswith("ours")
    with_beginning = Life(Service(window=4, echoes=False, foreign=[1.0], earlier=1)).run([Attempt(is_deferred=True)])
    assert (with_beginning.service.paid, with_beginning.answers) == (1, [])


def test_a_busy_session_keeps_a_turn_that_is_longer_than_the_lag_from_being_paid_twice() -> None:
    life = Life(Service(written_at_end=True, takes=40.0, faults=[TAKEN])).run([Attempt()])
    assert (life.service.paid, [turn.answer for turn in life.answers]) == (1, ["ours 1"])


def test_without_a_store_an_equal_prompt_of_an_earlier_task_is_mistaken_for_ours() -> None:
    service = Service(earlier=1, faults=[("connect", False)] * 3)
    service.turns[0].prompt = '  Is "a < b" & it\u2019s \ufb01ne,\u200b caf\u00e9 or e\u0301?\x07 Tell me, please.\n'
    life = Life(service, has_store=False).run([Attempt(), Attempt()])
    assert [turn.answer for turn in life.answers] == ["old 0"]
    with_store = Service(earlier=1, faults=[("connect", False)] * 3)
    assert Life(with_store).run([Attempt(), Attempt()]).answers[0].answer == "ours 4"
    assert isinstance(life.problems[0], errors.LlamaCloudConnectionError)
