"""Which Airflow runs on which Python in the version matrix, and how much of the test suite runs there."""

from __future__ import annotations

import os
from dataclasses import dataclass

OWN_WARNINGS_ONLY = "default\nerror:::airflow_provider_llamachat"
"""Old Airflow on today's libraries calls much that is deprecated, and so does what it depends on; nobody can change that any
more. What our own code calls still has to be free of it, and tests/airflow/runner.py sees to the Dags."""


@dataclass(frozen=True)
class Cell:
    """One Airflow.

    :param pythons: versions that it and this provider run on; the first one that the machine has is used.
    :param packages_of: a day: packages that came later are left out, because this Airflow does not work with them. (Airflow's own
        constraint files would say the same, but are not on a package index.)
    :param raised: packages that have to be newer all the same, since this provider needs them to be.
    :param extras: the provider's extras; lineage is tested where ``openlineage`` is among them.
    :param warnings: pytest's ``filterwarnings``; None: those of pyproject.toml, by which every warning is an error.
    :param is_outer: in the short form, more of the suite runs there than in the others.
    :param is_built: it is part of the short form. `make matrix` by itself runs all.
    :param is_pre: a pre-release, which is left out if it cannot be installed.
    """

    airflow: str
    pythons: tuple[str, ...]
    packages_of: str | None = None
    raised: tuple[str, ...] = ()
    extras: str = "testing,openlineage"
    warnings: str | None = OWN_WARNINGS_ONLY
    is_outer: bool = False
    is_built: bool = False
    is_pre: bool = False

    def __str__(self) -> str:
        return f"airflow-{self.airflow}"


CELLS = (
    Cell("2.11.2", ("3.11", "3.12"), is_outer=True, is_built=True),
    # Released on 2025-08-29.
    Cell(
        "3.0.6",
        ("3.12", "3.11"),
        packages_of="2025-08-30",
        raised=("apache-airflow-providers-common-compat>=1.14.0",),
    ),
    # Released by 2026-03-15. Everything is as old as it was then, common-compat (1.14) included; OpenLineage would raise it.
    Cell("3.1.8", ("3.12", "3.11", "3.13"), packages_of="2026-03-16", extras="testing"),
    # Released by 2026-06-01. Its API server does not start with the FastAPI and pydantic of half a year later.
    Cell("3.2.2", ("3.13", "3.12", "3.11"), packages_of="2026-06-01", extras="testing"),
    # Without OpenLineage, as an Airflow is that nobody added anything to.
    Cell("3.3.2", ("3.13", "3.12", "3.11"), extras="testing", warnings=None, is_built=True),
    Cell("3.4.0b2", ("3.14", "3.13", "3.12"), is_pre=True),
)

TEST_TOOLS = (
    "httpx-sse",
    "hypothesis",
    "jsonschema",
    "llama-cloud",
    "psutil",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
)

LONG_SUITES = "system or browser or matrix or chaos or celery or long or bench"
"""Markers of what ``make test`` leaves out as well."""

SHORT = (
    "tests/airflow",
    "tests/batch/test_operator.py",
    "tests/batch/test_stopping.py",
    "tests/client/test_hook.py",
    "tests/docs",
    "tests/doubt",
    "tests/emulator/test_plugin.py",
    "tests/indexes",
    "tests/unit/test_provider_info.py",
    "tests/unit/test_view_plugin.py",
    "tests/upgrade",
)
"""What the short form runs on the oldest and the newest Airflow: tests of what imports Airflow. The others differ from those of the main
suite only by the versions of httpx, aiohttp, pydantic and Python."""

SHORTER = (
    "tests/airflow/test_examples.py",
    "tests/client/test_hook.py",
    "tests/docs/test_documentation.py::test_airflow_discovers_the_provider",
    "tests/emulator/test_plugin.py",
    "tests/indexes/test_waiting.py",
    "tests/unit/test_provider_info.py",
    "tests/unit/test_view_plugin.py",
    "tests/upgrade",
)
"""What it runs on the others, without whole Dag runs. A whole Airflow answers and deletes in each of them."""


def selection(cell: Cell) -> list[str]:
    """Return pytest's arguments that choose the cell's tests."""
    if not short():
        return ["-m", f"not ({LONG_SUITES})"]
    if cell.is_outer:
        return ["-m", f"not ({LONG_SUITES})", *SHORT]
    return ["-m", f"not ({LONG_SUITES} or airflow)", *SHORTER]


def short() -> bool:
    """Whether MATRIX=short asks for the form that a build server has the time for."""
    wanted = os.environ.get("MATRIX", "long")
    if wanted not in {"short", "long"}:
        raise ValueError(f"MATRIX is {wanted!r}; it can be short or long")
    return wanted == "short"
