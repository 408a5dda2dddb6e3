"""Random input: structures from Hypothesis, broken bytes from the fuzzer beside. Nothing but typed errors or right answers.

``HOSTILE_SECONDS`` lets each byte-level test go on for longer, ``HOSTILE_SEED`` begins elsewhere.
"""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import json
import logging
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_llamachat import endpoints
from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import ClientConfig, LlamaCloudClient, replies
from airflow_provider_llamachat.client.config import base_url
from airflow_provider_llamachat.client.decoding import Unpacker, parse_json
from airflow_provider_llamachat.client.streaming import aread_events, read_events
from airflow_provider_llamachat.models import Event, StopEvent, UserInputEvent, parse_event
from airflow_provider_llamachat.progress import TurnLog
from airflow_provider_llamachat.turns import count_turns, fold, judge
from tests.hostile.conftest import KEY, METHODS, PROMPT, SESSION, Caller, assert_harmless
from tests.hostile.fuzzing import cut, mutated, rounds
from tests.hostile.rawserver import RawServer, http

CONFIG = ClientConfig(api_key=KEY, base_url="https://llamacloud.invalid")
QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

EVENTS: list[dict[str, Any]] = [
    {"type": "user_input", "content": PROMPT},
    {"type": "thinking_delta", "content": "Let me"},
    {"type": "thinking", "content": "Let me look."},
    {"type": "tool_call", "name": "retrieve", "call_id": "c1", "arguments": {"query": "revenue", "top_k": 5}},
    {"type": "tool_result", "name": "retrieve", "call_id": "c1", "result": [{"text": "4.2 M€", "score": 0.87}]},
    {"type": "text_delta", "content": "The revenue \u2026"},
    {"type": "text", "content": "The revenue was 4.2 M\u20ac \U0001f4c8."},
    {
        "type": "stop",
        "usage": {"total_input_tokens": 812, "total_output_tokens": 40, "turns": 2, "duration_ms": 1830.5},
        "is_error": False,
        "error": None,
        "skipped_index_ids": [],
    },
]
STREAM = b": hello\n\n" + b"".join(
    b"event: %s\ndata: %s\n\n" % (b"delta" if "delta" in e["type"] else b"message", json.dumps(e).encode())
    for e in EVENTS
)
SUMMARY: dict[str, Any] = {
    "session_id": SESSION,
    "last_updated_at": "2026-08-01T00:00:00",
    "index_ids": ["idx-1"],
    "job_metadata": {"turns": 1, "is_error": False, "total_input_tokens": 1},
}
BODIES = [
    json.dumps(value).encode()
    for value in (
        SUMMARY,
        {**SUMMARY, "events": EVENTS},
        {"items": [SUMMARY, SUMMARY], "next_page_token": None},
        [{"id": "p", "name": "Default", "is_default": True}],
        {"id": "p", "name": "Default", "organization_id": None},
        {"id": "i", "metadata": {"status": "ready", "error_message": None}, "sync_in_progress": False},
        {"detail": "no such session"},
        {"detail": [{"loc": ["body", "prompt"], "msg": "too long", "type": "string_too_long"}]},
        {"detail": {"authorization": "Bearer @@@@"}},
    )
]
CALLS = [
    endpoint.call(
        {name: SESSION for name in ("session_id", "project_id", "index_id") if f"{{{name}}}" in endpoint.path}
    )
    for endpoint in endpoints.ALL
]


def echoing(source: random.Random, corpus: list[bytes]) -> bytes:
    """A mutation with the whole key in it, where the corpus says so. (Half a key is what redaction does not look for.)"""
    return mutated(source, corpus).replace(b"@@@@", json.dumps(KEY)[1:-1].encode())


STATUSES = (200, 200, 200, 201, 204, 302, 400, 401, 403, 404, 409, 422, 429, 500, 503, 100, 999)


