"""Builds a clean environment for a cell of the matrix: an interpreter of the machine, one Airflow, the built wheel, test tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.matrix.cells import SHORT, SHORTER, TEST_TOOLS, Cell
from tests.uv import uv

CASES = ("tests", "dags_examples", "docs", "README.md", "CHANGELOG.md", "pyproject.toml")
"""What the tests consist of and read; the package is not among it, so that only the installed one can be imported."""


@dataclass
class Environment:
    """A cell's environment, and what building it showed.

    :param seconds: it took to build.
    :param before: distributions and versions of the Airflow alone.
    :param after: the same with the bare wheel.
    """

    cell: Cell
    python: Path
    version: str
    seconds: float = 0.0
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        return self.python.parent.parent / "lib" / f"python{self.version}" / "site-packages"


def find_python(versions: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the first of these Pythons that the machine has: its version and its path."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in versions:
        # uv stops at the first `python3.12` that does not run, as pyenv's place holders do; the others are looked at one by one.
        named = [Path(folder) / f"python{version}" for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)]
        kept = sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)
        for candidate in [Path(sys.executable), *named, *kept, *_found_by_uv(version)]:
            if _version_of(candidate) == version:
                return version, str(candidate)
    return None


def _found_by_uv(version: str) -> list[Path]:
    try:
        return [Path(uv("python", "find", "--system", version).strip())]
    except RuntimeError:
        return []


def _version_of(python: Path) -> str | None:
    if not os.access(python, os.X_OK) or python.is_dir():
        return None
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def build(cell: Cell, wheel: Path, folder: Path, version: str, interpreter: str) -> Environment:
    """Build the environment in ``folder``, Airflow first, as somebody has it who then adds this provider."""
    began = time.monotonic()
    uv("venv", "--quiet", "--clear", "--python", interpreter, str(folder))
    environment = Environment(cell, folder / "bin" / "python", version)
    airflow = f"apache-airflow=={cell.airflow}"
    try:
        _install(environment, airflow, *(["--exclude-newer", cell.packages_of] if cell.packages_of else []))
    except RuntimeError as problem:
        if cell.is_pre:
            pytest.skip(f"The pre-release {cell.airflow} cannot be installed: {str(problem)[-600:]}")
        raise
    if cell.raised:
        _install(environment, airflow, *cell.raised)
    environment.before = distributions(environment)
    _install(environment, airflow, str(wheel))
    environment.after = distributions(environment)
    _install(environment, airflow, f"{wheel}[{cell.extras}]", *TEST_TOOLS)
    environment.seconds = time.monotonic() - began
    return environment


def distributions(environment: Environment) -> dict[str, str]:
    """Return what is installed, by name."""
    lines = uv("pip", "freeze", "--quiet", "--python", str(environment.python)).splitlines()
    return dict((line.split(" @ ", 1) if " @ " in line else line.split("==", 1)) for line in lines)


def _install(environment: Environment, *requirements: str) -> None:
    uv("pip", "install", "--quiet", "--python", str(environment.python), *requirements)


def copy_cases(repository: Path, target: Path) -> Path:
    """Copy the tests, and what they read, to a directory that has no package beside them.

    :raises RuntimeError: a test that the short form runs does not exist.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in CASES:
        source = repository / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    missing = [path for path in {*SHORT, *SHORTER} if not (target / path.split("::")[0]).exists()]
    if missing:
        raise RuntimeError(f"tests/matrix/cells.py names tests that are no longer there: {missing}")
    return target
