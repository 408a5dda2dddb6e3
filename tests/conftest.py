"""Keeps every test away from the user's own Airflow and LlamaCloud, before anything imports Airflow.

Airflow reads AIRFLOW_HOME when it is imported, and creates files there. So this file, which pytest loads before any test
module, moves it to a directory that is removed at the end, and drops what the environment says about Airflow and LlamaCloud.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def _separate_airflow() -> Path:
    if "airflow.settings" in sys.modules:
        raise pytest.UsageError("Airflow was imported before tests/conftest.py could give it a home of its own.")
    home = Path(tempfile.mkdtemp(prefix="llamachat-tests-"))
    for name in list(os.environ):
        if name.startswith(("AIRFLOW_", "LLAMA_CLOUD_", "LLAMACLOUD_")):
            del os.environ[name]
    os.environ.update(
        AIRFLOW_HOME=str(home),
        AIRFLOW__CORE__DAGS_FOLDER=str(home / "dags"),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS="False",
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{home / 'airflow.db'}",
        AIRFLOW__LOGGING__BASE_LOG_FOLDER=str(home / "logs"),
        # Loopback must not go through a proxy that the machine has.
        NO_PROXY="127.0.0.1,localhost",
    )
    (home / "dags").mkdir()
    return home


_HOME = _separate_airflow()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that the tests lie in."""
    return REPOSITORY


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """AIRFLOW_HOME of this test run."""
    return _HOME


@pytest.fixture(scope="session")
def airflow_database(airflow_home: Path) -> Iterator[Path]:
    """AIRFLOW_HOME with a migrated metadata database (SQLite), for ``dag.test()`` and everything else that needs one."""
    from airflow import settings
    from airflow.utils.db import initdb

    initdb()
    yield airflow_home
    settings.dispose_orm()
