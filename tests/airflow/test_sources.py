"""The evidence of an answer, and a log that reads like the conversation: on the worker, deferred, and for an adopted answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_llamachat.client import LlamaCloudClient
from airflow_provider_llamachat.evidence import MAX_BYTES, note
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.models import ChatTurn
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from airflow_provider_llamachat.triggers.chat import ChatTurnTrigger
from tests.airflow.runner import DAGS, run
from tests.airflow.tries import Store, a_try

pytestmark = pytest.mark.usefixtures("llamacloud_connection")
PROMPT = "What was the revenue in Q3?"
SOURCE = {
    "tool": "retrieve",
    "index_id": "idx-filings",
    "file_id": "dfl-bfddaf13",
    "file_name": "Halden Instruments, report Q3 2025",
    "pages": [2, 2],
    "score": 0.8,
    "text": "Revenue in Q3 was 47.5 million euros, 11 % above the year before; operating margin was 13.1 %.",
    "metadata": {"file_name": "Halden Instruments, report Q3 2025"},
    "attachment": {"source_id": "dfl-bfddaf13", "attachment_name": "screenshots/page_2.jpg"},
}


@pytest.fixture
def session_id() -> str:
    return LlamaCloudHook().create_session([INDEX_FILINGS]).session_id


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was logged since the last call. On Airflow 3, tasks log past :mod:`logging`, so they get a logger of it here."""
    caplog.set_level(logging.INFO)
    for kind in (SendChatMessageOperator, ChatTurnTrigger):
        monkeypatch.setattr(kind, "log", logging.getLogger("task"), raising=False)

    def lines() -> list[str]:
        records = [record for record in caplog.records if record.name.startswith(("task", "airflow_provider"))]
        found = [record.getMessage() for record in records if "cannot be called outside" not in record.getMessage()]
        caplog.clear()
        return found

    return lines


def ask(session_id: str, **options: Any) -> SendChatMessageOperator:
    given = {"task_id": "ask", "session_id": session_id, "prompt": PROMPT, "deferrable": False, **options}
    return SendChatMessageOperator(**given)


def defer_and_return(task: SendChatMessageOperator, context: Any, between: Callable[[], None] = lambda: None) -> str:
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context)

    async def fired() -> list[Any]:
        return [event.payload async for event in deferred.value.trigger.run()]

    between()
    (event,) = asyncio.run(fired())
    return task.execute_complete(context, event=event, **(deferred.value.kwargs or {}))


def test_worker_deferred_and_adopted_answers_have_the_same_sources(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store, task = Store(), ask(session_id, retries=1)
    first, again = a_try(task, 1, store=store), a_try(task, 2, store=store)
    assert task.execute(first) == task.execute(again)
    assert llamacloud_emulator.posts() == 1
    deferred = a_try(task, 1)
    defer_and_return(ask(LlamaCloudHook().create_session([INDEX_FILINGS]).session_id, deferrable=True), deferred)
    for context in (first, again, deferred):
        assert context["ti"].pushes["sources"] == [SOURCE]
    assert LlamaCloudHook().send_message(session_id, PROMPT).sources == [SOURCE]


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database")
def test_a_whole_airflow_passes_on_the_same_sources_from_worker_and_triggerer(
    llamacloud_emulator: LlamaCloudEmulator,
) -> None:
    both = run(DAGS / "conversations.py", "retried")
    lost = run(DAGS / "conversations.py", "worker_lost")
    assert (both.state, lost.state, lost.tries["ask"]) == ("success", "success", 2)
    assert llamacloud_emulator.completed() == llamacloud_emulator.posts() == 3
    for result, task_id in ((both, "direct"), (both, "deferred"), (lost, "ask")):
        assert result.xcom(task_id, "sources") == [SOURCE], task_id
    decorated = run(DAGS / "conversations.py", "documents_direct")
    assert {source["tool"] for source in decorated.xcom("summarize", "sources")} == {"retrieve"}


def test_each_line_of_a_batch_has_the_same_sources(session_id: str, tmp_path: Path) -> None:
    task = ChatBatchOperator(
        task_id="batch",
        prompts=[PROMPT, "Nothing?"],
        index_ids=[INDEX_FILINGS],
        output_path=str(tmp_path / "out.jsonl"),
    )
    task.execute(a_try(task, 1))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["sources"] for line in lines] == [[SOURCE], []]


