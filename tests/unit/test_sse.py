"""Bytes to events: every line ending, every cut, and what a hostile or sloppy server sends."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Iterator

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from airflow_provider_llamachat.client import sse
from airflow_provider_llamachat.client.decoding import parse_json
from airflow_provider_llamachat.exceptions import LlamaCloudProtocolError
from airflow_provider_llamachat.models import Event, parse_event
from tests.unit.streams import read_events

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


_PARTS = st.sampled_from(
    [
        *(b"data: ", b"data:", b"data", b"event: x", b":", b" ", b"\n", b"\r", b"\r\n", b"\n\n"),
        *(b"\xff", b"\xc3", b"\xbc", b"\x0b", b"\xc2\x85"),
        *(json.dumps(TEXT).encode(), b'{"type": "text", ', b'"content": "a"}', b'data: {"type": "stop"}\n\n'),
    ]
)


def httpx_sse_events(stream: bytes) -> list[Event]:
    """The events as httpx-sse decodes the stream."""
    response = httpx.Response(200, headers={"content-type": "text/event-stream; charset=utf-8"}, content=stream)
    found = []
    for sent in EventSource(response).iter_sse():
        with contextlib.suppress(ValueError):
            found.append(parse_event(parse_json(sent.data)))
    return [event for event in found if event is not None]


@settings(max_examples=300, deadline=None)
@given(st.lists(_PARTS, max_size=30).map(b"".join) | st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=6))
def test_events_are_those_that_httpx_sse_finds_however_the_stream_is_cut(noise: bytes, cuts: list[int]) -> None:
    assume(not noise.startswith(b"\xef\xbb\xbf"))
    stream = noise + b"\n\n" + block("data: " + json.dumps(TEXT))
    # An edge that occurs twice makes an empty chunk.
    edges = sorted([0, len(stream), *(cut for cut in cuts if cut < len(stream))])
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    events = list(read_events(pieces))
    assert events == httpx_sse_events(stream)
    assert events[-1].model_dump() == TEXT


def test_a_line_end_that_is_split_by_an_empty_chunk_is_one_line_end() -> None:
    first, second = '{"type": "text",', '"content": "a"}'
    chunks = [f"data: {first}\r".encode(), b"", f"\ndata: {second}\r\n\r\n".encode()]
    assert [event.model_dump() for event in read_events(chunks)] == [{"type": "text", "content": "a"}]
