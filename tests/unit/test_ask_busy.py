"""A session that is busy with another turn: how long an attempt waits, and what it knows afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.conversation.question import Trace
from airflow_provider_llamachat.conversation.steps import Pause, Post
from tests.unit.scripted import BROKEN, BUSY, CONFLICT, DOUBT, GONE, LAG, LOST, OURS, THEIRS, World, asked


def test_a_prompt_waits_until_the_sessions_other_turn_has_ended() -> None:
    world = World([BUSY] * 4, [(0.0, [asked("Something else")]), (9.0, THEIRS)])
    assert world.run(max_posts=1).answer == "a"
    assert [step.position for step in world.of(Post)] == [0, 1, 1, 1, 1]
    assert [step.seconds for step in world.of(Pause)] == [1.0, 1.5, 2.25, 3.375]
    # A later attempt looks for the turn behind the other one.
    assert (world.kept.baseline, world.kept.answered) == (1, True)


def test_a_busy_session_is_waited_for_as_long_as_the_server_asks() -> None:
    world = World([errors.SessionBusyError("busy", status=409, retry_after=20.0)])
    assert world.run().answer == "a"
    assert [step.seconds for step in world.of(Pause)] == [20.0]


def test_a_session_that_stays_busy_is_an_error_after_which_a_retry_asks() -> None:
    busy = errors.SessionBusyError("busy", status=409, request_id="req-1")
    world = World([busy] * 1000, [(0.0, [asked("Something else")])])
    problem = world.fails(errors.SessionBusyError, deadline=60.25)
    assert (world.clock, problem.retryable) == (60.25, True)
    assert (problem.status, problem.request_id, problem.session_id) == (409, "req-1", "ses-1")
    assert str(problem) == (
        "The session was busy with another turn until turn_timeout passed, so the prompt was not accepted. A retry asks. Raise "
        "turn_timeout, or run fewer tasks at once in a session. Session: ses-1. Cause: busy"
    )
    assert not world.kept.is_open
    assert max(step.seconds for step in world.of(Pause)) == 5.0


def test_a_conflict_without_another_turn_fails_for_good_when_the_history_had_its_time() -> None:
    conflict = errors.ConflictError("no", status=409, request_id="req-1")
    world = World([conflict] * 1000, clock=1000.0)
    problem = world.fails(errors.RequestRefusedError, deadline=1600.0)
    assert LAG <= world.clock - 1000.0 < 2 * LAG
    assert (problem.status, problem.request_id, problem.session_id) == (409, "req-1", "ses-1")
    assert not problem.retryable
    assert str(problem) == (
        "LlamaCloud refused the prompt, although no other turn is running in the session. See the cause. Session: ses-1. Cause: no"
    )
    once = World([conflict])
    once.fails(errors.RequestRefusedError, lag=0.0)
    assert (once.posts, once.reads, once.clock) == (1, 1, 1.0)


def test_the_log_says_once_that_a_session_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    World([BUSY]).run()
    assert "busy" in caplog.text, "at the first refusal"
    caplog.clear()
    World([BUSY] * 3).run()
    waiting = [record.getMessage() for record in caplog.records if "busy" in record.getMessage()]
    assert waiting == ["Session ses-1 is busy with another turn. Waiting until it has ended."]


def test_a_short_wish_of_the_server_does_not_lengthen_the_pause() -> None:
    world = World([errors.SessionBusyError("busy", status=409, retry_after=0.0)])
    world.run(poll=0.25)
    assert [step.seconds for step in world.of(Pause)] == [0.25]


def test_a_conflict_while_the_history_shows_another_turn_is_waited_for() -> None:
    world = World([CONFLICT] * 12, [(0.0, [asked("Something else")]), (40.0, THEIRS)])
    assert world.run().answer == "a"
    assert world.clock > 4 * LAG


def test_a_conflict_of_a_server_without_a_lag_is_waited_for_if_the_history_shows_another_turn() -> None:
    world = World([CONFLICT] * 3, [(0.0, [asked("Something else")]), (4.0, THEIRS)])
    assert world.run(lag=0.0).answer == "a"


@pytest.mark.parametrize(("outcomes", "trace"), [([BUSY] * 12, DOUBT), ([LOST, *[BUSY] * 12], Trace(1))])
def test_an_attempt_in_doubt_waits_for_a_turn_that_began_before_its_own_could(
    outcomes: list[Any], trace: Trace
) -> None:
    # The turn that the history shows explains why the session is busy, so no earlier post of ours is running.
    running = [asked("Something else")]
    world = World(list(outcomes), [(0.0, running), (400.0, THEIRS)])
    trace = replace(trace, baseline=1)
    assert world.run(trace).answer == "a"
    assert world.clock > 2 * 60.0, "longer than a turn may stop growing"
    assert (world.kept.baseline, world.kept.answered) == (1, True)


def test_a_busy_session_whose_history_cannot_be_read_is_still_waited_for() -> None:
    world = World([BUSY] * 3, [(0.0, BROKEN), (2.0, THEIRS)])
    assert world.run().answer == "a"
    gone = World([BUSY], [(0.0, GONE)])
    assert gone.fails(errors.NotFoundError) is GONE
    empty = World([BUSY], [(0.0, [])], job_metadata={"turns": 1})
    assert empty.run().answer == "a"
    assert [step.position for step in empty.of(Post)] == [0, 0]


def test_a_server_that_refuses_a_prompt_that_it_accepted_is_not_paid_again() -> None:
    world = World([BUSY], [(0.0, []), (0.5, OURS)])
    assert (world.run().answer, world.posts) == ("a", 1)


def test_a_doubtful_post_before_another_turn_is_told_from_it() -> None:
    later = World([BUSY], [(0.0, []), (10.5, THEIRS)])
    assert later.run(DOUBT).answer == "a"
    assert [step.position for step in later.of(Post)] == [0, 1]


@pytest.mark.parametrize(("outcomes", "trace"), [([LOST, BUSY], Trace(0)), ([BUSY], DOUBT)])
def test_a_busy_session_after_a_doubtful_post_may_be_busy_with_it(outcomes: list[Any], trace: Trace) -> None:
    world = World(list(outcomes), [(0.0, []), (50.0, OURS)])
    assert (world.run(trace).answer, world.posts) == ("a", len(outcomes))
    silent = World(list(outcomes))
    assert silent.fails(errors.ConflictError, trace) is BUSY
    assert silent.kept == Trace(0, intended_at=LAG)
