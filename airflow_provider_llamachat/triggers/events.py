"""The events that triggers send to the worker. They contain neither answers nor API keys, and are validated by the worker."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_llamachat import exceptions

if TYPE_CHECKING:
    from airflow_provider_llamachat.conversation.question import Question, Trace

ANSWERED = "answered"
READY = "ready"
FAILED = "failed"
TIMED_OUT = "timed_out"

_ATTRIBUTES = ("status", "request_id", "session_id", "usage", "reason", "accepted", "retry_after", "index_id")


class Failure(NamedTuple):
    """An exception that is passed from the triggerer to the worker, which raises the same exception.

    :param error: name of the exception's class.
    :param message: message of the exception.
    :param details: attributes of the exception.
    """

    error: str | None = None
    message: str | None = None
    details: dict[str, Any] | None = None

    @classmethod
    def of(cls, problem: exceptions.LlamaCloudError) -> Failure:
        """Return the failure of an exception."""
        details = {name: value for name in _ATTRIBUTES if (value := getattr(problem, name, None)) is not None}
        return cls(type(problem).__name__, str(problem), details)

    @classmethod
    def read(cls, payload: dict[str, Any]) -> Failure:
        """Return the failure in the payload of an event."""
        details = payload.get("details")
        return cls(payload.get("error"), payload.get("message"), details if isinstance(details, dict) else None)

    def as_dict(self) -> dict[str, Any]:
        """Return the failure as a part of a payload."""
        return {"error": self.error, "message": self.message, "details": self.details}

    def exception(self) -> exceptions.LlamaCloudError:
        """Return the exception. An unknown class becomes :class:`~..exceptions.LlamaCloudError`."""
        kind = getattr(exceptions, self.error or "", None)
        if not (isinstance(kind, type) and issubclass(kind, exceptions.LlamaCloudError)):
            kind = exceptions.LlamaCloudError
        problem = kind(self.message or "The trigger gave no reason.")
        for name, value in (self.details or {}).items():
            if name in _ATTRIBUTES:
                setattr(problem, name, value)
        return problem


def _foreign(what: str) -> exceptions.LlamaCloudError:
    return exceptions.LlamaCloudError(
        f"The trigger resumed this task with an unexpected event (not {what}). Check that workers and triggerers run the same version of "
        "airflow-provider-llamachat."
    )


class TurnEvent(NamedTuple):
    """The event of :class:`~.chat.ChatTurnTrigger`.

    :param state: ``answered`` or ``failed``.
    :param question: the question.
    :param trace: what is known about the turn.
    :param failure: the error, if ``failed``.
    :param adopted: whether the trigger found the answer in the session's history and posted nothing; None: unknown.
    """

    state: str
    question: Question
    trace: Trace
    failure: Failure = Failure()
    adopted: bool | None = None

    @classmethod
    def of(cls, problem: exceptions.LlamaCloudError, question: Question, trace: Trace) -> TurnEvent:
        """Return the event of a trigger that ended with an error.

        If only the text of an answer could not be read, the turn has ended, and the worker reads the history anyway.
        """
        if getattr(problem, "reason", None) == "unread":
            return cls(ANSWERED, question, trace)
        return cls(FAILED, question, trace, Failure.of(problem))

    def as_dict(self) -> dict[str, Any]:
        """Return the payload of the event."""
        payload = {"state": self.state, **self.question.as_dict(), **self.trace.as_dict()}
        return payload | (self.failure.as_dict() if self.state == FAILED else {"adopted": self.adopted})

    @classmethod
    def parse(cls, payload: Any) -> TurnEvent:
        """Read a payload.

        :raises LlamaCloudError: the payload is invalid.
        """
        from airflow_provider_llamachat.conversation.question import Question, Trace

        values = payload if isinstance(payload, dict) else {}
        # A trigger of 1.0.0 does not say when it posted: it may have been a moment ago.
        question, trace = Question.read(values), Trace.read({"intended_at": time.time(), **values})
        if question is None or trace is None or values.get("state") not in {ANSWERED, FAILED}:
            raise _foreign("about a chat turn")
        failure = Failure.read(values)
        if values["state"] == ANSWERED:
            trace = replace(trace, accepted=True, answered=True)
        elif (failure.details or {}).get("accepted") is True:
            trace = replace(trace, accepted=True)
        adopted = values.get("adopted")
        return cls(values["state"], question, trace, failure, adopted if isinstance(adopted, bool) else None)

    def raise_for_failure(self) -> None:
        """Raise the error of the trigger, if there is one."""
        if self.state == ANSWERED:
            return
        problem = self.failure.exception()
        problem.session_id = self.question.session_id
        raise problem


class IndexEvent(NamedTuple):
    """The event of :class:`~.index.IndexReadyTrigger`.

    :param state: ``ready``, ``failed`` or ``timed_out``.
    :param failure: the error, unless ``ready``.
    :param last_synced_at: when the indexes were last synced, by id, if ``ready``.
    :param started: whether the task had started the sync that the trigger waited for.
    """

    state: str
    index_ids: list[str]
    failure: Failure = Failure()
    last_synced_at: Mapping[str, str | None] = MappingProxyType({})
    started: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the payload of the event."""
        payload: dict[str, Any] = {"state": self.state, "index_ids": self.index_ids}
        if self.state == READY:
            return payload | {"last_synced_at": dict(self.last_synced_at), "started": self.started}
        return payload | self.failure.as_dict()

    @classmethod
    def parse(cls, payload: Any) -> IndexEvent:
        """Read a payload.

        :raises LlamaCloudError: the payload is invalid.
        """
        if (
            not isinstance(payload, dict)
            or payload.get("state") not in {READY, FAILED, TIMED_OUT}
            or not isinstance(payload.get("index_ids"), list)
        ):
            raise _foreign("about indexes")
        synced = payload.get("last_synced_at")
        return cls(
            payload["state"],
            payload["index_ids"],
            Failure.read(payload),
            synced if isinstance(synced, dict) else {},
            payload.get("started") is True,
        )
