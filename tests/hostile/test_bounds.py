"""Endless and enormous answers end in bounded time and memory, for both clients."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.airflow_support.turn_log import TurnLog
from airflow_provider_llamachat.client import calls, decoding, responses, sse
from airflow_provider_llamachat.client.decoding import Unpacker, parse_json
from airflow_provider_llamachat.conversation.history import TurnFolder
from airflow_provider_llamachat.models import Session, TextDeltaEvent, parse_event
from tests.hostile.conftest import IN_SHORT, SESSION, Caller, send_in
from tests.hostile.rawserver import Answer, RawServer, Request, endless, http
from tests.unit.streams import read_events

CHUNKED = "Transfer-Encoding: chunked"
STREAM = "text/event-stream"

DRIPS: dict[str, Answer] = {
    "100 Continue": lambda _r: endless(b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.05),
    "100 Continue, fast": lambda _r: endless(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 500),
    "the head": lambda _r: endless(b"a", b"HTTP/1.1 200 OK\r\nX-A: ", 0.05),
    "a body": lambda _r: endless(b" ", http(length=False), 0.05),
    "an error's body": lambda _r: endless(b" ", http(status="503 X", length=False), 0.05),
    "the size of a chunk": lambda _r: endless(b"0", http(b"", "200 OK", CHUNKED, kind=STREAM, length=False), 0.05),
    "the name in gzip": lambda _r: endless(
        b"a", http(b"\x1f\x8b\x08\x08" + bytes(6), "200 OK", "Content-Encoding: gzip", kind=STREAM, length=False), 0.05
    ),
    "the name in gzip, fast": lambda _r: endless(
        b"a" * 65536, http(b"\x1f\x8b\x08\x08" + bytes(6), "200 OK", "Content-Encoding: gzip", length=False)
    ),
    "keep-alives": lambda _r: endless(b": k\n\n", http(kind=STREAM, length=False), 0.05),
    "empty events": lambda _r: endless(b"id: 7\ndata:\n\n", http(kind=STREAM, length=False), 0.05),
    "deltas": lambda _r: endless(
        b'data: {"type": "text_delta", "content": "and "}\n\n', http(kind=STREAM, length=False), 0.05
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("drip", DRIPS)
def test_a_response_that_arrives_byte_by_byte_ends_at_the_deadline(
    drip: str, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "LAST_LOOK", 0.2)
    for name in ("get", "send"):
        problem = caller.meets(IN_SHORT[name], DRIPS[drip], max_retries=0, total_timeout=0.3)
        assert isinstance(problem, errors.LlamaCloudError), name
        if drip not in {"100 Continue, fast", "the name in gzip, fast"}:
            assert isinstance(problem, errors.LlamaCloudTimeoutError | errors.ChatTurnInterruptedError), (name, problem)


@pytest.mark.long
def test_a_stream_without_the_safety_net_ends_at_its_deadline(caller: Caller) -> None:
    for drip in ("100 Continue", "the size of a chunk", "keep-alives", "deltas"):
        assert isinstance(caller.meets(IN_SHORT["stream"], DRIPS[drip]), errors.LlamaCloudTimeoutError)


def test_all_attempts_of_a_call_share_its_time(caller: Caller) -> None:
    # One after the other they would take four minutes.
    problem = caller.meets("get", DRIPS["a body"], max_retries=400, total_timeout=0.7)
    assert isinstance(problem, errors.LlamaCloudTimeoutError)


@pytest.mark.long
def test_reading_the_history_does_not_outlast_the_turn_by_much(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "LAST_LOOK", 0.5)

    def answer(request: Request) -> Iterable[bytes | float]:
        return [http(kind=STREAM)] if request.method == "POST" else endless(b" ", http(length=False), 0.05)

    problem = caller.meets(send_in(2.0), answer, max_retries=20, total_timeout=300.0)
    assert isinstance(problem, errors.ChatTurnInterruptedError)
    assert (problem.reason, problem.accepted) == ("deadline", True)


@cache
def packed(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size)) + packer.flush()


@pytest.mark.long
@pytest.mark.parametrize("name", ["get", "stream"])
@pytest.mark.parametrize("kind", ["application/json", STREAM])
def test_a_gzip_bomb_is_not_unpacked(
    name: str, kind: str, caller: Caller, peak: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MAX_BODY", 2**22)
    monkeypatch.setattr(sse, "MAX_EVENT", 2**22)
    bomb = packed(100)  # 100 MiB in 100 kB
    answer = http(bomb, "200 OK", "Content-Encoding: gzip", kind=kind)
    ways: dict[str, Callable[[Any], Any]] = {
        "get": lambda c: c.get_session(SESSION),
        "stream": lambda c: c.stream_message(SESSION, "q", index_ids=["idx-1"], turn_timeout=60.0),
    }
    problem = caller.meets(ways[name], lambda _r: [answer], max_retries=0)
    assert isinstance(problem, errors.LlamaCloudProtocolError)
    assert "more than 4 MiB" in str(problem)
    assert peak() < 30


@pytest.mark.long
def test_nested_compression_is_refused_without_decompressing(caller: Caller, peak: Callable[[], float]) -> None:
    answer = http(gzip.compress(packed(100)), "200 OK", "Content-Encoding: gzip, gzip")
    problem = caller.meets("get", lambda _r: [answer], max_retries=0)
    assert isinstance(problem, errors.LlamaCloudConnectionError)
    assert "was not requested" in str(problem)
    assert peak() < 10


def test_compressed_answers_are_read(caller: Caller) -> None:
    event = b'data: {"type": "stop", "usage": {"turns": 2}}\n\n'
    stream = http(gzip.compress(event), "200 OK", "Content-Encoding: gzip", kind=STREAM)
    assert caller.meets("stream", lambda _r: [stream])[0].usage.turns == 2
    plain = json.dumps({"session_id": SESSION, "events": [{"type": "text", "content": "x" * 100_000}]}).encode()
    whole = gzip.compress(plain)

    def answer(request: Request) -> list[bytes | float]:
        assert request.header("accept-encoding") == "gzip"
        # The first answer breaks off in the middle: it is asked for again.
        return [http(whole[: -9 if request.number == 0 else None], "200 OK", "Content-Encoding: GZIP")]

    assert caller.meets("get", answer).events[0].content == "x" * 100_000


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_decompression_does_not_depend_on_chunk_boundaries(size: int) -> None:
    data = json.dumps(list(range(3000))).encode()
    raw = gzip.compress(data) + b"trailing bytes"
    unpacker = Unpacker("x-gzip")
    pieces = [piece for at in range(0, len(raw), size) for piece in unpacker.feed(raw[at : at + size])]
    unpacker.end()
    assert b"".join(pieces) == data


def test_reading_a_large_response_ends_at_the_limit(
    caller: Caller, peak: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MAX_BODY", 2**20)
    with RawServer(lambda _r: endless(b" " * 65536, http(length=False))) as server:
        with pytest.raises(errors.LlamaCloudProtocolError, match="more than 1 MiB"):
            caller("get", server.url)
        assert server.sent < 20 * 2**20  # what the network's buffers hold
    assert peak() < 15


def many(item: str, size: int) -> bytes:
    return f'{{"session_id": "{SESSION}", "events": [{",".join([item] * size)}]}}'.encode()


@pytest.mark.parametrize(
    "item",
    [
        "[]",
        pytest.param('{"type": "x"}', marks=pytest.mark.long),
        pytest.param('{"type":"tool_call","name":"","call_id":"1"}', marks=pytest.mark.long),
        pytest.param("[[[[[[[[]]]]]]]]", marks=pytest.mark.long),
    ],
)
def test_many_small_values_do_not_use_much_memory(
    item: str, peak: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MAX_ELEMENTS", 50_000)
    text = many(item, 1_000_000 // len(item))
    begin = time.process_time()
    with pytest.raises(ValueError, match="50000 values"):
        parse_json(text)
    assert time.process_time() - begin < 6
    assert peak() < 8  # what making the text took
    assert len(parse_json(many("[]", 15_000))["events"]) == 15_000
    assert peak() < 10


def test_brackets_in_strings_are_not_counted_as_values() -> None:
    text = json.dumps({"content": "a,b,[c]," * 400_000}).encode()
    assert text.count(b",") > decoding.MAX_ELEMENTS / 2
    assert len(parse_json(text)["content"]) == 3_200_000


def test_the_number_of_events_in_a_history_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_llamachat.models.turn.MAX_EVENTS", 5)
    assert len(Session.model_validate({"session_id": "s", "events": [{"type": "x"}] * 5}).events) == 5
    with pytest.raises(ValueError, match="6 events"):
        Session.model_validate({"session_id": "s", "events": [{"type": "x"}] * 6})


def endless_events(block: bytes) -> Iterator[bytes]:
    while True:
        yield block * 100


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"type": "text_delta", "content": "%s"}\n\n' % (b"x" * 900),
        b'data: {"type": "text", "content": "%s"}\n\n' % (b"x" * 900),
        b'data: {"type": "tool_call", "name": "t", "call_id": "1", "arguments": {"q": "%s"}}\n\n' % (b"x" * 900),
        b'data: {"type": "new", "x": "%s"}\n\n' % (b"x" * 900),
    ],
)
def test_the_size_of_an_endless_turn_is_limited(event: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_TURN", 2**20)
    with pytest.raises(errors.LlamaCloudProtocolError, match="larger than any answer") as caught:
        for _ in read_events(endless_events(event), SESSION):
            pass
    assert caught.value.accepted is True


def test_the_number_of_events_in_a_turn_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENTS", 50)
    delta, text = b'data: {"type": "text_delta", "content": "x"}\n\n', b'data: {"type": "text", "content": "x"}\n\n'
    assert len(list(read_events([delta] * 500, SESSION))) == 500
    with pytest.raises(errors.LlamaCloudProtocolError):
        list(read_events([text] * 51, SESSION))


@pytest.mark.parametrize("line", [b"data\n", b"data:xy\n"], ids=["empty", "short"])
def test_an_event_of_many_lines_uses_little_more_memory_than_its_bytes(line: bytes, peak: Callable[[], float]) -> None:
    count = 1_000_000 // len(line)
    chunk = line * (count // 100)
    assert list(read_events(itertools.chain(itertools.repeat(chunk, 100), [b"\n"]))) == []
    assert peak() < 5


def test_deltas_use_little_more_memory_than_their_characters(peak: Callable[[], float]) -> None:
    folder = TurnFolder(SESSION, "q")
    event = TextDeltaEvent(type="text_delta", content="ab")
    for _ in range(100_000):
        folder.add(event)
    assert len(folder.turn().answer) == 200_000
    assert peak() < 3  # at most four bytes a character, and the answer itself; as a list of pieces 6


@pytest.mark.parametrize("text", ["x" * 1_000_000, "word " * 200_000, " " * 1_000_000, "\n" * 250_000])
def test_a_huge_delta_is_logged_in_linear_time(text: str) -> None:
    logger = logging.getLogger("tests.hostile.quiet")
    logger.disabled = True
    event = parse_event({"type": "text_delta", "content": text})
    assert event is not None
    begin = time.process_time()
    TurnLog(logger)(event)
    assert time.process_time() - begin < 3.0


def test_a_listing_that_repeats_or_never_ends_is_an_error(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_PAGES", 5)

    def page(token: str) -> list[bytes | float]:
        return [http(json.dumps({"items": [], "next_page_token": token}).encode())]

    tokens: dict[str, Callable[[Request], str]] = {
        "same": lambda _request: "A",
        "circle": lambda request: "AB"[request.number % 2],
        "endless": lambda request: str(request.number),
        "huge": lambda _request: "x" * 100_000,
    }
    for name, token in tokens.items():
        for method in ("list", "indexes"):
            problem = caller.meets(method, lambda request, token=token: page(token(request)))  # type: ignore[misc]  # a default argument binds it
            assert isinstance(problem, errors.LlamaCloudProtocolError), name
            assert "to the end" in str(problem)
