"""What a try makes of the tries before it: interrupted, cleared, with a store that fails, with other retries, with other prompts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, TaskDeferred

from airflow_provider_llamachat.client import LlamaCloudClient, no_backoff
from airflow_provider_llamachat.exceptions import (
    AuthenticationError,
    ChatTurnFailedError,
    ChatTurnInterruptedError,
    InvalidArgumentError,
    LlamaCloudConnectionError,
    LlamaCloudTimeoutError,
    NotFoundError,
    RateLimitError,
    RequestRefusedError,
    ServerError,
)
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator, SendChatMessageOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.airflow.tries import Store, a_try
from tests.emulator.conftest import eventually

pytestmark = pytest.mark.usefixtures("llamacloud_connection")
PROMPT = "What was the revenue in Q3?"
PAGE = Fault("html", endpoint="get", status=403)
NOT_FOUND = Fault("status", endpoint="get", status=404, detail="Not Found")


@pytest.fixture
def session_id() -> str:
    return LlamaCloudHook().create_session([INDEX_FILINGS]).session_id


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was logged since the last call. An operator's words go to logging on Airflow 2, and to the standard output on Airflow 3."""

    def read() -> str:
        text = "".join([caplog.text, *capfd.readouterr()])
        caplog.clear()
        return text

    return read


def ask(session_id: str | dict[str, Any], **arguments: Any) -> SendChatMessageOperator:
    return SendChatMessageOperator(
        **{"task_id": "task", "session_id": session_id, "prompt": PROMPT, "retries": 2, **arguments}
    )


def interrupt(session_id: str, emulator: LlamaCloudEmulator, store: Store | None) -> None:
    """A first and last try that gives up before the turn has ended."""
    emulator.settings.turn_latency = 600.0
    task = ask(session_id, turn_timeout=1.5, retries=0)
    with pytest.raises(ChatTurnInterruptedError):
        task.execute(a_try(task, 1, store=store))
    emulator.settings.turn_latency = 0.0


