"""What a trigger tells the worker: ids, a status and a reason, validated on the way back; never an answer, never a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow_provider_llamachat import exceptions

ANSWERED = "answered"
FAILED = "failed"

_KNOWN = ("status", "request_id", "session_id", "usage", "reason", "accepted", "retry_after", "index_id")


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """The end of a turn as the trigger saw it.

    :param state: ``answered`` or ``failed``.
    :param prompt: what was asked, to find the turn by; None in an event of a release that did not tell.
    :param error: for ``failed``, the name of the exception class, so that both modes of a task raise the same.
    :param message: for ``failed``, its message.
    :param details: for ``failed``, its attributes.
    """

    state: str
    session_id: str
    baseline: int
    prompt: str | None = None
    error: str | None = None
    message: str | None = None
    details: dict[str, Any] | None = None

    @classmethod
    def of_failure(
        cls, problem: exceptions.LlamaCloudError, session_id: str, baseline: int, prompt: str | None = None
    ) -> TurnEvent:
        """The event for an exception."""
        details = {name: value for name in _KNOWN if (value := getattr(problem, name, None)) is not None}
        return cls(FAILED, session_id, baseline, prompt, type(problem).__name__, str(problem), details)

    def as_dict(self) -> dict[str, Any]:
        """The event's payload."""
        payload: dict[str, Any] = {
            "state": self.state,
            "session_id": self.session_id,
            "baseline": self.baseline,
            "prompt": self.prompt,
        }
        if self.state == FAILED:
            payload |= {"error": self.error, "message": self.message, "details": self.details}
        return payload

    @classmethod
    def parse(cls, payload: Any) -> TurnEvent:
        """Read a payload.

        :raises LlamaCloudError: it is not one of ours.
        """
        if (
            not isinstance(payload, dict)
            or payload.get("state") not in {ANSWERED, FAILED}
            or not isinstance(payload.get("session_id"), str)
            or not isinstance(payload.get("baseline"), int)
        ):
            raise exceptions.LlamaCloudError(
                "The trigger resumed this task with an event that is not a chat turn's. Check that workers and triggerers run the same "
                "release of airflow-provider-llamachat; a retry asks the session's history first."
            )
        return cls(
            payload["state"],
            payload["session_id"],
            payload["baseline"],
            payload.get("prompt"),
            payload.get("error"),
            payload.get("message"),
            payload.get("details"),
        )

    def raise_for_failure(self) -> None:
        """Raise what the trigger met, as the class it met."""
        if self.state == ANSWERED:
            return
        kind = getattr(exceptions, self.error or "", None)
        if not (isinstance(kind, type) and issubclass(kind, exceptions.LlamaCloudError)):
            kind = exceptions.LlamaCloudError
        problem = kind(self.message or "The trigger gave no reason.")
        for name, value in (self.details or {}).items():
            if name in _KNOWN:
                setattr(problem, name, value)
        problem.session_id = self.session_id
        raise problem
