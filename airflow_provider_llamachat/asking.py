"""The life of a turn, as a generator of steps: one rule for the worker, the triggerer and the batch. No I/O.

:func:`ask` yields what it wants done (:class:`ReadHistory`, :class:`Post`, :class:`Pause`) and is sent the outcome; the two
clients carry the steps out. It never lets a prompt be posted while an earlier post of it may have been accepted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

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
from airflow_provider_llamachat.turns import State, Verdict, count_turns, judge

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and where."""

    session_id: str
    prompt: str
    index_ids: list[str]
    require_all_indexes: bool = False
    project_id: str | None = None
    organization_id: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often.

    :param deadline: epoch seconds at which waiting ends.
    :param stall_after: seconds without growth of our turn in the history after which it counts as cut off.
    :param max_posts: how often the prompt may be posted at the most, each time provably not accepted before.
    :param poll: seconds between two looks at the history, growing up to ``poll_max``.
    :param pause: seconds to wait after failed post number n, given the server's ``Retry-After``.
    """

    deadline: float
    stall_after: float
    max_posts: int
    poll: float = 1.0
    poll_max: float = 5.0
    pause: Callable[[int, float | None], float] = lambda _attempt, _retry_after: 0.0


@dataclass(frozen=True, slots=True)
class ReadHistory:
    """Step: read the whole session; send back a :class:`~.models.Session`, or why it could not be read."""


@dataclass(frozen=True, slots=True)
class Post:
    """Step: post the prompt and read the stream; send back an :class:`Outcome`. ``position`` is what the turn's will be."""

    position: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Step: wait; send back nothing."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a post.

    :param turn: what the stream's events made, finished or not; None when there was no stream.
    :param problem: why there is no finished turn.
    """

    turn: ChatTurn | None = None
    problem: LlamaCloudError | None = None


Step = ReadHistory | Post | Pause
Reply = Session | LlamaCloudError | Outcome | None
Asking = Generator[Step, Reply, ChatTurn]


@dataclass(frozen=True, slots=True)
class _Settled:
    """What the history says of our turn, at last.

    :param turn: the finished turn; None when the prompt was never accepted, or when ``interrupted`` says why its end is not there.
    :param asked: how often our prompt stands in the history since the baseline.
    :param turns: how many turns the session has.
    """

    turn: ChatTurn | None = None
    interrupted: ChatTurnInterruptedError | None = None
    asked: int = 0
    turns: int = 0


def ask(
    question: Question,
    limits: Limits,
    *,
    baseline: int,
    resume: bool,
    accepted: bool = False,
    ask_again: bool = False,
    now: Callable[[], float] = time.time,
) -> Asking:
    """Ask once and return the finished turn.

    :param baseline: turns the session had before this task first asked.
    :param resume: an earlier try, or an earlier run of the trigger, may have posted already: look before posting.
    :param accepted: an earlier try saw the server take the prompt: its absence from the history is then no proof of anything.
    :param ask_again: what a *retry* may do with a turn that is there, unfinished and no longer growing: post it once more.
    :raises ChatTurnFailedError: the server ended the turn with an error.
    :raises ChatTurnInterruptedError: the end of the turn could not be seen; nothing was posted twice.
    :raises LlamaCloudError: refusals, and network errors after which the history shows that nothing was accepted.
    """
    posts = 0
    look = resume
    problem: LlamaCloudError | None = None
    while True:
        if look:
            if isinstance(problem, LlamaCloudConnectionError | LlamaCloudProtocolError):
                accepted = problem.accepted is True
            settled = yield from _settle(question, limits, baseline, problem, accepted, now)
            if settled.turn is not None:
                return _checked(question, settled.turn)
            if settled.interrupted is not None:
                if isinstance(problem, ConflictError) and posts == 1:
                    raise problem  # nothing of ours keeps the session busy
                if not (
                    ask_again
                    and posts == 0
                    and settled.asked <= 1
                    and settled.interrupted.reason in {"stalled", "overtaken", "foreign", "vanished"}
                ):
                    raise settled.interrupted
                log.warning(
                    "on_interrupted='ask_again': asking once more in session %s. The interrupted turn may already have been billed. %s",
                    question.session_id,
                    settled.interrupted,
                )
                baseline, ask_again = settled.turns, False
        if posts >= limits.max_posts and problem is not None:
            raise problem
        if now() >= limits.deadline:
            raise _interrupted(question, "unasked", problem)
        posts += 1
        outcome = yield Post(baseline)
        assert isinstance(outcome, Outcome)  # noqa: S101  # the drivers' contract
        if outcome.turn is not None and outcome.turn.finished:
            return _checked(question, outcome.turn)
        problem = outcome.problem or _interrupted(question, "stalled", None)
        if isinstance(problem, ConflictError) and (resume or posts > 1):
            # What keeps the session busy may be an earlier post of ours that the history does not show yet.
            look = accepted = True
            continue
        if _is_final(problem):
            raise problem
        known_refused = isinstance(problem, RateLimitError) or (
            isinstance(problem, LlamaCloudConnectionError) and problem.accepted is False
        )
        if known_refused and posts >= limits.max_posts:
            raise problem
        look = not known_refused
        # A failing server gets room before it is asked anything; after a lost connection the history is read at once.
        seconds = limits.pause(posts, getattr(problem, "retry_after", None)) if problem.status or known_refused else 0.0
        then = "asking again" if known_refused else "reading the session's history"
        log.warning("%s In %.1f s: %s.", problem, seconds, then)
        if seconds:
            yield Pause(min(seconds, max(0.0, limits.deadline - now())))


def _settle(
    question: Question,
    limits: Limits,
    baseline: int,
    problem: LlamaCloudError | None,
    accepted: bool,
    now: Callable[[], float],
) -> Generator[Step, Reply, _Settled]:
    """Read the history until it is clear what became of our turn.

    A history that can not be read for the moment is no reason to give up a turn that may be paid for.
    """
    size, changed_at, announced, warned = -1, now(), False, False
    verdict: Verdict | None = None
    reads = looks = turns = 0
    while True:
        read = yield ReadHistory()
        reads += 1
        failure = _unreadable(question, read)
        if failure is None:
            assert isinstance(read, Session)  # noqa: S101  # what is no failure is a session
            looks += 1
            turns = count_turns(read.events)
            verdict = judge(read.events, baseline, question.prompt, session_id=question.session_id)
            if verdict.state is State.FINISHED and verdict.turn is not None:
                log.info("Session %s already holds the answer to this prompt: adopting it.", question.session_id)
                return _Settled(verdict.turn.model_copy(update={"index_ids": question.index_ids}))
            if verdict.state is State.FOREIGN:
                return _Settled(interrupted=_interrupted(question, "foreign", problem), turns=turns)
            # Without a sign of acceptance one more look, a moment later, tells a lost request from one that is being recorded.
            if verdict.state is State.ABSENT and not accepted and (problem is None or looks > 1):
                return _Settled(turns=turns)
            if verdict.size != size:
                size, changed_at = verdict.size, now()
        over = now() >= limits.deadline
        if over or now() - changed_at >= limits.stall_after:
            if failure is not None and problem is None and verdict is None and not accepted:
                raise failure  # nothing is known of any turn, so this is all there is to say
            reason = "deadline" if over else _reason(failure, verdict)
            cause = problem if failure is None else failure
            interrupted = _interrupted(question, reason, cause, verdict, accepted)
            return _Settled(interrupted=interrupted, asked=verdict.asked if verdict else 0, turns=turns)
        if failure is not None and not warned:
            warned = True
            log.warning("%s Looking again and again, until the turn's time is over.", failure)
        elif verdict is not None and verdict.state is State.RUNNING and not announced:
            announced = True
            log.info(
                "Session %s is at work on this prompt: waiting for it instead of asking again.", question.session_id
            )
        seconds = min(limits.poll * 1.5 ** min(reads - 1, 10), limits.poll_max, limits.stall_after / 4)
        yield Pause(max(0.0, min(seconds, limits.deadline - now())))


def _is_final(problem: LlamaCloudError) -> bool:
    redirect = problem.status is not None and 300 <= problem.status < 400
    return redirect or not problem.retryable


def _unreadable(question: Question, read: Reply) -> LlamaCloudError | None:
    """Why what was read tells nothing; None for a history.

    :raises LlamaCloudError: it will not be readable later either.
    """
    if isinstance(read, LlamaCloudError):
        if _is_final(read):
            raise read
        return read
    assert isinstance(read, Session)  # noqa: S101  # the drivers' contract
    if read.job_metadata is not None and not read.events:
        # "Nothing was ever asked here" is what decides about asking again, so it must not come from half an answer.
        return LlamaCloudProtocolError(
            f"Session {question.session_id} says that it was asked before, but its history is empty.",
            session_id=question.session_id,
        )
    return None


def _reason(failure: LlamaCloudError | None, verdict: Verdict | None) -> str:
    if failure is not None or verdict is None:
        return "unreadable"
    if verdict.state is State.ABSENT:
        return "vanished"
    return "overtaken" if verdict.overtaken else "stalled"


def _checked(question: Question, turn: ChatTurn) -> ChatTurn:
    if turn.is_error:
        reason = excerpt(turn.error) if turn.error else "it gave no reason"
        raise ChatTurnFailedError(
            f"LlamaCloud ended the turn in session {question.session_id} with an error: {reason}. "
            "A retry of the task asks again; the failed turn may have been billed.",
            session_id=question.session_id,
            usage=turn.usage_as_dict(),
        )
    return turn


_REASONS = {
    "stalled": "the turn is in the session's history without an end, and no longer grows",
    "deadline": "turn_timeout passed before the turn ended",
    "vanished": "the server took the prompt, but its history does not show the turn",
    "overtaken": "another turn began in the session before this one ended (a session answers one turn at a time)",
    "foreign": "another prompt stands in the session where this one should: something else asks in the same session",
    "unasked": "turn_timeout passed before the server took the prompt",
    "unreadable": "the session's history could not be read, so what became of the turn is not known",
}
_IN_DOUBT = (
    "The prompt was not sent again, because it may already have been billed. A retry of the task looks for the answer first; "
    "on_interrupted='ask_again' lets it ask once more if there is none."
)


def _interrupted(
    question: Question,
    reason: str,
    problem: LlamaCloudError | None,
    verdict: Verdict | None = None,
    accepted: bool = False,
) -> ChatTurnInterruptedError:
    advice = "A retry of the task asks." if reason == "unasked" else _IN_DOUBT
    cause = f" What interrupted it: {problem}" if problem is not None else ""
    usage = verdict.turn.usage_as_dict() if verdict and verdict.turn else None
    return ChatTurnInterruptedError(
        f"The turn in session {question.session_id} was interrupted: {_REASONS[reason]}. {advice}{cause}",
        reason=reason,
        accepted=accepted or (verdict is not None and verdict.state is State.RUNNING),
        session_id=question.session_id,
        usage=usage,
    )
