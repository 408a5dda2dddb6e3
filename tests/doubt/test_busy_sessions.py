"""Tasks that share a session on a server that refuses a second turn while one is running: each gets its own answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_llamachat.exceptions import RequestRefusedError, SessionBusyError
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.airflow.tries import Store, a_try
from tests.doubt.lives import PROMPT, connect


@pytest.fixture
def busy(llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch) -> LlamaCloudEmulator:
    """A server that refuses concurrent turns, with the connection to it."""
    connect(llamacloud_emulator, monkeypatch, timeout=30.0, history_lag=2.0)
    llamacloud_emulator.settings.update(concurrent_turns="refuse", turn_latency=0.05)
    return llamacloud_emulator


def release_when_refused(busy: LlamaCloudEmulator) -> None:
    """Let turns end quickly as soon as a prompt has met a busy session, which happens on a machine of any speed."""

    def watch() -> None:
        while not any(request.status == 409 for request in busy.requests):
            time.sleep(0.01)
        busy.settings.turn_latency = 0.05

    threading.Thread(target=watch, daemon=True).start()


def ask(session_id: str, prompt: str, **options: Any) -> SendChatMessageOperator:
    return SendChatMessageOperator(
        task_id="ask", session_id=session_id, prompt=prompt, log_answer=False, push_sources=False, **options
    )


def on_workers(questions: list[tuple[str, str]]) -> list[str]:
    def one(question: tuple[str, str]) -> str:
        task = ask(*question)
        context = a_try(task, 1, store=Store())
        return str(type(task).execute.__wrapped__(task, context))  # type: ignore[attr-defined]

    with ThreadPoolExecutor(len(questions)) as workers:
        return list(workers.map(one, questions))


def in_a_triggerer(questions: list[tuple[str, str]]) -> list[str]:
    """All triggers run in one event loop."""
    waiting = []
    for question in questions:
        task = ask(*question, deferrable=True)
        context = a_try(task, 1, store=Store())
        with pytest.raises(TaskDeferred) as deferred:
            type(task).execute.__wrapped__(task, context)  # type: ignore[attr-defined]
        waiting.append((task, context, deferred.value))

    async def fire(trigger: Any) -> Any:
        # Started at once: one that starts late cannot tell another task's turn in its place from a turn of its own.
        trigger.deferred_at = time.time()
        async for event in trigger.run():
            return event.payload
        raise AssertionError("the trigger ended without an event")

    async def fire_all() -> list[Any]:
        return await asyncio.gather(*(fire(deferral.trigger) for _, _, deferral in waiting))

    events = asyncio.run(fire_all())
    return [
        str(getattr(task, deferral.method_name)(context, event=event, **(deferral.kwargs or {})))
        for (task, context, deferral), event in zip(waiting, events, strict=True)
    ]


@pytest.mark.parametrize(
    ("tasks", "sessions"), [(4, 2), pytest.param(200, 20, marks=pytest.mark.long)], ids=["few", "many"]
)
@pytest.mark.parametrize("ask_all", [on_workers, in_a_triggerer])
def test_tasks_that_share_a_session_get_their_own_answers_each_asked_once(
    tasks: int, sessions: int, ask_all: Any, busy: LlamaCloudEmulator
) -> None:
    ids = [LlamaCloudHook().create_session([INDEX_FILINGS]).session_id for _ in range(sessions)]
    busy.settings.turn_latency = 600.0
    release_when_refused(busy)
    questions = [(ids[number % sessions], f"What was the revenue in Q3? ({number})") for number in range(tasks)]
    answers = ask_all(questions)
    assert all("47.5 million" in answer for answer in answers)
    assert Counter(turn.prompt for turn in busy.turns) == Counter(prompt for _, prompt in questions)
    assert busy.completed() == tasks
    refused = sum(request.status == 409 for request in busy.requests)
    print(f"| {tasks} tasks, {sessions} sessions | {busy.completed()} turns | {refused} times refused |")


def test_prompts_of_a_batch_wait_for_a_session_that_another_task_keeps_busy(
    busy: LlamaCloudEmulator, tmp_path: Path
) -> None:
    session_id = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id

    def batch(number: int) -> Any:
        prompts = [{"prompt": f"{PROMPT} {number}.{place}", "session_id": session_id} for place in range(3)]
        task = ChatBatchOperator(
            task_id="batch", prompts=prompts, index_ids=[INDEX_FILINGS], output_path=tmp_path / f"{number}.jsonl"
        )
        return type(task).execute.__wrapped__(task, a_try(task, 1, store=Store()))  # type: ignore[attr-defined]

    with ThreadPoolExecutor(2) as workers:
        manifests = list(workers.map(batch, range(2)))
    assert [manifest["answered"] for manifest in manifests] == [3, 3]
    assert busy.completed() == len({turn.prompt for turn in busy.turns}) == 6


def test_a_session_that_stays_busy_fails_the_task_with_a_retryable_error(busy: LlamaCloudEmulator) -> None:
    session_id = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id
    busy.settings.turn_latency = 600.0
    stream = LlamaCloudHook().get_conn().stream_message(session_id, "Who is first?", index_ids=[INDEX_FILINGS])
    next(stream)
    with pytest.raises(SessionBusyError, match="Raise turn_timeout") as caught:
        LlamaCloudHook().send_message(session_id, PROMPT, turn_timeout=1.0)
    assert caught.value.retryable
    assert busy.posts(prompt=PROMPT) >= 1
    assert [turn.prompt for turn in busy.turns] == ["Who is first?"]
    busy.settings.turn_latency = 0.0


def test_a_conflict_that_means_something_else_fails_for_good(
    busy: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(busy, monkeypatch, timeout=30.0, history_lag=0)
    session_id = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id
    busy.inject(Fault("status", endpoint="stream", status=409, detail="The session is archived.", times=None))
    with pytest.raises(RequestRefusedError, match=r"no other turn is running.*archived") as caught:
        LlamaCloudHook().send_message(session_id, PROMPT)
    assert not caught.value.retryable
    assert (busy.posts(), busy.completed()) == (1, 0)
