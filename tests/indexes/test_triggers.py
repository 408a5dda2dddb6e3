"""The triggers that wait for indexes, and the one that watches an index for syncs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from airflow.triggers.base import TriggerEvent

from airflow_provider_llamachat.testing import INDEX_BUILDING, INDEX_FILINGS, Fault, LlamaCloudEmulator
from airflow_provider_llamachat.triggers import index as triggers
from airflow_provider_llamachat.triggers.index import IndexReadyTrigger, IndexUpdatedTrigger


async def first(events: AsyncIterator[TriggerEvent]) -> Any:
    async for event in events:
        return event.payload
    raise AssertionError("the trigger ended without an event")


def ready_trigger(**values: Any) -> IndexReadyTrigger:
    arguments = {
        "llamacloud_conn_id": "llamacloud_default",
        "index_ids": [INDEX_FILINGS],
        "deadline": time.time() + 300,
        "poke_interval": 0.05,
    }
    return IndexReadyTrigger(**{**arguments, **values})


def test_triggers_can_be_deserialized_by_other_releases() -> None:
    made = ready_trigger(wait_for_sync=True, project_id=str(UUID(int=1)), organization_id=str(UUID(int=2)))
    path, arguments = made.serialize()
    assert path == "airflow_provider_llamachat.triggers.index.IndexReadyTrigger"
    assert IndexReadyTrigger(**arguments, of_a_later_release=1).serialize() == (path, arguments)
    watch = IndexUpdatedTrigger(index_id="idx", since="2026-01-01", project_id=str(UUID(int=1)))
    path, arguments = watch.serialize()
    assert path == "airflow_provider_llamachat.triggers.index.IndexUpdatedTrigger"
    assert IndexUpdatedTrigger(**arguments, of_a_later_release=1).serialize() == (path, arguments)
    assert isinstance(watch, getattr(triggers, "BaseEventTrigger"))  # noqa: B009  # Airflow's, imported there for two versions


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_the_trigger_looks_at_all_indexes_at_the_same_time(llamacloud_emulator: LlamaCloudEmulator) -> None:
    ids = [f"idx-{number}" for number in range(10)]
    for index_id in ids:
        llamacloud_emulator.add_index(index_id)
    llamacloud_emulator.inject(Fault("delay", endpoint="index", delay=1.5, times=None))
    begun = time.monotonic()
    payload = asyncio.run(first(ready_trigger(index_ids=ids, wait_for_sync=True).run()))
    assert (payload["state"], payload["index_ids"]) == ("ready", ids)
    assert time.monotonic() - begun < 12.0  # one after the other: 15


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_the_triggers_deadline_is_absolute_and_survives_a_restart(llamacloud_emulator: LlamaCloudEmulator) -> None:
    trigger = ready_trigger(index_ids=[INDEX_BUILDING], deadline=time.time() - 5)
    payload = asyncio.run(first(trigger.run()))
    assert (payload["state"], payload["error"]) == ("timed_out", "IndexNotReadyError")
    assert f"{INDEX_BUILDING} (status" in payload["message"]
    assert len(llamacloud_emulator.requests) == 1


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_the_trigger_reports_its_result_without_secrets(llamacloud_emulator: LlamaCloudEmulator) -> None:
    payload = asyncio.run(first(ready_trigger(index_ids=["idx-unheard-of"]).run()))
    assert (payload["state"], payload["error"], payload["details"]["status"]) == ("failed", "NotFoundError", 404)
    assert llamacloud_emulator.api_key not in str(payload)


class Store:
    """What Airflow 3.3 gives an asset's trigger."""

    def __init__(self, *, broken: bool = False) -> None:
        self.values: dict[str, Any] = {}
        self.broken = broken

    async def aget(self, key: str) -> Any:
        if self.broken:
            raise RuntimeError("no store today")
        return self.values.get(key)

    async def aset(self, key: str, value: Any) -> None:
        if self.broken:
            raise RuntimeError("no store today")
        self.values[key] = value


def watching(store: Store | None = None, **values: Any) -> IndexUpdatedTrigger:
    trigger = IndexUpdatedTrigger(index_id=INDEX_FILINGS, poke_interval=0.05, **values)
    if store is not None:
        trigger.asset_state_store = store  # type: ignore[assignment]  # stands for Airflow's, which needs a triggerer
    return trigger


