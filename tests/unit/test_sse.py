"""Bytes to events: every line ending, every cut, and what a hostile or sloppy server sends."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_llamachat.client import sse
from airflow_provider_llamachat.client.sse import aread_events, read_events
from airflow_provider_llamachat.exceptions import LlamaCloudProtocolError

TEXT = {"type": "text", "content": "grün"}


def block(*lines: str, newline: str = "\n") -> bytes:
    return (newline.join(lines) + newline + newline).encode()


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_keep_alives_multi_line_data_and_empty_data(newline: str) -> None:
    whole = json.dumps(TEXT, indent=1).splitlines()
    stream = b"".join(
        [
            block(": keep-alive", newline=newline),
            block("event: message", *(f"data: {line}" for line in whole), newline=newline),
            block("event: message", "data:", newline=newline),
            block("data", newline=newline),
            block("id: 7", "retry: 10", newline=newline),
            block("data: " + json.dumps(TEXT), newline=newline),
        ]
    )
    for size in (1, 2, 3, 7, len(stream)):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [event.model_dump() for event in read_events(pieces, "s")] == [TEXT, TEXT]


def test_a_malformed_event_is_logged_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    bad = [
        block("data: {not json"),
        block('data: {"type": "text"}'),
        block("data: [1]"),
        block("data: " + "[" * 50_000),
    ]
    events = list(read_events([*bad, block("data: " + json.dumps(TEXT))], "ses-9"))
    assert [event.type for event in events] == ["text"]
    assert caplog.text.count("Skipped a malformed event") == 3
    assert "ses-9" in caplog.text
    assert len(caplog.text) < 3000


def test_an_unknown_event_type_is_passed_on_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    new = block("data: " + json.dumps({"type": "citation", "page": 3}))
    events = list(read_events([new, new], "s"))
    assert [event.model_dump() for event in events] == [{"type": "citation", "page": 3}] * 2
    assert caplog.text.count("newer than this provider") == 1


def test_invalid_utf8_loses_characters_but_not_the_answer() -> None:
    stream = b'data: {"type": "text", "content": "a\xff\xfeb"}\n\n'
    assert [event.model_dump()["content"] for event in read_events([stream], "s")] == ["a\ufffd\ufffdb"]


@pytest.mark.parametrize(("kind", "is_lost"), [("text", True), ("text_delta", True), ("thinking", False)])
def test_text_that_is_not_utf8_is_reported_as_lost(kind: str, is_lost: bool) -> None:
    lost: list[bool] = []
    stream = block(f'data: {{"type": "{kind}", "content": "caf')[:-2] + b'\xff"}\n\n'
    events = list(read_events([stream], "ses-1", on_lost=lambda: lost.append(True)))
    assert (len(events), bool(lost)) == (1, is_lost)


def test_a_character_split_between_chunks_is_decoded() -> None:
    stream = b"data: " + json.dumps(TEXT, ensure_ascii=False).encode() + b"\n\n"
    assert [e.model_dump() for e in read_events([stream[i : i + 1] for i in range(len(stream))], "s")] == [TEXT]


def test_the_size_of_an_event_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 10_000)
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1000
            yield b"x" * 1000

    with pytest.raises(LlamaCloudProtocolError, match="without completing an event"):
        list(read_events(endless(), "s"))
    assert taken <= 12_000


def test_many_events_together_may_exceed_the_limit_of_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 500)
    assert len(list(read_events([block("data: " + json.dumps(TEXT))] * 100, "s"))) == 100


def test_one_byte_order_mark_before_the_first_event_is_dropped() -> None:
    stream = b"\xef\xbb\xbf" + block("data: " + json.dumps(TEXT)) * 2
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        assert [event.model_dump() for event in read_events(pieces, "s")] == [TEXT, TEXT]
    assert [event.model_dump() for event in read_events([b"\xef\xbb\xbf" + stream], "s")] == [TEXT], "one, no more"


def test_an_incomplete_event_at_the_end_is_not_an_event() -> None:
    assert list(read_events([b'data: {"type": "text", "content": "a"}\n'], "s")) == []


async def _chunks(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_both_readers_return_the_same_events_for_any_bytes(noise: bytes, cuts: list[int]) -> None:
    import asyncio

    stream = noise + b"\n\n" + block("data: " + json.dumps(TEXT))
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]

    async def collect() -> list[object]:
        return [event async for event in aread_events(_chunks(pieces), "s")]

    events = list(read_events(pieces, "s"))
    assert asyncio.run(collect()) == events
    assert events[-1].model_dump() == TEXT