async def _chunks(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _collected(pieces: list[bytes]) -> list[Event]:
    return [event async for event in aread_events(_chunks(pieces), SESSION)]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    # Thousands of passed-over events are not what is looked at here.
    logging.getLogger("airflow_provider_llamachat").setLevel(logging.CRITICAL)


def test_broken_streams_give_events_and_nothing_else() -> None:
    reference = list(read_events([STREAM], SESSION))
    assert [event.type for event in reference] == [event["type"] for event in EVENTS]
    for source in rounds(1500):
        data = mutated(source, [STREAM, STREAM, gzip.compress(STREAM), *BODIES])
        pieces = cut(source, data)
        begin = time.process_time()
        events = list(read_events(pieces, SESSION))
        assert time.process_time() - begin < 1.0
        # Compared as texts: NaN is not equal to itself.
        assert repr(events) == repr(list(read_events([data], SESSION))), "how the bytes are cut makes no difference"
        turn = fold(events, SESSION, PROMPT)
        assert turn.finished == any(isinstance(event, StopEvent) for event in events)
        # What goes on from here is fit for every store and log.
        json.dumps(turn.usage_as_dict(), allow_nan=False)
        turn.answer.encode()
        judge(events, 0, PROMPT)
        log = TurnLog(logging.getLogger("airflow_provider_llamachat.fuzz"))
        for event in events:
            log(event)


def test_the_asynchronous_reader_reads_the_same() -> None:
    async def both() -> None:
        for source in rounds(300):
            pieces = cut(source, mutated(source, [STREAM]))
            assert repr(await _collected(pieces)) == repr(list(read_events(pieces, SESSION)))

    asyncio.run(both())


def test_broken_gzip_gives_the_right_bytes_or_an_error() -> None:
    import httpx

    data = STREAM * 20
    packed = gzip.compress(data)
    for source in rounds(400):
        unpacker = Unpacker("gzip")
        out = bytearray()
        try:
            for piece in cut(source, mutated(source, [packed])):
                for part in unpacker.feed(piece):
                    out += part
            unpacker.end()
        except httpx.DecodingError:
            continue
        assert bytes(out) == data, "its check sum held"


def headers(source: random.Random) -> dict[str, str]:
    made = {"content-type": source.choice(["application/json", "text/html", "", "text/event-stream", "x" * 500])}
    for name in ("retry-after", "x-request-id", "x-refused-location"):
        if source.random() < 0.5:
            corpus = [b"120", b"Fri, 31 Dec 9999 23:59:59 GMT", b"@@@@", b"req-1", b"http://xn--a/"]
            made[name] = echoing(source, corpus).decode("latin-1")
    return made


def test_broken_bodies_are_typed_errors_or_answers_for_every_endpoint() -> None:
    for source in rounds(4000):
        call = source.choice(CALLS)
        body = echoing(source, BODIES) if source.random() < 0.9 else source.randbytes(source.randint(0, 300))
        reply = replies.Reply(source.choice(STATUSES), headers(source), body)
        begin = time.process_time()
        try:
            answer = replies.decode(call, reply, CONFIG)
        except errors.LlamaCloudError as problem:
            assert_harmless(problem)
        else:
            assert 200 <= reply.status < 300
            for model in answer if isinstance(answer, list) else [answer]:
                if model is not None:
                    json.dumps(model.as_json(), allow_nan=False).encode()
        assert time.process_time() - begin < 1.0


def test_broken_answers_on_the_wire_for_every_method_of_both_clients() -> None:
    whole = [http(body, "200 OK", "Transfer-Encoding: identity", "X-Request-Id: r") for body in BODIES[:3]]
    whole += [http(body, status) for body in BODIES for status in ("200 OK", "401 X", "422 X", "500 X", "429 X")]
    whole += [http(STREAM, kind="text/event-stream")] * 10
    whole += [http(gzip.compress(STREAM), "200 OK", "Content-Encoding: gzip", kind="text/event-stream")] * 5
    chunked = b"".join(
        b"%x\r\n%s\r\n" % (len(STREAM[a : a + 99]), STREAM[a : a + 99]) for a in range(0, len(STREAM), 99)
    )
    framed = http(b"", "200 OK", "Transfer-Encoding: chunked", kind="text/event-stream", length=False)
    whole += [framed + chunked + b"0\r\n\r\n"] * 10
    answers: dict[int, list[bytes | float]] = {}
    with RawServer(lambda _request: answers[0]) as server:
        for number, source in enumerate(rounds(180)):
            answers[0] = [*cut(source, echoing(source, whole))]
            name = source.choice([*METHODS, "stream", "send", "send"])
            try:
                Caller(number % 2 == 0)(name, server.url, timeout=0.2, max_retries=0)
            except errors.LlamaCloudError as problem:
                assert_harmless(problem)


# Structures ----------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "content",
        "name",
        "call_id",
        "arguments",
        "result",
        "image_attachment",
        "usage",
        "is_error",
        "error",
        "skipped_index_ids",
    ]
)
ANY_EVENT = st.builds(
    lambda kind, fields: {"type": kind, **fields},
    st.sampled_from([event["type"] for event in EVENTS]) | st.text(max_size=10),
    st.dictionaries(FIELDS | st.text(max_size=12), VALUES, max_size=6),
)


