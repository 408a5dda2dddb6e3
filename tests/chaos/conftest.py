"""An emulator, and what runs a schedule against it. How much chaos the environment says: see :mod:`tests.chaos.amount`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_provider_llamachat.client.config import ssl_context
from airflow_provider_llamachat.testing import EmulatorProcess
from tests.chaos.lanes import KEY, Verdict, run_schedule
from tests.chaos.plans import Schedule


@pytest.fixture(scope="session")
def emulator() -> Iterator[EmulatorProcess]:
    """A LlamaCloud in a process of its own."""
    with EmulatorProcess(api_keys=[KEY]) as running:
        yield running


@pytest.fixture
def run(emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Schedule], Verdict]:
    """Runs one schedule and judges it."""
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", "")
    # Made once, it is there in every process that is forked off.
    ssl_context()
    return lambda chosen: run_schedule(chosen, emulator, tmp_path)