def test_sources_are_pushed_only_on_request_and_never_lose_the_answer(
    session_id: str, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    task = ask(session_id, push_sources=False)
    context = a_try(task, 1)
    assert "47.5 million" in task.execute(context)
    assert "sources" not in context["ti"].pushes
    task = ask(session_id)
    push = task.push

    def refuse(context: Any, key: str, value: Any) -> None:
        if key == "sources":
            raise ValueError("too large for this backend")
        push(context, key, value)

    monkeypatch.setattr(task, "push", refuse)
    assert "47.5 million" in task.execute(a_try(task, 1))
    assert "The sources could not be pushed to XCom (ValueError)." in said()


def test_many_sources_are_cut_and_the_log_says_so(
    llamacloud_emulator: LlamaCloudEmulator, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_llamachat.evidence.MAX_COUNT", 0)
    task = ask(LlamaCloudHook().create_session([INDEX_FILINGS]).session_id)
    context = a_try(task, 1)
    task.execute(context)
    pushed = context["ti"].pushes["sources"]
    assert len(json.dumps(pushed)) < MAX_BYTES
    assert note(pushed) in said()


def test_the_log_on_a_worker(session_id: str, said: Callable[[], list[str]]) -> None:
    task = ask(session_id)
    task.execute(a_try(task, 1))
    lines = said()
    assert lines[0] == f"Question in session {session_id}, indexes idx-filings: What was the revenue in Q3?"
    shown = lines[lines.index("thinking …") + 1 :]
    assert shown[:4] == [
        'tool call retrieve {"query": "q3 revenue", "index_ids": ["idx-filings"]}',
        "Tool retrieve returned 1 passage",
        f"| {SOURCE['text']} (Halden Instruments, report Q3 2025, page 2)",
        "source: Halden Instruments, report Q3 2025, page 2",
    ]
    assert shown[4].startswith("Answered with 139 characters from 1 source, ".replace("139", str(len(shown[2]) - 2)))
    assert shown[4].endswith(f" s. Session: {session_id}.")


def test_the_log_of_a_deferred_task_says_what_it_waits_for(session_id: str, said: Callable[[], list[str]]) -> None:
    asked: list[str] = []
    task = ask(session_id, deferrable=True)
    defer_and_return(task, a_try(task, 1), between=lambda: asked.extend(said()))
    assert asked[0] == f"Question in session {session_id}, indexes idx-filings: What was the revenue in Q3?"
    assert asked[-1].startswith("Waiting for the answer in the triggerer, until 20")
    assert asked[-1].endswith("+00:00 at most.")
    lines = said()
    assert "source: Halden Instruments, report Q3 2025, page 2" in lines
    assert sum(line.startswith("| Revenue in Q3") for line in lines) == 1


def test_an_adopted_answer_is_shown_and_cost_nothing(
    session_id: str, said: Callable[[], list[str]], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store, task = Store(), ask(session_id, retries=1)
    task.execute(a_try(task, 1, store=store))
    said()
    task.execute(a_try(task, 2, store=store))
    lines = said()
    adopted = "The answer was adopted from the session's history. Nothing was asked again, so it cost nothing."
    assert lines[0].startswith("Question in session")
    assert lines.index(adopted) < lines.index("Tool retrieve returned 1 passage")
    assert sum(line.startswith("| Revenue in Q3") for line in lines) == 1
    # A restarted triggerer finds the answer as well.
    again = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id
    other = ask(again, deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        other.execute(a_try(other, 1))
    trigger = deferred.value.trigger
    trigger.deferred_at = 0.0
    LlamaCloudHook().send_message(again, PROMPT)

    async def run() -> None:
        async for _ in trigger.run():
            pass

    asyncio.run(run())
    lines = said()
    assert adopted in lines
    assert sum(line.startswith("| Revenue in Q3") for line in lines) == 1
    assert llamacloud_emulator.completed() == 2


def test_an_answer_whose_stream_was_lost_is_not_called_free(
    session_id: str, said: Callable[[], list[str]], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("stream_reset", after_events=4))
    task = ask(session_id)
    context = a_try(task, 1)
    task.execute(context)
    lines = said()
    assert "The stream of the answer was lost. The answer was read from the session's history." in lines
    assert not any("cost nothing" in line for line in lines)
    assert sum(line.startswith("| Revenue in Q3") for line in lines) == 1
    assert context["ti"].pushes["sources"] == [SOURCE]


@pytest.mark.parametrize("deferrable", [False, True])
def test_without_log_answer_no_text_is_in_the_log(
    deferrable: bool, session_id: str, said: Callable[[], list[str]]
) -> None:
    store, task = Store(), ask(session_id, deferrable=deferrable, log_answer=False, retries=1)
    if deferrable:
        defer_and_return(task, a_try(task, 1, store=store))
    else:
        task.execute(a_try(task, 1, store=store))
    task.execute(a_try(task, 2, store=store))
    lines = said()
    text = "\n".join(lines)
    assert f"Question in session {session_id}, indexes idx-filings: 27 characters" in lines
    assert "cost nothing" in text
    assert " characters from 1 source, " in text
    for hidden in ("revenue", "Revenue", "Halden", "q3", "47.5"):
        assert hidden not in text


def test_what_postgresql_cannot_store_does_not_cost_an_answer_that_was_paid_for(
    session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow 3 keeps XComs as JSONB, which refuses NUL. A retry adopts the answer, so it would fail as well."""
    turn = ChatTurn(session_id=session_id, prompt=PROMPT, answer="a\x00b", skipped_index_ids=["i\x00"], finished=True)
    monkeypatch.setattr(LlamaCloudClient, "answer", lambda *_args, **_options: turn)
    task = ask(session_id)
    context = a_try(task, 1)
    stored = {"return_value": task.execute(context), **context["ti"].pushes}
    assert stored["return_value"] == "a b"
    assert "\\u0000" not in json.dumps(stored)
