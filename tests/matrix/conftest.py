"""Each cell is built once and the suite runs in it once; several tests look at what came of it. At the end there is a table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.matrix.cells import CELLS, Cell, short
from tests.matrix.environments import Environment, build, copy_cases, find_python
from tests.matrix.suite import SuiteRun, run_suite


@dataclass
class Row:
    """What the table says of a cell; what did not come about stays empty."""

    airflow: str
    python: str = "-"
    built: float | None = None
    suite: SuiteRun | None = None
    life: float | None = None

    def cells(self) -> list[str]:
        """Return the texts of the columns."""
        counts = [f"{self.suite.count(name)}" if self.suite else "-" for name in ("passed", "skipped", "failed")]
        times = [self.built, self.suite.seconds if self.suite else None, self.life]
        built, tested, life = [f"{value:.0f}" if value is not None else "-" for value in times]
        together = f"{sum(value or 0.0 for value in times):.0f}"
        return [self.airflow, self.python, built, "/".join(counts), tested, life, together]


HEAD = ["Airflow", "Python", "built (s)", "passed/skipped/failed", "tests (s)", "whole Airflow (s)", "together (s)"]
ROWS = pytest.StashKey[dict[str, Row]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, {})
    if not rows:
        return
    terminalreporter.section(f"version matrix, {'short' if short() else 'long'} form")
    table = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows.values())]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEAD))]
    for line in table:
        terminalreporter.write_line(
            "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        )


@pytest.fixture(scope="session")
def built_wheel(repository: Path) -> Path:
    """The one wheel that `make build` left."""
    wheels = list((repository / "dist").glob("*.whl"))
    assert len(wheels) == 1, f"dist/ should hold one wheel, and holds {wheels}: make build"
    return wheels[0]


@pytest.fixture(scope="session")
def cases(repository: Path) -> Path:
    """The tests, away from the source tree."""
    return copy_cases(repository, repository / "build" / "matrix" / "cases")


@pytest.fixture(scope="session", params=[cell for cell in CELLS if cell.is_built or not short()], ids=str)
def cell(request: pytest.FixtureRequest) -> Cell:
    """One Airflow of the matrix."""
    chosen: Cell = request.param
    return chosen


@pytest.fixture(scope="session")
def row(cell: Cell, pytestconfig: pytest.Config) -> Row:
    """The cell's row of the table."""
    return pytestconfig.stash[ROWS].setdefault(cell.airflow, Row(cell.airflow))


@pytest.fixture(scope="session")
def environment(cell: Cell, row: Row, built_wheel: Path, repository: Path) -> Environment:
    """The cell's environment, built again."""
    found = find_python(cell.pythons)
    if found is None:
        wanted = " or ".join(cell.pythons)
        pytest.skip(
            f"Airflow {cell.airflow} needs Python {wanted}, and none was found: install python{cell.pythons[0]}"
        )
    version, interpreter = found
    row.python = version if version == cell.pythons[0] else f"{version} (no {cell.pythons[0]} here)"
    folder = repository / "build" / "matrix" / f"{cell}-python-{version}"
    made = build(cell, built_wheel, folder, version, interpreter)
    row.built = made.seconds
    return made


@pytest.fixture(scope="session")
def suite_run(environment: Environment, row: Row, cases: Path, repository: Path) -> SuiteRun:
    """What the test suite did in the cell."""
    reports = repository / os.environ.get("MATRIX_REPORTS", "build/matrix")
    row.suite = run_suite(environment, cases, reports / f"matrix-{environment.cell}.xml")
    return row.suite
