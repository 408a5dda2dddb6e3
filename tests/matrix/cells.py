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
    """

    airflow: str
    pythons: tuple[str, ...]
    packages_of: str | None = None
    raised: tuple[str, ...] = ()
    extras: str = "testing,openlineage"
    warnings: str | None = OWN_WARNINGS_ONLY

    def __str__(self) -> str:
        return f"airflow-{self.airflow}"


CELLS = (
    Cell("2.11.2", ("3.11", "3.12")),
    # Released on 2025-08-29.
    Cell(
        "3.0.6",
        ("3.12", "3.11"),
        packages_of="2025-08-30",
        raised=("apache-airflow-providers-common-compat>=1.23.0",),
    ),
    # Without OpenLineage, as an Airflow is that nobody added anything to.
    Cell("3.3.2", ("3.13", "3.12", "3.11"), extras="testing", warnings=None),
)

TEST_TOOLS = ("hypothesis", "jsonschema", "llama-cloud", "psutil", "pytest", "pytest-timeout", "pytest-xdist")

LONG_SUITES = "system or browser or matrix or chaos or celery or long or bench"
"""Markers of what ``make test`` leaves out as well."""

LEFT_OUT_IN_SHORT = (
    "tests/batch/test_engine.py",
    "tests/batch/test_kill.py",
    "tests/batch/test_pace.py",
    "tests/batch/test_resuming.py",
    "tests/client/test_doubt.py",
    "tests/client/test_faults.py",
    "tests/client/test_turns.py",
    "tests/emulator/test_faults.py",
    "tests/emulator/test_load.py",
    "tests/emulator/test_settings.py",
    "tests/emulator/test_stream_faults.py",
    "tests/hostile/test_bounds.py",
    "tests/hostile/test_garbage.py",
    "tests/hostile/test_redaction.py",
    "tests/hostile/test_turns.py",
)
"""The slow ones among the tests of code that imports no Airflow: client, batch engine, emulator. They take more than half of the
time, and can differ from the main suite's only by the versions of httpx, aiohttp, pydantic and Python. The long form has them."""


def short() -> bool:
    """Whether MATRIX=short asks for the form that a build server has the time for."""
    wanted = os.environ.get("MATRIX", "long")
    if wanted not in {"short", "long"}:
        raise ValueError(f"MATRIX is {wanted!r}; it can be short or long")
    return wanted == "short"
