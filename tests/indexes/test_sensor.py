"""How the sensor ends and waits: the same whether it holds a worker or is deferred."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.sensors.index import GRACE, IndexReadySensor
from airflow_provider_llamachat.testing import INDEX_BUILDING, INDEX_FAILED, INDEX_FILINGS, Fault, LlamaCloudEmulator
from airflow_provider_llamachat.triggers.index import IndexReadyTrigger, IndexUpdatedTrigger
from airflow_provider_llamachat.triggers.looks import GATHER
from tests.airflow.runner import AIRFLOW
from tests.airflow.tries import a_try

pytestmark = pytest.mark.usefixtures("llamacloud_connection")

FAILING = Fault("status", endpoint="index", path=INDEX_FILINGS, status=500, times=None)
FAILING_LATER = Fault("status", endpoint="index", path="idx-later", status=500, skip=1, times=None)
GONE_LATER = Fault("status", endpoint="index", path="idx-later", status=404, skip=1, times=None)
SOMETIMES = Fault("status", endpoint="index", path="idx-later", status=500, skip=1, times=4)


async def fire(trigger: Any) -> Any:
    """What the trigger says first."""
    async for event in trigger.run():
        return event.payload
    raise AssertionError("the trigger ended without an event")


def execute(sensor: IndexReadySensor, context: Any) -> None:
    """Execute the sensor as a worker does: it ends at execution_timeout, and begins anew after it was rescheduled.

    A worker's timer may fire anywhere, also while a socket is opened, which Python then reports as left open. This one fires between pokes.
    """
    began = datetime.now(tz=UTC)
    context["ti"].get_first_reschedule_date = lambda _: began
    pause, worker = time.sleep, threading.current_thread()

    def sleep(seconds: float) -> None:
        is_late = sensor.execution_timeout and datetime.now(tz=UTC) - began > sensor.execution_timeout
        if is_late and threading.current_thread() is worker:
            raise AirflowTaskTimeout
        pause(seconds)

    while True:
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(time, "sleep", sleep)
                copy.copy(sensor).execute(context)
        except AirflowRescheduleException:
            pause(0.02)
        else:
            return


def wait(sensor: IndexReadySensor) -> str:
    """One try of the sensor to its end, with its trigger in line; what a user sees of it."""
    context = a_try(sensor, 1)
    try:
        try:
            execute(sensor, context)
        except TaskDeferred as deferral:
            path, values = deferral.trigger.serialize()
            assert path == "airflow_provider_llamachat.triggers.index.IndexReadyTrigger"
            event = asyncio.run(fire(IndexReadyTrigger(**values)))
            sensor.resume_execution(deferral.method_name, {**(deferral.kwargs or {}), "event": event}, context)
    except AirflowSkipException:
        return "skipped"
    except (AirflowFailException, AirflowSensorTimeout):
        return "failed for good"
    except (AirflowException, AirflowTaskTimeout):
        return "failed"
    return "success"


SOON = timedelta(seconds=0.05)
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "soft_fail": {"soft_fail": True},
    "never_fail": {"never_fail": True},
    "silent_fail": {"silent_fail": True},
    "max_wait": {"max_wait": SOON},
    "exponential_backoff": {
        "exponential_backoff": True,
        "max_wait": SOON,
    },  # without max_wait, Airflow's first pause is a second
    "execution_timeout": {"execution_timeout": timedelta(seconds=100)},
    "reschedule": {"mode": "reschedule"},
}
# What Airflow makes of a sensor on a worker; a deferred one is to do the same. An option that is not named changes nothing.
ENDS: dict[str, tuple[list[Fault], str, dict[str, str]]] = {
    "refused at the first look": (
        [],
        "idx-nowhere",
        {"": "failed for good", "soft_fail": "skipped", "never_fail": "skipped", "silent_fail": "failed for good"},
    ),
    "refused at a later look": (
        [GONE_LATER],
        "idx-later",
        {"": "failed for good", "soft_fail": "skipped", "never_fail": "skipped", "silent_fail": "failed for good"},
    ),
    "an index that failed": (
        [],
        INDEX_FAILED,
        {"": "failed for good", "soft_fail": "skipped", "never_fail": "skipped", "silent_fail": "failed for good"},
    ),
    "trouble at the first look": (
        [FAILING],
        INDEX_FILINGS,
        {"": "failed", "soft_fail": "failed", "never_fail": "skipped", "silent_fail": "failed for good"},
    ),
    "trouble at a later look": (
        [FAILING_LATER],
        "idx-later",
        {"": "failed", "soft_fail": "failed", "never_fail": "skipped", "silent_fail": "failed for good"},
    ),
    "trouble that passes": (
        [SOMETIMES],
        "idx-later",
        {"": "failed", "soft_fail": "failed", "never_fail": "skipped", "silent_fail": "success"},
    ),
    "time that runs out": (
        [],
        INDEX_BUILDING,
        {
            "": "failed for good",
            "soft_fail": "skipped",
            "never_fail": "failed for good",
            "silent_fail": "failed for good",
            "execution_timeout": "failed",
        },
    ),
}


@pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferred"])
@pytest.mark.parametrize(
    "option", [pytest.param(name, marks=() if "_fail" in name or not name else pytest.mark.long) for name in OPTIONS]
)
@pytest.mark.parametrize("case", ENDS)
def test_every_option_ends_a_sensor_the_same_in_both_modes(
    case: str, option: str, deferrable: bool, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if option == "reschedule" and AIRFLOW < (3,):
        pytest.skip("Airflow 2 asks its database when a sensor began")
    faults, index_id, ends = ENDS[case]
    connection = json.loads(llamacloud_emulator.airflow_connection_json)
    connection["extra"] = {**json.loads(connection.get("extra") or "{}"), "max_retries": 0}
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", json.dumps(connection))
    llamacloud_emulator.add_index("idx-later", status="building")
    llamacloud_emulator.index_schedule("idx-later", ["building", "building", "ready"])
    for fault in faults:
        llamacloud_emulator.inject(fault)
    seconds = {"trouble that passes": 120, "time that runs out": 0.3}.get(case, 0.7)
    options = {"timeout": seconds} | OPTIONS[option]
    if option == "execution_timeout" and case == "time that runs out":
        options |= {"execution_timeout": timedelta(seconds=0.2), "timeout": 120}
    sensor = IndexReadySensor(
        task_id="wait", index_ids=[index_id], deferrable=deferrable, poke_interval=0.05, **options
    )
    assert wait(sensor) == ends.get(option, ends[""])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"timeout": 0.2}, AirflowSensorTimeout), ({"execution_timeout": timedelta(seconds=0.2)}, AirflowTaskTimeout)],
    ids=["timeout", "execution_timeout"],
)
def test_a_deferred_sensor_ends_at_the_earlier_of_its_timeouts(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    sensor = IndexReadySensor(
        **{"task_id": "wait", "index_ids": [INDEX_BUILDING], "deferrable": True, "timeout": 1000, **arguments}
    )
    context = a_try(sensor, 1)
    with pytest.raises(TaskDeferred) as caught:
        sensor.execute(context)
    assert timedelta(seconds=GRACE) <= caught.value.timeout <= timedelta(seconds=GRACE + 0.2)
    _, values = caught.value.trigger.serialize()
    assert values["deadline"] <= time.time() + 0.2
    event = asyncio.run(fire(IndexReadyTrigger(**values)))
    with pytest.raises(error, match="Still waiting for: idx-building"):
        sensor.resume_execution("execute_complete", {"event": event, "try_number": 1}, context)


@pytest.mark.parametrize("words", ["Trigger timeout", "Trigger/execution timeout"], ids=["Airflow 3", "Airflow 2"])
@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({}, AirflowSensorTimeout),
        ({"execution_timeout": timedelta(seconds=5)}, AirflowTaskTimeout),
        ({"soft_fail": True}, AirflowSkipException),
        ({"never_fail": True}, AirflowSensorTimeout),
    ],
    ids=str,
)
def test_without_a_triggerer_a_deferred_sensor_says_what_is_missing(
    options: dict[str, Any], ends: type[Exception], words: str
) -> None:
    sensor = IndexReadySensor(task_id="wait", index_ids=[INDEX_BUILDING], deferrable=True, timeout=100, **options)
    with pytest.raises(ends, match="Check that a triggerer"):
        sensor.resume_execution("__fail__", {"error": words}, a_try(sensor, 1))


@pytest.mark.parametrize(
    ("option", "ends"), [("soft_fail", AirflowException), ("never_fail", AirflowSkipException)], ids=str
)
def test_an_error_in_the_trigger_fails_the_sensor(option: str, ends: type[Exception]) -> None:
    options: dict[str, Any] = {option: True}
    sensor = IndexReadySensor(task_id="wait", index_ids=[INDEX_BUILDING], deferrable=True, **options)
    with pytest.raises(ends) as caught:
        sensor.resume_execution("__fail__", {"error": "Trigger failure"}, a_try(sensor, 1))
    assert isinstance(caught.value, AirflowSkipException) is (option == "never_fail")


@pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferred"])
def test_an_unexpected_error_fails_the_sensor(deferrable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(IndexReadySensor, "poke", fail)
    common: dict[str, Any] = {"task_id": "wait", "index_ids": [INDEX_BUILDING], "deferrable": deferrable}
    assert wait(IndexReadySensor(**common, never_fail=True)) == "skipped"
    with pytest.raises(ZeroDivisionError):
        wait(IndexReadySensor(**common, soft_fail=True))


def test_a_deferred_sensor_passes_its_timing_to_the_trigger(llamacloud_emulator: LlamaCloudEmulator) -> None:
    sensor = IndexReadySensor(
        task_id="wait",
        index_ids=[INDEX_BUILDING],
        deferrable=True,
        exponential_backoff=True,
        max_wait=300,
        poke_interval=5,
        timeout=100,
        silent_fail=True,
    )
    with pytest.raises(TaskDeferred) as caught:
        sensor.execute(a_try(sensor, 1))
    _, arguments = caught.value.trigger.serialize()
    assert (arguments["exponential_backoff"], arguments["max_wait"], arguments["poke_interval"]) == (True, 300.0, 5.0)
    assert arguments["silent_fail"] is True


def test_a_watcher_accepts_the_same_durations_as_sensors() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    made = IndexUpdatedTrigger(index_id="idx", poke_interval=timedelta(minutes=2), since=moment)
    _, arguments = made.serialize()
    assert (arguments["poke_interval"], arguments["since"]) == (120.0, "2026-01-01T00:00:00+00:00")
    ready = IndexReadyTrigger(
        llamacloud_conn_id="c", index_ids=["idx"], deadline=1.0, poke_interval=timedelta(0), max_wait=timedelta(hours=1)
    )
    _, arguments = ready.serialize()
    assert (arguments["poke_interval"], arguments["max_wait"]) == (0.0, 3600.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"index_id": ""},
        {"index_id": None},
        {"index_id": ["a", "b"]},
        {"poke_interval": 0},
        {"poke_interval": -1},
        {"poke_interval": "often"},
        {"poke_interval": timedelta(0)},
        {"poke_interval": None},
        {"index_id": "idx-a, idx-b"},
        {"since": 7},
        {"since": "yesterday"},
        {"since": "2026-13-45"},
        {"since": "None"},
        {"llamacloud_conn_id": None},
        {"llamacloud_conn_id": " "},
        {"llamacloud_conn_id": "None"},
        {"project_id": 7},
        {"project_id": "not a uuid"},
        {"project_id": "None"},
        {"organization_id": ["o"]},
    ],
    ids=str,
)
def test_a_watcher_refuses_invalid_arguments_in_its_constructor(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidArgumentError, match=name) as caught:
        IndexUpdatedTrigger(**{"index_id": "idx", **wrong})
    assert "Pass a list" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"index_ids": []},
        {"index_ids": [1]},
        {"deadline": "soon"},
        {"poke_interval": -1},
        {"max_wait": 0},
        {"exponential_backoff": "perhaps"},
        {"wait_for_sync": "perhaps"},
        {"silent_fail": "perhaps"},
        {"deadline": -1},
        {"deadline": timedelta(hours=1)},
        {"llamacloud_conn_id": ""},
        {"project_id": 7},
        {"organization_id": "not a uuid"},
    ],
    ids=str,
)
def test_the_sensors_trigger_refuses_invalid_arguments_too(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidArgumentError, match=name):
        IndexReadyTrigger(**{"llamacloud_conn_id": "c", "index_ids": ["idx"], "deadline": 1.0, **wrong})


def test_a_trigger_with_back_off_polls_less_and_less_often(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamacloud_emulator.index_schedule(INDEX_FILINGS, ["building"] * 5 + ["ready"])
    pauses: list[float] = []
    really = asyncio.sleep
    here = threading.get_ident()

    async def note(seconds: float) -> None:
        # The emulator sleeps in a thread of its own, and the HTTP client yields to others with no time at all.
        if threading.get_ident() == here and seconds:
            pauses.append(seconds)
        else:
            await really(seconds)

    async def run() -> None:
        trigger = IndexReadyTrigger(
            llamacloud_conn_id="llamacloud_default",
            index_ids=[INDEX_FILINGS],
            deadline=time.time() + 1000,
            poke_interval=1.0,
            exponential_backoff=True,
            max_wait=5.0,
        )
        monkeypatch.setattr("airflow_provider_llamachat.triggers.looks.asyncio.sleep", note)
        assert [event.payload["state"] async for event in trigger.run()] == ["ready"]

    asyncio.run(run())
    # What a read takes is a part of the pause, but at most half of it.
    for pause, interval in zip(pauses, [GATHER, 1.0, 2.0, 4.0, 5.0, 5.0], strict=True):
        assert interval / 2 <= pause <= interval
