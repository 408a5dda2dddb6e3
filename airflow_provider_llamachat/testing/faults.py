"""Faults on demand: what goes wrong, for which requests, and how often.

The wire side of each kind is in :mod:`.wire` and :mod:`.streaming`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

ENDPOINTS = ("create", "list", "get", "summary", "delete", "stream", "projects", "project", "indexes", "index", "sync")
"""Names of the endpoints, as faults and request records use them."""

REQUEST_KINDS = frozenset(
    {
        "status",
        "status_after",
        "delay",
        "hang",
        "hang_after",
        "reset_before",
        "reset_after",
        "truncated_body",
        "malformed_json",
        "redirect",
        "html",
        "huge",
    }
)
"""Kinds that can meet a request of any endpoint."""

STREAM_KINDS = frozenset(
    {"stall", "stream_reset", "cut", "error_stop", "garbage", "unknown_event", "slow", "invalid_utf8"}
)
"""Kinds that meet a turn after it was accepted and has begun."""

PROCESSED_KINDS = frozenset({"status_after", "hang_after", "reset_after", "truncated_body", "malformed_json"})
"""Request kinds where the server does what was asked and only the answer suffers."""


@dataclass(frozen=True, slots=True)
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
        if self.kind not in REQUEST_KINDS | STREAM_KINDS:
            raise ValueError(
                f"There is no fault {self.kind!r}. Kinds: {', '.join(sorted(REQUEST_KINDS | STREAM_KINDS))}"
            )
        if self.endpoint is not None and self.endpoint not in ENDPOINTS:
            raise ValueError(f"There is no endpoint {self.endpoint!r}. Endpoints: {', '.join(ENDPOINTS)}")
        if self.kind in STREAM_KINDS and self.endpoint not in (None, "stream"):
            raise ValueError(f"Fault {self.kind} meets streams only, not endpoint {self.endpoint!r}")
        if self.kind == "redirect" and self.location is None:
            raise ValueError("A redirect needs a location")
        if min(self.skip, self.delay, self.after_events) < 0 or (self.times is not None and self.times < 1):
            raise ValueError("skip, delay and after_events can not be negative; times is 1 or more, or None for ever")
        if self.path is not None:
            try:
                re.compile(self.path)
            except re.error as error:
                raise ValueError(f"path {self.path!r} is no regular expression: {error}") from None

    def meets(self, endpoint: str | None, method: str, path: str, session_id: str | None, prompt: str | None) -> bool:
        """Whether such a request is one that the fault is for."""
        return (
            (self.endpoint is None or self.endpoint == endpoint)
            and (self.method is None or self.method.upper() == method)
            and (self.session_id is None or self.session_id == session_id)
            and (self.prompt is None or (prompt is not None and self.prompt in prompt))
            and (self.path is None or re.search(self.path, path) is not None)
        )

    def to_json(self) -> dict[str, Any]:
        """The fault as JSON values."""
        return asdict(self)


class _Armed:
    """A fault with what is left of its skips and times."""

    __slots__ = ("fault", "skip", "times")

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.skip = fault.skip
        self.times = fault.times


class FaultPlan:
    """The injected faults, in order of injection; of those that meet a request the first that is due acts."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []

    def add(self, faults: Iterable[Fault]) -> None:
        """Arm faults."""
        self._armed.extend(_Armed(fault) for fault in faults)

    def clear(self) -> None:
        """Disarm all."""
        self._armed.clear()

    @property
    def pending(self) -> list[Fault]:
        """Faults that can still act."""
        return [armed.fault for armed in self._armed]

    def take(
        self,
        kinds: frozenset[str],
        endpoint: str | None,
        method: str,
        path: str,
        session_id: str | None,
        prompt: str | None,
    ) -> Fault | None:
        """The fault among ``kinds`` that meets this request, used up by one; None if there is none."""
        for armed in self._armed:
            if armed.fault.kind in kinds and armed.fault.meets(endpoint, method, path, session_id, prompt):
                if armed.skip:
                    armed.skip -= 1
                    continue
                if armed.times is not None:
                    armed.times -= 1
                    if not armed.times:
                        self._armed.remove(armed)
                return armed.fault
        return None