@QUIET
@given(ANY_EVENT)
def test_any_event_is_read_or_passed_over(value: dict[str, Any]) -> None:
    event = parse_event(value)
    if value["type"] == "user_input":
        assert isinstance(event, UserInputEvent)
    if event is not None:
        assert event.type == value["type"]
        json.dumps(event.as_json(), allow_nan=False)


@QUIET
@given(st.lists(VALUES | ANY_EVENT, max_size=8), VALUES)
def test_any_history_is_a_verdict(events: list[Any], extra: Any) -> None:
    body = json.dumps({"session_id": SESSION, "events": events, "extra": extra}).encode()
    session = replies.decode(endpoints.GET_SESSION.call({"session_id": SESSION}), replies.Reply(200, {}, body), CONFIG)
    assert count_turns(session.events) == sum(isinstance(e, dict) and e.get("type") == "user_input" for e in events)
    judge(session.events, 0, PROMPT)
    json.dumps(session.as_json(), allow_nan=False).encode()


@QUIET
@given(VALUES, VALUES, VALUES, VALUES)
def test_a_stop_ends_its_turn_whatever_figures_it_brings(usage: Any, error: Any, skipped: Any, odd: Any) -> None:
    value = {
        "type": "stop",
        "usage": usage,
        "is_error": False,
        "error": error,
        "skipped_index_ids": skipped,
        "odd": odd,
    }
    event = parse_event(json.loads(json.dumps(value)))
    assert isinstance(event, StopEvent)
    turn = fold([event], SESSION, PROMPT)
    assert turn.finished
    assert not turn.is_error
    json.dumps(turn.usage_as_dict(), allow_nan=False).encode()


@QUIET
@given(VALUES)
def test_what_json_writes_is_read_back_fit_for_every_store(value: Any) -> None:
    again = parse_json(json.dumps({"x": value}))
    json.dumps(again).encode()
    json.dumps(again, ensure_ascii=False).encode()


@QUIET
@given(
    st.text(max_size=80)
    | st.datetimes().map(email.utils.format_datetime)
    | st.floats().map(str)
    | st.integers().map(str)
)
def test_retry_after_is_none_or_a_finite_number_of_seconds(value: str) -> None:
    seconds = replies.retry_after({"retry-after": value})
    assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize(
    "value",
    ["1e9", "-1", "1e999", "inf", "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "9" * 5000],
)
@pytest.mark.parametrize("status", ["429 X", "503 X"])
def test_a_server_can_not_make_a_call_wait_beyond_its_time(value: str, status: str, caller: Caller) -> None:
    problem = caller.meets("get", lambda _r: [http(b"{}", status, "Connection: close", f"Retry-After: {value}")])
    assert isinstance(problem, errors.RateLimitError | errors.ServerError)
    assert problem.retry_after is None or 0 <= problem.retry_after < float("inf")


@QUIET
@given(
    st.text(max_size=40) | st.from_regex(r"(https?://)?[a-z0-9.:\[\]%_@/-]{1,40}", fullmatch=True),
    st.none() | st.integers(),
)
def test_any_host_makes_a_client_or_a_typed_error(host: str, port: int | None) -> None:
    try:
        url = base_url(host, port=port)
    except errors.LlamaCloudConfigError as problem:
        assert_harmless(problem)
        return
    with LlamaCloudClient(ClientConfig(api_key="k", base_url=url)) as client:
        assert url in repr(client)
