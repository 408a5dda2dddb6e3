"""Prints what all suites of a run did as one line: ``sum_results.py DIRECTORY NUMBER_OF_FAILED_SUITES``.

Reads the JUnit reports that pytest left in the directory. The exit code is 1 when anything failed, and when nothing ran.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def main() -> int:
    """Add up; a suite that failed without a failed test (a linter, a crash) counts as one failure."""
    tests = failed = skipped = 0
    red_suites = set()
    for report in sorted(Path(sys.argv[1]).glob("*.xml")):
        red = 0
        for suite in ET.parse(report).getroot().iter("testsuite"):
            tests += int(suite.get("tests", 0))
            red += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped += int(suite.get("skipped", 0))
        failed += red
        if red:
            # The version matrix leaves a report of its own and one for each Airflow: matrix.xml, matrix-airflow-3.0.6.xml, ...
            red_suites.add(report.stem.split("-")[0])
    passed = tests - failed - skipped
    failed += max(int(sys.argv[2]) - len(red_suites), 0)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
