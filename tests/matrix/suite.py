"""Runs the test suite inside a cell's environment and reads the report that it leaves."""

from __future__ import annotations

import os
import subprocess
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.matrix.cells import selection
from tests.matrix.environments import Environment
from tests.system.processes import clean_environment, end, tree

LIMIT = 1500.0
"""Seconds after which a run counts as stuck; the long form takes five minutes on an idle machine with two cores."""


@dataclass
class SuiteRun:
    """What pytest did in a cell.

    :param outcomes: ``passed``, ``failed`` or ``skipped`` by ``tests.folder.test_file::test_name[parameters]``.
    :param output: what it printed.
    """

    code: int
    outcomes: dict[str, str]
    seconds: float
    output: str

    def count(self, outcome: str) -> int:
        """Return how many tests had this outcome."""
        return list(self.outcomes.values()).count(outcome)

    def of(self, test: str) -> dict[str, str]:
        """Return the outcomes of a test by its full names, one for each set of parameters."""
        return {name: outcome for name, outcome in self.outcomes.items() if name.split("[")[0] == test}


def run_suite(environment: Environment, cases: Path, report: Path) -> SuiteRun:
    """Run what ``make test`` runs, or the short form of it, against the installed wheel."""
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [str(environment.python), "-m", "pytest", "-p", "tests.matrix.installed", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}"]
    # Most of these tests wait more than they work.
    command += ["-n", os.environ.get("MATRIX_JOBS", "8")]
    if environment.cell.warnings is not None:
        command += ["-o", f"filterwarnings={environment.cell.warnings}"]
    command += selection(environment.cell)
    path = os.pathsep.join([str(environment.python.parent), os.environ.get("PATH", os.defpath)])
    variables = clean_environment({"PATH": path})
    variables.pop("PYTHONPATH", None)
    variables["DAG_PROCESSES"] = "4"
    began = time.monotonic()
    log = report.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=cases, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(LIMIT)
        finally:
            end(child for child in tree(process.pid) if child.status() != psutil.STATUS_ZOMBIE)
    return SuiteRun(code, _outcomes(report), time.monotonic() - began, log.read_text(errors="replace"))


def _outcomes(report: Path) -> dict[str, str]:
    if not report.exists():
        return {}
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return found
