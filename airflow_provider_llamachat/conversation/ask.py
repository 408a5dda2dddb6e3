"""The life of a turn, as a generator of steps. The worker, the triggerer and the batch use the same rule. No I/O.

:func:`ask` yields steps and is sent their results. A client carries the steps out. A prompt is never posted while an earlier
post of it may have been accepted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from airflow_provider_llamachat.conversation.history import State, begin, is_running, judge
from airflow_provider_llamachat.conversation.interruption import MAY_ASK_AGAIN, busy, interrupted, refused
from airflow_provider_llamachat.conversation.question import Question, Trace
from airflow_provider_llamachat.conversation.recovery import Settled, is_final, look, read_session, settle, whole_turn
from airflow_provider_llamachat.conversation.steps import Limits, Outcome, Post, Remember, Result, Step, Steps
from airflow_provider_llamachat.exceptions import (
    ChatTurnFailedError,
    ConflictError,
    LlamaCloudConnectionError,
    LlamaCloudError,
    RateLimitError,
    SessionBusyError,
)
from airflow_provider_llamachat.models import ChatTurn, Session
from airflow_provider_llamachat.redaction import excerpt

log = logging.getLogger(__name__)


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
    limits = replace(limits, now=now)
    posts, position, others = 0, trace.baseline, _Others()
    problem: LlamaCloudError | None = None
    if look_first and not trace.is_open and (yield from _may_be_there(question, trace)):
        trace = replace(trace, intended_at=now())
        yield Remember(trace)
    was_open, was_answered = trace.is_open, trace.answered
    while True:
        if trace.is_open:
            settled = yield from settle(question, trace, limits, problem)
            trace = settled.trace
            if settled.turn is not None:
                if not was_answered:
                    log.info("Session %s already holds the answer to this prompt. Using it.", question.session_id)
                return (yield from _finish(question, trace, settled.turn))
            if settled.interrupted is not None:
                trace = yield from _without_an_end(question, settled, problem, ask_again=ask_again and posts == 0)
                if trace.is_open:
                    position, ask_again = settled.verdict.turns, False
        if isinstance(problem, ConflictError) and not trace.is_open:
            trace = yield from _wait_for_others(question, trace, limits, problem, others)
            posts, position, problem = posts - 1, trace.baseline, None
            continue
        outcome = yield from _post(question, trace, limits, posts, position, problem)
        posts, trace = posts + 1, outcome.trace
        if outcome.turn is not None and outcome.turn.finished:
            return (yield from _answered(question, trace, limits, outcome, outcome.turn))
        problem = outcome.problem or interrupted(question, "stalled", None, trace)
        trace = _after_failure(trace, problem, now(), may_be_ours=was_open or posts > 1)
        yield Remember(trace)
        yield from _pause(problem, trace, posts, limits)


def _post(
    question: Question, trace: Trace, limits: Limits, posts: int, position: int, problem: LlamaCloudError | None
) -> Generator[Step, Result, Outcome]:
    """Post the prompt once, after this intent is stored.

    :raises ChatTurnInterruptedError: the deadline has passed, so nothing was posted.
    :raises LlamaCloudError: ``problem``, after the last post that is allowed.
    """
    if problem is not None and posts >= limits.max_posts:
        yield Remember(trace)
        raise problem
    if limits.are_over:
        yield Remember(trace)
        raise interrupted(question, "unasked", problem, trace)
    # If this process is lost, nobody knows when the post left: it may have waited for the rate limit, or for a connection.
    yield Remember(replace(trace, intended_at=limits.deadline), is_intent=True)
    outcome = yield Post(replace(trace, intended_at=limits.now()), position)
    assert isinstance(outcome, Outcome)  # noqa: S101  # the client's contract
    return outcome


def _may_be_there(question: Question, trace: Trace) -> Generator[Step, Result, bool]:
    """Whether the history shows our turn, or tells nothing. Another prompt in its place is no sign of an earlier post of ours."""
    verdict, failure = yield from look(question, trace)
    return failure is not None or (verdict is not None and verdict.is_shown)


def _without_an_end(
    question: Question, settled: Settled, problem: LlamaCloudError | None, *, ask_again: bool
) -> Generator[Step, Result, Trace]:
    """Decide about a turn that has no end. Return what is known if asking goes on: open if the prompt is asked once more.

    :raises ChatTurnInterruptedError: the turn may have been paid for.
    """
    assert settled.interrupted is not None  # noqa: S101  # the caller's contract
    trace, why = settled.trace, settled.interrupted.reason
    may_again = ask_again and not trace.answered and settled.verdict.asked <= 1
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
    question: Question, trace: Trace, limits: Limits, problem: ConflictError, others: _Others
) -> Generator[Step, Result, Trace]:
    """Wait, and read the history, after a post that was refused because the session is busy. Return what is known for the next post.

    :raises SessionBusyError: the deadline has passed.
    :raises RequestRefusedError: nothing told of another turn for as long as the history may be late.
    """
    others.are_seen |= isinstance(problem, SessionBusyError)
    if not others.refusals:
        others.since = limits.now()
    others.refusals += 1
    if others.refusals == 1:
        log.info("Session %s is busy with another turn. Waiting until it has ended.", question.session_id)
    yield limits.wait(max(problem.retry_after or 0.0, limits.between_reads(others.refusals)))
    session = yield from read_session(question)
    if isinstance(session, Session):
        others.are_seen |= is_running(session.events)
        verdict = judge(session.events, question, trace)
        if verdict.is_shown:
            # A server that refuses what it accepted is not paid again.
            trace = replace(trace, intended_at=limits.now())
            yield Remember(trace)
            return trace
        trace = trace if verdict.state is State.TRUNCATED else begin(session, question, now=limits.now())
    if not others.are_seen and limits.now() - others.since >= limits.lag:
        raise refused(question, problem)
    if limits.are_over:
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
    if is_final(problem) or (is_connection and problem.accepted is False):
        return trace.withdrawn()
    return replace(trace, intended_at=at, accepted=problem.accepted is True)


def _pause(problem: LlamaCloudError, trace: Trace, posts: int, limits: Limits) -> Generator[Step, Result, None]:
    """Wait as long as the failure requires. After a lost connection, the history is read at once.

    :raises LlamaCloudError: the problem, if the prompt would be refused again.
    """
    if not trace.is_open and is_final(problem):
        raise problem
    seconds = 0.0
    if problem.status or not trace.is_open:
        seconds = limits.pause(posts, problem.retry_after)
    if isinstance(problem, RateLimitError):
        # Reads count against the rate limit too, so there is only one, at a time when it can decide.
        seconds = max(seconds, limits.lag)
    if not trace.is_open and (posts >= limits.max_posts or isinstance(problem, ConflictError)):
        return
    then = "Reading the session's history" if trace.is_open else "Retrying"
    log.warning("%s %s in %.1f s.", problem, then, seconds)
    if seconds:
        yield limits.wait(seconds)


def _answered(
    question: Question, trace: Trace, limits: Limits, outcome: Outcome, turn: ChatTurn
) -> Generator[Step, Result, ChatTurn]:
    """Return the turn that our own stream finished."""
    trace = replace(trace, accepted=True, answered=True)
    if not turn.is_error and (outcome.is_damaged or not turn.answer.strip()):
        turn = yield from whole_turn(question, trace, limits, turn)
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
