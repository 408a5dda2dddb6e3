"""The life of a turn, as a generator of steps. The worker, the triggerer and the batch use the same rule. No I/O.

:func:`ask` yields steps and is sent their results. :mod:`.driver` carries the steps out. A prompt is never posted while an earlier
post of it may have been accepted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from airflow_provider_llamachat.conversation.history import State, Verdict, begin, is_running, judge
from airflow_provider_llamachat.conversation.interruption import MAY_ASK_AGAIN, busy, interrupted, reason, refused
from airflow_provider_llamachat.conversation.question import Question, Trace
from airflow_provider_llamachat.conversation.steps import (
    Limits,
    Outcome,
    Pause,
    Post,
    ReadHistory,
    Remember,
    Result,
    Step,
    Steps,
)
from airflow_provider_llamachat.exceptions import (
    ChatTurnFailedError,
    ChatTurnInterruptedError,
    ConflictError,
    LlamaCloudConnectionError,
    LlamaCloudError,
    LlamaCloudProtocolError,
    RateLimitError,
    SessionBusyError,
)
from airflow_provider_llamachat.models import ChatTurn, Session
from airflow_provider_llamachat.redaction import excerpt

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Settled:
    """What the history finally says about our turn.

    :param turn: the finished turn. None if the prompt was not accepted, or if ``interrupted`` says why there is no end.
    """

    trace: Trace
    verdict: Verdict
    turn: ChatTurn | None = None
    interrupted: ChatTurnInterruptedError | None = None


def ask(
    question: Question,
    trace: Trace,
    limits: Limits,
    *,
    ask_again: bool = False,
    look_first: bool = False,
    now: Callable[[], float] = time.time,
) -> Steps:
    """Ask once and return the finished turn.

    :param trace: what is known about the turn. If it is open, the history is read before a post. If the turn was answered, nothing is
        posted.
    :param ask_again: post once more if an earlier attempt's turn is unfinished and no longer grows, or cannot be found.
    :param look_first: read the history once before the first post, although no post is in doubt.
    :raises ChatTurnFailedError: the server ended the turn with an error.
    :raises ChatTurnInterruptedError: the end of the turn was not seen. Nothing was posted twice.
    :raises LlamaCloudError: refusals, and network errors after which the history shows that nothing was accepted.
    """
    posts, position, others = 0, trace.baseline, _Others()
    problem: LlamaCloudError | None = None
    if look_first and not trace.is_open and (yield from _may_be_there(question, trace)):
        trace = replace(trace, intended_at=now())
    was_open, was_answered = trace.is_open, trace.answered
    while True:
        if trace.is_open:
            settled = yield from _settle(question, trace, limits, problem, now)
            trace = settled.trace
            if settled.turn is not None:
                if not was_answered:
                    log.info("Session %s already holds the answer to this prompt. Using it.", question.session_id)
                return (yield from _finish(question, trace, settled.turn))
            if settled.interrupted is not None:
                may_again = ask_again and not trace.answered and posts == 0 and settled.verdict.asked <= 1
                trace = yield from _without_an_end(question, settled, problem, may_again=may_again)
                if trace.is_open:
                    position, ask_again = settled.verdict.turns, False
        if isinstance(problem, ConflictError) and not trace.is_open:
            trace = yield from _wait_for_others(question, trace, limits, problem, others, now)
            posts, position, problem = posts - 1, trace.baseline, None
            continue
        if problem is not None and posts >= limits.max_posts:
            yield Remember(trace)
            raise problem
        if now() >= limits.deadline:
            yield Remember(trace)
            raise interrupted(question, "unasked", problem, trace)
        posts += 1
        # If this process is lost, nobody knows when the post left: it may have waited for the rate limit, or for a connection.
        yield Remember(replace(trace, intended_at=limits.deadline), is_intent=True)
        outcome = yield Post(replace(trace, intended_at=now()), position)
        assert isinstance(outcome, Outcome)  # noqa: S101  # the driver's contract
        trace = outcome.trace
        if outcome.turn is not None and outcome.turn.finished:
            return (yield from _answered(question, trace, limits, outcome, outcome.turn, now))
        problem = outcome.problem or interrupted(question, "stalled", None, trace)
        trace = _after_failure(trace, problem, now(), may_be_ours=was_open or posts > 1)
        yield Remember(trace)
        if not trace.is_open and _is_final(problem):
            raise problem
        yield from _pause(problem, trace, posts, limits, now)


def _may_be_there(question: Question, trace: Trace) -> Generator[Step, Result, bool]:
    """Whether the history shows our turn, or tells nothing. Another prompt in its place is no sign of an earlier post of ours."""
    verdict, failure = yield from _read(question, trace)
    is_shown = verdict is not None and verdict.state in {State.FINISHED, State.RUNNING} and verdict.is_sure
    return is_shown or failure is not None


def _without_an_end(
    question: Question, settled: _Settled, problem: LlamaCloudError | None, *, may_again: bool
) -> Generator[Step, Result, Trace]:
    """Decide about a turn that has no end. Return what is known if asking goes on: open if the prompt is asked once more.

    :raises ChatTurnInterruptedError: the turn may have been paid for.
    """
    assert settled.interrupted is not None  # noqa: S101  # the caller's contract
    trace, why = settled.trace, settled.interrupted.reason
    if isinstance(problem, ConflictError):
        # Another task's turn keeps the session busy, so ours was refused. If there is no turn, this is not known.
        if why == "foreign" and not trace.accepted:
            yield Remember(trace.withdrawn())
            return trace.withdrawn()
        yield Remember(trace)
        raise problem
    if not (may_again and why in MAY_ASK_AGAIN):
        yield Remember(trace)
        raise settled.interrupted
    log.warning(
        "Asking once more in session %s, because this task may (it was cleared, or has on_interrupted='ask_again'). "
        "The interrupted turn may already have been billed. %s",
        question.session_id,
        settled.interrupted,
    )
    return trace


@dataclass(slots=True)
class _Others:
    """What is known about other turns that keep the session busy.

    :ivar refusals: number of posts of ours that were refused.
    :ivar since: epoch seconds of the first refusal.
    :ivar are_seen: the server's message or the history told of one.
    """

    refusals: int = 0
    since: float = 0.0
    are_seen: bool = False


def _wait_for_others(
    question: Question,
    trace: Trace,
    limits: Limits,
    problem: ConflictError,
    others: _Others,
    now: Callable[[], float],
) -> Generator[Step, Result, Trace]:
    """Wait, and read the history, after a post that was refused because the session is busy. Return what is known for the next post.

    :raises SessionBusyError: the deadline has passed.
    :raises RequestRefusedError: nothing told of another turn for as long as the history may be late.
    """
    others.are_seen |= isinstance(problem, SessionBusyError)
    if not others.refusals:
        others.since = now()
    others.refusals += 1
    if others.refusals == 1:
        log.info("Session %s is busy with another turn. Waiting until it has ended.", question.session_id)
    wished = getattr(problem, "retry_after", None) or 0.0
    seconds = max(wished, min(limits.poll * 1.5 ** min(others.refusals - 1, 10), limits.poll_max))
    yield Pause(max(0.0, min(seconds, limits.deadline - now())))
    session = yield from _history(question)
    if isinstance(session, Session):
        others.are_seen |= is_running(session.events)
        verdict = judge(session.events, question, trace)
        if verdict.state in {State.FINISHED, State.RUNNING} and verdict.is_sure:
            return replace(trace, intended_at=now())  # a server that refuses what it accepted is not paid again
        trace = trace if verdict.state is State.TRUNCATED else begin(session, question, now=now())
    if not others.are_seen and now() - others.since >= limits.lag:
        raise refused(question, problem)
    if now() >= limits.deadline:
        raise busy(question, problem)
    return trace


def _after_failure(trace: Trace, problem: LlamaCloudError, at: float, *, may_be_ours: bool) -> Trace:
    """Return what is known after a post without a finished turn."""
    if isinstance(problem, ConflictError):
        # An earlier post of ours that the history does not show yet may keep the session busy.
        return replace(trace, intended_at=at) if may_be_ours else trace.withdrawn()
    if trace.accepted:
        return replace(trace, intended_at=at)
    is_connection = isinstance(problem, LlamaCloudConnectionError)
    if _is_final(problem) or (is_connection and getattr(problem, "accepted", None) is False):
        return trace.withdrawn()
    return replace(trace, intended_at=at, accepted=getattr(problem, "accepted", None) is True)


def _pause(
    problem: LlamaCloudError, trace: Trace, posts: int, limits: Limits, now: Callable[[], float]
) -> Generator[Step, Result, None]:
    """Wait as long as the failure requires. After a lost connection, the history is read at once."""
    seconds = 0.0
    if problem.status or not trace.is_open:
        seconds = limits.pause(posts, getattr(problem, "retry_after", None))
    if isinstance(problem, RateLimitError):
        # Reads count against the rate limit too, so there is only one, at a time when it can decide.
        seconds = max(seconds, limits.lag)
    if not trace.is_open and (posts >= limits.max_posts or isinstance(problem, ConflictError)):
        return
    then = "Reading the session's history" if trace.is_open else "Retrying"
    log.warning("%s %s in %.1f s.", problem, then, seconds)
    if seconds:
        yield Pause(min(seconds, max(0.0, limits.deadline - now())))


def _answered(
    question: Question, trace: Trace, limits: Limits, outcome: Outcome, turn: ChatTurn, now: Callable[[], float]
) -> Generator[Step, Result, ChatTurn]:
    """Return the turn that our own stream finished."""
    trace = replace(trace, accepted=True, answered=True)
    if not turn.is_error and (outcome.is_damaged or not turn.answer.strip()):
        turn = yield from _whole(question, trace, limits, turn, now)
    return (yield from _finish(question, trace, turn))


def _finish(question: Question, trace: Trace, turn: ChatTurn) -> Generator[Step, Result, ChatTurn]:
    if turn.is_error:
        yield Remember(replace(trace, answered=True))
        error = excerpt(turn.error) if turn.error else "it gave no reason"
        raise ChatTurnFailedError(
            f"LlamaCloud ended the turn with an error: {error}. A retry of the task asks again; the failed turn may have been "
            f"billed. Session: {question.session_id}.",
            session_id=question.session_id,
            usage=turn.usage_as_dict(),
        )
    yield Remember(replace(trace, accepted=True, answered=True))
    return turn


UNREADABLE = 30.0
"""Seconds, beyond the history lag, for reading a history that is unavailable when it is needed for an answer's text."""


