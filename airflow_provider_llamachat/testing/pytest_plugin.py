"""pytest plugin: an emulator for Dag tests, and the Airflow connection that leads to it.

pytest loads it in every environment where the provider is installed, so it imports only pytest until a fixture is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_llamachat.testing import LlamaCloudEmulator
    from airflow_provider_llamachat.testing.dagruns import DagRunner

_CONNECTION = "llamacloud_default"


def pytest_plugin_registered(plugin: object, manager: pytest.PytestPluginManager) -> None:
    """Accept the plugin's name in ``-p`` and ``pytest_plugins``, although pytest also finds it by its entry point."""
    if plugin is sys.modules[__name__]:
        for name in ("llamacloud", __name__):
            if manager.get_plugin(name) is None:
                # To pytest, one module under two names is an error; a blocked name is skipped.
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
    """A LlamaCloud on this machine: one server for the whole run, reset before each test and reached without a proxy."""
    _llamacloud_emulator_server.reset()
    # The name in lower case wins where it is set.
    name = "no_proxy" if "no_proxy" in os.environ else "NO_PROXY"
    monkeypatch.setenv(name, ",".join(filter(None, (os.environ.get(name), "127.0.0.1"))))
    return _llamacloud_emulator_server


@pytest.fixture
def llamacloud_connection(
    request: pytest.FixtureRequest, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LlamaCloudEmulator]:
    """The emulator, to which the Airflow connection ``llamacloud_default`` points while the test runs.

    Secrets backends are disabled for the test: they come before the environment, and may have the real service's key. The test fails
    before it starts if Airflow resolves the connection to anything else. Other connections are refused unless they lead to this machine.
    """
    if "llamacloud_run_dag" in request.fixturenames:
        request.getfixturevalue("_llamacloud_airflow")  # the first import of Airflow decides where its home is
    monkeypatch.setenv(f"AIRFLOW_CONN_{_CONNECTION.upper()}", llamacloud_emulator.airflow_connection_json)
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", "")
    monkeypatch.setenv("AIRFLOW__WORKERS__SECRETS_BACKEND", "")
    from airflow import configuration

    # Airflow made both when it was imported or first asked, maybe before this.
    monkeypatch.setattr(configuration, "secrets_backend_list", configuration.initialize_secrets_backends())
    _forget_backends()
    from airflow.providers.common.compat.sdk import BaseHook

    found = BaseHook.get_connection(_CONNECTION)
    if (found.host, found.password) != (llamacloud_emulator.url, llamacloud_emulator.api_key):
        pytest.fail(
            f"Airflow does not take the connection {_CONNECTION} from the environment, so this test could reach the real service."
            f" Remove its other source, or patch that in the test. Host found: {found.host}; emulator: {llamacloud_emulator.url}",
            pytrace=False,
        )
    _refuse_other_machines(monkeypatch)
    yield llamacloud_emulator
    _forget_backends()


@pytest.fixture(scope="session")
def _llamacloud_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, made once; the processes of pytest-xdist share it."""
    from airflow_provider_llamachat.testing.dagruns import migrated

    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    return migrated(folder / "airflow", shared / "llamacloud-airflow.db")


@pytest.fixture
def _llamacloud_airflow(_llamacloud_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from airflow_provider_llamachat.testing.dagruns import copy_database, own_airflow

    database = tmp_path_factory.mktemp("airflow") / "airflow.db"
    copy_database(_llamacloud_database, database)
    with own_airflow(tmp_path_factory.getbasetemp() / "airflow", database):
        yield


@pytest.fixture
def llamacloud_run_dag(
    llamacloud_emulator: LlamaCloudEmulator,
    _llamacloud_airflow: None,
    llamacloud_connection: LlamaCloudEmulator,  # noqa: ARG001 - the Dag reaches the emulator by it
) -> DagRunner:
    """Run a Dag, or the Dag of a file, against the emulator on an Airflow of the test's own: see :class:`.dagruns.DagRunner`."""
    from airflow_provider_llamachat.testing.dagruns import DagRunner

    return DagRunner(llamacloud_emulator)


def _refuse_other_machines(patch: pytest.MonkeyPatch) -> None:
    """Let the hook, which makes every client of a connection, take only base URLs of this machine."""
    from airflow_provider_llamachat.exceptions import LlamaCloudConfigError

    hook: Any = importlib.import_module("airflow_provider_llamachat.hooks.llamacloud")
    read = hook.read

    def read_local(connection: Any, conn_id: str) -> Any:
        config = read(connection, conn_id)
        if not config.is_loopback:
            raise LlamaCloudConfigError(
                f"The connection {conn_id!r} does not lead to an emulator, and this test must not call the real service. Nothing was sent."
                f" Set AIRFLOW_CONN_{conn_id.upper()} to llamacloud_emulator.airflow_connection_json in the test, or use {_CONNECTION}."
                f" Base URL: {config.base_url}."
            )
        return config

    patch.setattr(hook, "read", read_local)


def _forget_backends() -> None:
    # Airflow 3.3 and later keep the backends in the Task SDK as well.
    sdk: Any = sys.modules.get("airflow.sdk.configuration")
    if hasattr(sdk, "clear_secrets_backends_cache"):
        sdk.clear_secrets_backends_cache()
