"""Keeps every test away from the user's own Airflow and LlamaCloud, before anything imports Airflow.

Airflow reads AIRFLOW_HOME when it is imported, and creates files there. So this file, which pytest loads before any test
module, moves it to a directory that is removed at the end, and drops what the environment says about Airflow and LlamaCloud.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent
_RUNS_DAGS = re.compile("airflow_database|llamacloud_run_dag")


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
# Collection makes a million objects that live to the end; looking through them for garbage takes a second of each process.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The first test of the page takes ten seconds, which nothing else would fill at the end.
    items.sort(key=lambda item: item.path.parent.name != "view")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


# The same examples in each run: what is new to a run is for a search, not for a build. How long an example takes says more about
# what else the machine does than about the code.
settings.register_profile(
    "tests", max_examples=30, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", settings.get_profile("tests"), derandomize=False, database=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "tests")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


def _scopes(processes: int) -> dict[str, str]:
    """Which tests share a process: those that run Dags, by themselves or by a fixture of their file or folder, and those of the SDK."""
    scopes: dict[str, str] = {}
    for number, path in enumerate(sorted(REPOSITORY.glob("tests/*/*.py"))):
        name, text = path.relative_to(REPOSITORY).as_posix(), path.read_text()
        blocks = [block for block in text.split("\n\n\n") if _RUNS_DAGS.search(block)]
        tests = [
            found[1] for block in blocks if (found := re.search(r"^(?:async )?def (test_\w+)", block, re.MULTILINE))
        ]
        if path.name == "conftest.py" and blocks:
            scopes[name.removesuffix("/conftest.py")] = name
        elif len(tests) == len(blocks):
            scopes.update({f"{name}::{test}": f"Dags {number % processes}" for test in tests})
        else:
            scopes[name] = f"Dags {number % processes}"
        if "    from llama_cloud import" in text:
            scopes[name] = "SDK"  # which takes a second to import
    return scopes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process the next test; but tests that run Dags to a few, because the first run in a process takes ten seconds of work.

    DAG_PROCESSES is how many; more of them pay where most tests run Dags.
    """
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # xdist has no types

    scopes = _scopes(int(os.environ.get("DAG_PROCESSES", "1")))

    class Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # as above
        def _split_scope(self, nodeid: str) -> str:
            test = nodeid.split("[", maxsplit=1)[0]
            file = test.split("::", maxsplit=1)[0]
            return scopes.get(test) or scopes.get(file) or scopes.get(file.rpartition("/")[0]) or nodeid

    return Scheduler(config, log)


@pytest.fixture(autouse=True)
def no_known_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of other tests are not looked for: a process that knows many is slower."""
    monkeypatch.setattr("airflow_provider_llamachat.redaction._known", ())  # no release needs to forget a key


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that the tests lie in."""
    return REPOSITORY


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """AIRFLOW_HOME of this test run."""
    return _HOME


@pytest.fixture(scope="session")
def airflow_database(airflow_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """AIRFLOW_HOME with a migrated metadata database (SQLite), for ``dag.test()`` and everything else that needs one.

    Processes that share the tests share the migration: the first one makes the database, the others copy it.
    """
    from airflow import settings

    from airflow_provider_llamachat.testing.dagruns import copy_database, migrated

    folder = tmp_path_factory.getbasetemp()
    made = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "llamacloud-airflow.db"
    copy_database(migrated(airflow_home, made), airflow_home / "airflow.db")
    yield airflow_home
    settings.dispose_orm()
