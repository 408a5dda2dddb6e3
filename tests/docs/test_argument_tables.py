"""The tables of docs/operators.md list each argument of each operator, sensor, trigger and decorator, with its default."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from airflow.providers.common.compat.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger

from airflow_provider_llamachat.decorators.chat import LlamaChatDecoratedOperator
from airflow_provider_llamachat.provider_info import get_provider_info

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operators.md").read_text()
FROM_CONFIGURATION = "[operators] default_deferrable"


class Argument(NamedTuple):
    default: str
    templated: bool


def documented() -> dict[str, type[Any]]:
    """What a user may put into a Dag, by the heading that it has in the docs."""
    info = get_provider_info()
    modules = [name for kind in ("operators", "sensors", "triggers") for name in info[kind][0]["python-modules"]]
    found = {
        name: value
        for module in map(importlib.import_module, modules)
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, BaseOperator | BaseTrigger)
        and value.__module__.startswith("airflow_provider_llamachat.")
        and name not in {"LlamaCloudOperator", "IndexWaitingOperator"}
    }
    return {**found, "@task.llamachat": LlamaChatDecoratedOperator}


def in_code(kind: type[Any]) -> dict[str, Argument]:
    templated = set(getattr(kind, "template_fields", ()))
    found = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name == "self" or parameter.kind is parameter.VAR_KEYWORD:
            continue
        default = "required" if parameter.default is parameter.empty else repr(parameter.default).replace("'", '"')
        found[name] = Argument(FROM_CONFIGURATION if name == "deferrable" else default, name in templated)
    return found


def in_docs(heading: str) -> dict[str, Argument]:
    section = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, f"docs/operators.md has no section {heading}"
    table = re.search(r"^\| argument \| default \| meaning \|\n\|[-|]+\n((?:\|.*\n)+)", section[1], re.MULTILINE)
    assert table, f"docs/operators.md, {heading}: there is no table with the columns argument, default and meaning"
    return dict(_rows(table[1]))


def _rows(table: str) -> Iterator[tuple[str, Argument]]:
    for line in table.splitlines():
        names, default, meaning = line.strip("| ").split(" | ", 2)
        assert meaning.strip(), line
        for name in re.findall(r"`(\w+)`", names):
            yield name, Argument(default.strip("`"), "(templated)" in names)


@pytest.mark.parametrize("heading", sorted(documented()))
def test_each_argument_is_documented_with_its_default(heading: str) -> None:
    kind = documented()[heading]
    common = in_docs("Common arguments") if issubclass(kind, BaseOperator) else {}
    if heading == "@task.llamachat":
        common = {}  # the docs say that it takes what SendChatMessageOperator takes
    assert {**common, **in_docs(heading)} == in_code(kind), f"docs/operators.md, {heading}, is not what __init__ takes"


def test_no_section_has_a_table_of_something_that_is_no_longer_there() -> None:
    headings = re.findall(r"^##+ (@task\.\w+|\w+(?:Operator|Sensor|Trigger))$", PAGE, re.MULTILINE)
    assert sorted(headings) == sorted(documented())
