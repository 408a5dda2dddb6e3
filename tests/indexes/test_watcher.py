"""An index that was synced starts a Dag, on a whole Airflow 3 with its triggerer; also when that was down meanwhile."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow import __version__ as airflow_version

from airflow_provider_llamachat.testing import INDEX_FILINGS, LlamaCloudEmulator
from tests.system.stack import AirflowStack

VERSION = tuple(int(part) for part in airflow_version.split(".")[:2])

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(VERSION < (3, 0), reason="asset watchers came with Airflow 3"),
]
DAG_FILE = Path(__file__).parent / "dags" / "watching.py"


def wait_for(check: Callable[[], Any], seconds: float = 90.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return found


def test_a_sync_starts_a_run_once(llamacloud_emulator: LlamaCloudEmulator) -> None:
    emulator = llamacloud_emulator
    emulator.set_index(INDEX_FILINGS, last_synced_at="2026-01-01T00:00:00Z")
    environment = {"AIRFLOW_CONN_LLAMACLOUD_DEFAULT": emulator.airflow_connection_json}
    python = os.environ.get("HARNESS_PYTHON", sys.executable)
    with AirflowStack(python=python, dags=[DAG_FILE], environment=environment) as stack:

        def runs() -> list[str]:
            found = stack.api.call("GET", "/dags/on_update/dagRuns?order_by=run_after")["dag_runs"]
            return [run["dag_run_id"] for run in found if run["state"] == "success"]

        def told(number: int) -> dict[str, Any]:
            run_id = wait_for(lambda: runs()[number:])[0]
            entry = stack.api.call(
                "GET", f"/dags/on_update/dagRuns/{run_id}/taskInstances/tell/xcomEntries/return_value"
            )
            events: list[dict[str, Any]] = entry["value"]
            assert len(events) == 1
            payload: dict[str, Any] = events[0].get("payload", events[0])
            return payload

        wait_for(lambda: len(emulator.requests) > 3)
        emulator.set_index(INDEX_FILINGS, last_synced_at="2026-01-02T00:00:00Z")
        assert told(0)["last_synced_at"].startswith("2026-01-02")
        if VERSION >= (3, 3):
            stack.kill("triggerer")
            emulator.set_index(INDEX_FILINGS, last_synced_at="2026-01-03T00:00:00Z")
            stack.restart("triggerer")
            assert told(1)["previous"].startswith("2026-01-02")
        time.sleep(3)
        assert len(runs()) == (2 if VERSION >= (3, 3) else 1)
        assert emulator.api_key not in stack.metadata_dump()
