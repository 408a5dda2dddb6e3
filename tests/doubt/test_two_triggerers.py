"""A triggerer that is replaced right after it posted: its successor's start must not be taken for the first one."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from airflow_provider_llamachat.triggers import chat
from airflow_provider_llamachat.triggers.chat import ChatTurnTrigger
from tests.doubt.lives import connect

PROMPT = "What was the revenue in Q3?"


@pytest.fixture
def arguments(llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a trigger of a task that deferred now, while a history may be a second late."""
    connect(llamacloud_emulator, monkeypatch, history_lag=1.5)
    session_id = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id
    now = time.time()
    return {
        "llamacloud_conn_id": "llamacloud_default",
        "session_id": session_id,
        "prompt": PROMPT,
        "index_ids": [INDEX_FILINGS],
        "baseline": 0,
        "intended_at": None,
        "deadline": now + 60.0,
        "deferred_at": now,
    }


async def first_event(trigger: ChatTurnTrigger) -> dict[str, Any]:
    async for event in trigger.run():
        return dict(event.payload)
    raise AssertionError("no event")


async def accepted(emulator: LlamaCloudEmulator) -> None:
    while not emulator.turns:  # noqa: ASYNC110  # the emulator has no event for it
        await asyncio.sleep(0.01)


async def stopped_after_its_post(trigger: ChatTurnTrigger, emulator: LlamaCloudEmulator) -> None:
    """What a triggerer does that is told to stop: it cancels its triggers, and waits for their ends."""
    running = asyncio.create_task(first_event(trigger))
    await accepted(emulator)
    running.cancel("by the triggerer")
    with pytest.raises(asyncio.CancelledError, match="by the triggerer"):
        await running


def test_the_next_triggerer_waits_a_moment_after_a_post_of_the_stopped_one(
    arguments: dict[str, Any], llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "MOMENT", 1.0)
    llamacloud_emulator.settings.history_lag = 1.0
    llamacloud_emulator.settings.turn_latency = 0.3
    asyncio.run(stopped_after_its_post(ChatTurnTrigger(**arguments), llamacloud_emulator))
    assert time.time() >= arguments["deferred_at"] + 1.0
    event = asyncio.run(first_event(ChatTurnTrigger(**arguments)))
    assert (event["state"], llamacloud_emulator.posts()) == ("answered", 1)


def test_the_next_triggerer_does_not_wait_without_a_recent_post(
    arguments: dict[str, Any], llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "MOMENT", 5.0)

    async def stop_at_once() -> float:
        running = asyncio.create_task(first_event(ChatTurnTrigger(**arguments)))
        await asyncio.sleep(0)
        began = time.monotonic()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return time.monotonic() - began

    assert asyncio.run(stop_at_once()) < 1.0
    llamacloud_emulator.settings.turn_latency = 3.0
    began = time.monotonic()
    late = ChatTurnTrigger(**{**arguments, "deferred_at": time.time() - 60.0})
    asyncio.run(stopped_after_its_post(late, llamacloud_emulator))
    assert time.monotonic() - began < 4.0  # the lag of 1.5 s, and nothing behind the post


def test_a_trigger_that_is_cancelled_while_it_reads_the_history_posts_nothing(
    arguments: dict[str, Any], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("delay", endpoint="get", delay=60.0))

    async def cancel() -> None:
        running = asyncio.create_task(first_event(ChatTurnTrigger(**{**arguments, "deferred_at": time.time()})))
        while not any(request.endpoint == "get" for request in llamacloud_emulator.requests):  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel())
    assert llamacloud_emulator.posts() == 0


def test_a_clock_that_was_set_back_does_not_delay_a_triggerer(
    arguments: dict[str, Any], llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "MOMENT", 1.0)
    llamacloud_emulator.settings.turn_latency = 30.0
    trigger = ChatTurnTrigger(**{**arguments, "deferred_at": time.time()})

    async def stop() -> None:
        running = asyncio.create_task(first_event(trigger))
        await accepted(llamacloud_emulator)
        trigger.deferred_at = time.time() + 3600.0  # an hour in the future, as if the clock had been set back
        running.cancel()
        assert (await asyncio.wait({running}, timeout=5.0))[0]

    asyncio.run(stop())


def test_a_triggerer_that_dies_after_a_post_costs_no_second_turn_if_the_history_is_not_late(
    arguments: dict[str, Any], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.turn_latency = 0.5

    async def dies() -> None:
        running = asyncio.create_task(first_event(ChatTurnTrigger(**{**arguments, "deferred_at": time.time()})))
        await accepted(llamacloud_emulator)
        await asyncio.sleep(0.1)
        running.cancel()  # and its end is not waited for

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "MOMENT", -1.0)  # a process that dies holds nothing up
        asyncio.run(dies())
    event = asyncio.run(first_event(ChatTurnTrigger(**{**arguments, "deferred_at": time.time()})))
    assert (event["state"], llamacloud_emulator.posts()) == ("answered", 1)


def test_a_killed_trigger_says_that_a_turn_may_be_billed_only_while_there_is_one(
    arguments: dict[str, Any],
    llamacloud_emulator: LlamaCloudEmulator,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def says(trigger: ChatTurnTrigger) -> bool:
        caplog.clear()
        capfd.readouterr()
        asyncio.run(trigger.on_kill())
        return "may finish, and bill, the turn" in caplog.text + "".join(capfd.readouterr())

    trigger = ChatTurnTrigger(**arguments)
    assert not says(trigger), "it has not asked"
    assert says(ChatTurnTrigger(**{**arguments, "intended_at": time.time()})), "an earlier attempt may have asked"
    llamacloud_emulator.settings.turn_latency = 600.0
    asyncio.run(stopped_after_its_post(trigger, llamacloud_emulator))
    assert says(trigger), "its turn runs"
    llamacloud_emulator.reset()
    session_id = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id
    trigger = ChatTurnTrigger(**{**arguments, "session_id": session_id, "deferred_at": time.time()})
    asyncio.run(first_event(trigger))
    assert not says(trigger), "it has the answer"


def test_a_trigger_that_has_not_posted_ends_at_once_if_a_proxy_refuses_everything(
    arguments: dict[str, Any], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("html", status=403, times=None))
    before = len(llamacloud_emulator.requests)
    event = asyncio.run(first_event(ChatTurnTrigger(**arguments)))
    assert event["error"] == "RequestRefusedError"
    assert len(llamacloud_emulator.requests) - before == 1


@pytest.mark.parametrize("first", ["the turn", "nothing"])
def test_one_refusal_does_not_end_a_trigger_whose_turn_may_be_there(
    first: str, arguments: dict[str, Any], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with LlamaCloudHook().get_conn() as client:
        client.send_message(arguments["session_id"], PROMPT, index_ids=[INDEX_FILINGS])
    look = Fault("delay", endpoint="get") if first == "the turn" else Fault("status", endpoint="get", status=500)
    llamacloud_emulator.inject(
        look, Fault("status", endpoint="get", status=404, detail="Not Found", skip=first == "the turn")
    )
    event = asyncio.run(first_event(ChatTurnTrigger(**arguments)))
    assert "error" not in event
    assert llamacloud_emulator.posts() == 1
