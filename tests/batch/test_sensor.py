"""How the sensor ends and waits: the same whether it holds a worker or is deferred."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException, TaskDeferred

from airflow_provider_llamachat.exceptions import NotFoundError, ServerError
from airflow_provider_llamachat.sensors.index import IndexReadySensor
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from airflow_provider_llamachat.triggers.index import IndexReadyTrigger
from tests.airflow.tries import a_try

pytestmark = pytest.mark.usefixtures("airflow_database", "llamacloud_connection")


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({"soft_fail": True, "index_ids": ["idx-nowhere"]}, AirflowSkipException),
        ({"index_ids": ["idx-nowhere"]}, NotFoundError),
        ({"never_fail": True}, AirflowSkipException),
        ({"never_fail": True, "index_ids": ["idx-nowhere"]}, AirflowSkipException),
        ({}, ServerError),
    ],
    ids=str,
)
@pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferred"])
def test_what_a_failure_ends_in_is_the_same_in_both_modes(
    deferrable: bool, options: dict[str, Any], ends: type[Exception], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="index", path=INDEX_FILINGS, status=500, times=None))
    sensor = IndexReadySensor(**{"task_id": "wait", "index_ids": [INDEX_FILINGS], "deferrable": deferrable, **options})
    with pytest.raises(ends):
        sensor.execute(a_try(sensor, 1))


def test_a_silent_failure_is_waited_out_in_both_modes(llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="index", status=500))
    common: dict[str, Any] = {"task_id": "wait", "index_ids": [INDEX_FILINGS], "silent_fail": True}
    sensor = IndexReadySensor(**common, poke_interval=0.05)
    sensor.execute(a_try(sensor, 1))
    llamacloud_emulator.inject(Fault("status", endpoint="index", status=500))
    sensor = IndexReadySensor(**common, deferrable=True)
    with pytest.raises(TaskDeferred):
        sensor.execute(a_try(sensor, 1))


def test_a_deferred_sensor_hands_on_how_to_wait_and_ends_without_a_triggerer_too(
    llamacloud_emulator: LlamaCloudEmulator,
) -> None:
    llamacloud_emulator.add_index("idx-building", status="building")
    sensor = IndexReadySensor(
        task_id="wait",
        index_ids=["idx-building"],
        deferrable=True,
        exponential_backoff=True,
        max_wait=300,
        poke_interval=5,
        timeout=100,
    )
    with pytest.raises(TaskDeferred) as caught:
        sensor.execute(a_try(sensor, 1))
    _, arguments = caught.value.trigger.serialize()
    assert (arguments["exponential_backoff"], arguments["max_wait"], arguments["poke_interval"]) == (True, 300.0, 5.0)
    assert caught.value.timeout == timedelta(seconds=400)


def test_a_trigger_that_backs_off_looks_ever_more_seldom(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamacloud_emulator.index_schedule(INDEX_FILINGS, ["building"] * 5 + ["ready"])
    pauses: list[float] = []

    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        # Whoever else runs on this loop gives way for an instant now and then.
        if seconds < 1.0:
            await sleep(seconds)
        else:
            pauses.append(seconds)

    async def run() -> None:
        trigger = IndexReadyTrigger(
            llamacloud_conn_id="llamacloud_default",
            index_ids=[INDEX_FILINGS],
            deadline=time.time() + 1000,
            poke_interval=1.0,
            exponential_backoff=True,
            max_wait=5.0,
        )
        monkeypatch.setattr("airflow_provider_llamachat.triggers.index.asyncio.sleep", note)
        assert [event.payload["state"] async for event in trigger.run()] == ["ready"]

    asyncio.run(run())
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
