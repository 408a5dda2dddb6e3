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
    connection = json.loads(emulator.airflow_connection_json)
    extras = {"DEFAULT": {"history_lag": 5}, "ONCE": {"history_lag": 5, "max_retries": 0}}
    connections = {
        f"AIRFLOW_CONN_LLAMACLOUD_{name}": json.dumps({**connection, "extra": extra}) for name, extra in extras.items()
    }
    dags = [Path(__file__).parent / "dags" / name for name in ("survival.py", "hurried.py", "shared_sessions.py")]
    with AirflowStack(dags=dags, environment=connections) as running:
        yield running
