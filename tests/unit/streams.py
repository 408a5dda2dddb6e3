"""Streams of server-sent events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from airflow_provider_llamachat.client.sse import EventReader
from airflow_provider_llamachat.models import Event


def read_events(
    chunks: Iterable[bytes], session_id: str = "s", on_lost: Callable[[], None] | None = None
) -> Iterator[Event]:
    """The events of a stream that arrives in these chunks."""
    reader = EventReader(session_id, on_lost=on_lost)
    for chunk in chunks:
        yield from reader.feed(chunk)
