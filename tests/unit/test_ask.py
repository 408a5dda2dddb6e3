"""The life of a turn, step by step: what is read, posted, waited for and remembered, and in which order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.conversation.question import Trace, fingerprint
from airflow_provider_llamachat.conversation.steps import Pause, Post, ReadHistory, Remember
from tests.unit.scripted import (
    BROKEN,
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


def test_a_first_attempt_that_works_is_three_steps() -> None:
    world = World(clock=5.0)
    assert world.run(Trace(2, anchor="x")).answer == "a"
    trace = Trace(2, intended_at=5.0, anchor="x")
    intent = replace(trace, intended_at=600.0)
    done = replace(trace, accepted=True, answered=True)
    assert world.steps == [Remember(intent, is_intent=True), Post(trace, 2), Remember(done)]


def test_a_lost_process_may_have_posted_until_it_was_lost() -> None:
    # The post waited for 30 seconds, for the rate limit or a connection. Then the process was lost, and its retry began at once.
    first = World()
    first.run()
    intent = first.of(Remember)[0].trace
    retry = World(shown=[(0.0, []), (32.0 + LAG - 0.1, OURS)], clock=32.0)
    assert (retry.run(intent).answer, retry.posts) == ("a", 0)


def test_what_the_history_already_holds_is_adopted_with_the_indexes_of_the_question() -> None:
    world = World(shown=[(0.0, OURS)])
    turn = world.run(DOUBT)
    assert (turn.answer, turn.position, turn.index_ids, world.posts, world.reads) == ("a", 0, ["idx"], 0, 1)
    assert world.kept == replace(ENDED, recorded=fingerprint(QUESTION.prompt))


def test_a_prompt_that_the_history_does_not_show_in_its_time_is_posted() -> None:
    world = World()
    assert world.run(DOUBT).answer == "a"
    assert (world.posts, world.clock) == (1, LAG)
    assert world.at[world.steps.index(world.of(Post)[0])] == LAG


@pytest.mark.parametrize(("intended", "waits"), [(0.0, 0.0), (95.0, 5.0), (100.0, 10.0), (700.0, 10.0)])
def test_a_later_attempt_counts_the_lag_from_the_remembered_intent(intended: float, waits: float) -> None:
    world = World(clock=100.0)
    world.run(Trace(0, intended_at=intended))
    assert world.clock == pytest.approx(100.0 + waits)
    assert world.posts == 1


@pytest.mark.parametrize("lag", [0.0, 3.0, 20.0])
def test_a_lost_prompt_that_shows_within_the_lag_since_the_loss_is_not_posted_again(lag: float) -> None:
    late = World([LOST], [(0.0, []), (60.0 + lag, OURS)], takes=60.0)
    assert late.run(lag=lag).answer == "a"
    absent = World([LOST], takes=60.0)
    absent.run(lag=lag)
    assert (late.posts, absent.posts) == (1, 2)
    assert absent.clock == pytest.approx(120.0 + lag)


def test_the_history_is_polled_with_a_back_off() -> None:
    world = World([LOST])
    world.run(lag=60.0)
    pauses = [step.seconds for step in world.of(Pause)]
    assert pauses[:4] == [1.0, 1.5, 2.25, 3.375]
    assert set(pauses[4:-1]) == {5.0}
    assert sum(pauses) == pytest.approx(60.0)


def test_the_history_is_read_at_least_four_times_within_the_stall_time() -> None:
    world = World([CUT], [(0.0, [asked()])])
    world.interrupted(stall=2.0)
    assert {step.seconds for step in world.of(Pause)} <= {0.5}


@pytest.mark.parametrize("problem", [NO_ROUTE, SLOW, BROKEN, LOST, errors.LlamaCloudProtocolError("html", status=200)])
def test_what_was_not_accepted_is_posted_again(problem: errors.LlamaCloudError) -> None:
    world = World([problem, problem])
    assert world.run().answer == "a"
    assert world.posts == 3
    assert (world.reads == 0) == (problem is NO_ROUTE)


@pytest.mark.parametrize("problem", [NO_ROUTE, SLOW, BROKEN, LOST])
def test_the_number_of_posts_is_limited_and_none_is_left_in_doubt(problem: errors.LlamaCloudError) -> None:
    world = World([problem] * 9)
    assert world.fails(type(problem)) is problem
    assert (world.posts, world.kept) == (3, Trace(0))


def test_there_is_no_pause_after_the_last_post_that_was_not_accepted() -> None:
    world = World([NO_ROUTE] * 3)
    world.fails(errors.LlamaCloudConnectionError)
    assert world.clock == 3.0


def test_after_a_429_one_read_of_the_history_decides() -> None:
    world = World([SLOW])
    world.run()
    assert (world.reads, world.of(Pause)[0].seconds) == (1, 10.0)
    patient = World([errors.RateLimitError("slow", retry_after=30.0, status=429)])
    patient.run()
    assert [step.seconds for step in patient.of(Pause)] == [30.0]
    taken = World([SLOW], [(0.0, []), (3.0, OURS)])
    assert (taken.run().answer, taken.posts) == ("a", 1)


def test_an_error_status_causes_a_pause_and_a_lost_connection_an_immediate_read() -> None:
    status, lost = World([BROKEN], [(0.0, OURS)]), World([LOST], [(0.0, OURS)])
    status.run()
    lost.run()
    assert (status.clock, lost.clock) == (1.0, 0.0)


def test_a_pause_ends_with_the_deadline() -> None:
    world = World([errors.RateLimitError("slow", retry_after=900.0, status=429)])
    assert world.interrupted(deadline=20.0) == ("unasked", False)
    assert (world.clock, world.posts) == (20.0, 1)


@pytest.mark.parametrize("problem", [errors.UnprocessableError("bad", status=422), MOVED])
def test_a_refusal_is_raised_at_once_and_withdraws_the_post(problem: errors.LlamaCloudError) -> None:
    world = World([problem])
    assert world.fails(type(problem)) is problem
    assert (world.posts, world.reads, world.kept) == (1, 0, Trace(0))


def test_a_running_turn_is_waited_for_as_long_as_it_grows() -> None:
    growing = [(0.0, [asked()]), (30.0, [asked(), text("x")]), (60.0, [asked(), text("x"), text("y")]), (80.0, OURS)]
    world = World([CUT], growing)
    assert world.run(stall=40.0).answer == "a"
    assert (world.posts, world.clock < 86.0) == (1, True)


def test_a_turn_that_was_cut_off_interrupts_and_is_not_asked_again() -> None:
    world = World([CUT], [(0.0, [asked(), text("half")])])
    problem = world.fails(errors.ChatTurnInterruptedError)
    assert (problem.reason, problem.accepted, world.posts) == ("stalled", True, 1)
    assert "Cause: cut" in str(problem)
    assert "was not sent again" in str(problem)
    assert problem.usage is not None
    assert 60.0 <= world.clock <= 66.0
    assert world.kept == Trace(0, intended_at=0.0, accepted=True, recorded=fingerprint(QUESTION.prompt))


def test_a_turn_that_another_one_overtook_says_so() -> None:
    assert World(shown=[(0.0, [asked(), *THEIRS])]).interrupted(TAKEN) == ("overtaken", True)


def test_an_accepted_prompt_never_counts_as_absent() -> None:
    world = World([CUT])
    assert world.interrupted() == ("vanished", True)
    assert (world.posts, world.kept, world.clock >= 60.0) == (1, Trace(0, intended_at=0.0, accepted=True), True)
    later = World()
    assert later.interrupted(world.kept) == ("vanished", True)
    assert later.posts == 0


@pytest.mark.parametrize("then", [GONE, BROKEN])
def test_acceptance_is_remembered_before_anything_else_happens(then: errors.LlamaCloudError) -> None:
    world = World([CUT], [(0.0, then)], takes=4.0)
    world.fails(errors.LlamaCloudError)
    after = world.steps[world.steps.index(world.of(Post)[0]) + 1]
    assert after == Remember(Trace(0, intended_at=4.0, accepted=True))
    assert world.kept == after.trace


def test_the_time_of_a_loss_is_remembered_before_the_history_is_read() -> None:
    world = World([LOST], takes=60.0)
    world.run()
    assert world.steps[2:4] == [Remember(Trace(0, intended_at=60.0)), ReadHistory()]


def test_what_the_history_shows_is_remembered_before_anything_else_happens() -> None:
    world = World(shown=[(0.0, [asked("WHAT is it?")]), (0.5, GONE)])
    world.fails(errors.NotFoundError, DOUBT)
    assert world.kept == replace(TAKEN, recorded=fingerprint("WHAT is it?"))
    assert len(world.of(Remember)) == 1


def test_a_foreign_turn_while_in_doubt_fails_and_stays_failed() -> None:
    world = World([LOST], [(0.0, THEIRS)])
    assert world.interrupted() == ("foreign", False)
    assert world.clock == LAG
    assert world.kept.is_open
    later = World(shown=[(0.0, THEIRS)], clock=500.0)
    assert later.interrupted(world.kept, deadline=900.0) == ("foreign", False)
    assert (later.posts, later.clock) == (0, 500.0)
    assert later.interrupted(TAKEN, deadline=900.0) == ("foreign", True)


def test_another_clients_turn_before_ours_does_not_end_the_waiting() -> None:
    for problem in (LOST, CUT):
        world = World([problem], [(0.0, THEIRS), (59.0, [*THEIRS, *OURS])], takes=50.0)
        assert (world.run().answer, world.posts) == ("a", 1)


def test_a_similar_prompt_counts_as_ours_once_ours_would_be_visible() -> None:
    alike = [asked("What is it"), text("not ours"), stop()]
    world = World([LOST], [(0.0, alike), (6.0, [*alike, *OURS])])
    assert (world.run().answer, world.posts) == ("a", 1)
    assert world.kept.recorded == fingerprint(QUESTION.prompt)
    cut = World([LOST], [(0.0, [asked("What is it"), text("cut"), stop()])])
    assert (cut.run().answer, cut.posts, cut.clock) == ("cut", 1, LAG)
    assert cut.kept.recorded == fingerprint("What is it")


def test_after_the_lag_the_only_turn_at_our_position_is_the_one_that_ended() -> None:
    world = World(shown=[(0.0, THEIRS)], clock=300.0)
    assert (world.run(ENDED).answer, world.clock) == ("b", 310.0)
    two = World(shown=[(0.0, THEIRS * 2)], clock=300.0)
    assert two.interrupted(ENDED) == ("foreign", True)
    late = World(shown=[(0.0, THEIRS), (305.0, [*THEIRS, *OURS])], clock=300.0)
    assert late.run(ENDED).answer == "a"
    running = World(shown=[(0.0, THEIRS[:2])], clock=300.0)
    assert running.interrupted(ENDED) == ("foreign", True)


@pytest.mark.parametrize("history", [[], THEIRS * 2, [asked()]])
def test_what_was_answered_is_never_posted(history: list[dict[str, Any]]) -> None:
    world = World(shown=[(0.0, history)])
    world.interrupted(ENDED, ask_again=True)
    assert world.posts == 0


def test_an_answer_is_waited_for_while_the_history_is_late() -> None:
    world = World(shown=[(0.0, []), (25.0, OURS)])
    assert (world.run(ENDED).answer, world.posts) == ("a", 0)


@pytest.mark.parametrize(("history", "is_resumed"), [([], False), (THEIRS, False), (OURS, True), (OURS + THEIRS, True)])
def test_look_first_adopts_a_visible_turn_and_does_not_wait_for_one(history: list[Any], is_resumed: bool) -> None:
    world = World(shown=[(0.0, history)])
    assert world.run(look_first=True).answer == "a"
    assert (world.posts, world.clock) == (0 if is_resumed else 1, 0.0)
    assert world.reads == (2 if is_resumed else 1)


def test_look_first_waits_for_a_running_turn() -> None:
    world = World(shown=[(0.0, [asked()]), (20.0, OURS)], clock=5.0)
    assert (world.run(look_first=True).answer, world.posts) == ("a", 0)
    assert world.of(Remember)[0] == Remember(Trace(0, intended_at=5.0)), "a retry knows what the first read showed"


@pytest.mark.parametrize(
    ("shown", "trace"),
    [(BROKEN, Trace(0)), (THEIRS, Trace(2)), (THEIRS, Trace(0, anchor="another begin"))],
)
def test_a_first_read_that_proves_nothing_leaves_doubt(shown: Any, trace: Trace) -> None:
    world = World(shown=[(0.0, shown), (5.0, [*OURS] * 3)])
    world.interrupted(trace, look_first=True) if trace.anchor else world.run(trace, look_first=True)
    assert world.posts == 0


def test_a_first_read_does_not_adopt_a_similar_prompt() -> None:
    world = World(shown=[(0.0, [asked(""), text("b"), stop()])])
    assert (world.run(look_first=True).answer, world.posts) == ("a", 1)


def test_a_first_read_that_can_never_succeed_raises_and_stores_nothing() -> None:
    world = World(shown=[(0.0, GONE)])
    world.fails(errors.NotFoundError, look_first=True)
    assert (world.posts, world.of(Remember)) == (0, [])


def test_look_first_changes_nothing_while_a_post_is_in_doubt() -> None:
    world = World(shown=[(0.0, OURS)])
    assert (world.run(DOUBT, look_first=True).answer, world.reads) == ("a", 1)
