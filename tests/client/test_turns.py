"""A turn is paid for once: every fault of the stream, on a first try and on the retry after it, whatever the server does when
its client is gone. The emulator's log is the judge."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import AsyncLlamaCloudClient, ClientConfig, LlamaCloudClient, calls
from airflow_provider_llamachat.conversation.history import begin
from airflow_provider_llamachat.conversation.question import Question
from airflow_provider_llamachat.models import ChatTurn, Event, Session
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator

PROMPT = "What was the revenue in Q3?"


@dataclass
class Asker:
    """One task: tries to ask, and tries again as Airflow would, with nothing kept but the server's history."""

    config: ClientConfig
    session_id: str
    asynchronous: bool

    def ask(self, *, retry: bool = False, on_interrupted: str = "fail", **options: Any) -> ChatTurn:
        with LlamaCloudClient(self.config) as client:
            session: Session = client.get_session(self.session_id)
        trace = begin(session, Question(self.session_id, PROMPT), is_retry=retry, now=time.time())
        options = {
            "index_ids": [INDEX_FILINGS],
            "baseline": trace.baseline,
            "resume": trace.is_open,
            "ask_again": trace.is_open and on_interrupted == "ask_again",
            "turn_timeout": 60.0,
            **options,
        }
        if not self.asynchronous:
            with LlamaCloudClient(self.config) as client:
                return client.send_message(self.session_id, PROMPT, **options)

        async def run() -> ChatTurn:
            async with await AsyncLlamaCloudClient.open(self.config) as client:
                return await client.send_message(self.session_id, PROMPT, **options)

        return asyncio.run(run())


@pytest.fixture(params=["sync", "async"])
def asker(request: pytest.FixtureRequest, config: Callable[..., ClientConfig], client: LlamaCloudClient) -> Asker:
    session = client.create_session([INDEX_FILINGS])
    # A turn of which nothing is heard for this long is given up, and its history is watched for twice as long.
    return Asker(config(timeout=1.0), session.session_id, request.param == "async")


FAULTS = {
    "stall at once": Fault("stall", after_events=0),
    "stall after 3": Fault("stall", after_events=3),
    "reset at once": Fault("stream_reset", after_events=0),
    "reset after 3": Fault("stream_reset", after_events=3),
    "cut at once": Fault("cut", after_events=0),
    "cut after 3": Fault("cut", after_events=3),
    "error stop": Fault("error_stop", detail="the model is overloaded"),
    "garbage event": Fault("garbage", after_events=2),
    "unknown event": Fault("unknown_event", after_events=2),
    "invalid utf-8": Fault("invalid_utf8", after_events=2),
    "slow bytes": Fault("slow", delay=0.0002),
    "status 500": Fault("status", status=500),
    "status 503": Fault("status", status=503),
    "status 429": Fault("status", status=429, retry_after="0"),
    "reset before": Fault("reset_before"),
    "reset after processing": Fault("reset_after"),
    "hang": Fault("hang"),
    "hang after processing": Fault("hang_after"),
    "delay": Fault("delay", delay=0.1),
    "html": Fault("html", status=200),
}
EXPECTED_AT_ONCE = {
    "garbage event",
    "unknown event",
    "invalid utf-8",
    "slow bytes",
    "status 500",
    "status 503",
    "status 429",
    "reset before",
    "hang",
    "delay",
    "html",
}
"""Faults after which the first try itself must give the answer, whatever the server does on a disconnect."""


