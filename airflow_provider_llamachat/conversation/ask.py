"""The life of a turn, as a generator of steps: one rule for the worker, the triggerer and the batch. No I/O.

:func:`ask` yields what it wants done and is sent the outcome; :mod:`.driver` carries the steps out. A prompt is never posted
while an earlier post of it may have been accepted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from airflow_provider_llamachat.conversation.history import State, Verdict, count_turns, judge
from airflow_provider_llamachat.conversation.question import Question, Trace
from airflow_provider_llamachat.exceptions import (
    ChatTurnFailedError,
    ChatTurnInterruptedError,
    ConflictError,
    LlamaCloudConnectionError,
    LlamaCloudError,
    LlamaCloudProtocolError,
    RateLimitError,
)
from airflow_provider_llamachat.models import ChatTurn, Session
from airflow_provider_llamachat.redaction import excerpt

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often.

    :param deadline: epoch seconds at which waiting ends.
    :param stall_after: seconds without growth of our turn in the history after which it counts as cut off.
    :param max_posts: how often the prompt may be posted at most, each time only when the posts before were not accepted.
    :param lag: seconds that a history may take to show a prompt that was accepted.
    :param poll: seconds between two reads of the history, growing up to ``poll_max``.
    :param pause: seconds to wait after failed post number n, given the server's ``Retry-After``.
    """

    deadline: float
    stall_after: float
    max_posts: int
    lag: float = 0.0
    poll: float = 1.0
    poll_max: float = 5.0
    pause: Callable[[int, float | None], float] = lambda _attempt, _retry_after: 0.0


@dataclass(frozen=True, slots=True)
class Remember:
    """Step: keep what is known of the turn where a later attempt finds it; send back nothing.

    :param is_intent: a post follows, and must not leave if this could not be kept.
    """

    trace: Trace
    is_intent: bool = False


@dataclass(frozen=True, slots=True)
class ReadHistory:
    """Step: read the whole session; send back a :class:`~..models.Session`, or why it could not be read."""


