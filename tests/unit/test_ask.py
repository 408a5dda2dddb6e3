"""The life of a turn, step by step: what is read, posted, waited for and remembered, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.conversation.ask import Limits, Outcome, Pause, Post, ReadHistory, Remember, ask, killed
from airflow_provider_llamachat.conversation.question import Question, Trace, fingerprint
from airflow_provider_llamachat.models import ChatTurn, Session, Usage

QUESTION = Question("ses-1", "What is it?", ["idx"])
LAG = 10.0
LOST = errors.LlamaCloudTimeoutError("silence")
CUT = errors.LlamaCloudConnectionError("cut", accepted=True)
BUSY = errors.ConflictError("busy", status=409)
BROKEN = errors.ServerError("boom", status=500)
GONE = errors.NotFoundError("gone", status=404)
MOVED = errors.LlamaCloudProtocolError("moved", status=307)
NO_ROUTE = errors.LlamaCloudConnectionError("no route", accepted=False)
SLOW = errors.RateLimitError("slow down", retry_after=7.0, status=429)


def asked(prompt: str = QUESTION.prompt) -> dict[str, Any]:
    return {"type": "user_input", "content": prompt}


def text(answer: str) -> dict[str, Any]:
    return {"type": "text", "content": answer}


def stop(error: str | None = None) -> dict[str, Any]:
    return {"type": "stop", "usage": {"turns": 1}, "is_error": error is not None, "error": error}


OURS = [asked(), text("a"), stop()]
THEIRS = [asked("Something else"), text("b"), stop()]
ANSWER = ChatTurn(session_id="ses-1", prompt="q", answer="a", finished=True)


@dataclass
class World:
    """What posts and reads bring, and a clock that only pauses and lost posts move.

    :ivar outcomes: of each post: a problem, a turn, or an outcome; a turn when there are no more.
    :ivar shown: (from when, events) of the history; an error when it cannot be read then.
    """

    outcomes: list[Any] = field(default_factory=list)
    shown: list[tuple[float, Any]] = field(default_factory=lambda: [(0.0, [])])
    clock: float = 0.0
    takes: float = 0.0
    job_metadata: dict[str, Any] | None = None
    steps: list[Any] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    def of(self, kind: type[Any]) -> list[Any]:
        return [step for step in self.steps if isinstance(step, kind)]

    @property
    def posts(self) -> int:
        return len(self.of(Post))

    @property
    def reads(self) -> int:
        return len(self.of(ReadHistory))

    @property
    def kept(self) -> Trace:
        return self.of(Remember)[-1].trace  # type: ignore[no-any-return]  # of any step

    def read(self) -> Session | errors.LlamaCloudError:
        events = next(events for at, events in reversed(self.shown) if at <= self.clock)
        if isinstance(events, errors.LlamaCloudError):
            return events
        return Session.model_validate({"session_id": "ses-1", "events": events, "job_metadata": self.job_metadata})

    def post(self, step: Post) -> Outcome:
        self.clock += self.takes
        what = self.outcomes.pop(0) if self.outcomes else ANSWER
        if isinstance(what, errors.LlamaCloudError):
            return Outcome(step.trace, problem=what)
        return Outcome(step.trace, what) if isinstance(what, ChatTurn) else replace(what, trace=step.trace)

    def run(
        self, trace: Trace | None = None, *, deadline: float = 600.0, max_posts: int = 3, **kwargs: Any
    ) -> ChatTurn:
        limits = Limits(
            deadline,
            kwargs.pop("stall", 60.0),
            max_posts,
            lag=kwargs.pop("lag", LAG),
            pause=lambda n, after: after or float(n),
        )
        steps = ask(QUESTION, trace or Trace(0), limits, now=lambda: self.clock, **kwargs)
        result: Any = None
        for _ in range(1000):
            try:
                step = steps.send(result)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # a generator's value is untyped
            assert not isinstance(step, Post) or self.steps[-1] == Remember(step.trace, is_intent=True)
            self.steps.append(step)
            self.at.append(self.clock)
            result = None
            match step:
                case ReadHistory():
                    result = self.read()
                case Post():
                    result = self.post(step)
                case Pause():
                    assert step.seconds >= 0
                    self.clock += step.seconds
        raise AssertionError("the steps do not end")

    def fails(self, kind: type[errors.LlamaCloudError], trace: Trace | None = None, **kwargs: Any) -> Any:
        with pytest.raises(kind) as caught:
            self.run(trace, **kwargs)
        return caught.value

    def interrupted(self, trace: Trace | None = None, **kwargs: Any) -> tuple[str, bool]:
        problem = self.fails(errors.ChatTurnInterruptedError, trace, **kwargs)
        assert problem.session_id == "ses-1"
        assert "Session: ses-1." in str(problem)
        return problem.reason, problem.accepted


DOUBT = Trace(0, intended_at=0.0)
TAKEN = Trace(0, intended_at=0.0, accepted=True)
ENDED = Trace(0, intended_at=0.0, accepted=True, answered=True)


def test_a_first_attempt_that_works_is_three_steps() -> None:
    world = World(clock=5.0)
    assert world.run(Trace(2, anchor="x")).answer == "a"
    trace = Trace(2, intended_at=5.0, anchor="x")
    done = replace(trace, accepted=True, answered=True)
    assert world.steps == [Remember(trace, is_intent=True), Post(trace, 2), Remember(done)]


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
def test_a_later_attempt_counts_from_the_remembered_intent_and_at_most_from_its_own_begin(
    intended: float, waits: float
) -> None:
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


def test_reads_are_no_rarer_than_a_quarter_of_the_time_that_a_turn_may_stand_still() -> None:
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
def test_posts_are_bounded_and_nothing_is_in_doubt_at_their_end(problem: errors.LlamaCloudError) -> None:
    world = World([problem] * 9)
    assert world.fails(type(problem)) is problem
    assert (world.posts, world.kept) == (3, Trace(0))


def test_nobody_waits_after_the_last_post_that_was_not_taken() -> None:
    world = World([NO_ROUTE] * 3)
    world.fails(errors.LlamaCloudConnectionError)
    assert world.clock == 3.0


def test_a_rate_limit_is_waited_for_and_then_one_read_settles_the_matter() -> None:
    world = World([SLOW])
    world.run()
    assert (world.reads, world.of(Pause)[0].seconds) == (1, 10.0)
    patient = World([errors.RateLimitError("slow", retry_after=30.0, status=429)])
    patient.run()
    assert [step.seconds for step in patient.of(Pause)] == [30.0]
    taken = World([SLOW], [(0.0, []), (3.0, OURS)])
    assert (taken.run().answer, taken.posts) == ("a", 1)


def test_a_status_is_paused_for_and_a_lost_connection_is_looked_after_at_once() -> None:
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


def test_a_turn_that_runs_on_is_waited_for_as_long_as_it_grows() -> None:
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


def test_what_was_seen_to_be_taken_is_never_absent() -> None:
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


def test_a_foreign_turn_that_shows_before_ours_is_waited_past() -> None:
    for problem in (LOST, CUT):
        world = World([problem], [(0.0, THEIRS), (59.0, [*THEIRS, *OURS])], takes=50.0)
        assert (world.run().answer, world.posts) == ("a", 1)


def test_a_prompt_that_only_may_be_ours_counts_once_ours_would_stand_beside_it() -> None:
    alike = [asked("What"), text("not ours"), stop()]
    world = World([LOST], [(0.0, alike), (6.0, [*alike, *OURS])])
    assert (world.run().answer, world.posts) == ("a", 1)
    assert world.kept.recorded == fingerprint(QUESTION.prompt)
    cut = World([LOST], [(0.0, [asked("What"), text("cut"), stop()])])
    assert (cut.run().answer, cut.posts, cut.clock) == ("cut", 1, LAG)
    assert cut.kept.recorded == fingerprint("What")


def test_the_turn_that_was_seen_to_end_is_the_only_one_at_its_place_once_the_history_had_its_time() -> None:
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


def test_an_answer_that_the_history_shows_late_is_waited_for() -> None:
    world = World(shown=[(0.0, []), (25.0, OURS)])
    assert (world.run(ENDED).answer, world.posts) == ("a", 0)


def test_the_deadline_ends_the_waiting() -> None:
    world = World([CUT], [(0.0, [asked()])])
    assert world.interrupted(deadline=12.0) == ("deadline", True)
    assert (world.clock, world.at[-1]) == (12.0, 12.0)


def test_a_deadline_that_has_passed_still_adopts_what_is_there_and_else_asks_nothing() -> None:
    assert World(shown=[(0.0, OURS)], clock=99.0).run(DOUBT, deadline=1.0).answer == "a"
    for trace in (Trace(0), DOUBT):
        world = World(clock=99.0)
        problem = world.fails(errors.ChatTurnInterruptedError, trace, deadline=99.0 - 98.0)
        assert (problem.accepted, world.posts) == (False, 0)
        assert problem.reason == "unasked"
        assert "A retry of the task asks." in str(problem)
        assert "billed" not in str(problem)
        assert world.kept == Trace(0)


def test_at_the_deadline_itself_nothing_is_posted_any_more() -> None:
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


def test_ask_again_asks_once_more_at_the_end_of_the_session_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    world = World(shown=[(0.0, [asked(), *THEIRS])])
    assert world.run(TAKEN, ask_again=True).answer == "a"
    assert [post.position for post in world.of(Post)] == [2]
    assert "may already have been billed" in caplog.text
    assert [type(step) for step in world.steps[-4:]] == [ReadHistory, Remember, Post, Remember]


@pytest.mark.parametrize(
    ("history", "reason"),
    [([asked()], "stalled"), ([asked(), *THEIRS], "overtaken"), (THEIRS, "foreign"), ([], "vanished")],
)
def test_only_ask_again_asks_over_a_turn_without_an_end(history: list[dict[str, Any]], reason: str) -> None:
    assert World(shown=[(0.0, history)]).interrupted(TAKEN)[0] == reason
    world = World(shown=[(0.0, history)])
    assert (world.run(TAKEN, ask_again=True).answer, world.posts) == ("a", 1)


@pytest.mark.parametrize("shown", [BROKEN, [asked()]])
def test_ask_again_does_not_ask_over_what_may_still_come(shown: Any) -> None:
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


def test_a_busy_session_after_asking_again_does_not_make_acceptance_forgotten() -> None:
    world = World([BUSY], [(0.0, THEIRS)])
    assert world.fails(errors.ConflictError, TAKEN, ask_again=True) is BUSY
    assert (world.posts, world.kept.accepted) == (1, True)


def test_a_session_that_is_busy_with_something_else_is_a_conflict() -> None:
    world = World([BUSY])
    assert world.fails(errors.ConflictError) is BUSY
    assert (world.posts, world.reads, world.kept) == (1, 0, Trace(0))
    later = World([BUSY], [(0.0, []), (10.5, THEIRS)])
    assert later.fails(errors.ConflictError, DOUBT) is BUSY
    assert later.kept == Trace(0)


@pytest.mark.parametrize(("outcomes", "trace"), [([LOST, BUSY], Trace(0)), ([BUSY], DOUBT)])
def test_a_busy_session_after_a_doubtful_post_may_be_busy_with_it(outcomes: list[Any], trace: Trace) -> None:
    world = World(list(outcomes), [(0.0, []), (50.0, OURS)])
    assert (world.run(trace).answer, world.posts) == ("a", len(outcomes))
    silent = World(list(outcomes))
    assert silent.fails(errors.ConflictError, trace) is BUSY
    assert silent.kept == Trace(0, intended_at=LAG)


@pytest.mark.parametrize("ends", [OURS, [asked()]])
def test_a_history_that_cannot_be_read_for_a_while_does_not_end_the_waiting(ends: Any) -> None:
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


def test_where_nothing_is_known_of_a_turn_the_reason_why_the_history_cannot_be_read_is_raised() -> None:
    world = World(shown=[(0.0, BROKEN)])
    assert world.fails(errors.ServerError, DOUBT) is BROKEN
    assert world.posts == 0


@pytest.mark.parametrize("problem", [GONE, MOVED])
def test_a_history_that_will_never_be_readable_is_not_waited_for(problem: errors.LlamaCloudError) -> None:
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


def test_a_prompt_that_was_taken_is_found_at_the_end_of_a_history_that_lost_turns() -> None:
    assert World(shown=[(0.0, OURS)]).run(Trace(5, intended_at=0.0, accepted=True)).answer == "a"


BLANK = ChatTurn(session_id="ses-1", prompt="q", answer=" \n", finished=True)
HALF = Outcome(Trace(0), ChatTurn(session_id="ses-1", prompt="q", answer="al", finished=True), is_damaged=True)
WHOLE = [asked(), text("all of it"), stop()]


@pytest.mark.parametrize("outcome", [BLANK, HALF])
@pytest.mark.parametrize("at", [0.0, 9.9])
def test_what_the_stream_lost_is_read_from_the_history(outcome: Any, at: float) -> None:
    world = World([outcome], [(0.0, BROKEN), (at, WHOLE)])
    assert (world.run().answer, world.posts, world.kept.answered) == ("all of it", 1, True)
    assert world.clock <= LAG


@pytest.mark.parametrize(
    "shown", [[], THEIRS * 2, BROKEN, [asked(), stop("x")], [asked(), text("a"), stop()], [asked()]]
)
def test_a_finished_turn_is_handed_over_even_if_the_history_does_not_complete_it(shown: Any) -> None:
    world = World([HALF], [(0.0, shown)])
    assert world.run().answer == "al"
    assert (world.posts, world.clock <= LAG) == (1, True)


def test_completing_ends_at_once_when_there_is_no_hope_and_with_the_deadline() -> None:
    hopeless = World([HALF], [(0.0, GONE)])
    assert (hopeless.run().answer, hopeless.reads, hopeless.clock) == ("al", 1, 0.0)
    short = World([HALF])
    assert (short.run(deadline=4.0).answer, short.clock) == ("al", 4.0)
    at_once = World([HALF])
    assert (at_once.run(lag=0.0).answer, at_once.reads, at_once.clock) == ("al", 1, 0.0)
    assert {step.seconds for step in short.of(Pause)} == {1.0}


def test_a_failed_turn_without_text_is_not_completed() -> None:
    failed = ChatTurn(session_id="ses-1", prompt="q", finished=True, is_error=True)
    world = World([replace(HALF, turn=failed)], [(0.0, WHOLE)])
    world.fails(errors.ChatTurnFailedError)
    assert world.reads == 0


def test_an_outcome_without_a_reason_is_a_doubt() -> None:
    world = World([Outcome(Trace(0))], [(0.0, OURS)])
    assert (world.run().answer, world.posts) == ("a", 1)


def test_what_is_waited_for_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    World([LOST], [(0.0, BROKEN), (9.0, [asked()]), (30.0, OURS)]).run()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "silence Reading the session's history in 0.0 s.",
        "boom Reading the history again until the turn's time is over.",
        "Session ses-1 is still answering this prompt; waiting for it.",
        "Session ses-1 already holds the answer to this prompt; adopting it.",
    ]
    caplog.clear()
    World([NO_ROUTE]).run()
    assert [record.getMessage() for record in caplog.records] == ["no route Retrying in 1.0 s."]


def test_the_error_of_a_stopped_task_says_what_is_known() -> None:
    problem = killed(QUESTION, TAKEN)
    assert (problem.reason, problem.accepted, problem.session_id) == ("killed", True, "ses-1")
    assert "was stopped" in str(problem)
    assert str(problem) == (
        "The task was stopped while it waited for the turn. The prompt was not sent again, because it may already have been billed. A "
        "retry looks for the answer first; with on_interrupted='ask_again' it asks once more if there is none. Session: ses-1."
    )


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


@pytest.mark.parametrize(("history", "position"), [(THEIRS, 1), ([asked()], 1), ([], 0)])
def test_asking_again_goes_to_the_end_of_the_session(history: list[dict[str, Any]], position: int) -> None:
    world = World(shown=[(0.0, history)])
    world.run(TAKEN, ask_again=True)
    assert [post.position for post in world.of(Post)] == [position]


def test_a_stream_is_completed_from_the_only_turn_at_its_place_under_whatever_text_at_last() -> None:
    unknown = [asked("#1"), text("all of it"), stop()]
    world = World([HALF], [(0.0, unknown)])
    assert (world.run().answer, world.clock) == ("all of it", LAG)
    theirs_first = World([HALF], [(0.0, unknown), (8.0, [*unknown, *OURS])])
    assert theirs_first.run().answer == "al"
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
        "The answer's stream in session ses-1 was incomplete; reading the history.",
        "The history of session ses-1 does not hold the turn; using the stream's.",
    ]
    assert lines[-1].startswith("Asking once more in session ses-1, because this task may (it was cleared, or has ")
    assert ". The interrupted turn may already have been billed. The answer stopped partway: " in lines[-1]
