"""Decodes the stream of a turn into events, with limits on their size. No I/O.

The clients check the status and the content type before, and the end of the stream after decoding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from airflow_provider_llamachat.client.decoding import parse_json
from airflow_provider_llamachat.exceptions import LlamaCloudProtocolError
from airflow_provider_llamachat.models.turn import (
    EVENT_TYPES,
    MAX_EVENTS,
    Event,
    TextDeltaEvent,
    TextEvent,
    ThinkingDeltaEvent,
    parse_event,
)
from airflow_provider_llamachat.redaction import excerpt

log = logging.getLogger(__name__)

MAX_EVENT = 32 * 1024 * 1024
"""Maximum size of an event in bytes: enough for any tool result, and small compared with a worker's memory."""

MAX_TURN = 64 * 1024 * 1024
"""Maximum size of a turn's complete events in bytes, and of its deltas in characters. A larger history could not be read."""


class EventReader:
    """Turns the bytes of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) into :mod:`..models`
    events. Only their ``data`` field counts. Malformed events are logged and skipped.

    :param secrets: values to remove from malformed events that are logged.
    :param on_lost: called for each event that is malformed, or whose text was not UTF-8.
    """

    def __init__(
        self, session_id: str, secrets: tuple[str, ...] = (), on_lost: Callable[[], None] | None = None
    ) -> None:
        self._session_id = session_id
        self._secrets = secrets
        self._on_lost = on_lost
        self._unknown: set[str] = set()
        self._malformed = 0
        self._events = 0
        self._whole = 0
        self._deltas = 0
        self._mark = b"\xef\xbb\xbf"
        self._line = bytearray()
        # Not a list of lines: each would cost a hundred bytes more.
        self._data: bytearray | None = None
        self._pending = 0
        self._after_return = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that ``chunk`` completes.

        :raises LlamaCloudProtocolError: an event exceeds :data:`MAX_EVENT`, or the turn exceeds :data:`MAX_TURN`.
        """
        if not chunk:
            return
        self._pending += len(chunk)
        if self._pending > MAX_EVENT:
            raise LlamaCloudProtocolError(
                f"The stream sent more than {MAX_EVENT // 2**20} MiB without completing an event. "
                "Check the connection's Base URL.",
                accepted=True,
            )
        # A CR ends a line at once. In a stream with only CRs, the last event would never be complete if the next byte were awaited.
        begin = 1 if self._after_return and chunk.startswith(b"\n") else 0
        self._after_return = chunk.endswith(b"\r")
        first, *lines = chunk[begin:].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._line += first
        if not lines:
            return
        # A byte order mark is dropped at the beginning of the stream.
        lines.insert(0, bytes(self._line.removeprefix(self._mark)))
        self._mark, self._line = b"", bytearray(lines.pop())
        for line in lines:
            name, _, value = line.partition(b":")
            if name == b"data":
                if self._data is None:
                    self._data = bytearray()
                else:
                    self._data += b"\n"
                self._data += value.removeprefix(b" ")
            elif not line and self._data is not None:
                data, self._data, self._pending = self._data.decode(errors="replace"), None, 0
                if (event := self._read(data)) is not None:
                    yield event

    def _read(self, data: str) -> Event | None:
        if not data.strip():
            return None
        try:
            event = parse_event(parse_json(data))
        except ValueError:
            event = None
        if event is None:
            self._malformed += 1
            if self._on_lost is not None:
                self._on_lost()
            # Only the first few are logged, so that a malformed stream does not fill the log.
            if self._malformed <= 3:
                shown = excerpt(data, secrets=self._secrets, limit=200)
                log.warning("Skipped a malformed event of the answer. Session: %s. Event: %s", self._session_id, shown)
            return None
        if event.type not in EVENT_TYPES and event.type not in self._unknown and len(self._unknown) < 20:
            self._unknown.add(event.type)
            log.info(
                "Session %s: the event type %s is newer than this provider. It is passed on unchanged.",
                self._session_id,
                excerpt(event.type, secrets=self._secrets, limit=60),
            )
        if isinstance(event, TextEvent | TextDeltaEvent) and "\ufffd" in event.content and self._on_lost is not None:
            # What was not UTF-8 became this character. The history may hold the text as it was.
            self._on_lost()
        self._weigh(event, len(data))
        return event

    def _weigh(self, event: Event, size: int) -> None:
        if isinstance(event, TextDeltaEvent | ThinkingDeltaEvent):
            self._deltas += len(event.content)
        else:
            self._whole += size
            self._events += 1
        if max(self._deltas, self._whole) > MAX_TURN or self._events > MAX_EVENTS:
            raise LlamaCloudProtocolError(
                f"The stream of the turn in session {self._session_id} is larger than any answer. Check that the connection's Base URL is "
                f"LlamaCloud's. Received: {self._events} events with {self._whole} bytes, and {self._deltas} characters of deltas.",
                accepted=True,
                session_id=self._session_id,
            )
