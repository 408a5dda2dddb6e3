"""The ends of an attempt: deadlines, failures, asking again, histories that tell nothing, streams that lost something."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.conversation.interruption import interrupted, unread
from airflow_provider_llamachat.conversation.question import Trace
from airflow_provider_llamachat.conversation.steps import Outcome, Pause, Post, ReadHistory, Remember
from airflow_provider_llamachat.models import ChatTurn, Usage
from tests.unit.scripted import (
    BROKEN,
    BUSY,
    CUT,
    DOUBT,
    ENDED,
    GONE,
    LAG,
    LOST,
    MOVED,
    NO_ROUTE,
    OURS,
    QUESTION,
    SLOW,
    TAKEN,
    THEIRS,
    World,
    asked,
    stop,
    text,
)


def test_the_deadline_ends_the_waiting() -> None:
    world = World([CUT], [(0.0, [asked()])])
    assert world.interrupted(deadline=12.0) == ("deadline", True)
    assert (world.clock, world.at[-1]) == (12.0, 12.0)


def test_after_the_deadline_a_visible_answer_is_adopted_and_nothing_is_asked() -> None:
    assert World(shown=[(0.0, OURS)], clock=99.0).run(DOUBT, deadline=1.0).answer == "a"
    for trace in (Trace(0), DOUBT):
        world = World(clock=99.0)
        problem = world.fails(errors.ChatTurnInterruptedError, trace, deadline=99.0 - 98.0)
        assert (problem.accepted, world.posts) == (False, 0)
        assert problem.reason == "unasked"
        assert "A retry of the task asks." in str(problem)
        assert "billed" not in str(problem)
        assert world.kept == Trace(0)


def test_nothing_is_posted_at_the_deadline() -> None:
    assert World(clock=1.0).interrupted(Trace(0), deadline=1.0) == ("unasked", False)


@pytest.mark.parametrize("error", ["model down", None])
def test_a_failed_turn_raises_the_servers_reason_and_its_usage(error: str | None) -> None:
    failed = ChatTurn(session_id="ses-1", prompt="q", finished=True, is_error=True, error=error, usage=Usage(turns=1))
    own, found = World([failed]), World(shown=[(0.0, [asked(), stop(error or "")])])
    for world, trace in ((own, Trace(0)), (found, DOUBT)):
        problem = world.fails(errors.ChatTurnFailedError, trace)
        assert f"with an error: {error or 'it gave no reason'}." in str(problem)
        assert problem.usage["turns"] == 1
        assert problem.session_id == "ses-1"
        assert world.kept.answered
    assert own.reads == 0


def test_ask_again_posts_once_more_at_the_end_of_the_session_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    world = World(shown=[(0.0, [asked(), *THEIRS])])
    assert world.run(TAKEN, ask_again=True).answer == "a"
    assert [post.position for post in world.of(Post)] == [2]
    assert "may already have been billed" in caplog.text
    assert [type(step) for step in world.steps[-4:]] == [ReadHistory, Remember, Post, Remember]


@pytest.mark.parametrize(
    ("history", "reason"),
    [([asked()], "stalled"), ([asked(), *THEIRS], "overtaken"), (THEIRS, "foreign"), ([], "vanished")],
)
def test_only_ask_again_repeats_an_interrupted_turn(history: list[dict[str, Any]], reason: str) -> None:
    assert World(shown=[(0.0, history)]).interrupted(TAKEN)[0] == reason
    world = World(shown=[(0.0, history)])
    assert (world.run(TAKEN, ask_again=True).answer, world.posts) == ("a", 1)


@pytest.mark.parametrize("shown", [BROKEN, [asked()]])
def test_ask_again_does_not_repeat_a_turn_that_may_still_finish(shown: Any) -> None:
    world = World(shown=[(0.0, shown)])
    world.interrupted(TAKEN, ask_again=True, deadline=5.0 if isinstance(shown, list) else 600.0)
    assert world.posts == 0


def test_ask_again_does_not_ask_a_third_time() -> None:
    twice = World(shown=[(0.0, [asked(), asked()])])
    twice.interrupted(TAKEN, ask_again=True)
    own = World([CUT], [(0.0, [asked()])])
    own.interrupted(TAKEN, ask_again=True)
    first = World([CUT], [(0.0, [asked()])])
    first.interrupted(ask_again=True)
    assert (twice.posts, own.posts, first.posts) == (0, 1, 1)


def test_acceptance_is_kept_when_the_session_is_busy_after_asking_again() -> None:
    world = World([BUSY], [(0.0, THEIRS)])
    assert world.fails(errors.ConflictError, TAKEN, ask_again=True) is BUSY
    assert (world.posts, world.kept.accepted) == (1, True)


def test_a_history_that_lost_turns_does_not_move_the_place_of_ours() -> None:
    world = World([BUSY, BUSY], [(0.0, [])])
    world.run(Trace(2))
    assert [step.position for step in world.of(Post)] == [2, 2, 2]


@pytest.mark.parametrize("ends", [OURS, [asked()]])
def test_waiting_continues_while_the_history_is_unavailable(ends: Any) -> None:
    world = World([CUT], [(0.0, BROKEN), (2.0, [asked()]), (4.0, LOST), (9.0, ends)])
    if ends == OURS:
        assert world.run().answer == "a"
    else:
        assert world.interrupted() == ("stalled", True)
    assert world.posts == 1


def test_a_turn_whose_history_stays_unreadable_is_interrupted() -> None:
    world = World([LOST], [(0.0, BROKEN)])
    problem = world.fails(errors.ChatTurnInterruptedError)
    assert (problem.reason, problem.accepted, world.posts) == ("unreadable", False, 1)
    assert "Cause: boom" in str(problem)
    assert 60.0 <= world.clock <= 66.0
    assert world.kept.is_open
    assert World(shown=[(0.0, BROKEN)]).interrupted(TAKEN) == ("unreadable", True)
    assert World(shown=[(0.0, [asked()]), (1.0, BROKEN)]).interrupted(DOUBT) == ("unreadable", True)


def test_without_any_knowledge_of_a_turn_the_history_error_is_raised() -> None:
    world = World(shown=[(0.0, BROKEN)])
    assert world.fails(errors.ServerError, DOUBT) is BROKEN
    assert world.posts == 0


@pytest.mark.parametrize("problem", [GONE, MOVED])
def test_a_history_that_is_permanently_unavailable_is_not_waited_for(problem: errors.LlamaCloudError) -> None:
    world = World([LOST], [(0.0, problem)])
    assert world.fails(type(problem)) is problem
    assert (world.posts, world.reads, world.clock) == (1, 1, 0.0)


def test_an_empty_history_of_a_session_that_was_asked_before_proves_nothing() -> None:
    world = World([LOST], job_metadata={"turns": 1})
    problem = world.fails(errors.ChatTurnInterruptedError)
    assert (problem.reason, world.posts) == ("unreadable", 1)
    assert "its history is empty" in str(problem)


def test_a_history_that_lost_turns_proves_nothing() -> None:
    for trace in (Trace(2, intended_at=0.0), Trace(1, intended_at=0.0, anchor="another begin")):
        world = World(shown=[(0.0, THEIRS)])
        problem = world.fails(errors.ChatTurnInterruptedError, trace)
        assert (problem.reason, world.posts) == ("unreadable", 0)
        assert "shows 1" in str(problem)
        assert f"{trace.baseline} turns" in str(problem)


def test_an_accepted_prompt_is_found_at_the_end_of_a_truncated_history() -> None:
    assert World(shown=[(0.0, OURS)]).run(Trace(5, intended_at=0.0, accepted=True)).answer == "a"


BLANK = ChatTurn(session_id="ses-1", prompt="q", answer=" \n", finished=True)
HALF = Outcome(Trace(0), ChatTurn(session_id="ses-1", prompt="q", answer="al", finished=True), is_damaged=True)
WHOLE = [asked(), text("all of it"), stop()]


@pytest.mark.parametrize("outcome", [BLANK, HALF])
@pytest.mark.parametrize("at", [0.0, 9.9])
def test_text_that_the_stream_lost_is_read_from_the_history(outcome: Any, at: float) -> None:
    world = World([outcome], [(0.0, BROKEN), (at, WHOLE)])
    assert (world.run().answer, world.posts, world.kept.answered) == ("all of it", 1, True)
    assert world.clock <= LAG


@pytest.mark.parametrize(
    "shown", [[], THEIRS * 2, BROKEN, [asked(), stop("x")], [asked(), text(" "), stop()], [asked()]]
)
def test_a_finished_turn_is_returned_even_if_the_history_does_not_complete_it(shown: Any) -> None:
    world = World([HALF], [(0.0, shown)])
    assert world.run().answer == "al"
    # A history that cannot be read says nothing, so it gets more time.
    assert (world.posts, world.clock <= (LAG + 31.0 if shown is BROKEN else LAG)) == (1, True)


@pytest.mark.parametrize("shown", [[], THEIRS * 2, BROKEN, GONE, MOVED, [asked()], [asked(), text("all")]])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_turn_without_text_that_the_history_does_not_complete_is_left_to_a_retry(
    shown: Any, is_damaged: bool
) -> None:
    world = World([replace(HALF, turn=BLANK, is_damaged=is_damaged)], [(0.0, shown)])
    problem = world.fails(errors.ChatTurnInterruptedError)
    assert (problem.reason, problem.accepted, world.kept.answered, world.posts) == ("unread", True, True, 1)
    cause = shown if isinstance(shown, errors.LlamaCloudError) else None
    assert str(problem).endswith(f" Session: ses-1. Cause: {cause}" if cause else " Session: ses-1.")
    again = World(shown=[(0.0, shown), (5.0, WHOLE)], clock=5.0)
    assert (again.run(world.kept).answer, again.posts) == ("all of it", 0)


def test_a_turn_that_has_no_text_in_the_history_either_is_handed_over() -> None:
    world = World([BLANK], [(0.0, [asked(), stop()])])
    assert (world.run().answer, world.clock) == (BLANK.answer, 0.0)


def test_a_history_that_is_unavailable_for_a_moment_costs_no_answer_although_no_lag_is_expected() -> None:
    world = World([BLANK], [(0.0, BROKEN), (5.0, WHOLE)])
    assert (world.run(lag=0.0).answer, world.posts) == ("all of it", 1)


def test_the_history_is_used_even_if_the_stream_has_more_text() -> None:
    garbled = replace(HALF, turn=ChatTurn(session_id="ses-1", prompt="q", answer="caf\ufffd\ufffd", finished=True))
    assert World([garbled], [(0.0, [asked(), text("caf\u00e9"), stop()])]).run().answer == "caf\u00e9"


def test_a_deadline_does_not_lose_an_answer_that_the_history_shows_late() -> None:
    world = World([BLANK], [(0.0, []), (9.0, WHOLE)])
    assert (world.run(deadline=1.0).answer, world.posts, world.clock) == ("all of it", 1, 9.0)


def test_completing_a_turn_ends_at_once_if_it_cannot_succeed_and_at_the_end_of_the_lag() -> None:
    hopeless = World([HALF], [(0.0, GONE)])
    assert (hopeless.run().answer, hopeless.reads, hopeless.clock) == ("al", 1, 0.0)
    short = World([HALF])
    assert (short.run(deadline=4.0).answer, short.clock) == ("al", LAG)
    at_once = World([HALF])
    assert (at_once.run(lag=0.0).answer, at_once.reads, at_once.clock) == ("al", 1, 0.0)
    assert {step.seconds for step in short.of(Pause)} == {1.0}


def test_a_failed_turn_without_text_is_not_completed() -> None:
    failed = ChatTurn(session_id="ses-1", prompt="q", finished=True, is_error=True)
    world = World([replace(HALF, turn=failed)], [(0.0, WHOLE)])
    world.fails(errors.ChatTurnFailedError)
    assert world.reads == 0


def test_an_outcome_without_a_reason_leaves_doubt() -> None:
    world = World([Outcome(Trace(0))], [(0.0, OURS)])
    assert (world.run().answer, world.posts) == ("a", 1)


@pytest.mark.parametrize("shown", [[], BROKEN, [asked()], THEIRS * 2])
def test_the_time_for_reading_an_answer_is_not_the_time_of_its_turn(shown: Any) -> None:
    world = World(shown=[(0.0, shown)])
    assert world.interrupted(ENDED, deadline=5.0) == ("unread", True)
    assert World([LOST], [(0.0, shown)]).interrupted(deadline=5.0)[0] == "deadline"


def test_a_turn_that_ended_did_not_stop_partway() -> None:
    problem = World(shown=[(0.0, [asked()])]).fails(errors.ChatTurnInterruptedError, ENDED)
    assert problem.reason == "unread"
    assert str(problem) == (
        "The turn ended, but its answer could not be read from the session's history in time. A retry of the task reads it again. "
        "Session: ses-1."
    )


def test_the_reason_for_waiting_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    World([LOST], [(0.0, BROKEN), (9.0, [asked()]), (30.0, OURS)]).run()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "silence Reading the session's history in 0.0 s.",
        "boom Reading the history again until the turn's time is over.",
        "Session ses-1 is still answering this prompt. Waiting for it.",
        "Session ses-1 already holds the answer to this prompt. Using it.",
    ]
    caplog.clear()
    World([NO_ROUTE]).run()
    assert [record.getMessage() for record in caplog.records] == ["no route Retrying in 1.0 s."]


def test_the_error_of_a_stopped_task_says_what_is_known() -> None:
    problem = interrupted(QUESTION, "killed", None, TAKEN)
    assert (problem.reason, problem.accepted, problem.session_id) == ("killed", True, "ses-1")
    assert "was stopped" in str(problem)
    assert str(problem) == (
        "The task was stopped while it waited for the turn. The prompt was not sent again, because it may already have been billed. A "
        "retry looks for the answer first. With on_interrupted='ask_again', it asks once more if there is none. Session: ses-1."
    )


PROXY = errors.PermissionDeniedError("no access", status=403)


@pytest.mark.parametrize(
    ("problem", "trace", "is_in_doubt"),
    [
        (PROXY, DOUBT, True),
        (MOVED, DOUBT, True),
        (errors.InvalidArgumentError("bad id"), TAKEN, True),
        (PROXY, Trace(0), False),
        (GONE, TAKEN, False),
        (BROKEN, TAKEN, False),
        (LOST, TAKEN, False),
    ],
)
def test_a_refused_history_leaves_a_turn_in_doubt(
    problem: errors.LlamaCloudError, trace: Trace, is_in_doubt: bool
) -> None:
    found = unread(QUESTION, trace, problem)
    if not is_in_doubt:
        assert found is problem
        return
    assert isinstance(found, errors.ChatTurnInterruptedError)
    assert (found.reason, found.accepted, found.session_id) == ("unreadable", trace.accepted, "ses-1")
    assert found.retryable is problem.retryable
    assert str(found).endswith(f"Session: ses-1. Cause: {problem}")


def test_an_interrupted_turn_names_the_problem_before_it() -> None:
    slow = World([SLOW]).fails(errors.ChatTurnInterruptedError, deadline=5.0)
    assert str(slow).startswith("turn_timeout passed before")
    late = World([LOST], takes=30.0).fails(errors.ChatTurnInterruptedError, deadline=40.0)
    assert (late.reason, "Cause: silence" in str(late)) == ("unasked", True)
    foreign = World([LOST], [(0.0, THEIRS)]).fails(errors.ChatTurnInterruptedError)
    assert "Cause: silence" in str(foreign)
    nothing = World([NO_ROUTE] * 3).fails(errors.ChatTurnInterruptedError, deadline=1.0)
    assert (nothing.reason, "A retry of the task asks. Session: ses-1. Cause: no route" in str(nothing)) == (
        "unasked",
        True,
    )


@pytest.mark.parametrize(("status", "is_final"), [(299, False), (300, True), (399, True), (400, False)])
def test_a_redirect_is_final(status: int, is_final: bool) -> None:
    world = World([errors.LlamaCloudProtocolError("moved", status=status)], [(0.0, OURS)])
    if is_final:
        world.fails(errors.LlamaCloudProtocolError)
    else:
        world.run()
    assert world.posts == 1


@pytest.mark.parametrize(("problem", "is_taken"), [(CUT, True), (BUSY, False)])
def test_the_time_of_the_last_loss_counts(problem: errors.LlamaCloudError, is_taken: bool) -> None:
    world = World([problem], [(0.0, [] if not is_taken else [asked()])], takes=50.0)
    world.fails(errors.LlamaCloudError, TAKEN if is_taken else DOUBT, ask_again=is_taken)
    after = world.steps[world.steps.index(world.of(Post)[0]) + 1]
    posted = world.at[world.steps.index(world.of(Post)[0])]
    assert after.trace.intended_at == posted + 50.0


@pytest.mark.parametrize(("history", "position"), [(THEIRS, 1), (THEIRS * 2, 2), ([asked()], 1), ([], 0)])
def test_asking_again_goes_to_the_end_of_the_session(history: list[dict[str, Any]], position: int) -> None:
    world = World(shown=[(0.0, history)])
    world.run(TAKEN, ask_again=True)
    assert [post.position for post in world.of(Post)] == [position]


def test_a_stream_is_completed_from_the_only_turn_at_its_position_whatever_its_prompt() -> None:
    unknown = [asked("#1"), text("all of it"), stop()]
    world = World([HALF], [(0.0, unknown)])
    assert (world.run().answer, world.clock) == ("all of it", LAG)
    theirs_first = World([HALF], [(0.0, unknown), (8.0, [*unknown, *OURS])])
    assert theirs_first.run().answer == "a"
    assert theirs_first.clock < LAG
    later = World([HALF], [(0.0, []), (24.0, WHOLE)], clock=20.0)
    assert (later.run().answer, later.clock) == ("all of it", 24.0)


def test_an_empty_history_is_the_reason_where_nothing_else_is_known() -> None:
    problem = World(job_metadata={"turns": 1}).fails(errors.LlamaCloudProtocolError, DOUBT)
    assert problem.session_id == "ses-1"


def test_what_costs_money_or_text_is_logged_in_full(caplog: pytest.LogCaptureFixture) -> None:
    World([HALF]).run(lag=0.0)
    World(shown=[(0.0, [asked()])]).run(TAKEN, ask_again=True, stall=1.0)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == [
        "The answer's stream in session ses-1 was incomplete. Reading the history.",
        "The history of session ses-1 does not hold the turn. Using the stream's.",
    ]
    assert lines[-1].startswith("Asking once more in session ses-1, because this task may (it was cleared, or has ")
    assert ". The interrupted turn may already have been billed. The answer stopped partway: " in lines[-1]
