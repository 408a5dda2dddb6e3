"""Faults to inject, and the records of requests and turns. Standard library only, because a remote control uses them too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

TurnState = Literal["running", "completed", "failed", "abandoned"]

ENDPOINTS = {
    "create": ("POST", "/chat"),
    "list": ("GET", "/chat"),
    "get": ("GET", "/chat/{id}"),
    "summary": ("GET", "/chat/{id}/summary"),
    "delete": ("DELETE", "/chat/{id}"),
    "stream": ("POST", "/chat/{id}/messages/stream"),
    "projects": ("GET", "/projects"),
    "project": ("GET", "/projects/{id}"),
    "indexes": ("GET", "/indexes"),
    "index": ("GET", "/indexes/{id}"),
    "sync": ("POST", "/indexes/{id}/sync"),
    "cancel_sync": ("POST", "/indexes/{id}/sync/cancel"),
    "attachment": ("GET", "/beta/attachments/{id}"),
}
"""Method and path (below ``/api/v1``) of each endpoint, by the name that faults and request records use."""

PROCESSED_KINDS = frozenset({"status_after", "hang_after", "reset_after", "truncated_body", "malformed_json"})
"""Request kinds where the server processes the request, and only its response is lost or damaged."""

REQUEST_KINDS = PROCESSED_KINDS | {"status", "delay", "hang", "reset_before", "redirect", "html", "huge"}
"""Kinds that affect a request, to any endpoint."""

STREAM_KINDS = {"stall", "stream_reset", "cut", "error_stop", "garbage", "unknown_event", "slow", "invalid_utf8"}
"""Kinds that affect the stream of a turn, once it was accepted."""


def to_json(value: Any) -> Any:
    """The JSON form of a datetime, a compiled regular expression, or an object with a ``to_json`` method."""
    if isinstance(value, re.Pattern):
        return {"pattern": value.pattern, "flags": value.flags}
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value.to_json()


encode: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=to_json).encode
"""Compact JSON, as the service sends it. Everyone shares one encoder: creating one costs more than encoding most events."""


class _Record:
    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Fault(_Record):
    """Something that goes wrong with a request or a turn.

    Kinds that affect a request, to any endpoint:

    - ``status``: not processed; the response is ``status`` (500) with ``{"detail": detail}`` and ``retry_after``
    - ``status_after``: processed (a turn runs to its end), but the response is like that of ``status``, with 429
    - ``delay``: processed normally after ``delay`` seconds
    - ``hang`` (not processed) and ``hang_after`` (processed): no response
    - ``reset_before`` (not processed) and ``reset_after`` (processed): TCP reset instead of a response
    - ``truncated_body``: processed; the connection closes before as many bytes are sent as Content-Length promises
    - ``malformed_json``: processed; the usual status with broken JSON
    - ``redirect``: not processed; 307 to ``location``
    - ``html``: not processed; the HTML page of a proxy with ``status`` (500)
    - ``huge``: not processed; ``status`` (200) and 64 MiB that never complete a JSON value or an event

    Kinds that affect the stream of a turn, after ``after_events`` events (deltas count):

    - ``stall``: nothing more is sent, not even keep-alives; the connection stays open
    - ``stream_reset``: TCP reset
    - ``cut``: the body ends properly, without a stop event
    - ``error_stop``: the turn fails: stop with ``is_error`` and ``error=detail``; the prompt's event always comes first
    - ``garbage``, ``unknown_event``, ``invalid_utf8``: an event is malformed JSON, of an unknown type, or not UTF-8; the others follow
    - ``slow``: the rest is sent one byte at a time, every ``delay`` seconds

    After the first three, ``Settings.survives_disconnect`` decides what happens to the turn when the client leaves.

    :param endpoint: one of :data:`ENDPOINTS`; None for any.
    :param method: HTTP method; None for any.
    :param path: regular expression that is searched in the percent-encoded path.
    :param session_id: the session in the path.
    :param prompt: text that the prompt in the body contains.
    :param times: how many requests it affects; None for no limit.
    :param skip: how many matching requests pass first. For stream kinds, only accepted turns count.
    :param status: None for the default of the kind, given above in brackets.
    :param retry_after: value of the Retry-After header, sent unchanged.
    :param detail: ``detail`` of the error body (any JSON value), or the ``error`` of an error stop.
    :param delay: seconds. The fault acts after them, except for ``slow``.
    :param location: target of a redirect.
    :raises ValueError: an unknown kind or endpoint, an invalid expression or number, a redirect without location.
    """

    kind: str
    endpoint: str | None = None
    method: str | None = None
    path: str | None = None
    session_id: str | None = None
    prompt: str | None = None
    times: int | None = 1
    skip: int = 0
    status: int | None = None
    retry_after: str | None = None
    detail: Any = None
    delay: float = 0.0
    after_events: int = 0
    location: str | None = None

    def __post_init__(self) -> None:
        known = REQUEST_KINDS | STREAM_KINDS
        if self.kind not in known:
            raise ValueError(f"There is no fault {self.kind!r}. Kinds: {', '.join(sorted(known))}")
        if self.endpoint is not None and self.endpoint not in ENDPOINTS:
            raise ValueError(f"There is no endpoint {self.endpoint!r}. Endpoints: {', '.join(ENDPOINTS)}")
        if self.kind in STREAM_KINDS and self.endpoint not in (None, "stream"):
            raise ValueError(f"Fault {self.kind} affects only streams, not the endpoint {self.endpoint!r}")
        if self.kind == "redirect" and self.location is None:
            raise ValueError("A redirect needs a location")
        if min(self.skip, self.delay, self.after_events, 0 if self.times is None else self.times - 1) < 0:
            raise ValueError("skip, delay and after_events must be at least 0; times must be at least 1, or None")
        try:
            re.compile(self.path or "")
        except re.error as error:
            raise ValueError(f"path {self.path!r} is not a regular expression: {error}") from None

    def meets(self, record: RequestRecord) -> bool:
        """Whether the request matches the endpoint, method, path, session and prompt of the fault."""
        return (
            self.endpoint in (None, record.endpoint)
            and (self.method is None or self.method.upper() == record.method)
            and self.session_id in (None, record.session_id)
            and (self.prompt is None or (record.prompt is not None and self.prompt in record.prompt))
            and (self.path is None or re.search(self.path, record.path) is not None)
        )


class Headers(dict[str, str]):
    """Request headers. Names are stored in lower case and looked up in any case."""

    def __init__(self, items: Mapping[str, str]) -> None:
        super().__init__({name.lower(): value for name, value in items.items()})

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a header, or ``default``."""
        return super().get(name.lower(), default)


