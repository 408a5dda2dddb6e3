"""Why the end of a turn was not seen: reasons, texts and errors. No I/O."""

from __future__ import annotations

from typing import Any

from airflow_provider_llamachat.conversation.history import State, Verdict
from airflow_provider_llamachat.conversation.question import Question, Trace
from airflow_provider_llamachat.exceptions import (
    ChatTurnInterruptedError,
    ConflictError,
    InvalidArgumentError,
    LlamaCloudError,
    LlamaCloudProtocolError,
    NotFoundError,
    RequestRefusedError,
    SessionBusyError,
)

MAY_ASK_AGAIN = {"stalled", "overtaken", "foreign", "vanished"}
"""Reasons after which ``ask_again`` applies: waiting would not bring an answer."""

_REASONS = {
    "stalled": "The answer stopped partway: the session's history holds the turn without an end, and it no longer grows.",
    "deadline": "turn_timeout passed before the turn ended.",
    "vanished": "LlamaCloud accepted the prompt, but the session's history does not show its turn.",
    "overtaken": "Another turn began in the session before this one ended. Run tasks that share a session one after another.",
    "foreign": "Another prompt stands in the session where this one should. Run tasks that share a session one after another.",
    "unasked": "turn_timeout passed before LlamaCloud accepted the prompt.",
    "unread": "The turn ended, but its answer could not be read from the session's history in time.",
    "unreadable": "The session's history cannot be read, so it is not known what happened to the turn.",
    "killed": "The task was stopped while it waited for the turn.",
}
_ADVICE = {"unasked": "A retry of the task asks.", "unread": "A retry of the task reads it again."}
_IN_DOUBT = (
    "The prompt was not sent again, because it may already have been billed. A retry looks for the answer first. With "
    "on_interrupted='ask_again', it asks once more if there is none."
)


def reason(trace: Trace, verdict: Verdict, failure: LlamaCloudError | None, *, is_over: bool) -> str:
    """Return why waiting for the turn ends.

    :param failure: why the last read of the history told nothing.
    :param is_over: the time for the turn has passed.
    """
    if trace.answered and (is_over or verdict.state is State.RUNNING):
        return "unread"
    if is_over:
        return "deadline"
    if failure is not None or verdict.state is State.TRUNCATED:
        return "unreadable"
    if verdict.state is State.ABSENT:
        return "vanished"
    return "overtaken" if verdict.overtaken else "stalled"


def interrupted(
    question: Question, why: str, problem: LlamaCloudError | None, trace: Trace, verdict: Verdict | None = None
) -> ChatTurnInterruptedError:
    """Return the error for a turn whose end was not seen.

    :param why: one of the reasons.
    :param problem: the error that caused it.
    """
    cause = f" Cause: {problem}" if problem is not None else ""
    usage = verdict.turn.usage_as_dict() if verdict and verdict.turn and verdict.state is State.RUNNING else None
    return ChatTurnInterruptedError(
        f"{_REASONS[why]} {_ADVICE.get(why, _IN_DOUBT)} Session: {question.session_id}.{cause}",
        reason=why,
        accepted=trace.accepted,
        session_id=question.session_id,
        usage=usage,
    )


def unread(question: Question, trace: Trace, problem: LlamaCloudError) -> LlamaCloudError:
    """Return ``problem``, or the error for a turn whose history was refused. Only a missing session shows that it has no answer."""
    refusals = RequestRefusedError | LlamaCloudProtocolError | InvalidArgumentError
    if not trace.is_open or isinstance(problem, NotFoundError) or not isinstance(problem, refusals):
        return problem
    error = interrupted(question, "unreadable", problem, trace)
    error.retryable = problem.retryable
    return error


def busy(question: Question, problem: ConflictError) -> SessionBusyError:
    """Return the error for a prompt that was not accepted because other turns kept the session busy until the deadline."""
    text = (
        "The session was busy with another turn until turn_timeout passed, so the prompt was not accepted. A retry asks. Raise "
        "turn_timeout, or run fewer tasks at once in a session."
    )
    return SessionBusyError(f"{text} Session: {question.session_id}. Cause: {problem}", **_known(question, problem))


def refused(question: Question, problem: ConflictError) -> RequestRefusedError:
    """Return the error for a 409 that is not about another turn."""
    text = "LlamaCloud refused the prompt, although no other turn is running in the session. See the cause."
    return RequestRefusedError(f"{text} Session: {question.session_id}. Cause: {problem}", **_known(question, problem))


def _known(question: Question, problem: ConflictError) -> dict[str, Any]:
    return {"status": problem.status, "request_id": problem.request_id, "session_id": question.session_id}
