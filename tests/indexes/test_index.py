"""Waiting for indexes: the rule, the sensor in both modes on a real Airflow, the create operator, and the sync."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout

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
    LlamaCloudEmulator,
)
from airflow_provider_llamachat.triggers.events import Failure, IndexEvent
from tests.airflow.runner import Result, run

DAGS = Path(__file__).parent / "dags" / "indexes.py"


def go(dag_id: str, **conf: Any) -> Result:
    return run(DAGS, dag_id, conf)


def index(status: str | None, **values: Any) -> Index:
    metadata = {"status": status, "error_message": values.pop("error", None)}
    return Index.model_validate({"id": values.pop("id", "idx"), "metadata": metadata, **values})


# The rule ---------------------------------------------------------------------------------------------------------------


def test_only_ready_is_ready_and_unknown_states_wait() -> None:
    assert readiness.Readiness().pending([index("ready"), index("ready", id="b")]) == {}
    waiting = readiness.Readiness().pending([index("ready"), index("embedding", id="b"), index(None, id="c")])
    assert waiting == {"b": "status embedding", "c": "no status"}


def test_a_running_sync_is_waited_for_only_if_requested() -> None:
    busy = index("ready", sync_in_progress=True)
    assert readiness.Readiness().pending([busy]) == {}
    assert readiness.Readiness(wait_for_sync=True).pending([busy]) == {"idx": "a sync is running"}
    assert readiness.Readiness(wait_for_sync=True).pending([index("ready", sync_in_progress=None)]) == {}


def test_failed_raises_with_the_indexs_own_words() -> None:
    with pytest.raises(errors.IndexFailedError, match=r"Index idx \(Filings\) failed: no such bucket\.") as caught:
        readiness.Readiness().pending(
            [index("building", id="a"), index("failed", name="Filings", error="no such bucket")]
        )
    assert caught.value.index_id == "idx"
    with pytest.raises(errors.IndexFailedError, match="it gave no reason"):
        readiness.Readiness().pending([index("failed")])


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
