"""Fails unless the wheel and the sdist in a directory hold what they should: ``check_dist.py dist``."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

PACKAGE = "airflow_provider_llamachat"
EXAMPLES = "dags_examples"
ENTRY_POINTS = {
    ("apache_airflow_provider", "provider_info"): f"{PACKAGE}.provider_info:get_provider_info",
    ("airflow.plugins", "llamacloud_chats"): f"{PACKAGE}.view.plugin:plugin",
    ("pytest11", "llamacloud"): f"{PACKAGE}.testing.pytest_plugin",
}
SDIST = {PACKAGE, EXAMPLES, "docs", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}


def wheel_problems(wheel: Path, source: Path) -> list[str]:
    """Compare the wheel with the package's source; return what is wrong."""
    problems = []
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name.split("/")[0] for name in names if name.split("/")[0].endswith(".dist-info"))
        entry_points = ConfigParser()
        entry_points.read_string(archive.read(f"{info}/entry_points.txt").decode())
        metadata = archive.read(f"{info}/METADATA").decode()
    strangers = sorted(name for name in names if name.split("/")[0] not in {PACKAGE, info})
    if strangers:
        problems.append(f"{wheel.name} holds more than the package: {strangers}")
    packed = {name for name in names if name.startswith(f"{PACKAGE}/")}
    # The examples are a part of the package only in the wheel.
    expected = {f"{PACKAGE}/{name}" for name in _files(source / PACKAGE)}
    expected |= {f"{PACKAGE}/example_dags/{name}" for name in _files(source / EXAMPLES)}
    if packed != expected:
        problems.append(f"{wheel.name} and the source differ: {sorted(packed ^ expected)}")
    problems += [
        f"{wheel.name} lacks {name}"
        for name in (f"{PACKAGE}/py.typed", f"{info}/licenses/LICENSE")
        if name not in names
    ]
    for (group, name), target in ENTRY_POINTS.items():
        if entry_points.get(group, name, fallback=None) != target:
            problems.append(f"{wheel.name} lacks the entry point {name} = {target} in {group}")
    if "License-Expression: Apache-2.0" not in metadata:
        problems.append(f"{wheel.name} does not name its licence")
    if relative := re.findall(r"\]\((?!https?:|#)[^)]*\)", metadata):
        problems.append(f"The description of {wheel.name} has links that lead nowhere on a package index: {relative}")
    return problems


def _files(folder: Path) -> set[str]:
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def sdist_problems(sdist: Path) -> list[str]:
    """Return what the sdist holds too much or lacks."""
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    return (
        [f"{sdist.name}: {sorted(tops ^ SDIST)} too much or missing"]
        if tops - {".gitignore"} != SDIST - {".gitignore"}
        else []
    )


def main() -> int:
    """Check the one wheel and the one sdist in the directory given."""
    folder = Path(sys.argv[1])
    wheels, sdists = list(folder.glob("*.whl")), list(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        print(f"{folder} should hold one wheel and one sdist: {sorted(path.name for path in folder.iterdir())}")
        return 1
    problems = wheel_problems(wheels[0], Path(__file__).resolve().parent.parent) + sdist_problems(sdists[0])
    print("\n".join(problems) or f"{wheels[0].name} and {sdists[0].name} hold what they should.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
