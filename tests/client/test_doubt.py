"""Doubt about a turn is settled by the history, and never by half an answer; what nothing was sent for is no doubt."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import AsyncLlamaCloudClient, ClientConfig, LlamaCloudClient
from airflow_provider_llamachat.client.throttle import Throttle
from airflow_provider_llamachat.models import ChatTurn
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.hostile.rawserver import Answer, RawServer, Request, http

PROMPT = "What was the revenue in Q3?"
SESSION: dict[str, Any] = {"session_id": "ses-1", "last_updated_at": "2026-01-01T00:00:00", "index_ids": ["idx-1"]}
TURN: list[dict[str, Any]] = [
    {"type": "user_input", "content": PROMPT},
    {"type": "text", "content": "47.5 million"},
    {"type": "stop", "usage": {}, "is_error": False, "error": None},
]
STREAM = "".join(f"event: message\ndata: {json.dumps(event)}\n\n" for event in TURN).encode()

Send = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def send(request: pytest.FixtureRequest) -> Send:
    """Calls ``send_message`` of a fresh client of either kind."""

    def sync(config: ClientConfig, session_id: str = "ses-1", prompt: str = PROMPT, **options: Any) -> ChatTurn:
        with LlamaCloudClient(config) as client:
            return client.send_message(session_id, prompt, **options)

    def asynchronous(config: ClientConfig, session_id: str = "ses-1", prompt: str = PROMPT, **options: Any) -> ChatTurn:
        async def run() -> ChatTurn:
            async with await AsyncLlamaCloudClient.open(config) as client:
                return await client.send_message(session_id, prompt, **options)

        return asyncio.run(run())

    return sync if request.param == "sync" else asynchronous


@pytest.fixture
def raw(config: Callable[..., ClientConfig]) -> Callable[..., ClientConfig]:
    """The configuration for a :class:`RawServer`."""
    return lambda server, **values: config(**{"base_url": server.url, **values})


def session(**values: Any) -> bytes:
    return http(json.dumps({**SESSION, **values}).encode())


def serve(answer: Answer) -> RawServer:
    return RawServer(answer)


def posts(server: RawServer) -> int:
    return sum(request.method == "POST" for request in server.requests)


@pytest.mark.long
@pytest.mark.parametrize(
    "history",
    [
        pytest.param(session(), id="no history", marks=pytest.mark.long),
        pytest.param(session(events=None), id="null", marks=pytest.mark.long),
        pytest.param(session(events=[], job_metadata={"turns": 1}), id="empty although it was asked"),
    ],
)
def test_a_truncated_history_does_not_repeat_the_prompt(
    history: bytes, send: Send, raw: Callable[..., ClientConfig]
) -> None:
    # The connection of each POST is closed without an answer.
    with RawServer(lambda request: [history] if request.method == "GET" else []) as server:
        with pytest.raises(errors.ChatTurnInterruptedError) as caught:
            send(raw(server, timeout=0.5), index_ids=["idx-1"], baseline=0)
        assert (caught.value.reason, posts(server)) == ("unreadable", 1)


def test_reading_a_history_is_retried_after_a_server_error(
    send: Send, config: Callable[..., ClientConfig], client: LlamaCloudClient, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.update(records="end", turn_latency=0.6)
    session_id = client.create_session([INDEX_FILINGS]).session_id
    emulator.inject(Fault("stream_reset", endpoint="stream", after_events=1))
    emulator.inject(Fault("status", endpoint="get", status=500, times=2))
    turn = send(config(), session_id, index_ids=[INDEX_FILINGS], baseline=0)
    assert turn.answer
    assert (emulator.posts(), emulator.completed()) == (1, 1)


def test_a_session_that_is_busy_with_our_own_lost_prompt_is_waited_for(
    send: Send, config: Callable[..., ClientConfig], client: LlamaCloudClient, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.update(records="end", concurrent_turns="refuse", turn_latency=600.0)
    session_id = client.create_session([INDEX_FILINGS]).session_id
    emulator.inject(Fault("reset_after", endpoint="stream"))

    def end_when_refused() -> None:
        while not any(request.status == 409 for request in emulator.requests):
            time.sleep(0.01)
        emulator.settings.turn_latency = 0.0

    threading.Thread(target=end_when_refused, daemon=True).start()
    turn = send(config(), session_id, index_ids=[INDEX_FILINGS], baseline=0)
    assert turn.answer
    assert emulator.completed() == 1


@pytest.mark.parametrize("index_ids", ["idx-1", '["idx-1"]', ("idx-1",)])
def test_one_index_is_one_index_in_every_form(index_ids: Any, send: Send, raw: Callable[..., ClientConfig]) -> None:
    with serve(
        lambda request: [
            session(events=[], index_ids=None) if request.method == "GET" else http(STREAM, kind="text/event-stream")
        ]
    ) as server:
        assert send(raw(server), index_ids=index_ids).answer == "47.5 million"
        assert json.loads(server.requests[-1].body)["index_ids"] == ["idx-1"]


@pytest.mark.parametrize(
    "values",
    [{"prompt": "  "}, {"session_id": ".."}, {"index_ids": [1]}, {"project_id": "mine"}, {"turn_timeout": "soon"}],
    ids=lambda values: next(iter(values)),
)
def test_an_invalid_argument_is_refused_before_anything_is_sent(
    values: dict[str, Any], send: Send, raw: Callable[..., ClientConfig]
) -> None:
    with serve(lambda _: [session(events=[])]) as server:
        with pytest.raises(errors.InvalidArgumentError):
            send(raw(server), **values)
        assert server.requests == []


def test_a_key_in_a_sessions_index_ids_is_not_shown(send: Send, raw: Callable[..., ClientConfig]) -> None:
    key = "not-of-the-usual-form-0123456789"
    locked = session(events=TURN, index_ids=[key], job_metadata={"turns": 1})
    with serve(lambda _: [locked]) as server:
        with pytest.raises(errors.InvalidArgumentError, match="locked") as caught:
            send(raw(server, api_key=key), index_ids=["idx-1"])
        assert key not in str(caught.value)


def test_a_408_leaves_the_prompt_in_doubt(send: Send, raw: Callable[..., ClientConfig]) -> None:
    timed_out = http(b'{"detail": "Request Timeout"}', "408 Request Timeout")
    with serve(
        lambda request: [session(events=TURN if posts(server) else []) if request.method == "GET" else timed_out]
    ) as server:
        assert send(raw(server)).answer == "47.5 million"
        assert posts(server) == 1
    with serve(lambda request: [timed_out]) as server:
        with pytest.raises(errors.LlamaCloudTimeoutError) as caught:
            send(raw(server))
        assert (caught.value.status, caught.value.retryable) == (408, True)
        assert len(server.requests) == 3, "a read is repeated max_retries times"


def test_a_prompt_that_came_too_early_is_sent_again(send: Send, raw: Callable[..., ClientConfig]) -> None:
    def answer(request: Request) -> Iterator[bytes]:
        if request.method == "GET":
            yield session(events=[])
        elif posts(server) == 1:
            yield http(b'{"detail": "Too Early"}', "425 Too Early")
        else:
            yield http(STREAM, kind="text/event-stream")

    with serve(answer) as server:
        assert send(raw(server)).answer == "47.5 million"
        assert posts(server) == 2


def test_a_stream_without_a_content_type_is_read(send: Send, raw: Callable[..., ClientConfig]) -> None:
    with serve(lambda request: [session(events=[]) if request.method == "GET" else http(STREAM, kind=None)]) as server:
        assert send(raw(server)).answer == "47.5 million"
        assert posts(server) == 1


def test_a_successful_response_that_is_not_a_stream_may_have_accepted_the_prompt(
    send: Send, raw: Callable[..., ClientConfig]
) -> None:
    with serve(lambda request: [session(events=[]) if request.method == "GET" else http(b'{"ok": true}')]) as server:
        with pytest.raises(errors.ChatTurnInterruptedError) as caught:
            send(raw(server, timeout=1.0))
        assert (caught.value.reason, caught.value.accepted, posts(server)) == ("vanished", True, 1)


@pytest.mark.parametrize("newline", [b"\r", b"\r\n", b"\n"])
def test_an_answer_is_complete_before_its_connection_closes_whatever_line_end_it_uses(
    newline: bytes, send: Send, raw: Callable[..., ClientConfig]
) -> None:
    stream = STREAM.replace(b"\n", newline)

    def answer(request: Request) -> Iterator[bytes | float]:
        if request.method == "GET":
            yield session(events=[])
        else:
            yield http(b"", kind="text/event-stream", length=False)
            yield from (stream[at : at + 1] for at in range(len(stream)))
            yield 200.0  # the connection stays open after the turn

    with serve(answer) as server:
        assert send(raw(server)).answer == "47.5 million"


def test_waiting_for_the_throttle_ends_at_the_deadline_and_reports_that_nothing_was_asked(
    raw: Callable[..., ClientConfig],
) -> None:
    async def run(config: ClientConfig) -> None:
        throttle = Throttle()
        throttle._paused_until = throttle._clock() + 3600  # noqa: SLF001  # as a refusal leaves it, without one
        async with await AsyncLlamaCloudClient.open(config, throttle=throttle) as client:
            await client.send_message("ses-1", PROMPT, index_ids=["idx-1"], baseline=0, turn_timeout=0.3)

    with serve(lambda _: [session(events=[])]) as server:
        with pytest.raises(errors.ChatTurnInterruptedError) as caught:
            asyncio.run(asyncio.wait_for(run(raw(server)), 60))
        assert (caught.value.reason, caught.value.accepted) == ("unasked", False)
        assert "billed" not in str(caught.value)
        assert server.requests == []


@pytest.mark.parametrize("gate", [0.0, 2.5])
def test_waiting_for_the_throttle_does_not_use_up_an_attempt(gate: float, raw: Callable[..., ClientConfig]) -> None:
    async def run(config: ClientConfig) -> None:
        throttle = Throttle()
        throttle._paused_until = throttle._clock() + gate  # noqa: SLF001  # as above
        async with await AsyncLlamaCloudClient.open(config, throttle=throttle) as client:
            await client.get_session("ses-1")

    with serve(lambda _: [http(b"{}", "503 Service Unavailable")]) as server:
        with pytest.raises(errors.ServerError):
            asyncio.run(run(raw(server, total_timeout=2.0, max_retries=3)))
        assert len(server.requests) == 4


def test_a_sync_whose_start_or_cancel_lost_its_response_counts_as_started_or_cancelled(
    client: LlamaCloudClient, config: Callable[..., ClientConfig], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.sync_seconds = 30.0
    llamacloud_emulator.inject(Fault("reset_after", endpoint="sync"))
    assert client.sync_index(INDEX_FILINGS) is True
    assert client.sync_index(INDEX_FILINGS) is False
    llamacloud_emulator.inject(Fault("reset_after", endpoint="cancel_sync"))
    assert client.cancel_sync(INDEX_FILINGS) is True
    assert client.cancel_sync(INDEX_FILINGS) is False

    async def run() -> bool:
        async with await AsyncLlamaCloudClient.open(config()) as other:
            return await other.sync_index(INDEX_FILINGS)

    llamacloud_emulator.reset()
    llamacloud_emulator.settings.sync_seconds = 30.0
    llamacloud_emulator.inject(Fault("reset_after", endpoint="sync"))
    assert asyncio.run(run()) is True


def test_a_large_history_is_decoded_beside_the_event_loop(raw: Callable[..., ClientConfig]) -> None:
    from airflow_provider_llamachat.client import responses

    used: list[threading.Thread] = []
    decode = responses.decode

    def watched(*args: Any) -> Any:
        used.append(threading.current_thread())
        return decode(*args)

    async def run(config: ClientConfig) -> None:
        async with await AsyncLlamaCloudClient.open(config) as client:
            assert len((await client.get_session("ses-1")).events) == 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responses, "decode", watched)
        for size in (10, 1_000_000):
            history = session(events=[{"type": "text", "content": "x" * size}])
            with serve(lambda _: [history]) as server:  # noqa: B023  # the server ends with this round
                asyncio.run(run(raw(server)))
    assert [thread is threading.main_thread() for thread in used] == [True, False]
