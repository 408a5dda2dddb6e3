"""What an upload of results to an S3-compatible server holds in memory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.chaos.object_store import ObjectStore, environment

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
HELD = 32
"""MiB that an upload may take, whatever its size: less than 10 MiB at once, and the copies that the client makes."""


def test_the_memory_that_an_upload_takes_does_not_depend_on_its_size(repository: Path, tmp_path: Path) -> None:
    if os.environ.get("CHAOS_SEED"):
        pytest.skip("CHAOS_SEED names a schedule of another kind")
    python = environment(repository)
    with ObjectStore(python) as store:
        variables = {
            **os.environ,
            "PYTHONPATH": str(repository),
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW_CONN_AWS_DEFAULT": store.connection,
        }
        grown = {}
        for size in (9, 80):
            command = [str(python), "-W", "ignore", "-m", "tests.chaos.upload", store.path("results.jsonl"), str(size)]
            said = subprocess.run(
                command, env=variables, cwd=repository, capture_output=True, text=True, check=True, timeout=300
            )
            grown[size] = float(said.stdout.splitlines()[-1])
        content = store.read("results.jsonl")
        keys = store.keys()
    print(f"memory grew by {grown} MiB")
    assert keys == ["results.jsonl"]
    assert len(content) == 80 * 2**20
    assert [content[number * 2**20] for number in range(80)] == list(range(80))
    assert max(grown.values()) < HELD, grown
