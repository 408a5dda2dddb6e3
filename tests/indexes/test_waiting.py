"""Operators that wait for indexes: the end of a sync, the same on a worker and deferred, and what a kill leaves."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import LlamaCloudClient
from airflow_provider_llamachat.client.readiness import SyncProgress
from airflow_provider_llamachat.models import Index
from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator
from airflow_provider_llamachat.operators.index import SyncIndexOperator
from airflow_provider_llamachat.testing import (
    INDEX_BUILDING,
    INDEX_FAILED,
    INDEX_FILINGS,
    INDEX_HANDBOOK,
    Fault,
    LlamaCloudEmulator,
)
from airflow_provider_llamachat.triggers.index import IndexReadyTrigger, IndexSyncedTrigger
from tests.airflow.runner import run
from tests.airflow.tries import a_try

DAGS = Path(__file__).parent / "dags" / "indexes.py"
BEFORE, AFTER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def index(status: str = "ready", synced: str | None = BEFORE, *, running: bool | None = False) -> Index:
    fields = {"id": "idx", "metadata": {"status": status}, "last_synced_at": synced, "sync_in_progress": running}
    return Index.model_validate(fields)


def resumed(operator: Any, context: Any) -> Any:
    """One attempt of the operator to its end, with its trigger in line."""
    try:
        return operator.execute(context)
    except TaskDeferred as deferral:
        path, values = deferral.trigger.serialize()
        kind = {"IndexReadyTrigger": IndexReadyTrigger, "IndexSyncedTrigger": IndexSyncedTrigger}[path.split(".")[-1]]

        async def fire() -> Any:
            return [event.payload async for event in kind(**values).run()]

        (event,) = asyncio.run(fire())
        kwargs = {**(deferral.kwargs or {}), "event": event}
        return operator.resume_execution(deferral.method_name, kwargs, context)


# When a sync has ended --------------------------------------------------------------------------------------------------


def test_a_sync_that_was_seen_running_has_ended_when_it_no_longer_runs() -> None:
    progress = SyncProgress(BEFORE, time.time() + 1000)
    assert progress.pending([index()]) == {"idx": "the sync has not begun"}
    assert progress.pending([index(running=True)]) == {"idx": "a sync is running"}
    assert progress.pending([index()]) == {}


def test_a_newer_sync_has_ended_although_it_was_never_seen_running() -> None:
    assert SyncProgress(BEFORE, time.time() + 1000).pending([index(synced=AFTER)]) == {}
    assert SyncProgress(None, time.time() + 1000).pending([index(synced=AFTER)]) == {}


def test_a_sync_without_a_trace_counts_as_ended_after_a_while() -> None:
    assert SyncProgress(BEFORE, time.time() - 1).pending([index(running=None)]) == {}


def test_a_failure_from_before_the_sync_is_not_its_result() -> None:
    progress = SyncProgress(BEFORE, time.time() + 1000)
    assert progress.pending([index("failed")]) == {"idx": "the sync has not begun"}
    assert progress.pending([index("failed", running=True)]) == {"idx": "a sync is running"}
    with pytest.raises(errors.IndexFailedError):
        progress.pending([index("failed")])


def test_an_index_that_is_built_after_its_sync_is_waited_for() -> None:
    assert SyncProgress(BEFORE, time.time() + 1000).pending([index("embedding", AFTER)]) == {"idx": "status embedding"}


# The operators ----------------------------------------------------------------------------------------------------------


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_a_dag_gets_the_result_of_a_sync_in_both_modes(llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.settings.sync_seconds = 0.3
    before = llamacloud_emulator.indexes[INDEX_HANDBOOK]["last_synced_at"]
    result = run(DAGS, "sync_and_wait", {"index_id": INDEX_HANDBOOK})
    assert result.state == "success", result.tasks
    for task_id in ("waiting", "deferred"):
        found = result.xcom(task_id)
        assert found.pop("last_synced_at") > before
        assert found == {"index_id": INDEX_HANDBOOK, "started": True, "status": "ready"}


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_a_dag_creates_a_session_after_a_deferral(llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.index_schedule(INDEX_BUILDING, ["parsing", "embedding", "ready"])
    assert run(DAGS, "create_when_ready_deferred", {"index_ids": [INDEX_FILINGS, INDEX_BUILDING]}).state == "success"
    assert [request.endpoint for request in llamacloud_emulator.requests][-1] == "create"
    assert len(llamacloud_emulator.sessions) == 1


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "deferred"])
def test_a_sync_of_somebody_else_is_waited_for(deferrable: bool, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.index_schedule(
        INDEX_FILINGS,
        [{"sync_in_progress": True}] * 2 + [{"sync_in_progress": False, "last_synced_at": datetime.now(UTC)}],
    )
    llamacloud_emulator.inject(Fault("status", endpoint="sync", status=409))
    sync = SyncIndexOperator(
        task_id="sync", index_id=INDEX_FILINGS, wait=True, deferrable=deferrable, poke_interval=0.05
    )
    found = resumed(sync, a_try(sync, 1))
    assert (found["started"], found["status"]) == (False, "ready")
    assert found["last_synced_at"]


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "deferred"])
def test_a_failed_sync_fails_the_task(deferrable: bool, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.settings.sync_seconds = 0.1
    llamacloud_emulator.index_schedule(INDEX_FILINGS, ["ready", "failed"])
    sync = SyncIndexOperator(
        task_id="sync", index_id=INDEX_FILINGS, wait=True, deferrable=deferrable, poke_interval=0.05
    )
    with pytest.raises(errors.IndexFailedError):
        resumed(sync, a_try(sync, 1))


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "deferred"])
def test_a_sync_that_takes_too_long_is_left_alone_and_a_retry_waits_for_it(
    deferrable: bool, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.sync_seconds = 3600.0
    sync = SyncIndexOperator(
        task_id="sync", index_id=INDEX_FILINGS, wait=True, deferrable=deferrable, poke_interval=0.05, sync_timeout=0.3
    )
    for _ in range(2):
        with pytest.raises(errors.IndexNotReadyError, match="a sync is running"):
            resumed(sync, a_try(sync, 1))
    assert "cancel_sync" not in {request.endpoint for request in llamacloud_emulator.requests}


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_task_that_is_killed_cancels_the_sync_that_it_started(
    is_ours: bool, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.sync_seconds = 3600.0
    if not is_ours:
        emulator.set_index(INDEX_FILINGS, sync_in_progress=True)
    sync = SyncIndexOperator(task_id="sync", index_id=INDEX_FILINGS, wait=True, deferrable=False, poke_interval=0.05)
    caught: list[BaseException] = []

    def execute() -> None:
        try:
            # On Airflow 2, execute() itself refuses another thread.
            type(sync).execute.__wrapped__(sync, a_try(sync, 1))  # type: ignore[attr-defined]
        except errors.LlamaCloudError as problem:
            caught.append(problem)

    task = threading.Thread(target=execute)
    task.start()
    deadline = time.monotonic() + 120
    while len(emulator.requests) < 4 and time.monotonic() < deadline:  # it waits
        time.sleep(0.02)
    sync.on_kill()
    task.join(120)
    assert not task.is_alive()
    assert len(caught) == 1
    cancelled = [request.endpoint for request in emulator.requests].count("cancel_sync")
    assert cancelled == (1 if is_ours else 0)
    sync.on_kill()
    assert [request.endpoint for request in emulator.requests].count("cancel_sync") == cancelled


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize("wait", [True, False])
def test_a_task_that_is_killed_while_its_sync_starts_says_that_the_sync_may_continue(
    wait: bool, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = SyncIndexOperator(task_id="sync", index_id=INDEX_FILINGS, wait=wait, deferrable=False)
    really = LlamaCloudClient.sync_index

    def sync_index(client: LlamaCloudClient, index_id: str, **scope: Any) -> bool:
        really(client, index_id, **scope)
        sync.on_kill()
        raise errors.LlamaCloudConnectionError("the task was stopped")

    warnings: list[str] = []
    monkeypatch.setattr(sync.log, "warning", lambda text, *_values: warnings.append(text))
    monkeypatch.setattr(LlamaCloudClient, "sync_index", sync_index)
    llamacloud_emulator.settings.sync_seconds = 3600.0
    with pytest.raises(errors.LlamaCloudConnectionError, match="stopped"):
        sync.execute(a_try(sync, 1))
    # It is not known whether it is this task's sync or another one's.
    assert "cancel_sync" not in {request.endpoint for request in llamacloud_emulator.requests}
    assert any("may have started, and continues" in text for text in warnings) is wait


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_a_sync_that_cannot_be_cancelled_does_not_hide_that_the_task_was_stopped(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = SyncIndexOperator(task_id="sync", index_id=INDEX_FILINGS, wait=True, deferrable=False)
    monkeypatch.setattr(LlamaCloudClient, "pause", lambda _client, _seconds: sync.on_kill())
    llamacloud_emulator.settings.sync_seconds = 3600.0
    llamacloud_emulator.inject(Fault("status", endpoint="cancel_sync", status=500, times=None))
    with pytest.raises(errors.LlamaCloudConnectionError, match="stopped"):
        sync.execute(a_try(sync, 1))
    assert [request.endpoint for request in llamacloud_emulator.requests].count("cancel_sync") == 1


def test_an_error_about_a_cancel_names_the_index(
    llamacloud_emulator: LlamaCloudEmulator, llamacloud_connection: object
) -> None:
    from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

    with pytest.raises(errors.NotFoundError, match="Could not cancel the sync of index idx-nowhere"):
        LlamaCloudHook().cancel_sync("idx-nowhere")


def syncing(*, started: bool) -> IndexSyncedTrigger:
    return IndexSyncedTrigger(
        llamacloud_conn_id="llamacloud_default",
        index_ids=[INDEX_FILINGS],
        deadline=time.time() + 100,
        before=BEFORE,
        settled_at=time.time() + 100,
        started=started,
    )


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_deferred_task_that_is_killed_cancels_the_sync_that_it_started(
    is_ours: bool, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.set_index(INDEX_FILINGS, sync_in_progress=True)
    asyncio.run(syncing(started=is_ours).on_kill())
    asyncio.run(syncing(started=is_ours).on_kill())  # by then there is none to cancel
    assert [request.endpoint for request in llamacloud_emulator.requests] == ["cancel_sync"] * (2 if is_ours else 0)
    assert llamacloud_emulator.indexes[INDEX_FILINGS]["sync_in_progress"] is not is_ours


def test_the_syncs_trigger_can_be_made_again_by_other_releases_too() -> None:
    path, values = syncing(started=True).serialize()
    assert path == "airflow_provider_llamachat.triggers.index.IndexSyncedTrigger"
    assert IndexSyncedTrigger(**values, of_a_later_release=1).serialize() == (path, values)
    assert (values["before"], values["started"]) == (BEFORE, True)


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize("which", [INDEX_BUILDING, INDEX_FAILED])
def test_a_deferred_create_creates_nothing_when_an_index_does_not_become_ready(
    which: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    create = CreateChatSessionOperator(
        task_id="create", index_ids=[which], wait_for_indexes=True, deferrable=True, index_timeout=0.3
    )
    with pytest.raises(errors.IndexStateError):
        resumed(create, a_try(create, 1))
    assert llamacloud_emulator.sessions == {}


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize(("allowed", "left"), [(None, 100), (30, 20), (1000, 100)], ids=str)
@pytest.mark.parametrize("kind", [SyncIndexOperator, CreateChatSessionOperator])
def test_a_deferral_ends_a_minute_after_the_earlier_of_the_waiting_time_and_the_task_timeout(
    kind: Any, allowed: float | None, left: float
) -> None:
    arguments: dict[str, Any] = {
        SyncIndexOperator: {"index_id": INDEX_BUILDING, "wait": True, "sync_timeout": 100},
        CreateChatSessionOperator: {"index_ids": [INDEX_BUILDING], "wait_for_indexes": True, "index_timeout": 100},
    }[kind]
    limit = None if allowed is None else timedelta(seconds=allowed)
    task = kind(task_id="wait", deferrable=True, execution_timeout=limit, **arguments)
    context, began = a_try(task, 1), time.monotonic()
    context["ti"].start_date = datetime.now(tz=UTC) - timedelta(seconds=10)
    with pytest.raises(TaskDeferred) as caught:
        task.execute(context)
    took = time.monotonic() - began
    assert left + 60 - took <= caught.value.timeout.total_seconds() <= left + 60


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_a_create_whose_indexes_are_ready_does_not_defer(llamacloud_emulator: LlamaCloudEmulator) -> None:
    create = CreateChatSessionOperator(
        task_id="create", index_ids=[INDEX_FILINGS], wait_for_indexes=True, deferrable=True
    )
    assert create.execute(a_try(create, 1))["index_ids"] == [INDEX_FILINGS]


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_the_event_of_an_earlier_attempt_is_not_used(llamacloud_emulator: LlamaCloudEmulator) -> None:
    create = CreateChatSessionOperator(
        task_id="create", index_ids=[INDEX_BUILDING], wait_for_indexes=True, deferrable=True
    )
    event = {"state": "ready", "index_ids": [INDEX_BUILDING]}
    with pytest.raises(TaskDeferred):
        create.resume_execution("execute_complete", {"event": event, "try_number": 1}, a_try(create, 2))
    assert llamacloud_emulator.sessions == {}


@pytest.mark.parametrize("words", ["Trigger timeout", "Trigger/execution timeout"], ids=["Airflow 3", "Airflow 2"])
def test_without_a_triggerer_a_deferred_task_says_what_is_missing(words: str) -> None:
    sync = SyncIndexOperator(task_id="sync", index_id="idx", wait=True, execution_timeout=timedelta(seconds=5))
    with pytest.raises(errors.IndexNotReadyError, match="Check that a triggerer"):
        sync.resume_execution("__fail__", {"error": words}, a_try(sync, 1))


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize(
    "wrong", [{"wait": "perhaps"}, {"sync_timeout": 0}, {"poke_interval": "often"}, {"index_id": "[]"}], ids=str
)
def test_a_wrong_argument_is_refused_before_anything_is_sent(
    wrong: dict[str, Any], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    values: dict[str, Any] = {"index_id": INDEX_FILINGS, "wait": True, **wrong}
    sync = SyncIndexOperator(task_id="sync", **values)
    with pytest.raises(errors.InvalidArgumentError, match=next(iter(wrong))):
        sync.execute(a_try(sync, 1))
    assert llamacloud_emulator.requests == []