def test_clearing_a_failed_task_adopts_the_answer_that_arrived_meanwhile(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store = Store()
    interrupt(session_id, llamacloud_emulator, store)
    while llamacloud_emulator.completed() == 0:
        time.sleep(0.05)
    task = ask(session_id, retries=0)
    assert "47.5 million" in task.execute(a_try(task, 2, 1, store))
    assert llamacloud_emulator.posts() == llamacloud_emulator.completed() == 1
    # It has its answer now: clearing it again asks again, in every try of that round.
    task.execute(a_try(task, 3, 2, store))
    assert llamacloud_emulator.completed() == 2


@pytest.mark.parametrize("refusal", [NOT_FOUND, PAGE], ids=["missing", "a page"])
@pytest.mark.parametrize("kept", ["no store", "a store", "a store that fails"])
def test_one_refusal_of_a_gateway_does_not_end_a_retry_whose_answer_is_there(
    kept: str, refusal: Fault, session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store = None if kept == "no store" else Store()
    interrupt(session_id, llamacloud_emulator, store)
    eventually(lambda: llamacloud_emulator.completed() == 1)
    if store is not None:
        store.broken = kept == "a store that fails"
    llamacloud_emulator.inject(refusal)
    assert "47.5 million" in ask(session_id).execute(a_try(ask(session_id), 2, store=store))
    assert llamacloud_emulator.posts() == 1


@pytest.mark.parametrize(
    "refusals", [(PAGE, PAGE), (PAGE, NOT_FOUND), (NOT_FOUND, PAGE)], ids=["two pages", "then missing", "then a page"]
)
def test_refusals_of_a_gateway_after_a_lost_post_cost_no_answer(
    refusals: tuple[Fault, ...], session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    # The first read, before the post, passes.
    llamacloud_emulator.inject(Fault("reset_after", endpoint="stream"), *(replace(one, skip=1) for one in refusals))
    assert "47.5 million" in ask(session_id).execute(a_try(ask(session_id), 1))
    assert llamacloud_emulator.posts() == 1


def test_a_retry_that_did_not_ask_ends_at_once_if_the_base_url_is_wrong(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store = Store()
    llamacloud_emulator.inject(Fault("status", endpoint="get", status=500))
    with pytest.raises(ServerError):
        ask(session_id).execute(a_try(ask(session_id), 1, store=store))
    llamacloud_emulator.inject(replace(PAGE, status=404, times=None))
    with pytest.raises(RequestRefusedError):
        ask(session_id).execute(a_try(ask(session_id), 2, store=store))


def test_an_invalid_key_is_named_although_the_session_seems_to_be_missing(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store = Store()
    interrupt(session_id, llamacloud_emulator, store)
    llamacloud_emulator.inject(replace(NOT_FOUND, times=None), Fault("status", endpoint="list", status=401))
    with pytest.raises(AuthenticationError):
        ask(session_id).execute(a_try(ask(session_id), 2, store=store))


@pytest.mark.parametrize("status", [400, 422])
def test_a_refusal_to_list_the_sessions_is_no_end_of_a_turn_in_doubt(
    status: int, session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store = Store()
    interrupt(session_id, llamacloud_emulator, store)
    llamacloud_emulator.inject(NOT_FOUND, Fault("status", endpoint="list", status=status))
    with pytest.raises(LlamaCloudConnectionError):
        ask(session_id).execute(a_try(ask(session_id), 2, store=store))


def test_a_retry_after_a_refused_post_ends_at_once_if_the_base_url_is_wrong(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store = Store()
    llamacloud_emulator.inject(Fault("status", endpoint="stream", status=429, times=None))
    with no_backoff(), pytest.raises(RateLimitError):
        ask(session_id).execute(a_try(ask(session_id), 1, store=store))
    llamacloud_emulator.inject(replace(PAGE, status=404, times=None))
    with pytest.raises(RequestRefusedError):
        ask(session_id).execute(a_try(ask(session_id), 2, store=store))


def test_a_client_that_resumes_believes_no_single_refusal(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with LlamaCloudHook().get_conn() as client:
        client.send_message(session_id, PROMPT)
        llamacloud_emulator.inject(NOT_FOUND)
        turn = client.send_message(session_id, PROMPT, baseline=0, resume=True, accepted=True)
    assert "47.5 million" in turn.answer
    assert llamacloud_emulator.posts() == 1


def test_the_reads_of_a_session_in_doubt_share_their_time(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(replace(NOT_FOUND, delay=0.5), Fault("hang", endpoint="list"))
    with LlamaCloudHook().get_conn() as client, no_backoff(), pytest.raises(LlamaCloudTimeoutError):
        client.get_known_session(session_id, patience=1.0)


def test_a_vague_404_ends_a_first_attempt_at_once(session_id: str, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(replace(NOT_FOUND, endpoint=None, times=None))
    with pytest.raises(NotFoundError):
        ask(session_id).execute(a_try(ask(session_id), 1))
    assert [request.endpoint for request in llamacloud_emulator.requests] == ["create", "get"]


def test_clearing_a_task_whose_turn_stopped_partway_asks_again(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamacloud_emulator.settings.survives_disconnect = False
    store = Store()
    interrupt(session_id, llamacloud_emulator, store)
    monkeypatch.setattr("airflow_provider_llamachat.client.calls.STALL", 0.01)
    task = ask(session_id, retries=1)
    assert "47.5 million" in task.execute(a_try(task, 2, 2, store))
    assert (llamacloud_emulator.posts(), llamacloud_emulator.completed()) == (2, 1)


def test_a_retry_is_recognized_after_the_dags_retries_were_changed(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store = Store()
    task = ask(session_id, retries=3)
    task.execute(a_try(task, 1, 3, store))
    fewer = ask(session_id, retries=1)
    fewer.execute(a_try(fewer, 2, 3, store))
    assert llamacloud_emulator.posts() == 1


def test_with_a_store_an_attempt_that_left_no_trace_did_not_ask(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    # The same prompt was asked by another task; this one's first try did not come as far as asking.
    other, task = ask(session_id, task_id="other"), ask(session_id)
    other.execute(a_try(other, 1, store=Store()))
    task.execute(a_try(task, 2, store=Store()))
    assert llamacloud_emulator.completed() == 2


def test_an_unreadable_trace_leaves_the_last_prompt_as_evidence(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store, task = Store(), ask(session_id)
    task.execute(a_try(task, 1, store=store))
    store["turn"] = {"round": 2, "value": {"of": "another release"}}
    task.execute(a_try(task, 2, store=store))
    store.broken = True
    task.execute(a_try(task, 3, store=store))
    assert llamacloud_emulator.posts() == 1


def test_a_task_that_was_never_accepted_asks_after_another_task_has_asked(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store, task, other = Store(), ask(session_id), ask(session_id, prompt="And in Q2?")
    llamacloud_emulator.inject(Fault("status", endpoint="stream", status=429, retry_after="0", times=6))
    with no_backoff(), pytest.raises(RateLimitError):
        task.execute(a_try(task, 1, store=store))
    other.execute(a_try(other, 1, store=Store()))
    assert "47.5 million" in task.execute(a_try(task, 2, store=store))
    assert llamacloud_emulator.completed(prompt=PROMPT) == 1


def test_a_prompt_that_changes_between_attempts_is_paid_for_again_with_a_warning(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator, said: Callable[[], str]
) -> None:
    store = Store()
    for number in (1, 2):
        task = ask(session_id, prompt=f"{PROMPT} (try {number})")
        task.execute(a_try(task, number, store=store))
        assert ("Do not use values in prompts that change between attempts" in said()) is (number == 2)
    assert llamacloud_emulator.completed() == 2


def test_usage_that_cannot_be_pushed_does_not_hide_why_the_turn_failed(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator, said: Callable[[], str]
) -> None:
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", detail="model down"))
    task = ask(session_id)
    context = a_try(task, 1)
    context["ti"].refuses = True
    with pytest.raises(ChatTurnFailedError, match="model down"):
        task.execute(context)
    assert "usage could not be pushed" in said()


def test_failing_lineage_and_metrics_do_not_lose_the_answer(
    session_id: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("down")

    monkeypatch.setattr("airflow.providers.common.compat.lineage.hook.get_hook_lineage_collector", fail)
    monkeypatch.setattr("airflow.providers.common.compat.sdk.Stats.incr", fail)
    task = ask(session_id)
    assert task.execute(a_try(task, 1))
    assert "Lineage was not recorded" in caplog.text
    assert "was not counted" in caplog.text


@pytest.mark.parametrize("answer_first", [False, True])
def test_a_kill_says_that_a_turn_may_be_billed_only_while_there_is_one(
    answer_first: bool, said: Callable[[], str], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    create = CreateChatSessionOperator(task_id="create", index_ids=[INDEX_FILINGS])
    whole = create.execute(a_try(create, 1))
    task = ask(whole, turn_timeout=1.5, retries=0)
    if answer_first:
        task.execute(a_try(task, 1))
    else:
        llamacloud_emulator.settings.turn_latency = 600.0
        with pytest.raises(ChatTurnInterruptedError):
            task.execute(a_try(task, 1))
    said()
    task.on_kill()
    words = said()
    assert ("may finish, and bill, the turn" in words) is not answer_first
    assert (whole["session_id"] in words) is not answer_first
    assert "last_updated_at" not in words


def test_numbers_that_are_too_large_become_null_in_xcom(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_llamachat.models import SessionSummary

    answered = SessionSummary.model_validate({"session_id": "ses-1", "weight": 2**80, "index_ids": ["idx-1"]})
    monkeypatch.setattr(LlamaCloudClient, "create_session", lambda *_, **__: answered)
    create = CreateChatSessionOperator(task_id="create", index_ids=["idx-1"])
    assert create.execute(a_try(create, 1))["weight"] is None


def test_wait_for_indexes_requires_index_ids(llamacloud_emulator: LlamaCloudEmulator) -> None:
    create = CreateChatSessionOperator(task_id="create", wait_for_indexes=True)
    with pytest.raises(InvalidArgumentError, match="requires index_ids"):
        create.execute(a_try(create, 1))
    assert llamacloud_emulator.requests == []


def test_a_kill_before_the_first_request_names_no_session(said: Callable[[], str]) -> None:
    said()
    ask("ses-1").on_kill()
    assert said() == ""


@pytest.mark.parametrize(
    ("execution_timeout", "expected"), [(None, 660.0), (timedelta(seconds=100), 160.0), (timedelta(hours=2), 660.0)]
)
def test_a_deferral_ends_at_the_earlier_of_turn_and_task_timeout(
    execution_timeout: timedelta | None, expected: float, session_id: str
) -> None:
    task = ask(session_id, deferrable=True, turn_timeout=600, execution_timeout=execution_timeout)
    context = a_try(task, 1, store=Store())
    context["ti"].start_date = datetime.now(tz=UTC)
    with pytest.raises(TaskDeferred) as deferral:
        task.execute(context)
    assert deferral.value.timeout is not None
    assert deferral.value.timeout.total_seconds() == pytest.approx(expected, abs=5.0)


@pytest.mark.parametrize("error", ["Trigger timeout", "Trigger/execution timeout"])  # Airflow 3's, and Airflow 2's
def test_without_a_triggerer_a_deferred_task_fails_and_its_retry_reads_the_history_first(
    error: str, session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store, task = Store(), ask(session_id, deferrable=True)
    context = a_try(task, 1, store=store)
    with pytest.raises(TaskDeferred):
        task.execute(context)
    with pytest.raises(ChatTurnInterruptedError, match="Check that a triggerer is running") as caught:
        task.resume_execution("__fail__", {"error": error}, context)
    assert caught.value.retryable
    # The trigger did run, just before its time was over.
    LlamaCloudHook().send_message(session_id, PROMPT)
    again = ask(session_id)
    assert "47.5 million" in again.execute(a_try(again, 2, store=store))
    assert llamacloud_emulator.posts() == 1


def test_a_trigger_that_failed_is_reported_as_airflow_reports_it(session_id: str) -> None:
    with pytest.raises(AirflowException, match="Trigger failure"):
        ask(session_id).resume_execution("__fail__", {"error": "Trigger failure"}, a_try(ask(session_id), 1))
