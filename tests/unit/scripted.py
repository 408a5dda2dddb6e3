"""A scripted server and clock for the steps of one attempt."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.conversation.ask import ask
from airflow_provider_llamachat.conversation.question import Question, Trace
from airflow_provider_llamachat.conversation.steps import Limits, Outcome, Pause, Post, ReadHistory, Remember
from airflow_provider_llamachat.models import ChatTurn, Session

QUESTION = Question("ses-1", "What is it?", ["idx"])
LAG = 10.0
LOST = errors.LlamaCloudTimeoutError("silence")
CUT = errors.LlamaCloudConnectionError("cut", accepted=True)
BUSY = errors.SessionBusyError("busy", status=409)
CONFLICT = errors.ConflictError("no", status=409)
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
            poll=kwargs.pop("poll", 1.0),
            pause=lambda n, after: after or float(n),
        )
        steps = ask(QUESTION, trace or Trace(0), limits, now=lambda: self.clock, **kwargs)
        result: Any = None
        for _ in range(1000):
            try:
                step = steps.send(result)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # a generator's value is untyped
            if isinstance(step, Post):
                # A later attempt cannot know when the post left before the deadline.
                assert step.trace.intended_at == self.clock
                assert self.steps[-1] == Remember(replace(step.trace, intended_at=deadline), is_intent=True)
            assert not isinstance(step, Remember) or isinstance(step.trace, Trace)
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
