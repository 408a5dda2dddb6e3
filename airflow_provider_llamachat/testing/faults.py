"""Faults on demand: what goes wrong, for which requests, and how often.

The wire side of each kind is in :mod:`.broken_answers` and :mod:`.turn_stream`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from airflow_provider_llamachat.testing.ledger import RequestRecord

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
    "attachment": ("GET", "/beta/attachments/{id}"),
}
"""The endpoints by the names that faults and request records use, with method and path below ``/api/v1``."""

PROCESSED_KINDS = frozenset({"status_after", "hang_after", "reset_after", "truncated_body", "malformed_json"})
"""Request kinds where the server does what was asked and only the answer suffers."""

REQUEST_KINDS = PROCESSED_KINDS | {"status", "delay", "hang", "reset_before", "redirect", "html", "huge"}
"""Kinds that can meet a request of any endpoint."""

STREAM_KINDS = frozenset(
    {"stall", "stream_reset", "cut", "error_stop", "garbage", "unknown_event", "slow", "invalid_utf8"}
)
"""Kinds that meet a turn after it was accepted and has begun."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Kinds that meet any endpoint:

    ==================  ===========================================================================================
    ``status``          not processed; answers ``status`` (500) with ``{"detail": detail}`` and ``retry_after``
    ``status_after``    processed (a turn runs to its end), all the same answers like ``status``, with 429
    ``delay``           waits ``delay`` seconds, then all is normal
    ``hang``            not processed, never answered
    ``hang_after``      processed, never answered
    ``reset_before``    not processed, TCP reset
    ``reset_after``     processed, TCP reset instead of an answer
    ``truncated_body``  processed; Content-Length promises more than is sent before the connection closes
    ``malformed_json``  processed; the usual status with broken JSON
    ``redirect``        not processed; 307 to ``location``
    ``html``            not processed; a proxy's HTML page with ``status`` (500)
    ``huge``            not processed; ``status`` (200) and 64 MiB that never complete a JSON value or an event
    ==================  ===========================================================================================

    Kinds of a turn's stream, after ``after_events`` events (deltas count):

    ==================  ===========================================================================================
    ``stall``           nothing more is sent, keep-alives neither; the connection stays open
    ``stream_reset``    TCP reset
    ``cut``             the body ends in good order, without a stop event
    ``error_stop``      the turn fails: stop with ``is_error`` and ``error=detail``; the prompt's event always comes first
    ``garbage``         an event with malformed JSON, then all goes on
    ``unknown_event``   an event of a type nobody knows, then all goes on
    ``invalid_utf8``    an event whose text is no UTF-8, then all goes on
    ``slow``            from there on one byte every ``delay`` seconds
    ==================  ===========================================================================================

    In the first three the client's leaving (or the server's hanging up on it) decides by ``Settings.survives_disconnect``
    what becomes of the turn.

    :param endpoint: one of :data:`ENDPOINTS`; None for any.
    :param method: HTTP method; None for any.
    :param path: regular expression searched in the percent-encoded path.
    :param session_id: the session in the path.
    :param prompt: text that the prompt in the body contains.
    :param times: how many requests it meets; None for ever.
    :param skip: how many matching requests pass unharmed first. For stream kinds only accepted turns count.
    :param status: None takes the kind's own, given above in brackets.
    :param retry_after: text of a Retry-After header, sent as it is.
    :param detail: ``detail`` of the error body (any JSON value), or the ``error`` of an error stop.
    :param delay: seconds; for kinds other than ``slow`` they pass before the fault acts.
    :param location: target of a redirect.
    :raises ValueError: an unknown kind or endpoint, a bad expression or number, a redirect without location.
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
            raise ValueError(f"Fault {self.kind} meets streams only, not endpoint {self.endpoint!r}")
        if self.kind == "redirect" and self.location is None:
            raise ValueError("A redirect needs a location")
        if min(self.skip, self.delay, self.after_events) < 0 or (self.times is not None and self.times < 1):
            raise ValueError("skip, delay and after_events cannot be negative; times is 1 or more, or None for ever")
        try:
            re.compile(self.path or "")
        except re.error as error:
            raise ValueError(f"path {self.path!r} is no regular expression: {error}") from None

    def meets(self, record: RequestRecord) -> bool:
        """Whether such a request is one that the fault is for."""
        return (
            self.endpoint in (None, record.endpoint)
            and (self.method is None or self.method.upper() == record.method)
            and self.session_id in (None, record.session_id)
            and (self.prompt is None or (record.prompt is not None and self.prompt in record.prompt))
            and (self.path is None or re.search(self.path, record.path) is not None)
        )

    def to_json(self) -> dict[str, Any]:
        """The fault as JSON values."""
        return dict(vars(self))


class FaultPlan:
    """The injected faults, in order of injection; of those that meet a request the first that is due acts."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []
        # How many matching requests each of them has seen.
        self._seen: list[int] = []

    def add(self, fault: Fault) -> None:
        """Arm a fault."""
        self._armed.append(fault)
        self._seen.append(0)

    def clear(self) -> None:
        """Disarm all."""
        self._armed.clear()
        self._seen.clear()

    @property
    def pending(self) -> list[Fault]:
        """Faults that can still act."""
        return list(self._armed)

    def take(self, kinds: frozenset[str], record: RequestRecord) -> Fault | None:
        """The fault among ``kinds`` that meets this request, used up by one and noted in its record; None if there is none."""
        for place, fault in enumerate(self._armed):
            if fault.kind in kinds and fault.meets(record):
                self._seen[place] += 1
                if self._seen[place] <= fault.skip:
                    continue
                if fault.times is not None and self._seen[place] == fault.skip + fault.times:
                    del self._armed[place], self._seen[place]
                record.fault = fault.kind
                return fault
        return None
