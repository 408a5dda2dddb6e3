"""A night: thousands of prompts from a CSV file on an object store, with kills, storms of 429, and a budget in the middle.

CHAOS_PROMPTS=20000 make chaos PYTEST_ARGS=tests/chaos/test_night.py
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

import pytest

from airflow_provider_llamachat.testing import INDEX_FILINGS, EmulatorProcess, Fault
from tests.chaos.amount import number
from tests.chaos.object_store import ObjectStore, environment

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]
CONCURRENCY = 32
KILLS = 4
"""In each half of the night."""


class Night:
    """Attempts of one batch, and what the service and the store saw of them."""

    def __init__(self, python: Path, emulator: EmulatorProcess, store: ObjectStore, repository: Path) -> None:
        self._python, self._emulator = python, emulator
        self._repository = repository
        self._folder = tempfile.TemporaryDirectory(prefix="llamachat-night-")
        connection = {**json.loads(emulator.airflow_connection_json), "extra": json.dumps({"history_lag": 0})}
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(repository),
            "AIRFLOW_HOME": self._folder.name,
            "AIRFLOW_CONN_LLAMACLOUD_DEFAULT": json.dumps(connection),
            "AIRFLOW_CONN_AWS_DEFAULT": store.connection,
        }
        self._attempts = self.kills = 0
        self.arguments: dict[str, Any] = {
            "prompts_path": store.path("questions.csv"),
            "output_path": store.path("answers/results.jsonl"),
            "index_ids": [INDEX_FILINGS],
            "max_concurrency": CONCURRENCY,
            "min_answered": 1.0,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def _start(self, *, is_read: bool, **arguments: Any) -> subprocess.Popen[str]:
        self._attempts += 1
        given = json.dumps(self.arguments | arguments)
        command = [str(self._python), "-W", "ignore", "-m", "tests.chaos.night", str(self._attempts), given]
        errors = Path(self._folder.name, "log").open("a")  # noqa: SIM115  # the process keeps it open
        with errors:
            # A pipe that nobody reads stops the process once it is full.
            stdout = subprocess.PIPE if is_read else errors
            return subprocess.Popen(
                command, env=self._environment, cwd=self._repository, stdout=stdout, stderr=errors, text=True
            )

    def kill(self, posts: int, **arguments: Any) -> None:
        """Kill an attempt when the service has received so many prompts."""
        attempt = self._start(is_read=False, **arguments)
        while self._emulator.posts() < posts and attempt.poll() is None:
            time.sleep(0.2)
        assert attempt.poll() is None, f"it ended before it was killed: {self.said}"
        attempt.kill()
        attempt.wait()
        self.kills += 1

    def finish(self, **arguments: Any) -> dict[str, Any]:
        """Let an attempt end, and return what it printed."""
        said, _ = self._start(is_read=True, **arguments).communicate(timeout=3600)
        assert said.strip(), self.said
        result: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        return result

    @property
    def said(self) -> str:
        """The end of the log."""
        return Path(self._folder.name, "log").read_text()[-3000:]


def questions(count: int) -> bytes:
    """A CSV file. Its rows are of a size as real ones have."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("id", "prompt", "customer", "note"))
    writer.writerows((n, prompt(n), f"customer {n}", "as of last week, " * 20) for n in range(count))
    return text.getvalue().encode()


def prompt(n: int) -> str:
    """A prompt that the emulator's log can tell from the others."""
    return f"Question {n}: what was the revenue in Q3? {'Give the source and the page. ' * 10}"


def bursts(count: int) -> list[Fault]:
    """Short bursts of 429, and a few lost connections, spread over ``count`` prompts."""
    found = [
        Fault("status", endpoint="stream", status=429, retry_after="0", times=3, skip=count * n // 5) for n in range(4)
    ]
    return [*found, Fault("reset_after", endpoint="stream", times=10, skip=count // 7)]


def storm(emulator: EmulatorProcess, attempt: int) -> None:
    """Let every fourth attempt meet a rate limit that it exceeds."""
    emulator.update_settings(requests_per_minute=50 if attempt % 4 == 1 else None, rate_window=1.0)


def test_nothing_is_asked_twice_and_nothing_is_lost(repository: Path) -> None:
    if os.environ.get("CHAOS_SEED"):
        pytest.skip("CHAOS_SEED names a schedule of another kind")
    count = number("CHAOS_PROMPTS", 2000)
    seed = number("CHAOS_FIRST", random.SystemRandom().randrange(10**6))
    moments = random.Random(seed)
    print(f"seed {seed}, {count} prompts")
    python = environment(repository)
    began = time.monotonic()
    with (
        ObjectStore(python) as store,
        EmulatorProcess() as emulator,
        Night(python, emulator, store, repository) as night,
    ):
        store.write("questions.csv", questions(count))
        emulator.update_settings(turn_latency=0.05, events_per_turn=8)
        emulator.inject(*bursts(count // 2))
        half = count // 2
        for n in range(KILLS):
            storm(emulator, n)
            night.kill(half * n // KILLS + moments.randrange(half // KILLS), max_turns=half)
        first = night.finish(max_turns=half)
        asked = emulator.posts()
        assert first["error"] == "ChatBatchRefusedError", (first, night.said)
        assert first["manifest"]["stopped_by"] == "max_turns"
        assert (first["manifest"]["answered"], first["manifest"]["unasked"]) == (half, count - half)
        assert len(emulator.turns) == half
        again = night.finish(max_turns=half)
        assert (again["manifest"]["answered"], again["manifest"]["kept"]) == (half, half)
        assert emulator.posts() == asked
        emulator.inject(*bursts(count // 2))
        for n in range(KILLS):
            storm(emulator, n)
            night.kill(asked + half * n // KILLS + moments.randrange(half // KILLS))
        end = night.finish()
        assert end["error"] is None, (end, night.said)
        seconds = time.monotonic() - began
        turns = emulator.turns
        lines = [json.loads(line) for line in store.read("answers/results.jsonl").splitlines()]
        keys = store.keys()
        refused = sum(request.status == 429 for request in emulator.requests)
        posts = emulator.posts()
    print(f"{seconds:.0f} s, {night.kills} kills, {refused} times 429, {posts} posts, {len(turns)} turns")
    for name, manifest, peak in (("budget", first["manifest"], first["peak"]), ("end", end["manifest"], end["peak"])):
        print(
            f"{name}: {manifest['answered']} answered, {manifest['unasked']} unasked, {manifest['settled']} settled, {peak:.0f} MiB"
        )
    assert Counter(turn.prompt for turn in turns) == Counter(prompt(n) for n in range(count))
    assert [line["prompt"] for line in lines] == [prompt(n) for n in range(count)]
    assert {line["outcome"] for line in lines} == {"answered"}
    assert all(line["extra"]["customer"] == f"customer {line['id']}" for line in lines)
    assert len({line["session_id"] for line in lines}) == count
    assert sorted(keys) == ["answers/results.jsonl", "questions.csv"]