def _whole(
    question: Question, trace: Trace, limits: Limits, turn: ChatTurn, now: Callable[[], float]
) -> Generator[Step, Result, ChatTurn]:
    """Read from the history what the stream of a finished turn lost.

    The turn has ended and is paid for, so the deadline does not shorten the time that the history has to show it. If the history does
    not show it, the turn is returned with the text that arrived.

    :raises ChatTurnInterruptedError: no text arrived, and the history does not show the turn. A retry reads it.
    """
    end = now() + limits.lag
    log.warning("The answer's stream in session %s was incomplete. Reading the history.", question.session_id)
    while True:
        is_late = now() >= end
        try:
            verdict, failure = yield from _read(question, trace)
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


def _settle(
    question: Question, trace: Trace, limits: Limits, problem: LlamaCloudError | None, now: Callable[[], float]
) -> Generator[Step, Result, _Settled]:
    """Read the history until it is clear what happened to our turn.

    A turn that may be paid for is not given up because its history cannot be read for some time.
    """
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
        seen, failure = yield from _read(question, trace)
        reads, verdict = reads + 1, seen or verdict
        if failure is None and verdict is not None:
            if (known := _learned(trace, verdict, is_late=is_late)) != trace:
                trace = known
                yield Remember(trace)
            if (turn := _turn_of(verdict, trace, is_late=is_late)) is not None:
                return _Settled(trace, verdict, turn)
            # The server accepted the prompt, or it keeps the session busy. Then it is not absent because the history does not show it.
            is_other = is_other or verdict.is_other_running
            is_busy = isinstance(problem, ConflictError) and not is_other
            may_come = trace.accepted or trace.answered or is_busy
            if is_late and verdict.state is State.ABSENT and not may_come:
                return _Settled(trace.withdrawn(), verdict)
            if verdict.size != size:
                size, changed_at = verdict.size, now()
        is_foreign = failure is None and is_late and verdict is not None and verdict.state is State.FOREIGN
        is_over = now() >= limits.deadline
        if is_foreign or is_over or now() >= max(changed_at + limits.stall_after, shown_by):
            if failure is not None and problem is None and verdict is None and not trace.accepted:
                raise failure  # nothing is known about a turn, so there is nothing else to report
            verdict = verdict or Verdict(State.TRUNCATED)
            why = "foreign" if is_foreign else reason(trace, verdict, failure, is_over=is_over)
            return _Settled(trace, verdict, interrupted=interrupted(question, why, failure or problem, trace, verdict))
        _announce(question, failure, verdict, said)
        seconds = min(limits.poll * 1.5 ** min(reads - 1, 10), limits.poll_max, limits.stall_after / 4)
        if now() < shown_by and (verdict is None or verdict.state is not State.RUNNING):
            seconds = min(seconds, shown_by - now())
        yield Pause(max(0.0, min(seconds, limits.deadline - now())))


def _read(question: Question, trace: Trace) -> Generator[Step, Result, tuple[Verdict | None, LlamaCloudError | None]]:
    """Read the history. Return what it says about our turn, and why it tells nothing.

    :raises LlamaCloudError: it will not be readable later either.
    """
    read = yield from _history(question)
    if isinstance(read, LlamaCloudError):
        return None, read
    verdict = judge(read.events, question, trace)
    if verdict.state is not State.TRUNCATED:
        return verdict, None
    begin = f"does not begin like the {trace.baseline} turns that were known before"
    return verdict, _lost(f"The session's history lost turns: it shows {verdict.turns}, and {begin}.", question)


def _history(question: Question) -> Generator[Step, Result, Session | LlamaCloudError]:
    """Read the history. Return why, if it tells nothing.

    :raises LlamaCloudError: it will not be readable later either.
    """
    read = yield ReadHistory()
    if isinstance(read, LlamaCloudError):
        if _is_final(read):
            raise read
        return read
    assert isinstance(read, Session)  # noqa: S101  # the driver's contract
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


def _is_final(problem: LlamaCloudError) -> bool:
    redirect = problem.status is not None and 300 <= problem.status < 400
    return redirect or not problem.retryable
