"""The harness itself, on a real Airflow (HARNESS_PYTHON, HARNESS_DATABASE choose another): runs, kills, restarts, clears."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.processes import marked
from tests.system.stack import AirflowStack

pytestmark = pytest.mark.system
CANARY = "canary-in-a-connection"


@pytest.fixture(scope="module")
def stack() -> Iterator[AirflowStack]:
    dags = [Path(__file__).parent / "dags" / "harness.py"]
    began = time.monotonic()
    with AirflowStack(
        python=os.environ.get("HARNESS_PYTHON", sys.executable),
        dags=dags,
        database_url=os.environ.get("HARNESS_DATABASE"),
    ) as running:
        print(f"\nAirflow {running.version_text} up after {time.monotonic() - began:.1f} s")
        yield running
    assert marked(running.mark) == []
    assert not running.home.exists()


def test_a_run_its_xcoms_and_its_log(stack: AirflowStack) -> None:
    run = stack.trigger("harness_trivial", {"number": 4})
    assert stack.wait(run) == "success"
    assert stack.task_states(run) == {"double": "success", "report": "success"}
    assert stack.xcom(run, "double") == {"doubled": 8}
    assert stack.xcoms(run, "report") == {"return_value": 8}
    assert "doubling 4" in stack.task_log(run, "double")
    with pytest.raises(KeyError, match="no XCom 'other'"):
        stack.xcom(run, "double", "other")


def test_a_cleared_task_runs_again(stack: AirflowStack) -> None:
    run = stack.trigger("harness_trivial", {"number": 5})
    assert stack.wait(run) == "success"
    stack.clear(run, "double")
    stack.wait_for_task(run, "double", "success", try_number=2)
    assert stack.wait(run) == "success"
    assert stack.xcom(run, "double") == {"doubled": 10}
    assert stack.task(run, "report")["try_number"] == 1


def test_a_killed_worker_is_detected_and_the_task_is_retried(stack: AirflowStack) -> None:
    run = stack.trigger("harness_sleeping")
    stack.wait_for_task(run, "sleep_first", "running")
    killed = stack.kill_worker(run, "sleep_first")
    began = time.monotonic()
    assert stack.wait(run, timeout=90) == "success"
    print(f"killed {len(killed)} processes; over after {time.monotonic() - began:.1f} s")
    assert not [pid for pid in killed if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert stack.xcom(run, "sleep_first") == 2


def test_a_killed_triggerer_is_replaced_and_the_task_resumes(stack: AirflowStack) -> None:
    run = stack.trigger("harness_deferred")
    stack.wait_for_task(run, "wait", "deferred")
    stack.kill("triggerer")
    assert not stack.running("triggerer")
    began = time.monotonic()
    stack.restart("triggerer")
    assert stack.wait(run, timeout=90) == "success"
    print(f"over {time.monotonic() - began:.1f} s after the triggerer's restart")
    assert stack.xcom(run, "wait") == "resumed in try 1"


def test_the_database_and_all_logs_can_be_searched(stack: AirflowStack) -> None:
    stack.set_connection("probe", f'{{"conn_type": "generic", "host": "{CANARY}"}}')
    assert CANARY in stack.metadata_dump()
    assert "harness_trivial" in stack.metadata_dump()
    assert "doubling 4" in stack.logs()
