"""Carries out the steps of :mod:`.ask` with a client: sends, reads and waits."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, closing
from typing import Protocol, cast

from airflow_provider_llamachat.conversation.history import TurnFolder
from airflow_provider_llamachat.conversation.interruption import killed
from airflow_provider_llamachat.conversation.question import Question, Trace, fingerprint
from airflow_provider_llamachat.conversation.steps import (
    Outcome,
    Pause,
    Post,
    ReadHistory,
    Remember,
    Result,
    Steps,
)
from airflow_provider_llamachat.exceptions import LlamaCloudConnectionError, LlamaCloudError
from airflow_provider_llamachat.models import ChatTurn, Event, Session
from airflow_provider_llamachat.redaction import excerpt

log = logging.getLogger(__name__)

AsyncKeep = Callable[[Trace, bool], Awaitable[None]]
"""Stores a trace for later attempts. The flag says that a post follows, which must not leave if this raises an error."""


class AsyncTransport(Protocol):
    """The part of a client that the driver needs."""

    @property
    def is_stopped(self) -> bool:
        """Whether nothing may be sent any more."""

    async def read_history(self, question: Question, deadline: float) -> Session:
        """Read the question's session."""

    def stream(self, question: Question, deadline: float, on_lost: Callable[[], None]) -> AsyncGenerator[Event, None]:
        """Post the prompt and yield the events of its turn."""

    async def pause(self, seconds: float) -> None:
        """Wait."""


async def carry_out(
    transport: AsyncTransport,
    question: Question,
    trace: Trace,
    steps: Steps,
    deadline: float,
    keep: AsyncKeep | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> ChatTurn:
    """Carry out ``steps`` and return their turn.

    :param trace: what is known about the turn at the beginning.
    :param deadline: epoch seconds at which streams end.
    :param keep: stores what is known about the turn for later attempts.
    :param on_event: called with each event of our own stream as it arrives.
    """
    result: Result = None
    with closing(steps):
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                return cast("ChatTurn", end.value)
            if transport.is_stopped and not isinstance(step, Remember):
                raise killed(question, trace)
            result = None
            match step:
                case Remember():
                    trace = step.trace
                    if keep is not None:
                        await keep(trace, step.is_intent)
                case ReadHistory():
                    try:
                        result = await transport.read_history(question, deadline)
                    except LlamaCloudError as problem:
                        result = problem
                case Post():
                    result = await _post(transport, question, step, deadline, keep, on_event)
                    trace = result.trace
                case Pause():
                    await transport.pause(step.seconds)


async def _post(
    transport: AsyncTransport,
    question: Question,
    step: Post,
    deadline: float,
    keep: AsyncKeep | None,
    on_event: Callable[[Event], None] | None,
) -> Outcome:
    folder = TurnFolder(question.session_id, question.prompt, index_ids=question.index_ids, position=step.position)
    trace = step.trace
    problem: LlamaCloudError = LlamaCloudConnectionError(
        f"The answer's stream ended without its stop event. Session: {question.session_id}.",
        accepted=True,
        session_id=question.session_id,
    )
    try:
        async with aclosing(transport.stream(question, deadline, folder.lose)) as events:
            async for event in events:
                known = trace.after(event)
                if known is not trace:
                    _compare(question, known, trace, event)
                    trace = known
                    if keep is not None:
                        await keep(trace, False)
                folder.add(event)
                if on_event is not None:
                    on_event(event)
                if folder.finished:
                    break
    except LlamaCloudError as failure:
        problem = failure
    turn = folder.turn()
    return Outcome(trace, turn, None if turn.finished else problem, is_damaged=folder.is_damaged)


def _compare(question: Question, known: Trace, before: Trace, event: Event) -> None:
    """Log if the server records the prompt in another form. The answer to our own post is still ours."""
    if known.recorded not in {before.recorded, fingerprint(question.prompt)}:
        log.warning(
            "LlamaCloud records the prompt as %r. Later attempts look for both forms. Session: %s.",
            excerpt(str(getattr(event, "content", "")), limit=200),
            question.session_id,
        )
