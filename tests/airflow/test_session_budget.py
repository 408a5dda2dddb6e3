"""``max_total_tokens`` of a session: what its history shows is counted, and a turn that may be there is looked for in any case."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_llamachat.exceptions import BudgetReachedError, ChatTurnInterruptedError, InvalidArgumentError
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.airflow.tries import Store, a_try
from tests.doubt.lives import connect

pytestmark = pytest.mark.usefixtures("llamacloud_connection")


@pytest.fixture
def session_id(llamacloud_emulator: LlamaCloudEmulator) -> str:
    return LlamaCloudHook().create_session([INDEX_FILINGS]).session_id


def ask(session_id: str, prompt: str, **arguments: Any) -> SendChatMessageOperator:
    return SendChatMessageOperator(task_id="ask", session_id=session_id, prompt=prompt, retries=2, **arguments)


@pytest.mark.parametrize("deferrable", [False, True])
def test_nothing_is_asked_in_a_session_that_used_its_tokens(
    deferrable: bool, session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    LlamaCloudHook().send_message(session_id, "What was the revenue in Q3?")
    used = LlamaCloudHook().get_conn().get_session(session_id).total_tokens
    assert used > 0
    task = ask(session_id, "And in Q2?", max_total_tokens=str(used), deferrable=deferrable)
    with pytest.raises(BudgetReachedError, match=rf"Raise max_total_tokens \({used}\).*Used: {used} tokens"):
        task.execute(a_try(task, 1))
    assert llamacloud_emulator.posts() == 1
    more = ask(session_id, "And in Q2?", max_total_tokens=used + 1)
    assert more.execute(a_try(more, 1))


def test_a_retry_takes_its_answer_from_a_session_that_used_its_tokens(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(llamacloud_emulator, monkeypatch)
    llamacloud_emulator.inject(Fault("stream_reset", endpoint="stream", after_events=2))
    llamacloud_emulator.inject(Fault("status", endpoint="get", status=503, skip=1, times=None))
    task, store = ask(session_id, "What was the revenue in Q3?", max_total_tokens=1, turn_timeout=0.5), Store()
    with pytest.raises(ChatTurnInterruptedError):
        task.execute(a_try(task, 1, store=store))
    llamacloud_emulator.clear_faults()
    task.turn_timeout = 60
    assert "47.5 million" in task.execute(a_try(task, 2, store=store))
    assert llamacloud_emulator.posts() == 1


def test_a_limit_of_zero_is_refused(session_id: str, llamacloud_emulator: LlamaCloudEmulator) -> None:
    task = ask(session_id, "Why?", max_total_tokens=0)
    with pytest.raises(InvalidArgumentError, match="max_total_tokens must be a whole number of at least 1"):
        task.execute(a_try(task, 1))
    assert llamacloud_emulator.posts() == 0