async def looked_at(emulator: LlamaCloudEmulator) -> None:
    """Wait for three looks, the second of which began after this; or, without a connection to look with, for a moment."""
    seen = len(emulator.requests)
    for _ in range(20 if "AIRFLOW_CONN_LLAMACLOUD_DEFAULT" not in os.environ else 3000):
        await asyncio.sleep(0.02)
        if len(emulator.requests) >= seen + 3:
            return
    assert "AIRFLOW_CONN_LLAMACLOUD_DEFAULT" not in os.environ, "the trigger does not look any more"


async def after(emulator: LlamaCloudEmulator, trigger: IndexUpdatedTrigger, *changes: Any) -> list[Any]:
    """The events while changes are made one after the other, each when the trigger has had a good look at what was before it."""
    events: list[Any] = []

    async def collect() -> None:
        async for event in trigger.run():
            take(event.payload)

    take = events.append
    task = asyncio.create_task(collect())
    for change in changes:
        await looked_at(emulator)
        change()
    await looked_at(emulator)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return events


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize("broken", [None, False, True], ids=["no store", "store", "broken store"])
def test_an_update_fires_once_for_each_sync(broken: bool | None, llamacloud_emulator: LlamaCloudEmulator) -> None:
    emulator = llamacloud_emulator
    store = None if broken is None else Store(broken=broken)
    emulator.set_index(INDEX_FILINGS, last_synced_at="2026-01-01T00:00:00Z")

    def synced(moment: str, **values: Any) -> Any:
        return lambda: emulator.set_index(INDEX_FILINGS, last_synced_at=moment, **values)

    events = asyncio.run(
        after(
            emulator,
            watching(store),
            synced("2026-01-02T00:00:00Z"),
            synced("2026-01-02T00:00:00.000+00:00"),
            lambda: emulator.inject(Fault("status", endpoint="index", status=404, times=2)),
            synced("2026-01-03T00:00:00Z", status="embedding"),
            synced("2026-01-03T00:00:00Z", status="ready"),
        )
    )
    assert [(event["previous"][:10], event["last_synced_at"][:10]) for event in events] == [
        ("2026-01-01", "2026-01-02"),
        ("2026-01-02", "2026-01-03"),
    ]
    assert events[0]["index_id"] == INDEX_FILINGS
    assert set(events[0]) == {"index_id", "name", "last_synced_at", "previous"}


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_a_restarted_trigger_does_not_miss_the_sync_in_between(llamacloud_emulator: LlamaCloudEmulator) -> None:
    store = Store()
    llamacloud_emulator.set_index(INDEX_FILINGS, last_synced_at="2026-01-01T00:00:00Z")
    assert asyncio.run(after(llamacloud_emulator, watching(store))) == []
    llamacloud_emulator.set_index(INDEX_FILINGS, last_synced_at="2026-01-02T00:00:00Z")
    assert len(asyncio.run(after(llamacloud_emulator, watching(store)))) == 1
    assert asyncio.run(after(llamacloud_emulator, watching(store))) == []
    assert len(asyncio.run(after(llamacloud_emulator, watching(since="2026-01-01T00:00:00Z")))) == 1


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_the_first_sync_of_an_index_is_reported_after_a_restart_too(llamacloud_emulator: LlamaCloudEmulator) -> None:
    store = Store()
    llamacloud_emulator.set_index(INDEX_FILINGS, last_synced_at=None)
    assert asyncio.run(after(llamacloud_emulator, watching(store))) == []
    llamacloud_emulator.set_index(INDEX_FILINGS, last_synced_at="2026-01-02T00:00:00Z")
    (event,) = asyncio.run(after(llamacloud_emulator, watching(store)))
    assert (event["previous"], event["last_synced_at"][:10]) == (None, "2026-01-02")


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_a_watcher_survives_a_missing_connection(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamacloud_emulator.set_index(INDEX_FILINGS, last_synced_at="2026-01-02T00:00:00Z")
    monkeypatch.delenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT")
    connection = llamacloud_emulator.airflow_connection_json
    found = asyncio.run(
        after(
            llamacloud_emulator,
            watching(since="2026-01-01T00:00:00Z"),
            lambda: monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", connection),
        )
    )
    assert len(found) == 1
