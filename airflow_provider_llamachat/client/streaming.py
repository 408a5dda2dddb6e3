"""A turn's stream: bytes to events, with httpx-sse as decoder and our own bounds around it.

httpx-sse does not check the status, complains about the content type of an error body, and is silent about a stream that
ends early. So the status is looked at before (by the senders), and the end is judged after (by :mod:`..turns`).
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable
from typing import Any, cast

import httpx
from httpx_sse import EventSource, ServerSentEvent

from airflow_provider_llamachat.exceptions import LlamaCloudProtocolError
from airflow_provider_llamachat.models import EVENT_TYPES, Event, parse_event
from airflow_provider_llamachat.redaction import excerpt

log = logging.getLogger(__name__)

MAX_EVENT = 32 * 1024 * 1024
"""Bytes that may arrive without completing an event: enough for any tool result, small against a worker's memory."""


class EventReader:
    """Turns server-sent events into :mod:`..models` events; what is malformed is logged and passed over."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._unknown: set[str] = set()
        self._malformed = 0

    def read(self, sse: ServerSentEvent) -> Event | None:
        """Return the event, or None for a keep-alive, an empty data field, or something malformed."""
        if not sse.data.strip():
            return None
        try:
            event = parse_event(json.loads(sse.data))
        except (ValueError, RecursionError):
            event = None
        if event is None:
            self._malformed += 1
            # The first few are shown: an answer that was paid for goes on, and a hostile stream does not fill the log.
            if self._malformed <= 3:
                log.warning(
                    "Session %s: passed over a malformed event: %s", self._session_id, excerpt(sse.data, limit=200)
                )
        elif event.type not in EVENT_TYPES and event.type not in self._unknown and len(self._unknown) < 20:
            self._unknown.add(event.type)
            log.info(
                "Session %s: the event type %s is newer than this provider; it is passed on as it is.",
                self._session_id,
                excerpt(event.type, limit=60),
            )
        return event


class _Text:
    """What :class:`httpx_sse.EventSource` needs of a response, bounded: text pieces, read as UTF-8 whatever bytes arrive."""

    # The senders have checked the status and what the body is; the decoder's own check is of the same header.
    headers = httpx.Headers({"content-type": "text/event-stream"})

    def __init__(self, chunks: Any, tick: Callable[[], None]) -> None:
        self._chunks = chunks
        self._tick = tick
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self.pending = 0

    def _take(self, chunk: bytes) -> str:
        self._tick()
        self.pending += len(chunk)
        if self.pending > MAX_EVENT:
            raise LlamaCloudProtocolError(
                f"The stream sent more than {MAX_EVENT // 2**20} MiB without completing an event. "
                "Check that the connection's Host is LlamaCloud."
            )
        return self._decode(chunk)

    def iter_text(self) -> Generator[str, None, None]:
        for chunk in cast("Iterable[bytes]", self._chunks):
            if text := self._take(chunk):
                yield text

    async def aiter_text(self) -> AsyncGenerator[str, None]:
        async for chunk in cast("AsyncIterable[bytes]", self._chunks):
            if text := self._take(chunk):
                yield text


def read_events(
    chunks: Iterable[bytes], session_id: str, tick: Callable[[], None] = lambda: None
) -> Generator[Event, None, None]:
    """Yield the events in a stream of bytes, however the bytes are cut.

    :param tick: called for each chunk, keep-alives included; it may raise to end the reading (a deadline).
    :raises LlamaCloudProtocolError: an event beyond :data:`MAX_EVENT`.
    """
    text = _Text(chunks, tick)
    reader = EventReader(session_id)
    for sse in EventSource(cast("httpx.Response", text)).iter_sse():
        text.pending = 0
        if (event := reader.read(sse)) is not None:
            yield event


async def aread_events(
    chunks: AsyncIterable[bytes], session_id: str, tick: Callable[[], None] = lambda: None
) -> AsyncGenerator[Event, None]:
    """Asynchronous form of :func:`read_events`."""
    text = _Text(chunks, tick)
    reader = EventReader(session_id)
    async with contextlib.aclosing(EventSource(cast("httpx.Response", text)).aiter_sse()) as events:
        async for sse in events:
            text.pending = 0
            if (event := reader.read(sse)) is not None:
                yield event
