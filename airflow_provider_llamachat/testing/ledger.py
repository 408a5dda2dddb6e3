"""What the emulator remembers of the requests and turns it saw. Standard library only: a remote control reads them too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

TurnState = Literal["running", "completed", "failed", "abandoned"]


class Headers(dict[str, str]):
    """Request headers; names are kept in lower case and looked up in any case."""

    def __init__(self, items: Mapping[str, str]) -> None:
        super().__init__({name.lower(): value for name, value in items.items()})

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        """Value of the header ``name``, in any case."""
        return super().get(name.lower(), default)


class _Record:
    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dict(vars(self))


@dataclass
class RequestRecord(_Record):
    """One request as it arrived.

    :ivar number: 1 for the first request since the start or the last reset.
    :ivar time: arrival, seconds since the epoch.
    :ivar path: as sent, percent-encoded, without the query.
    :ivar query: parameters; one that was repeated has a list of its values.
    :ivar headers: with ``Authorization`` replaced by ``Bearer <accepted>`` or ``Bearer <refused>``: no key is kept.
    :ivar body: the parsed JSON body; None where there was none or it was no JSON.
    :ivar status: the status sent; None while or when none was sent.
    :ivar fault: kind of the fault that met the request, None without one.
    :ivar endpoint: name of the endpoint (see :class:`~.faults.Fault`), None for a path that does not exist.
    :ivar session_id: id in the path of session endpoints.
    :ivar request_id: the ``x-request-id`` of the answer.
    """

    number: int
    time: float
    method: str
    path: str
    query: dict[str, str | list[str]]
    headers: Headers
    body: Any = None
    status: int | None = None
    fault: str | None = None
    endpoint: str | None = None
    session_id: str | None = None
    request_id: str = ""

    def __post_init__(self) -> None:
        self.headers = Headers(self.headers)

    @property
    def prompt(self) -> str | None:
        """The prompt in the body, if there is one."""
        prompt = self.body.get("prompt") if isinstance(self.body, dict) else None
        return prompt if isinstance(prompt, str) else None


@dataclass
class TurnRecord(_Record):
    """One turn that was accepted and begun: what a customer would be billed for.

    :ivar position: how many prompts (``user_input`` events) the session's history held before this one.
    :ivar index_ids: as asked for.
    :ivar skipped_index_ids: those among them that could not be queried.
    :ivar state: ``running``; ``completed`` with a good stop event; ``failed`` with an error stop event; ``abandoned`` without any.
    :ivar started, ended: seconds since the epoch; ``ended`` is None while the turn runs.
    :ivar input_tokens, output_tokens: set when the turn has ended with a stop event.
    """

    session_id: str
    prompt: str
    position: int
    index_ids: list[str]
    skipped_index_ids: list[str]
    state: TurnState
    started: float
    ended: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
