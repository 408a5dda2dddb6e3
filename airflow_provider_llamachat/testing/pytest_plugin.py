"""pytest plugin: an emulator for Dag tests, and the Airflow connection that leads to it.

Loaded by pytest in every run of an environment where the provider is installed, so it imports pytest and nothing else until a
fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_llamachat.testing.emulator import LlamaCloudEmulator


@pytest.fixture(scope="session")
def _llamacloud_emulator_server() -> Iterator[LlamaCloudEmulator]:
    try:
        from airflow_provider_llamachat.testing import LlamaCloudEmulator
    except ImportError as error:
        pytest.fail(str(error), pytrace=False)
    with LlamaCloudEmulator() as emulator:
        yield emulator


@pytest.fixture
def llamacloud_emulator(_llamacloud_emulator_server: LlamaCloudEmulator) -> LlamaCloudEmulator:
    """A LlamaCloud on this machine: one server for the whole run, reset before each test."""
    _llamacloud_emulator_server.reset()
    return _llamacloud_emulator_server


@pytest.fixture
def llamacloud_connection(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> LlamaCloudEmulator:
    """The Airflow connection ``llamacloud_default`` leads to the emulator while the test runs; gives the emulator."""
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", llamacloud_emulator.airflow_connection_json)
    return llamacloud_emulator
