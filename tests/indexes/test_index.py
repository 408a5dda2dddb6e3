"""Waiting for indexes: the rule, the sensor in both modes on a real Airflow, the create operator, the sync, and the triggers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout
from airflow.triggers.base import TriggerEvent

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import readiness
from airflow_provider_llamachat.client.readiness import Readiness, is_newer, not_ready, wait_until_ready
from airflow_provider_llamachat.models import Index
from airflow_provider_llamachat.sensors.index import IndexReadySensor
from airflow_provider_llamachat.testing import (
    INDEX_BUILDING,
    INDEX_FAILED,
    INDEX_FILINGS,
    INDEX_HANDBOOK,
    Fault,
    LlamaCloudEmulator,
)
from airflow_provider_llamachat.triggers import index as triggers
from airflow_provider_llamachat.triggers.events import Failure, IndexEvent
from airflow_provider_llamachat.triggers.index import IndexReadyTrigger, IndexUpdatedTrigger
from tests.airflow.runner import Result, run

DAGS = Path(__file__).parent / "dags" / "indexes.py"


def go(dag_id: str, **conf: Any) -> Result:
    return run(DAGS, dag_id, conf)


def index(status: str | None, **values: Any) -> Index:
    metadata = {"status": status, "error_message": values.pop("error", None)}
    return Index.model_validate({"id": values.pop("id", "idx"), "metadata": metadata, **values})


# The rule ---------------------------------------------------------------------------------------------------------------


def test_only_ready_is_ready_and_unknown_states_wait() -> None:
    assert readiness.pending([index("ready"), index("ready", id="b")]) == {}
    waiting = readiness.pending([index("ready"), index("embedding", id="b"), index(None, id="c")])
    assert waiting == {"b": "status embedding", "c": "no status"}


def test_a_running_sync_is_waited_for_only_if_requested() -> None:
    busy = index("ready", sync_in_progress=True)
    assert readiness.pending([busy]) == {}
    assert readiness.pending([busy], wait_for_sync=True) == {"idx": "a sync is running"}
    assert readiness.pending([index("ready", sync_in_progress=None)], wait_for_sync=True) == {}


def test_failed_raises_with_the_indexs_own_words() -> None:
    with pytest.raises(errors.IndexFailedError, match=r"Index idx \(Filings\) failed: no such bucket\.") as caught:
        readiness.pending([index("building", id="a"), index("failed", name="Filings", error="no such bucket")])
    assert caught.value.index_id == "idx"
    with pytest.raises(errors.IndexFailedError, match="it gave no reason"):
        readiness.pending([index("failed")])


def test_each_state_is_logged_once_for_each_index(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    judge = Readiness()
    for status in ("parsing", "parsing", "embedding", "parsing"):
        judge.pending([index(status)])
    assert [record.getMessage() for record in caplog.records] == [
        "Index idx is not ready yet: status parsing.",
        "Index idx is not ready yet: status embedding.",
    ]


def test_many_waiting_indexes_make_a_short_message() -> None:
    text = readiness.not_ready({f"idx-{number}": "status parsing" for number in range(13)})
    assert text.endswith("idx-9 (status parsing) and 3 more.")


def test_waiting_in_a_thread_polls_less_and_less_often_until_the_deadline() -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    states = iter(["a", "b", "ready"])
    wait_until_ready(lambda: [index(next(states))], 100.0, now=lambda: now[0], sleep=sleep)
    assert slept == [1.0, 1.5]
    slept.clear()
    with pytest.raises(errors.IndexNotReadyError, match=r"Still waiting for: idx \(status parsing\)") as caught:
        wait_until_ready(lambda: [index("parsing")], now[0] + 60, now=lambda: now[0], sleep=sleep)
    assert caught.value.index_id == "idx"
    assert sum(slept) == pytest.approx(60)
    assert max(slept) == 15.0


@pytest.mark.parametrize(
    ("moment", "than", "newer"),
    [
        ("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", True),
        ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", False),
        ("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00", False),
        ("2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00Z", False),
        ("2026-01-01T00:00:00", "2026-01-01T00:30:00+01:00", True),
        ("2026-01-01T00:00:00", "", True),
        ("2026-01-01T00:00:00", None, True),
        (None, "2026-01-01T00:00:00", False),
        ("", None, False),
        ("generation 8", "generation 7", True),
        ("generation 7", "generation 7", False),
    ],
)
def test_sync_times_are_compared_as_times_and_not_as_text(moment: str | None, than: str | None, newer: bool) -> None:
    assert is_newer(moment, than) is newer


def test_an_event_is_read_as_what_the_trigger_found() -> None:
    problem = errors.IndexFailedError("it failed", index_id="idx")
    back = IndexEvent.parse(IndexEvent("failed", ["idx"], Failure.of(problem)).as_dict()).failure.exception()
    assert type(back) is errors.IndexFailedError
    assert (str(back), getattr(back, "index_id", None)) == ("it failed", "idx")
    odd = Failure("OSError", None, {"unheard_of": 1}).exception()
    assert type(odd) is errors.LlamaCloudError
    ready = IndexEvent("ready", ["a"], last_synced_at={"a": "2026-01-01"})
    assert IndexEvent.parse(ready.as_dict()) == ready
    assert IndexEvent.parse({"state": "ready", "index_ids": ["a"]}).last_synced_at == {}  # from 1.0.0


@pytest.mark.parametrize("payload", [None, {}, {"state": "odd", "index_ids": []}, {"state": "ready"}, "ready"])
def test_an_event_of_another_trigger_is_refused(payload: Any) -> None:
    with pytest.raises(errors.LlamaCloudError, match="not about indexes"):
        IndexEvent.parse(payload)


def test_the_sensor_raises_the_error_of_the_trigger() -> None:
    sensor = IndexReadySensor(task_id="wait", index_ids="idx")
    failed = IndexEvent("failed", ["idx"], Failure.of(errors.IndexFailedError("it failed", index_id="idx"))).as_dict()
    with pytest.raises(errors.IndexFailedError, match="it failed"):
        sensor.execute_complete({}, failed)
    late = errors.IndexNotReadyError(not_ready({"idx": "status parsing"}))
    event = IndexEvent("timed_out", ["idx"], Failure.of(late)).as_dict()
    with pytest.raises(AirflowSensorTimeout, match=r"idx \(status parsing\)"):
        sensor.execute_complete({}, event)


# On a real Airflow ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_both_modes_wait_until_all_are_ready(llamacloud_emulator: LlamaCloudEmulator) -> None:
    emulator = llamacloud_emulator
    emulator.index_schedule(INDEX_BUILDING, ["parsing", "embedding", "ready"])
    emulator.index_schedule(INDEX_FILINGS, ["ready", "ready", "ready", "parsing", "odd", "ready"])
    result = go("waiting", index_ids=[INDEX_FILINGS, INDEX_BUILDING])
    assert result.state == "success", result.tasks
    # The worker reads them one by one, the triggerer together.
    assert [request.endpoint for request in emulator.requests][:2] == ["index", "index"]
    assert {request.endpoint for request in emulator.requests} == {"index", "indexes"}


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_both_modes_wait_for_a_sync_if_requested(llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.set_index(INDEX_FILINGS, sync_in_progress=True)
    assert go("waiting", index_ids=INDEX_FILINGS).state == "success"
    llamacloud_emulator.index_schedule(
        INDEX_FILINGS, [{"sync_in_progress": True}, {"sync_in_progress": True}, {"sync_in_progress": False}]
    )
    assert go("waiting", index_ids=INDEX_FILINGS, wait_for_sync=True).state == "success"
    assert all(request.query.get("expand") for request in llamacloud_emulator.requests[-4:])


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_both_modes_fail_at_once_when_an_index_failed(
    llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    llamacloud_emulator.set_index(INDEX_FAILED, error_message="the bucket is gone")
    begun = time.monotonic()
    result = go("waiting", index_ids=[INDEX_BUILDING, INDEX_FAILED])
    assert result.tasks == {"poking": ["failed"], "deferred": ["failed"]}
    assert time.monotonic() - begun < 100  # each of the two would wait for two minutes


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_both_modes_end_at_their_timeout(llamacloud_emulator: LlamaCloudEmulator) -> None:
    result = go("waiting_in_vain", index_ids=[INDEX_BUILDING])
    assert result.tasks == {"poking": ["failed"], "deferred": ["failed"]}
    assert len(llamacloud_emulator.requests) > 4


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize("which", [INDEX_BUILDING, INDEX_FAILED])
def test_soft_fail_skips_in_both_modes(which: str, llamacloud_emulator: LlamaCloudEmulator) -> None:
    assert go("soft", index_ids=[which]).tasks == {"poking": ["skipped"], "deferred": ["skipped"]}


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize("wrong", [[], None, [1], ""])
def test_without_indexes_there_is_nothing_to_wait_for(wrong: Any, llamacloud_emulator: LlamaCloudEmulator) -> None:
    assert go("waiting", index_ids=wrong).tasks == {"poking": ["failed"], "deferred": ["failed"]}
    assert llamacloud_emulator.requests == []


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_create_waits_before_it_creates(llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.index_schedule(INDEX_BUILDING, ["parsing", "ready"])
    assert go("create_when_ready", index_ids=[INDEX_FILINGS, INDEX_BUILDING]).state == "success"
    assert [request.endpoint for request in llamacloud_emulator.requests] == ["index"] * 4 + ["create"]


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
@pytest.mark.parametrize("which", [INDEX_BUILDING, INDEX_FAILED])
def test_create_creates_nothing_when_they_do_not_get_ready(which: str, llamacloud_emulator: LlamaCloudEmulator) -> None:
    assert go("create_when_ready", index_ids=[which], index_timeout=1.2).state == "failed"
    assert llamacloud_emulator.sessions == {}


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_a_sync_is_started_once_and_waited_for(llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.settings.sync_seconds = 3600.0
    # It ends when it was looked at for the third time, however slow this machine is.
    end = {"sync_in_progress": False, "last_synced_at": datetime.now(UTC)}
    llamacloud_emulator.index_schedule(INDEX_HANDBOOK, [{}, {}, end])
    result = go("sync", index_id=INDEX_HANDBOOK)
    assert result.state == "success", result.tasks
    assert result.xcom("start") == {"index_id": INDEX_HANDBOOK, "started": True}
    assert result.xcom("adopt") == {"index_id": INDEX_HANDBOOK, "started": False}
    assert [request.endpoint for request in llamacloud_emulator.requests] == ["sync"] * 2 + ["index"] * 3


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_a_sync_is_about_one_index(llamacloud_emulator: LlamaCloudEmulator) -> None:
    assert go("sync", index_id=["a", "b"]).tasks["start"] == ["failed"]
    assert llamacloud_emulator.requests == []


# Triggers ---------------------------------------------------------------------------------------------------------------


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
    made = ready_trigger(wait_for_sync=True, project_id="p", organization_id="o")
    path, arguments = made.serialize()
    assert path == "airflow_provider_llamachat.triggers.index.IndexReadyTrigger"
    assert IndexReadyTrigger(**arguments, of_a_later_release=1).serialize() == (path, arguments)
    watch = IndexUpdatedTrigger(index_id="idx", since="2026-01-01", project_id="p")
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