@dataclass(frozen=True, slots=True)
class Post:
    """Step: post the prompt and read the stream; send back an :class:`Outcome`.

    :param position: how many turns the session has before this one.
    """

    trace: Trace
    position: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Step: wait; send back nothing."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a post.

    :param trace: what is known of the turn now.
    :param turn: what the stream's events made, finished or not; None when there was no stream.
    :param problem: why there is no finished turn.
    :param is_damaged: events of the stream were lost because they were malformed.
    """

    trace: Trace
    turn: ChatTurn | None = None
    problem: LlamaCloudError | None = None
    is_damaged: bool = False


Step = Remember | ReadHistory | Post | Pause
Result = Session | LlamaCloudError | Outcome | None
Steps = Generator[Step, Result, ChatTurn]


@dataclass(frozen=True, slots=True)
class _Settled:
    """What the history says of our turn, at last.

    :param turn: the finished turn; None when the prompt was not accepted, or when ``interrupted`` says why its end is not there.
    :param asked: how often our prompt stands in the history since the baseline.
    :param turns: how many turns the session has.
    """

    trace: Trace
    turn: ChatTurn | None = None
    interrupted: ChatTurnInterruptedError | None = None
    asked: int = 0
    turns: int = 0


def ask(
    question: Question,
    trace: Trace,
    limits: Limits,
    *,
    ask_again: bool = False,
    now: Callable[[], float] = time.time,
) -> Steps:
    """Ask once and return the finished turn.

    :param trace: what is known of the turn; where it is open, the history is read before anything is posted, and where it is
        answered, nothing is posted at all.
    :param ask_again: post once more when an earlier attempt's turn is there, unfinished and no longer growing, or cannot be found.
    :raises ChatTurnFailedError: the server ended the turn with an error.
    :raises ChatTurnInterruptedError: the end of the turn could not be seen; nothing was posted twice.
    :raises LlamaCloudError: refusals, and network errors after which the history shows that nothing was accepted.
    """
    posts, position = 0, trace.baseline
    was_open, was_answered = trace.is_open, trace.answered
    problem: LlamaCloudError | None = None
    while True:
        if trace.is_open:
            settled = yield from _settle(question, trace, limits, problem, now)
            trace = settled.trace
            if settled.turn is not None:
                if not was_answered:
                    log.info("Session %s already holds the answer to this prompt; adopting it.", question.session_id)
                return (yield from _finish(question, trace, settled.turn))
            if settled.interrupted is not None:
                if isinstance(problem, ConflictError):
                    # Somebody else's turn keeps the session busy, so ours was refused; without any turn, nobody can tell.
                    is_theirs = settled.interrupted.reason == "foreign" and not trace.accepted
                    yield Remember(trace.withdrawn() if is_theirs else trace)
                    raise problem
                may_again = ask_again and not trace.answered and posts == 0 and settled.asked <= 1
                if not (may_again and settled.interrupted.reason in _MAY_ASK_AGAIN):
                    yield Remember(trace)
                    raise settled.interrupted
                log.warning(
                    "Asking once more in session %s, because this task may (it was cleared, or has on_interrupted='ask_again'). "
                    "The interrupted turn may already have been billed. %s",
                    question.session_id,
                    settled.interrupted,
                )
                position, ask_again = settled.turns, False
        if problem is not None and posts >= limits.max_posts:
            yield Remember(trace)
            raise problem
        if now() >= limits.deadline:
            yield Remember(trace)
            raise _interrupted(question, "unasked", problem, trace)
        posts += 1
        trace = replace(trace, intended_at=now())
        yield Remember(trace, is_intent=True)
        outcome = yield Post(trace, position)
        assert isinstance(outcome, Outcome)  # noqa: S101  # the driver's contract
        trace = outcome.trace
        if outcome.turn is not None and outcome.turn.finished:
            trace = replace(trace, accepted=True, answered=True)
            turn = outcome.turn
            if not turn.is_error and (outcome.is_damaged or not turn.answer.strip()):
                turn = yield from _whole(question, trace, limits, turn, now)
            return (yield from _finish(question, trace, turn))
        problem = outcome.problem or _interrupted(question, "stalled", None, trace)
        trace = _after_failure(trace, problem, now(), may_be_ours=was_open or posts > 1)
        yield Remember(trace)
        if not trace.is_open and (_is_final(problem) or isinstance(problem, ConflictError)):
            raise problem
        yield from _pause(problem, trace, posts, limits, now)


def _after_failure(trace: Trace, problem: LlamaCloudError, at: float, *, may_be_ours: bool) -> Trace:
    """What is known after a post that brought no finished turn."""
    if isinstance(problem, ConflictError):
        # What keeps the session busy may be an earlier post of ours that the history does not show yet.
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
    """Wait as long as the failure asks for; after a lost connection the history is read at once."""
    seconds = 0.0
    if problem.status or not trace.is_open:
        seconds = limits.pause(posts, getattr(problem, "retry_after", None))
    if isinstance(problem, RateLimitError):
        # Reads count against the rate limit as well: one read, when it can settle the matter.
        seconds = max(seconds, limits.lag)
    if not trace.is_open and posts >= limits.max_posts:
        return
    then = "Reading the session's history" if trace.is_open else "Retrying"
    log.warning("%s %s in %.1f s.", problem, then, seconds)
    if seconds:
        yield Pause(min(seconds, max(0.0, limits.deadline - now())))


def _finish(question: Question, trace: Trace, turn: ChatTurn) -> Generator[Step, Result, ChatTurn]:
    if turn.is_error:
        yield Remember(replace(trace, answered=True))
        reason = excerpt(turn.error) if turn.error else "it gave no reason"
        raise ChatTurnFailedError(
            f"LlamaCloud ended the turn with an error: {reason}. A retry of the task asks again; the failed turn may have been "
            f"billed. Session: {question.session_id}.",
            session_id=question.session_id,
            usage=turn.usage_as_dict(),
        )
    yield Remember(replace(trace, accepted=True, answered=True))
    return turn


def _whole(
    question: Question, trace: Trace, limits: Limits, turn: ChatTurn, now: Callable[[], float]
) -> Generator[Step, Result, ChatTurn]:
    """Read from the history what the stream of a finished turn lost on its way. Whatever happens, the turn is handed over."""
    end = min(now() + limits.lag, limits.deadline)
    log.warning("The answer's stream in session %s was incomplete; reading the history.", question.session_id)
    while True:
        started = now()
        read = yield ReadHistory()
        if isinstance(read, Session):
            verdict = judge(read.events, question, trace)
            found = _turn_of(verdict, trace, is_late=started >= end)
            if found is not None and not found.is_error:
                return max((turn, found), key=lambda one: len(one.answer))
        if started >= end or (isinstance(read, LlamaCloudError) and _is_final(read)):
            log.warning("The history of session %s does not hold the turn; using the stream's.", question.session_id)
            return turn
        yield Pause(max(0.0, min(limits.poll, end - now())))


def _settle(
    question: Question, trace: Trace, limits: Limits, problem: LlamaCloudError | None, now: Callable[[], float]
) -> Generator[Step, Result, _Settled]:
    """Read the history until it is clear what became of our turn.

    A history that cannot be read for the moment is no reason to give up a turn that may be paid for.
    """
    begin = changed_at = now()
    size, reads, turns = -1, 0, 0
    said: set[str] = set()
    # An end that was seen may have been seen a moment ago.
    since = begin if trace.answered or trace.intended_at is None else min(begin, trace.intended_at)
    shown_by = since + limits.lag
    # What the server took, or what keeps the session busy, is not absent because the history does not show it.
    may_come = trace.accepted or trace.answered or isinstance(problem, ConflictError)
    verdict: Verdict | None = None
    while True:
        started = now()
        read = yield ReadHistory()
        reads += 1
        failure = _unreadable(question, read)
        if failure is None:
            assert isinstance(read, Session)  # noqa: S101  # what is no failure is a session
            turns = count_turns(read.events)
            verdict = judge(read.events, question, trace)
            failure = _truncated(question, trace, verdict, turns)
        if failure is None and verdict is not None:
            is_late = started >= shown_by
            if (known := _seen(trace, verdict, is_late=is_late)) != trace:
                trace = known
                yield Remember(trace)
            turn = _turn_of(verdict, trace, is_late=is_late)
            if turn is not None:
                return _Settled(trace, turn)
            if is_late and verdict.state is State.FOREIGN:
                interrupted = _interrupted(question, "foreign", problem, trace)
                return _Settled(trace, interrupted=interrupted, turns=turns)
            if is_late and verdict.state is State.ABSENT and not may_come:
                return _Settled(trace.withdrawn(), turns=turns)
            if verdict.size != size:
                size, changed_at = verdict.size, now()
        over = now() >= limits.deadline
        if over or now() >= max(changed_at + limits.stall_after, shown_by):
            if failure is not None and problem is None and verdict is None and not trace.accepted:
                raise failure  # nothing is known of any turn, so this is all there is to say
            reason = "deadline" if over else _reason(failure, verdict)
            interrupted = _interrupted(question, reason, failure or problem, trace, verdict)
            return _Settled(trace, interrupted=interrupted, asked=verdict.asked if verdict else 0, turns=turns)
        _announce(question, failure, verdict, said)
        seconds = min(limits.poll * 1.5 ** min(reads - 1, 10), limits.poll_max, limits.stall_after / 4)
        if now() < shown_by and (verdict is None or verdict.state is not State.RUNNING):
            seconds = min(seconds, shown_by - now())
        yield Pause(max(0.0, min(seconds, limits.deadline - now())))


def _seen(trace: Trace, verdict: Verdict, *, is_late: bool) -> Trace:
    """What the history adds to what is known: a turn of ours that stands there was accepted, under the text that stands there."""
    if verdict.recorded is None or not (verdict.is_sure or is_late):
        return trace
    return replace(trace, accepted=True, recorded=trace.recorded or verdict.recorded)


def _turn_of(verdict: Verdict, trace: Trace, *, is_late: bool) -> ChatTurn | None:
    """The finished turn that is ours; None as long as there is none.

    One that only may be ours counts once the history had its time: ours would stand beside it by then. A turn that was seen to end
    is in the history then as well. If a single turn stands at its place, it is that turn, under a text that nobody could know.
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
        log.info("Session %s is still answering this prompt; waiting for it.", question.session_id)


