"""The life of a turn against a simulated server and clock: nothing is ever posted while an earlier post may live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.asking import Limits, Outcome, Pause, Post, Question, ReadHistory, ask
from airflow_provider_llamachat.models import ChatTurn, Session, Usage

QUESTION = Question("ses-1", "q", ["idx"])


@dataclass
class World:
    """A server with one session, and a clock that only pauses move."""

    script: list[str]
    history: list[dict[str, Any]] = field(default_factory=list)
    clock: float = 0.0
    posts: int = 0
    ends_at: float | None = None
    grows: bool = False
    reads: int = 0
    unreadable: dict[int, errors.LlamaCloudError] = field(default_factory=dict)
    """Errors that reading the history meets, by number of the read from 1; 0 stands for every read."""
    job_metadata: dict[str, Any] | None = None
    late: list[dict[str, Any]] = field(default_factory=list)

    def post(self) -> Outcome:
        self.posts += 1
        what = self.script.pop(0) if self.script else "answer"
        if what == "answer":
            self.history += [{"type": "user_input", "content": "q"}, {"type": "text", "content": "a"}, _stop()]
            return Outcome(ChatTurn(session_id="ses-1", prompt="q", answer="a", finished=True))
        if what == "error_stop":
            self.history += [{"type": "user_input", "content": "q"}, _stop(True)]
            return Outcome(
                ChatTurn(
                    session_id="ses-1",
                    prompt="q",
                    finished=True,
                    is_error=True,
                    error="model down",
                    usage=Usage(turns=1),
                )
            )
        if what == "connect":
            return Outcome(problem=errors.LlamaCloudConnectionError("no route", accepted=False))
        if what == "rate":
            return Outcome(problem=errors.RateLimitError("slow down", retry_after=7.0, status=429))
        if what == "conflict":
            return Outcome(problem=errors.ConflictError("busy", status=409))
        if what == "late":
            # Taken, but the history shows it only when it has ended.
            self.late = [{"type": "user_input", "content": "q"}, {"type": "text", "content": "a"}, _stop()]
            self.ends_at = self.clock + 20.0
            return Outcome(problem=errors.LlamaCloudTimeoutError("silence"))
        if what == "refused":
            return Outcome(problem=errors.UnprocessableError("bad", status=422))
        if what == "redirect":
            return Outcome(problem=errors.LlamaCloudProtocolError("moved", status=307))
        if what == "lost":
            return Outcome(problem=errors.LlamaCloudTimeoutError("silence"))
        if what == "e500":
            return Outcome(problem=errors.ServerError("boom", status=500))
        if what == "vanish":
            return Outcome(problem=errors.LlamaCloudConnectionError("cut", accepted=True))
        if what in {"runs_on", "cut"}:
            self.history.append({"type": "user_input", "content": "q"})
            self.ends_at = self.clock + 30.0 if what == "runs_on" else None
            return Outcome(problem=errors.LlamaCloudConnectionError("cut", accepted=True))
        raise AssertionError(what)

    def read(self) -> Session | errors.LlamaCloudError:
        self.reads += 1
        if problem := self.unreadable.get(self.reads, self.unreadable.get(0)):
            return problem
        if self.ends_at is not None and self.clock >= self.ends_at:
            self.history += self.late or [{"type": "text", "content": "a"}, _stop()]
            self.ends_at = None
        elif self.grows and self.ends_at is not None:
            self.history.append({"type": "thinking", "content": "…"})
        return Session.model_validate(
            {"session_id": "ses-1", "events": list(self.history), "job_metadata": self.job_metadata}
        )


def _stop(is_error: bool = False) -> dict[str, Any]:
    return {"type": "stop", "usage": {"turns": 1}, "is_error": is_error, "error": "model down" if is_error else None}


def run(world: World, *, deadline: float = 600.0, stall: float = 60.0, max_posts: int = 3, **kwargs: Any) -> ChatTurn:
    limits = Limits(deadline=deadline, stall_after=stall, max_posts=max_posts, pause=lambda n, after: after or float(n))
    steps = ask(
        QUESTION,
        limits,
        baseline=kwargs.pop("baseline", 0),
        resume=kwargs.pop("resume", False),
        now=lambda: world.clock,
        **kwargs,
    )
    reply: Any = None
    for _ in range(10_000):
        try:
            step = steps.send(reply)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # a generator's value is untyped
        match step:
            case Post():
                reply = world.post()
            case ReadHistory():
                reply = world.read()
            case Pause():
                world.clock += step.seconds
                reply = None
    raise AssertionError("the steps do not end")


def test_a_first_try_that_works_posts_once_and_reads_nothing() -> None:
    world = World(["answer"])
    assert run(world).answer == "a"
    assert (world.posts, world.reads) == (1, 0)


def test_a_resumed_turn_that_is_finished_is_adopted_without_a_post() -> None:
    world = World([], [{"type": "user_input", "content": "q"}, {"type": "text", "content": "paid for"}, _stop()])
    assert run(world, resume=True).answer == "paid for"
    assert world.posts == 0


def test_a_resumed_turn_that_is_absent_is_asked() -> None:
    world = World(["answer"])
    assert run(world, resume=True).answer == "a"
    assert (world.posts, world.reads) == (1, 1)


def test_a_turn_that_runs_on_is_waited_for() -> None:
    world = World(["runs_on"])
    assert run(world).answer == "a"
    assert world.posts == 1
    assert world.clock == pytest.approx(30.0, abs=5.1)


@pytest.mark.parametrize(
    "script", [["connect", "connect", "answer"], ["rate", "answer"], ["e500", "answer"], ["lost", "answer"]]
)
def test_what_was_provably_not_accepted_is_asked_again(script: list[str]) -> None:
    world = World(list(script))
    assert run(world).answer == "a"
    assert world.posts == len(script)


def test_retry_after_is_waited_for() -> None:
    world = World(["rate"])
    run(world)
    assert world.clock == 7.0


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (["connect"] * 9, errors.LlamaCloudConnectionError),
        (["rate"] * 9, errors.RateLimitError),
        (["e500"] * 9, errors.ServerError),
        (["lost"] * 9, errors.LlamaCloudTimeoutError),
    ],
)
def test_posts_are_bounded_and_the_last_problem_is_raised(script: list[str], kind: type[Exception]) -> None:
    world = World(list(script))
    with pytest.raises(kind):
        run(world)
    assert world.posts == 3


@pytest.mark.parametrize("what", ["refused", "redirect"])
def test_a_refusal_is_raised_at_once(what: str) -> None:
    world = World([what])
    with pytest.raises(errors.LlamaCloudError):
        run(world)
    assert (world.posts, world.reads) == (1, 0)


def test_a_turn_that_was_cut_off_interrupts_and_is_not_asked_again() -> None:
    world = World(["cut"])
    with pytest.raises(errors.ChatTurnInterruptedError) as caught:
        run(world)
    assert caught.value.reason == "stalled"
    assert "cut" in str(caught.value)
    assert world.posts == 1


def test_a_prompt_that_an_earlier_try_saw_accepted_is_waited_for_and_not_asked_again() -> None:
    world = World(["answer"])
    with pytest.raises(errors.ChatTurnInterruptedError) as caught:
        run(world, resume=True, accepted=True)
    assert caught.value.reason == "vanished"
    assert (world.posts, world.clock >= 60.0) == (0, True)
    assert run(World(["answer"]), resume=True, accepted=True, ask_again=True).answer == "a"


def test_growth_keeps_a_turn_alive_beyond_the_stall_limit() -> None:
    world = World(["runs_on"], grows=True)
    assert run(world, stall=10.0).answer == "a"


def test_a_turn_that_was_accepted_but_is_not_in_the_history_is_not_asked_again() -> None:
    world = World(["vanish", "answer"])
    with pytest.raises(errors.ChatTurnInterruptedError) as caught:
        run(world)
    assert caught.value.reason == "vanished"
    assert world.posts == 1


def test_the_deadline_ends_the_waiting() -> None:
    world = World(["runs_on"])
    with pytest.raises(errors.ChatTurnInterruptedError) as caught:
        run(world, deadline=12.0)
    assert caught.value.reason == "deadline"
    assert world.clock <= 12.0


def test_a_deadline_that_has_passed_still_adopts_what_is_there_and_else_asks_nothing() -> None:
    finished = World(
        [], [{"type": "user_input", "content": "q"}, {"type": "text", "content": "a"}, _stop()], clock=99.0
    )
    assert run(finished, deadline=1.0, resume=True).answer == "a"
    world = World(["answer"], clock=99.0)
    with pytest.raises(errors.ChatTurnInterruptedError, match="turn_timeout") as caught:
        run(world, deadline=1.0, resume=True)
    assert world.posts == 0
    assert (caught.value.reason, caught.value.accepted) == ("unasked", False)
    assert "billed" not in str(caught.value)


@pytest.mark.parametrize(
    ("script", "reason", "accepted"),
    [(["rate"], "unasked", False), (["runs_on"], "deadline", True), (["vanish"], "deadline", True)],
)
def test_an_interrupted_turn_says_whether_the_server_took_the_prompt(
    script: list[str], reason: str, accepted: bool
) -> None:
    with pytest.raises(errors.ChatTurnInterruptedError) as caught:
        run(World(script), deadline=5.0)
    assert (caught.value.reason, caught.value.accepted) == (reason, accepted)


@pytest.mark.parametrize(("script", "resume"), [(["error_stop"], False), ([], True)])
def test_a_failed_turn_raises_with_the_servers_reason_and_its_usage(script: list[str], resume: bool) -> None:
    world = World(script, [] if script else [{"type": "user_input", "content": "q"}, _stop(True)])
    with pytest.raises(errors.ChatTurnFailedError, match="model down") as caught:
        run(world, resume=resume)
    assert caught.value.usage is not None
    assert caught.value.usage["turns"] == 1


def test_somebody_elses_turn_in_our_place_is_not_asked_over() -> None:
    world = World(["answer"], [{"type": "user_input", "content": "theirs"}, _stop()])
    with pytest.raises(errors.ChatTurnInterruptedError) as caught:
        run(world, resume=True)
    assert caught.value.reason == "foreign"
    assert world.posts == 0


def test_ask_again_asks_once_more_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    world = World(["answer"], [{"type": "user_input", "content": "q"}])
    assert run(world, resume=True, ask_again=True).answer == "a"
    assert world.posts == 1
    assert "may already have been billed" in caplog.text


def test_ask_again_does_not_ask_a_third_time() -> None:
    twice = World(["answer"], [{"type": "user_input", "content": "q"}, {"type": "user_input", "content": "q"}])
    with pytest.raises(errors.ChatTurnInterruptedError):
        run(twice, resume=True, ask_again=True)
    own = World(["cut", "answer"])
    with pytest.raises(errors.ChatTurnInterruptedError):
        run(own, resume=True, ask_again=True)
    assert (twice.posts, own.posts) == (0, 1)


def test_ask_again_waits_for_a_turn_that_still_runs() -> None:
    world = World([], [{"type": "user_input", "content": "q"}], ends_at=20.0)
    assert run(world, resume=True, ask_again=True).answer == "a"
    assert world.posts == 0


def test_ask_again_goes_by_the_last_look_and_asks_right_after_it() -> None:
    world = World(["answer"], [{"type": "user_input", "content": "q"}])
    steps = ask(QUESTION, Limits(600.0, 60.0, 3), baseline=0, resume=True, ask_again=True, now=lambda: world.clock)
    taken: list[Any] = [next(steps)]
    while not isinstance(taken[-1], Post):
        if isinstance(taken[-1], Pause):
            world.clock += taken[-1].seconds
        taken.append(steps.send(world.read() if isinstance(taken[-1], ReadHistory) else None))
    assert [type(step) for step in taken[-3:]] == [Pause, ReadHistory, Post]
    assert taken[-1].position == 1


BROKEN = errors.ServerError("boom", status=500)


@pytest.mark.parametrize("what", ["runs_on", "cut"])
def test_a_history_that_can_not_be_read_for_a_while_does_not_end_the_waiting(what: str) -> None:
    world = World([what], unreadable={1: BROKEN, 2: errors.LlamaCloudTimeoutError("silence"), 4: BROKEN})
    if what == "cut":
        with pytest.raises(errors.ChatTurnInterruptedError, match="no longer grows"):
            run(world)
    else:
        assert run(world).answer == "a"
    assert world.posts == 1


@pytest.mark.parametrize("deadline", [600.0, 10.0])
def test_a_turn_whose_history_stays_unreadable_is_interrupted_and_known_to_be_accepted(deadline: float) -> None:
    world = World(["runs_on"], unreadable={0: BROKEN})
    with pytest.raises(errors.ChatTurnInterruptedError, match="boom") as caught:
        run(world, deadline=deadline)
    assert (caught.value.reason, caught.value.accepted) == ("unreadable" if deadline > 60 else "deadline", True)
    assert (world.posts, world.clock <= 70.0) == (1, True)


def test_where_nothing_is_known_of_a_turn_the_reason_why_the_history_can_not_be_read_is_raised() -> None:
    world = World(["answer"], unreadable={0: BROKEN})
    with pytest.raises(errors.ServerError, match="boom"):
        run(world, resume=True)
    assert world.posts == 0


@pytest.mark.parametrize(
    "problem", [errors.NotFoundError("gone", status=404), errors.LlamaCloudProtocolError("moved", status=307)]
)
def test_a_history_that_will_never_be_readable_is_not_waited_for(problem: errors.LlamaCloudError) -> None:
    world = World(["lost"], unreadable={0: problem})
    with pytest.raises(type(problem)):
        run(world)
    assert (world.posts, world.reads, world.clock) == (1, 1, 0.0)


def test_an_empty_history_of_a_session_that_was_asked_before_proves_nothing() -> None:
    world = World(["lost", "answer"], job_metadata={"turns": 1})
    with pytest.raises(errors.ChatTurnInterruptedError, match="its history is empty") as caught:
        run(world)
    assert (caught.value.reason, world.posts) == ("unreadable", 1)


def test_a_busy_session_after_a_doubtful_post_is_waited_for() -> None:
    world = World(["late", "conflict"])
    assert run(world).answer == "a"
    assert world.posts == 2


def test_a_session_that_stays_busy_after_a_doubtful_post_leaves_the_answer_to_a_retry() -> None:
    with pytest.raises(errors.ChatTurnInterruptedError) as caught:
        run(World(["lost", "conflict"]))
    assert (caught.value.reason, caught.value.accepted) == ("vanished", True)


def test_a_session_that_is_busy_with_something_else_is_a_conflict() -> None:
    for resume in (False, True):
        world = World(["conflict"])
        with pytest.raises(errors.ConflictError):
            run(world, resume=resume)
        assert world.posts == 1


ACCEPTED = {"answer", "runs_on", "cut", "error_stop", "vanish"}
_STEPS = st.lists(
    st.sampled_from(
        ["answer", "runs_on", "conflict", "cut", "connect", "rate", "lost", "e500", "error_stop", "vanish", "refused"]
    ),
    max_size=6,
)


@settings(max_examples=300)
@given(
    script=_STEPS,
    unreadable=st.sets(st.integers(1, 8)),
    resume=st.booleans(),
    deadline=st.floats(0.5, 300.0),
    max_posts=st.integers(1, 6),
)
def test_no_schedule_of_failures_posts_after_something_was_accepted(
    script: list[str], unreadable: set[int], resume: bool, deadline: float, max_posts: int
) -> None:
    world = World(list(script), unreadable=dict.fromkeys(unreadable, BROKEN))
    accepted_at: list[int] = []
    post: Callable[[], Outcome] = world.post

    def watched() -> Outcome:
        assert not accepted_at, "posted although an earlier post had been accepted"
        if (world.script[0] if world.script else "answer") in ACCEPTED:
            accepted_at.append(world.posts)
        return post()

    world.post = watched  # type: ignore[method-assign]  # a spy on the simulated server
    try:
        assert run(world, resume=resume, deadline=deadline, max_posts=max_posts).answer == "a"
    except errors.LlamaCloudError:
        assert script or unreadable, "an error out of nothing"
    assert world.posts <= max_posts
    assert world.clock <= deadline + 0.001
