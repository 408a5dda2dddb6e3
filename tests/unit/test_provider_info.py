"""What Airflow reads of this provider, against Airflow's own schema and its own discovery."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import airflow_provider_llamachat
from airflow_provider_llamachat import __version__
from airflow_provider_llamachat.provider_info import CONNECTION_TYPE, get_provider_info

# Where it is imported from: the tests run against an installed wheel too.
PACKAGE = Path(airflow_provider_llamachat.__file__).parent


def test_it_is_valid_for_airflows_own_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(resources.files("airflow").joinpath("provider_info.schema.json").read_text())
    info = get_provider_info()
    jsonschema.validate(info, schema)
    json.dumps(info)
    assert info["versions"] == [__version__]


def test_every_module_and_class_it_names_exists() -> None:
    info = get_provider_info()
    for section in ("hooks", "operators", "sensors", "triggers"):
        for entry in info.get(section, []):
            for module in entry["python-modules"]:
                assert importlib.import_module(module).__doc__
    paths = [CONNECTION_TYPE["hook-class-name"], *(decorator["class-name"] for decorator in info["task-decorators"])]
    for path in paths:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("section", ["operators", "sensors", "triggers", "hooks"])
def test_it_names_every_module_of_its_folders(section: str) -> None:
    internal = {"base", "events", "pacing"}
    there = {
        f"airflow_provider_llamachat.{section}.{path.stem}"
        for path in (PACKAGE / section).glob("*.py")
        if not path.stem.startswith("_") and path.stem not in internal
    }
    named = {module for entry in get_provider_info().get(section, []) for module in entry["python-modules"]}
    assert named == there


def test_the_entry_point_is_what_airflow_loads() -> None:
    found = [
        point
        for point in metadata.entry_points(group="apache_airflow_provider")
        if point.name == "provider_info" and "llamachat" in point.value
    ]
    assert found, "install the package (pip install -e .) before running the tests"
    assert found[0].load()() == get_provider_info()


def test_metadata_and_hook_load_without_httpx_and_pydantic_of_their_own() -> None:
    code = (
        "import sys; from airflow.providers.common.compat.sdk import BaseHook, AirflowFailException, BaseOperator, conf; BaseHook;"
        "before = set(sys.modules);"
        "import airflow_provider_llamachat.provider_info as p; p.get_provider_info();"
        "import airflow_provider_llamachat.hooks.llamacloud, airflow_provider_llamachat.operators.chat;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new & {'httpx', 'pydantic', 'httpx_sse', 'tenacity', 'httpcore'}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=True
    )  # our own code
    assert done.stdout.strip().splitlines()[-1] == "[]"
