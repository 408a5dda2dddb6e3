"""pytest plugin: an emulator for Dag tests, and the Airflow connection that leads to it.

Loaded by pytest in every run of an environment where the provider is installed, so it imports pytest and nothing else until a
fixture is asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow_provider_llamachat.testing import LlamaCloudEmulator

_CONNECTION = "llamacloud_default"
_NAMES = ("llamacloud", __name__)
"""The name of the entry point, and the one that ``-p`` and ``pytest_plugins`` take."""


def pytest_plugin_registered(plugin: object, manager: pytest.PytestPluginManager) -> None:
    """Let the plugin be named although pytest has found it already, or will find it yet."""
    if plugin is sys.modules[__name__]:
        for name in _NAMES:
            if manager.get_plugin(name) is None:
                # To pytest, one module under two names is an error; a blocked name is passed over.
                manager.set_blocked(name)


@pytest.fixture(scope="session")
def _llamacloud_emulator_server() -> Iterator[LlamaCloudEmulator]:
    try:
        from airflow_provider_llamachat.testing import LlamaCloudEmulator
    except ImportError as error:
        pytest.fail(str(error), pytrace=False)
    with LlamaCloudEmulator() as emulator:
        yield emulator


@pytest.fixture
def llamacloud_emulator(
    _llamacloud_emulator_server: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> LlamaCloudEmulator:
    """A LlamaCloud on this machine: one server for the whole run, reset before each test and reached past any proxy."""
    _llamacloud_emulator_server.reset()
    # The name in lower case wins where it is set.
    name = "no_proxy" if "no_proxy" in os.environ else "NO_PROXY"
    monkeypatch.setenv(name, ",".join(filter(None, (os.environ.get(name), "127.0.0.1"))))
    return _llamacloud_emulator_server


@pytest.fixture
def llamacloud_connection(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LlamaCloudEmulator]:
    """The Airflow connection ``llamacloud_default`` leads to the emulator while the test runs; gives the emulator.

    Meanwhile no secrets backend is asked for anything: it would come before the environment, and with the real service's key. The
    test fails before it begins when Airflow, for whatever reason, resolves the connection to something else.
    """
    monkeypatch.setenv(f"AIRFLOW_CONN_{_CONNECTION.upper()}", llamacloud_emulator.airflow_connection_json)
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", "")
    monkeypatch.setenv("AIRFLOW__WORKERS__SECRETS_BACKEND", "")
    from airflow import configuration

    # Both were made when Airflow was imported or first asked, maybe before this.
    monkeypatch.setattr(configuration, "secrets_backend_list", configuration.initialize_secrets_backends())
    _forget_backends()
    _check(llamacloud_emulator)
    yield llamacloud_emulator
    _forget_backends()


def _forget_backends() -> None:
    """Airflow 3.3 and later keep what they made in the Task SDK as well."""
    sdk: Any = sys.modules.get("airflow.sdk.configuration")
    if hasattr(sdk, "clear_secrets_backends_cache"):
        sdk.clear_secrets_backends_cache()


def _check(emulator: LlamaCloudEmulator) -> None:
    from airflow.providers.common.compat.sdk import BaseHook

    found = BaseHook.get_connection(_CONNECTION)
    if (found.host, found.password) != (emulator.url, emulator.api_key):
        pytest.fail(
            f"Airflow takes the connection {_CONNECTION} from somewhere else than the environment, so this test could reach the"
            f" real service. Remove what provides it, or patch it in the test. Host found: {found.host}; emulator: {emulator.url}",
            pytrace=False,
        )
