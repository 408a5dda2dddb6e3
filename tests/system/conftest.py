"""One Airflow, and one server for it, for all tests of turns, because a start takes longer than most of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_llamachat.testing import EmulatorProcess
from tests.system.stack import AirflowStack


@pytest.fixture(scope="session")
def emulator() -> Iterator[EmulatorProcess]:
    with EmulatorProcess() as running:
        yield running


@pytest.fixture(scope="session")
def stack(emulator: EmulatorProcess) -> Iterator[AirflowStack]:
    extra = {"history_lag": 5}
    value = json.dumps({**json.loads(emulator.airflow_connection_json), "extra": extra})
    connection = {"AIRFLOW_CONN_LLAMACLOUD_DEFAULT": value}
    dags = [Path(__file__).parent / "dags" / name for name in ("survival.py", "shared_sessions.py")]
    with AirflowStack(dags=dags, environment=connection) as running:
        yield running