@pytest.mark.parametrize(
    ("asker", "survives"),
    [
        pytest.param("sync", False, id="sync-dies"),
        # The synchronous client is made from the other.
        pytest.param("async", True, id="async-survives", marks=pytest.mark.long),
        pytest.param("sync", True, id="sync-survives", marks=pytest.mark.long),
        pytest.param("async", False, id="async-dies", marks=pytest.mark.long),
    ],
    indirect=["asker"],
)
@pytest.mark.parametrize("name", FAULTS)
def test_every_stream_fault_costs_one_turn_or_a_clear_error(
    name: str, survives: bool, asker: Asker, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.survives_disconnect = survives
    if not survives:
        monkeypatch.setattr(calls, "STALL", 0.2)
    emulator.settings.turn_latency = 0.15
    if survives and not name.startswith(("stall", "hang")):
        asker.config = replace(asker.config, timeout=30.0)
    emulator.inject(replace(FAULTS[name], endpoint="stream"))
    outcomes = []
    for retry in (False, True):
        try:
            turn = asker.ask(retry=retry)
        except errors.LlamaCloudError as problem:
            outcomes.append(type(problem).__name__)
            assert emulator.completed(prompt=PROMPT) == 0 or survives
        else:
            outcomes.append("answered")
            assert "$" in turn.answer or "million" in turn.answer, turn.answer
            assert emulator.completed(prompt=PROMPT) == 1
            assert not turn.is_error
            assert turn.usage.total_output_tokens
            break
    print(
        f"| {name} | {'survives' if survives else 'dies'} | {' → '.join(outcomes)} | {emulator.posts()} | {emulator.completed()} |"
    )
    assert emulator.completed(prompt=PROMPT) <= 1
    running = [turn for turn in emulator.turns if turn.state in {"running", "abandoned"}]
    if name in EXPECTED_AT_ONCE:
        assert outcomes == ["answered"]
    elif name == "error stop":
        assert outcomes == ["ChatTurnFailedError", "answered"]
    elif survives:
        assert outcomes == ["answered"]
        assert emulator.posts() == 1
    else:
        assert outcomes == ["ChatTurnInterruptedError", "ChatTurnInterruptedError"]
        assert emulator.posts() == 1
        assert len(running) == 1


@pytest.mark.long
@pytest.mark.parametrize("survives", [True, False], ids=["survives", "dies"])
def test_a_server_that_records_only_at_the_end_is_never_asked_twice(
    survives: bool, asker: Asker, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.records = "end"
    llamacloud_emulator.settings.survives_disconnect = survives
    llamacloud_emulator.settings.turn_latency = 0.3
    llamacloud_emulator.inject(Fault("stream_reset", endpoint="stream", after_events=2))
    if survives:
        assert asker.ask().answer
    else:
        with pytest.raises(errors.ChatTurnInterruptedError) as caught:
            asker.ask()
        assert caught.value.reason == "vanished"
    assert llamacloud_emulator.posts() == 1


def test_ask_again_gets_an_answer_after_a_turn_that_stopped_partway(
    asker: Asker, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "STALL", 0.2)
    llamacloud_emulator.settings.survives_disconnect = False
    llamacloud_emulator.inject(Fault("stream_reset", endpoint="stream", after_events=3))
    with pytest.raises(errors.ChatTurnInterruptedError):
        asker.ask(on_interrupted="ask_again")  # a first try never asks again
    assert llamacloud_emulator.posts() == 1
    assert asker.ask(retry=True, on_interrupted="ask_again").answer
    assert (llamacloud_emulator.posts(), llamacloud_emulator.completed()) == (2, 1)


@pytest.mark.long
def test_the_deadline_ends_a_turn_that_only_sends_keep_alives(
    asker: Asker, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.turn_latency = 3600.0
    llamacloud_emulator.settings.keepalive_interval = 0.05
    asker.config = replace(asker.config, timeout=30.0)
    begin = time.monotonic()
    with pytest.raises(errors.ChatTurnInterruptedError) as caught:
        asker.ask(turn_timeout=2.0)
    assert caught.value.reason == "deadline"
    assert time.monotonic() - begin < 60.0
    assert llamacloud_emulator.posts() == 1


@pytest.mark.long
def test_keep_alives_let_a_slow_turn_exceed_the_read_timeout(
    asker: Asker, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.turn_latency = 1.8
    llamacloud_emulator.settings.keepalive_interval = 0.1
    llamacloud_emulator.settings.events_per_turn = 4
    assert asker.ask().answer
    assert llamacloud_emulator.posts() == 1


def test_events_are_shown_as_they_arrive_and_the_turn_is_whole(
    asker: Asker, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    seen: list[Event] = []
    turn = asker.ask(on_event=seen.append)
    kinds = [event.type for event in seen]
    assert kinds[0] == "user_input"
    assert kinds[-1] == "stop"
    assert {"text_delta", "text", "tool_call", "tool_result", "thinking"} <= set(kinds)
    assert "".join(e.content for e in seen if e.type == "text_delta") == turn.answer  # type: ignore[attr-defined]  # deltas have content
    assert turn.tools[0].finished
    assert turn.thinking
    assert turn.position == 0


def test_two_questions_are_two_turns_and_an_adopted_one_is_the_same(
    asker: Asker, client: LlamaCloudClient, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    first = asker.ask()
    adopted = asker.ask(retry=True)
    assert llamacloud_emulator.posts() == 1
    assert (adopted.answer, adopted.usage, adopted.skipped_index_ids) == (
        first.answer,
        first.usage,
        first.skipped_index_ids,
    )
    asker.ask()
    assert llamacloud_emulator.completed(prompt=PROMPT) == 2


def test_send_message_determines_its_baseline_and_the_sessions_indexes(
    client: LlamaCloudClient, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    session = client.create_session([INDEX_FILINGS])
    client.send_message(session.session_id, "What was the revenue in Q2?")
    turn = client.send_message(session.session_id, PROMPT)
    assert (turn.position, turn.index_ids) == (1, [INDEX_FILINGS])
    with pytest.raises(errors.InvalidArgumentError, match="not bound to any index"):
        client.send_message(client.create_session().session_id, PROMPT)


def test_a_stream_without_stop_is_an_interrupted_turn_for_stream_message_too(
    asker: Asker, client: LlamaCloudClient, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("cut", endpoint="stream", after_events=2))
    stream = client.stream_message(asker.session_id, PROMPT, index_ids=[INDEX_FILINGS])
    assert next(stream).type == "user_input"
    next(stream)
    with pytest.raises(errors.ChatTurnInterruptedError, match="without a stop event"):
        next(stream)


@pytest.mark.long
def test_the_sdk_posts_a_stalled_prompt_again_and_again_and_we_do_not(
    client: LlamaCloudClient,
    config: Callable[..., ClientConfig],
    llamacloud_emulator: LlamaCloudEmulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import llama_cloud

    # The peer's own pauses are its business; without them the comparison takes seconds in place of a minute.
    monkeypatch.setattr(llama_cloud._base_client, "INITIAL_RETRY_DELAY", 0.0)  # noqa: SLF001  # the SDK has no public switch
    monkeypatch.setattr(llama_cloud._base_client, "MAX_RETRY_DELAY", 0.0)  # noqa: SLF001  # as above
    llamacloud_emulator.settings.turn_latency = 0.1
    counts = {}
    for who in ("ours", "sdk"):
        session = client.create_session([INDEX_FILINGS])
        llamacloud_emulator.inject(
            Fault("stall", endpoint="stream", session_id=session.session_id, after_events=1, times=None)
        )
        if who == "ours":
            with LlamaCloudClient(config(timeout=1.0)) as careful:
                assert careful.send_message(session.session_id, PROMPT).answer
        else:
            peer = llama_cloud.LlamaCloud(
                api_key=llamacloud_emulator.api_key, base_url=llamacloud_emulator.url, timeout=0.4
            )
            with pytest.raises(llama_cloud.APIConnectionError):
                peer.chat.stream(session.session_id, prompt=PROMPT, index_ids=[INDEX_FILINGS])
        counts[who] = llamacloud_emulator.posts(session_id=session.session_id)
    print(
        f"| POSTs of one prompt against a server that stalls | ours {counts['ours']} | official SDK {counts['sdk']} |"
    )
    assert counts["ours"] == 1
    assert counts["sdk"] > 1