def _is_final(problem: LlamaCloudError) -> bool:
    redirect = problem.status is not None and 300 <= problem.status < 400
    return redirect or not problem.retryable


def _unreadable(question: Question, read: Result) -> LlamaCloudError | None:
    """Why what was read tells nothing; None for a history.

    :raises LlamaCloudError: it will not be readable later either.
    """
    if isinstance(read, LlamaCloudError):
        if _is_final(read):
            raise read
        return read
    assert isinstance(read, Session)  # noqa: S101  # the driver's contract
    if read.job_metadata is not None and not read.events:
        # "Nothing was ever asked here" is what decides about asking again, so it must not come from half an answer.
        return LlamaCloudProtocolError(
            f"The session was asked before, but its history is empty. Session: {question.session_id}.",
            session_id=question.session_id,
        )
    return None


def _truncated(question: Question, trace: Trace, verdict: Verdict, turns: int) -> LlamaCloudError | None:
    if verdict.state is not State.TRUNCATED:
        return None
    return LlamaCloudProtocolError(
        f"The session's history lost turns: it shows {turns}, and its beginning is not the one of the {trace.baseline} turns known "
        f"before. Session: {question.session_id}.",
        session_id=question.session_id,
    )


def _reason(failure: LlamaCloudError | None, verdict: Verdict | None) -> str:
    if failure is not None or verdict is None:
        return "unreadable"
    if verdict.state is State.ABSENT:
        return "vanished"
    if verdict.state is State.FOREIGN:
        return "foreign"
    return "overtaken" if verdict.overtaken else "stalled"


