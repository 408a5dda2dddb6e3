"""Decodes the stream of a turn into events, with httpx-sse and additional limits.

httpx-sse does not check the status, rejects the content type of an error response, and does not report a stream that ends
early. The clients check the status before, and the end of the stream after decoding.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable
from typing import Any, cast

import httpx
from httpx_sse import EventSource, ServerSentEvent

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
    """Turns server-sent events into :mod:`..models` events. Malformed events are logged and skipped."""

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

    def read(self, sse: ServerSentEvent) -> Event | None:
        """Return the event, or None for a keep-alive, an empty data field, or a malformed event.

        :raises LlamaCloudProtocolError: the turn is too large.
        """
        if not sse.data.strip():
            return None
        try:
            event = parse_event(parse_json(sse.data))
        except ValueError:
            event = None
        if event is None:
            self._malformed += 1
            if self._on_lost is not None:
                self._on_lost()
            # Only the first few are logged, so that a malformed stream does not fill the log.
            if self._malformed <= 3:
                shown = excerpt(sse.data, secrets=self._secrets, limit=200)
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
        self._weigh(event, len(sse.data))
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


class _Text:
    """The part of a response that :class:`httpx_sse.EventSource` needs, with a size limit. Any bytes are decoded as UTF-8, and
    a byte order mark at the beginning is dropped."""

    # The clients have already checked the status and the content type.
    headers = httpx.Headers({"content-type": "text/event-stream"})

    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks
        self._decode = codecs.getincrementaldecoder("utf-8-sig")(errors="replace").decode
        self._after_return = False
        self.pending = 0

    def _take(self, chunk: bytes) -> str:
        self.pending += len(chunk)
        if self.pending > MAX_EVENT:
            raise LlamaCloudProtocolError(
                f"The stream sent more than {MAX_EVENT // 2**20} MiB without completing an event. "
                "Check the connection's Base URL.",
                accepted=True,
            )
        return self._with_plain_ends(self._decode(chunk))

    def _with_plain_ends(self, text: str) -> str:
        # The decoder waits for the character after a CR. In a stream with only CRs, the last event would never be complete.
        if not text:
            return text
        begin = 1 if self._after_return and text[0] == "\n" else 0
        self._after_return = text[-1] == "\r"
        return text[begin:].replace("\r\n", "\n").replace("\r", "\n")

    def iter_text(self) -> Generator[str, None, None]:
        for chunk in cast("Iterable[bytes]", self._chunks):
            if text := self._take(chunk):
                yield text

    async def aiter_text(self) -> AsyncGenerator[str, None]:
        async for chunk in cast("AsyncIterable[bytes]", self._chunks):
            if text := self._take(chunk):
                yield text


def read_events(
    chunks: Iterable[bytes],
    session_id: str,
    secrets: tuple[str, ...] = (),
    on_lost: Callable[[], None] | None = None,
) -> Generator[Event, None, None]:
    """Yield the events of a stream of bytes.

    :param secrets: values to remove from malformed events that are logged.
    :param on_lost: called for each event that is malformed, or whose text was not UTF-8.
    :raises LlamaCloudProtocolError: an event exceeds :data:`MAX_EVENT`, or the turn exceeds :data:`MAX_TURN`.
    """
    text = _Text(chunks)
    reader = EventReader(session_id, secrets, on_lost)
    for sse in EventSource(cast("httpx.Response", text)).iter_sse():
        text.pending = 0
        if (event := reader.read(sse)) is not None:
            yield event


async def aread_events(
    chunks: AsyncIterable[bytes],
    session_id: str,
    secrets: tuple[str, ...] = (),
    on_lost: Callable[[], None] | None = None,
) -> AsyncGenerator[Event, None]:
    """Asynchronous form of :func:`read_events`."""
    text = _Text(chunks)
    reader = EventReader(session_id, secrets, on_lost)
    async with contextlib.aclosing(EventSource(cast("httpx.Response", text)).aiter_sse()) as events:
        async for sse in events:
            text.pending = 0
            if (event := reader.read(sse)) is not None:
                yield event
