"""What Airflow reads of this provider, against Airflow's own schema and its own discovery."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pytest

import airflow_provider_llamachat
from airflow_provider_llamachat import __version__
from airflow_provider_llamachat.provider_info import (
    CONNECTION_TYPE,
    airflow_core_version,
    connection_type,
    get_provider_info,
)
from airflow_provider_llamachat.testing import OTHER_PROJECT_ID

# Where it is imported from: the tests run against an installed wheel too.
PACKAGE = Path(airflow_provider_llamachat.__file__).parent


def test_it_is_valid_for_airflows_own_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(resources.files("airflow").joinpath("provider_info.schema.json").read_text())
    info = get_provider_info()
    jsonschema.validate(info, schema)
    json.dumps(info)
    assert info["versions"] == [__version__]


@pytest.mark.parametrize("name", CONNECTION_TYPE["conn-fields"])
def test_the_form_and_the_hook_refuse_the_same(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from airflow_provider_llamachat.client import ClientConfig
    from airflow_provider_llamachat.exceptions import LlamaCloudConfigError

    schema = CONNECTION_TYPE["conn-fields"][name]["schema"]
    judge = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    number = "string" not in schema["type"]
    values: list[Any] = [0, 0.0001, -1, 1, 1.5, 100] if number else ["us", "eu", "mars", 7, OTHER_PROJECT_ID, "mine"]
    for value in values:
        try:
            ClientConfig.build(api_key="llx-a", **{name: value})
            accepted = True
        except LlamaCloudConfigError:
            accepted = False
        assert judge.is_valid(value) is accepted, value


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
    internal = {"base", "events", "looks", "pacing"}
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


def printed(code: str) -> list[str]:
    """The lines that code prints in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip().splitlines()


@pytest.mark.long
def test_metadata_and_hook_load_without_httpx_and_pydantic_of_their_own() -> None:
    code = (
        "import sys; from airflow.providers.common.compat.sdk import BaseHook, AirflowFailException, BaseOperator, conf; BaseHook;"
        "before = set(sys.modules);"
        "import airflow_provider_llamachat.provider_info as p; p.get_provider_info();"
        "import airflow_provider_llamachat.hooks.llamacloud, airflow_provider_llamachat.operators.chat;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new & {'httpx', 'pydantic', 'httpx_sse', 'httpcore'}))"
    )
    assert printed(code)[-1] == "[]"


@pytest.mark.long
def test_a_dag_file_loads_only_the_classes_that_it_names_and_what_checks_their_arguments() -> None:
    code = (
        "import sys\n"
        "package = 'airflow_provider_llamachat.'\n"
        "def ours(): return {m for m in sys.modules if m.startswith(package)} - {package + 'provider_info'}\n"
        "from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator\n"
        "print(*sorted(m.partition('.')[2] for m in ours()))\n"
        "from airflow_provider_llamachat.operators.chat import SaveTranscriptOperator\n"
        "from airflow_provider_llamachat.operators import batch, index\n"
        "from airflow_provider_llamachat.sensors import index\n"
        "from airflow_provider_llamachat.decorators import chat\n"
        "print(*sorted({m.split('.')[1] for m in ours()}))\n"
    )
    named, everything = printed(code)[-2:]
    # Airflow itself reads provider_info.
    shared = ["arguments", "exceptions", "operators"]
    assert named.split() == [*shared, "operators.base", "operators.chat", "operators.session", "redaction"]
    assert everything.split() == ["arguments", "decorators", "exceptions", "operators", "redaction", "sensors"]


@pytest.mark.parametrize("version", ["3.3.1", "3.3.2", "3.3.3", "3.3.2rc1"])
def test_where_the_test_button_wants_a_port_there_is_a_field_for_one(version: str) -> None:
    behaviour = connection_type(version)["ui-field-behaviour"]
    assert behaviour["hidden-fields"] == ["schema", "login", "extra"]
    assert "443" in behaviour["placeholders"]["port"]
    assert "port" in CONNECTION_TYPE["ui-field-behaviour"]["hidden-fields"], "the definition itself stays as it is"


@pytest.mark.parametrize("version", ["", "3.0.6", "3.2.2", "3.3.0", "3.4.0", "3.4.0.dev0", "4.0.0"])
def test_everywhere_else_the_port_is_hidden(version: str) -> None:
    assert connection_type(version) == CONNECTION_TYPE


def test_this_airflow_gets_the_form_for_its_version() -> None:
    import airflow

    assert airflow_core_version() == ("" if airflow.__version__.startswith("2.") else airflow.__version__)
    assert get_provider_info()["connection-types"] == [connection_type(airflow_core_version())]


def test_the_labels_of_the_older_form_are_those_of_the_declarative_one() -> None:
    from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

    declared = CONNECTION_TYPE["ui-field-behaviour"]
    assert LlamaCloudHook.get_ui_field_behaviour() == {
        "hidden_fields": declared["hidden-fields"],
        "relabeling": declared["relabeling"],
        "placeholders": declared["placeholders"],
    }


def test_the_older_form_has_the_declared_fields() -> None:
    wtforms = pytest.importorskip(
        "wtforms", reason="the older form's libraries came with Airflow 2, or its fab provider"
    )
    pytest.importorskip("flask_appbuilder", reason="as above")
    from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

    fields = LlamaCloudHook.get_connection_form_widgets()
    assert list(fields) == list(CONNECTION_TYPE["conn-fields"])
    assert fields["region"].kwargs["validators"][-1].values == ["us", "eu"]
    # The form of Airflow 2 loses the 0 of a number field.
    whole = wtforms.IntegerField if airflow_core_version() else wtforms.StringField
    assert fields["max_retries"].field_class is whole
    assert {name: field.field_class for name, field in fields.items() if name != "max_retries"} == dict.fromkeys(
        ("region", "project_id", "organization_id", "timeout", "history_lag"), wtforms.StringField
    )