_MAY_ASK_AGAIN = {"stalled", "overtaken", "foreign", "vanished"}
"""Reasons after which ``ask_again`` applies: there is no answer that waiting would bring."""

_REASONS = {
    "stalled": "The answer stopped partway: the session's history holds the turn without an end, and it no longer grows.",
    "deadline": "turn_timeout passed before the turn ended.",
    "vanished": "LlamaCloud accepted the prompt, but the session's history does not show its turn.",
    "overtaken": "Another turn began in the session before this one ended. Run tasks that share a session one after another.",
    "foreign": "Another prompt stands in the session where this one should. Run tasks that share a session one after another.",
    "unasked": "turn_timeout passed before LlamaCloud accepted the prompt.",
    "unreadable": "The session's history cannot be read, so what became of the turn is not known.",
    "killed": "The task was stopped while it waited for the turn.",
}
_IN_DOUBT = (
    "The prompt was not sent again, because it may already have been billed. A retry looks for the answer first; with "
    "on_interrupted='ask_again' it asks once more if there is none."
)


def _interrupted(
    question: Question, reason: str, problem: LlamaCloudError | None, trace: Trace, verdict: Verdict | None = None
) -> ChatTurnInterruptedError:
    advice = "A retry of the task asks." if reason == "unasked" else _IN_DOUBT
    cause = f" Cause: {problem}" if problem is not None else ""
    usage = verdict.turn.usage_as_dict() if verdict and verdict.turn and verdict.state is State.RUNNING else None
    return ChatTurnInterruptedError(
        f"{_REASONS[reason]} {advice} Session: {question.session_id}.{cause}",
        reason=reason,
        accepted=trace.accepted,
        session_id=question.session_id,
        usage=usage,
    )


def killed(question: Question, trace: Trace) -> ChatTurnInterruptedError:
    """The error for a turn that nobody waits for any longer, because its task was stopped."""
    return _interrupted(question, "killed", None, trace)
