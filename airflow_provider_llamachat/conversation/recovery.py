"""Reads a session's history to find out what became of a turn. No I/O: generators of the steps of :mod:`.steps`."""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass, replace

from airflow_provider_llamachat.conversation.history import State, Verdict, judge
from airflow_provider_llamachat.conversation.interruption import interrupted, reason
from airflow_provider_llamachat.conversation.question import Question, Trace
from airflow_provider_llamachat.conversation.steps import Limits, Pause, ReadHistory, Remember, Result, Step
from airflow_provider_llamachat.exceptions import (
    ChatTurnInterruptedError,
    ConflictError,
    LlamaCloudError,
    LlamaCloudProtocolError,
)
from airflow_provider_llamachat.models import ChatTurn, Session

log = logging.getLogger(__name__)

UNREADABLE = 30.0
"""Seconds, beyond the history lag, for reading a history that is unavailable when it is needed for an answer's text."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What the history finally says about our turn.

    :param turn: the finished turn. None if the prompt was not accepted, or if ``interrupted`` says why there is no end.
    """

    trace: Trace
    verdict: Verdict
    turn: ChatTurn | None = None
    interrupted: ChatTurnInterruptedError | None = None


def settle(
    question: Question, trace: Trace, limits: Limits, problem: LlamaCloudError | None
) -> Generator[Step, Result, Settled]:
    """Read the history until it is clear what happened to our turn.

    A turn that may be paid for is not given up because its history cannot be read for some time.
    """
    now = limits.now
    begin = changed_at = now()
    size, reads = -1, 0
    said: set[str] = set()
    # If the end was seen, it may have been seen a moment ago.
    since = begin if trace.answered or trace.intended_at is None else min(begin, trace.intended_at)
    shown_by = since + limits.lag
    verdict: Verdict | None = None
    is_other = False
    while True:
        is_late = now() >= shown_by
        seen, failure = yield from look(question, trace)
        reads, verdict = reads + 1, seen or verdict
        if failure is None and verdict is not None:
            if (known := _learned(trace, verdict, is_late=is_late)) != trace:
                trace = known
                yield Remember(trace)
            if (turn := _turn_of(verdict, trace, is_late=is_late)) is not None:
                return Settled(trace, verdict, turn)
            # The server accepted the prompt, or it keeps the session busy. Then it is not absent because the history does not show it.
            is_other = is_other or verdict.is_other_running
            is_busy = isinstance(problem, ConflictError) and not is_other
            may_come = trace.accepted or trace.answered or is_busy
            if is_late and verdict.state is State.ABSENT and not may_come:
                return Settled(trace.withdrawn(), verdict)
            if verdict.size != size:
                size, changed_at = verdict.size, now()
        is_foreign = failure is None and is_late and verdict is not None and verdict.state is State.FOREIGN
        is_over = limits.are_over
        if is_foreign or is_over or now() >= max(changed_at + limits.stall_after, shown_by):
            if failure is not None and problem is None and verdict is None and not trace.accepted:
                raise failure  # nothing is known about a turn, so there is nothing else to report
            verdict = verdict or Verdict(State.TRUNCATED)
            why = "foreign" if is_foreign else reason(trace, verdict, failure, is_over=is_over)
            return Settled(trace, verdict, interrupted=interrupted(question, why, failure or problem, trace, verdict))
        _announce(question, failure, verdict, said)
        seconds = min(limits.between_reads(reads), limits.stall_after / 4)
        if now() < shown_by and (verdict is None or verdict.state is not State.RUNNING):
            seconds = min(seconds, shown_by - now())
        yield limits.wait(seconds)


