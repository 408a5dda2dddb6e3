"""The rooms of the package: each imports only what is below it, and those at the bottom never import Airflow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import airflow_provider_llamachat

ROOT = Path(airflow_provider_llamachat.__file__).parent
LAYERS = (
    ("redaction", "provider_info", "evidence"),
    ("exceptions",),
    ("arguments",),
    ("models",),
    ("conversation",),
    ("client",),
    ("batch", "airflow_support", "retry_policy", "testing", "transcripts"),
    ("hooks",),
    ("triggers",),
    ("operators", "sensors"),
    ("decorators",),
    ("view",),
)
"""Lowest first. A room imports itself and lower ones; two rooms of one layer do not know each other."""
WITHOUT_AIRFLOW = {
    "redaction",
    "provider_info",
    "evidence",
    "arguments",
    "models",
    "conversation",
    "client",
    "batch",
    "testing",
    "transcripts",
}
IN_FIXTURES = {"testing/pytest_plugin.py", "testing/dagruns.py"}
"""Import Airflow, but only when a test of a user asks for the fixtures."""


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name may be a module of the package itself.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in ROOT.rglob("*.py"):
        top = path.relative_to(ROOT).parts[0]
        if top not in {"__init__.py", "example_dags"}:  # a wheel also has the examples
            found.setdefault(top.removesuffix(".py"), []).append(path)
    return found


def test_every_room_has_its_layer() -> None:
    assert sorted(rooms()) == sorted(name for layer in LAYERS for name in layer)


def test_a_room_imports_only_lower_rooms() -> None:
    height = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    upward = []
    for room, paths in rooms().items():
        for path in paths:
            for name in imports(path):
                parts = name.split(".")
                if parts[0] != "airflow_provider_llamachat" or len(parts) < 2 or parts[1] not in height:
                    continue
                if parts[1] != room and height[parts[1]] >= height[room]:
                    upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert upward == []


def test_the_rooms_below_airflow_do_not_import_it() -> None:
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room, paths in rooms().items()
        if room in WITHOUT_AIRFLOW
        for path in paths
        for name in imports(path)
        if name.split(".")[0] == "airflow" and str(path.relative_to(ROOT)) not in IN_FIXTURES
    ]
    assert offenders == []
