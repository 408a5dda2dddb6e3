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
    LlamaCloudConnectionError,
    LlamaCloudError,
    LlamaCloudProtocolError,
    RateLimitError,
    RequestRefusedError,
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
    """Step: read the whole session; send back a :class:`~.models.Session`."""


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
Asking = Generator[Step, Session | Outcome | None, ChatTurn]


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
            try:
                turn = yield from _settle(question, limits, baseline, problem, accepted, now)
            except ChatTurnInterruptedError as interrupted:
                if not (
                    ask_again and posts == 0 and interrupted.reason in {"stalled", "overtaken", "foreign", "vanished"}
                ):
                    raise
                session = yield ReadHistory()
                assert isinstance(session, Session)  # noqa: S101  # the drivers' contract
                if judge(session.events, baseline, question.prompt).asked > 1:
                    raise
                log.warning(
                    "on_interrupted='ask_again': asking once more in session %s. The interrupted turn may already have been billed. %s",
                    question.session_id,
                    interrupted,
                )
                baseline, ask_again, turn = count_turns(session.events), False, None
            if turn is not None:
                return _checked(question, turn)
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
        if isinstance(problem, RequestRefusedError) or (problem.status is not None and 300 <= problem.status < 400):
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
) -> Generator[Step, Session | Outcome | None, ChatTurn | None]:
    """Read the history until it is clear what became of our turn: the turn, or None when it was never accepted."""
    size, changed_at, looks, announced = -1, now(), 0, False
    while True:
        session = yield ReadHistory()
        assert isinstance(session, Session)  # noqa: S101  # the drivers' contract
        looks += 1
        verdict = judge(session.events, baseline, question.prompt, session_id=question.session_id)
        if verdict.state is State.FINISHED and verdict.turn is not None:
            log.info("Session %s already holds the answer to this prompt: adopting it.", question.session_id)
            return verdict.turn.model_copy(update={"index_ids": question.index_ids})
        if verdict.state is State.FOREIGN:
            raise _interrupted(question, "foreign", problem)
        # Without a sign of acceptance one more look, a moment later, tells a lost request from one that is being recorded.
        if verdict.state is State.ABSENT and not accepted and (problem is None or looks > 1):
            return None
        if verdict.size != size:
            size, changed_at = verdict.size, now()
        if now() >= limits.deadline:
            raise _interrupted(question, "deadline", problem, verdict, accepted)
        if now() - changed_at >= limits.stall_after:
            reason = "vanished" if verdict.state is State.ABSENT else "overtaken" if verdict.overtaken else "stalled"
            raise _interrupted(question, reason, problem, verdict, accepted)
        if verdict.state is State.RUNNING and not announced:
            announced = True
            log.info(
                "Session %s is at work on this prompt: waiting for it instead of asking again.", question.session_id
            )
        seconds = min(limits.poll * 1.5 ** min(looks - 1, 10), limits.poll_max, limits.stall_after / 4)
        yield Pause(max(0.0, min(seconds, limits.deadline - now())))


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
