"""What 1.0.0 left behind is taken up: a deferred trigger, its event, a task's state, a batch's journal.

``left_by_1_0_0.json`` was written by 1.0.0 itself, from a task that asks ``PROMPT``; ``SESSION`` and ``OTHER`` stand for session ids.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_llamachat.airflow_support.task_state import TurnMemory
from airflow_provider_llamachat.conversation.question import Question, Trace
from airflow_provider_llamachat.exceptions import ChatTurnInterruptedError, LlamaCloudConnectionError
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, LlamaCloudEmulator
from airflow_provider_llamachat.triggers.events import FAILED, Failure, TurnEvent
from tests.airflow.tries import Store, a_try

pytestmark = pytest.mark.usefixtures("llamacloud_connection")
PROMPT = "What was the revenue in Q3?"
OTHER = "And in Q2?"


def left(name: str, **ids: str) -> Any:
    text = (Path(__file__).parent / "left_by_1_0_0.json").read_text()
    for placeholder, session_id in ids.items():
        text = text.replace(placeholder, session_id)
    return json.loads(text)[name]


@pytest.fixture
def session_id() -> str:
    return LlamaCloudHook().create_session([INDEX_FILINGS]).session_id


def trigger(name: str, **ids: str) -> Any:
    path, values = left(name, **ids)
    module, _, kind = path.rpartition(".")
    return getattr(importlib.import_module(module), kind)(**values)


async def first(running: Any) -> dict[str, Any]:
    async for event in running.run():
        return dict(event.payload)
    raise AssertionError("no event")


@pytest.mark.parametrize("was_asked", [True, False])
def test_a_deferred_turn_resumes_and_is_paid_for_once(
    was_asked: bool, session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    if was_asked:
        LlamaCloudHook().send_message(session_id, PROMPT)
    event = asyncio.run(first(trigger("chat_trigger", SESSION=session_id)))
    task = SendChatMessageOperator(task_id="task", session_id=session_id, prompt=PROMPT, deferrable=True)
    answer = task.execute_complete(a_try(task, 1), event=event, **left("resume_kwargs"))
    assert "47.5 million" in answer
    assert llamacloud_emulator.posts() == llamacloud_emulator.completed() == 1


def test_an_event_of_the_earlier_trigger_is_understood(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    LlamaCloudHook().send_message(session_id, PROMPT)
    task = SendChatMessageOperator(task_id="task", session_id=session_id, prompt=PROMPT, deferrable=True)
    event = left("answered_event", SESSION=session_id)
    assert "47.5 million" in task.execute_complete(a_try(task, 1), event=event, **left("resume_kwargs"))
    assert llamacloud_emulator.posts() == 1
    store = Store()
    with pytest.raises(ChatTurnInterruptedError, match="it was cut"):
        task.execute_complete(
            a_try(task, 1, store=store), event=left("failed_event", SESSION=session_id), **left("resume_kwargs")
        )
    assert store["turn"]["value"]["accepted"] is True


def test_a_post_of_1_0_0_is_treated_as_recent(session_id: str) -> None:
    store, now = Store(), time.time()
    event = left("failed_event", SESSION=session_id) | {"details": {"reason": "unreadable"}}
    task = SendChatMessageOperator(task_id="task", session_id=session_id, prompt=PROMPT, retries=2)
    with pytest.raises(ChatTurnInterruptedError):
        task.execute_complete(a_try(task, 1, store=store), event=event, **left("resume_kwargs"))
    assert now <= store["turn"]["value"]["intended_at"] <= time.time()
    memory = TurnMemory(
        a_try(task, 2, store=Store({"turn": left("task_state", SESSION=session_id)["about_to_ask"]})),
        task.log,
        Question(session_id, PROMPT),
    )
    intended_at = memory.begin(LlamaCloudHook().get_session(session_id)).intended_at
    assert intended_at is not None
    assert now <= intended_at <= time.time()


@pytest.mark.parametrize("intended_at", [None, 5.0])
def test_the_post_time_in_an_event_is_used_and_unknown_fields_are_ignored(intended_at: float | None) -> None:
    payload = {"state": "failed", "session_id": "ses-1", "prompt": PROMPT, "baseline": 0, "position": 3}
    event = TurnEvent.parse({**payload, "intended_at": intended_at, "accepted": False, "done": False})
    assert event.trace == Trace(0, intended_at=intended_at)
    assert "position" not in event.as_dict()


def test_a_retry_posts_a_prompt_that_was_provably_not_accepted(session_id: str) -> None:
    question, store = Question(session_id, PROMPT, [INDEX_FILINGS]), Store()
    failure = Failure("LlamaCloudConnectionError", "no route", {"accepted": False})
    event = json.loads(json.dumps(TurnEvent(FAILED, question, Trace(0), failure).as_dict()))
    task = SendChatMessageOperator(task_id="task", session_id=session_id, prompt=PROMPT, retries=2)
    with pytest.raises(LlamaCloudConnectionError):
        task.execute_complete(a_try(task, 1, store=store), event=event, try_number=1)
    assert store["turn"]["value"]["intended_at"] is None


@pytest.mark.parametrize("name", ["about_to_ask", "accepted", "done"])
def test_a_retry_resumes_from_the_task_state(
    name: str, session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    LlamaCloudHook().send_message(session_id, PROMPT)
    task = SendChatMessageOperator(task_id="task", session_id=session_id, prompt=PROMPT, retries=2)
    store = Store({"turn": left("task_state", SESSION=session_id)[name]})
    assert "47.5 million" in task.execute(a_try(task, 2, store=store))
    assert llamacloud_emulator.posts() == 1


def test_a_batch_resumes_from_the_journal(
    session_id: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    other = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id
    LlamaCloudHook().send_message(other, OTHER)
    output = tmp_path / "results.jsonl"
    folder = tmp_path / "results.jsonl.parts" / left("journal_folder")
    folder.mkdir(parents=True)
    records = left("journal", SESSION=session_id, OTHER=other)
    (folder / "part-00000001-0123abcd.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    task = ChatBatchOperator(
        task_id="task", prompts=[PROMPT, OTHER], index_ids=[INDEX_FILINGS], output_path=str(output)
    )
    manifest = task.execute(a_try(task, 1))
    assert (manifest["kept"], manifest["settled"], manifest["answered"]) == (1, 1, 2)
    kept, settled = [json.loads(line)["sources"] for line in output.read_text().splitlines()]
    assert kept is None  # nobody knows them any more
    assert settled[0]["file_name"] == "Halden Instruments, report Q2 2025"
    assert llamacloud_emulator.posts() == 1  # the one that this test sent


def test_a_deferred_sensor_resumes() -> None:
    event = asyncio.run(first(trigger("index_trigger")))
    assert event["state"] == left("index_event")["state"]
    assert time.time() < 4e9  # the trigger's deadline