def whole_turn(question: Question, trace: Trace, limits: Limits, turn: ChatTurn) -> Generator[Step, Result, ChatTurn]:
    """Read from the history what the stream of a finished turn lost.

    The turn has ended and is paid for, so the deadline does not shorten the time that the history has to show it. If the history does
    not show it, the turn is returned with the text that arrived.

    :raises ChatTurnInterruptedError: no text arrived, and the history does not show the turn. A retry reads it.
    """
    now = limits.now
    end = now() + limits.lag
    log.warning("The answer's stream in session %s was incomplete. Reading the history.", question.session_id)
    while True:
        is_late = now() >= end
        try:
            verdict, failure = yield from look(question, trace)
            # A history that cannot be read for a moment says nothing.
            is_late = is_late and (verdict is not None or now() >= end + UNREADABLE)
        except LlamaCloudError as problem:  # it will not be readable soon either
            verdict, failure, is_late = None, problem, True
        found = None if verdict is None else _turn_of(verdict, trace, is_late=is_late)
        if found is not None and not found.is_error:
            # The history is the record, unless it lost the text too.
            return found if found.answer.strip() else turn
        if is_late and found is None and not turn.answer.strip():
            yield Remember(trace)
            raise interrupted(question, "unread", failure, trace)
        if is_late:
            log.warning("The history of session %s does not hold the turn. Using the stream's.", question.session_id)
            return turn
        yield Pause(min(limits.poll, end - now()) if now() < end else limits.poll)


def look(question: Question, trace: Trace) -> Generator[Step, Result, tuple[Verdict | None, LlamaCloudError | None]]:
    """Read the history. Return what it says about our turn, and why it tells nothing.

    :raises LlamaCloudError: it will not be readable later either.
    """
    read = yield from read_session(question)
    if isinstance(read, LlamaCloudError):
        return None, read
    verdict = judge(read.events, question, trace)
    if verdict.state is not State.TRUNCATED:
        return verdict, None
    begin = f"does not begin like the {trace.baseline} turns that were known before"
    return verdict, _lost(f"The session's history lost turns: it shows {verdict.turns}, and {begin}.", question)


def read_session(question: Question) -> Generator[Step, Result, Session | LlamaCloudError]:
    """Read the history. Return why, if it tells nothing.

    :raises LlamaCloudError: it will not be readable later either.
    """
    read = yield ReadHistory()
    if isinstance(read, LlamaCloudError):
        if is_final(read):
            raise read
        return read
    assert isinstance(read, Session)  # noqa: S101  # the client's contract
    if read.job_metadata is not None and not read.events:
        # Half an answer must not prove that nothing was asked here, because this decides about asking again.
        return _lost("The session was asked before, but its history is empty.", question)
    return read


def _lost(what: str, question: Question) -> LlamaCloudProtocolError:
    return LlamaCloudProtocolError(f"{what} Session: {question.session_id}.", session_id=question.session_id)


def _learned(trace: Trace, verdict: Verdict, *, is_late: bool) -> Trace:
    """Return what is known after this verdict: a turn of ours in the history was accepted, and shows how the prompt is recorded."""
    if verdict.recorded is None or not (verdict.is_sure or is_late):
        return trace
    return replace(trace, accepted=True, recorded=trace.recorded or verdict.recorded)


def _turn_of(verdict: Verdict, trace: Trace, *, is_late: bool) -> ChatTurn | None:
    """Return our finished turn, or None as long as there is none.

    A turn that is not surely ours counts when the history has had its time, because it would show ours beside it by then. It would
    also show a turn whose end was seen. So a single turn in its place is that turn, even if its prompt is recorded in an unknown form.
    """
    is_only_one = verdict.state is State.FOREIGN and trace.answered and is_late
    is_ours = verdict.state is State.FINISHED and (verdict.is_sure or is_late)
    if verdict.turn is not None and verdict.turn.finished and (is_ours or is_only_one):
        return verdict.turn
    return None


def _announce(question: Question, failure: LlamaCloudError | None, verdict: Verdict | None, said: set[str]) -> None:
    """Log once what is being waited for."""
    if failure is not None and "failure" not in said:
        said.add("failure")
        log.warning("%s Reading the history again until the turn's time is over.", failure)
    elif failure is None and verdict is not None and verdict.state is State.RUNNING and "running" not in said:
        said.add("running")
        log.info("Session %s is still answering this prompt. Waiting for it.", question.session_id)


def is_final(problem: LlamaCloudError) -> bool:
    """Whether the same request would fail in the same way later."""
    redirect = problem.status is not None and 300 <= problem.status < 400
    return redirect or not problem.retryable