@dataclass
class RequestRecord(_Record):
    """One request as it arrived.

    :ivar number: 1 for the first request since the start or the last reset.
    :ivar time: arrival, seconds since the epoch.
    :ivar path: as sent, percent-encoded, without the query.
    :ivar query: parameters. The value of a repeated parameter is a list.
    :ivar headers: with ``Authorization`` replaced by ``Bearer <accepted>`` or ``Bearer <refused>``: no key is kept.
    :ivar body: the parsed JSON body; None if there is no body, or if it is not JSON.
    :ivar status: the status sent; None before that, or if no response is sent.
    :ivar fault: kind of the fault that affected the request, or None.
    :ivar endpoint: name of the endpoint (see :data:`ENDPOINTS`); None if the path does not exist.
    :ivar session_id: id in the path of session endpoints.
    :ivar request_id: the ``x-request-id`` of the response.
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
        """The prompt in the body, or None."""
        prompt = self.body.get("prompt") if isinstance(self.body, dict) else None
        return prompt if isinstance(prompt, str) else None


@dataclass
class TurnRecord(_Record):
    """One turn that was accepted and has begun: what a customer would pay for.

    :ivar position: how many prompts (``user_input`` events) the session's history held before this one.
    :ivar index_ids: as requested.
    :ivar skipped_index_ids: those of them that could not be queried.
    :ivar state: ``running``; ``completed`` by a stop event; ``failed`` by an error stop event; ``abandoned`` without a stop event.
    :ivar started, ended: seconds since the epoch; ``ended`` is None while the turn runs.
    :ivar input_tokens, output_tokens: set when the turn ends with a stop event.
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
