"""``kill -9`` at any moment: every prompt is answered, none is paid for twice, and no line is lost or doubled."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_llamachat.testing import LlamaCloudEmulator
from tests.batch import worker
from tests.batch.conftest import prompts

COUNT = 240
CONCURRENCY = 8
KILLS = 10


# Each try is a process of its own, forked from one that has everything imported and runs nothing.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.batch.worker"])


class Try:
    """One try: a process that can be killed."""

    def __init__(self, order: worker.Order) -> None:
        self._line, other = _processes.Pipe()
        self._process = _processes.Process(target=worker.run, args=(order, other), daemon=True)
        self._process.start()
        other.close()
        assert self._line.poll(60)
        assert self._line.recv() == "begun"

    def kill(self) -> None:
        self._process.kill()
        self.wait_for_death()

    def wait_for_death(self) -> None:
        self._process.join(60)
        assert self._process.exitcode == -signal.SIGKILL

    def finish(self) -> dict[str, int]:
        assert self._line.poll(120)
        numbers: dict[str, int] = self._line.recv()
        self._process.join(60)
        assert self._process.exitcode == 0
        return numbers


class Tries:
    """Tries of one batch."""

    def __init__(
        self, emulator: LlamaCloudEmulator, output: Path, count: int = COUNT, history_lag: float = 0.0
    ) -> None:
        self._order = worker.Order(
            emulator.url, emulator.api_key, str(output), count, CONCURRENCY, history_lag=history_lag
        )
        self.output = output

    def start(self, point: str = "") -> Try:
        return Try(replace(self._order, point=point))

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_bytes().split(b"\n") if line]

    @property
    def accepted(self) -> int:
        """How many prompts the journal knows to have been taken."""
        parts = list(Path(f"{self.output}.parts").glob("*/part-*.jsonl"))
        return sum(part.read_bytes().count(b'"kind":"accepted"') for part in parts)


def settle_down(emulator: LlamaCloudEmulator) -> None:
    """Wait until no turn runs any more."""
    deadline = time.time() + 30
    while any(turn.state == "running" for turn in emulator.turns):
        assert time.time() < deadline
        time.sleep(0.05)


def wait_for(check: Callable[[], bool]) -> None:
    """Wait for how far a try has got, not for a time: a slow machine gets as far before it is killed as a fast one."""
    deadline = time.time() + 60
    while not check():
        assert time.time() < deadline
        time.sleep(0.005)


def judge(emulator: LlamaCloudEmulator, tries: Tries, count: int) -> None:
    """The emulator's log against the results."""
    settle_down(emulator)
    wanted = [item["prompt"] for item in prompts(count)]
    assert [line["prompt"] for line in tries.lines] == wanted
    assert {line["outcome"] for line in tries.lines} == {"answered"}
    assert Counter(turn.prompt for turn in emulator.turns if turn.state == "completed") == Counter(wanted)
    assert len(emulator.turns) == count
    by_session = {turn.session_id: turn.prompt for turn in emulator.turns}
    assert all(by_session[line["session_id"]] == line["prompt"] for line in tries.lines)
    assert not list(tries.output.parent.glob("*.parts"))
    assert [path.name for path in tries.output.parent.iterdir()] == [tries.output.name]


@pytest.mark.long
def test_killed_ten_times_at_random_moments(tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    emulator = llamacloud_emulator
    emulator.settings.turn_latency = 0.15
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)
    tries = Tries(emulator, tmp_path / "results.jsonl")
    running = []
    for _ in range(KILLS):
        asked = emulator.posts() + moments.randrange(0, 12)
        attempt = tries.start()
        wait_for(lambda: emulator.posts() >= asked)  # noqa: B023  # called in this round only
        time.sleep(moments.uniform(0.0, 0.05))
        running.append(sum(turn.state == "running" for turn in emulator.turns))
        attempt.kill()
    assert not tries.output.exists(), "it ended before it was killed: ask more prompts"
    assert sum(running) > 0, "no kill met a turn in flight"
    end = tries.start().finish()
    print(f"turns in flight at the kills: {running}; last try: {end}")
    judge(emulator, tries, COUNT)
    assert len(emulator.turns) == COUNT  # a post that was killed before its body arrived is no turn


@pytest.mark.long
@pytest.mark.parametrize("is_journalled", [True, False])
def test_killed_while_the_history_does_not_show_the_turns_yet(
    is_journalled: bool, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.update(turn_latency=2.5, records="end")
    # Without a sign of acceptance in the journal, the history has to get the time that it needs.
    tries = Tries(emulator, tmp_path / "results.jsonl", CONCURRENCY, history_lag=0.0 if is_journalled else 5.0)
    attempt = tries.start()
    wait_for(lambda: sum(turn.state == "running" for turn in emulator.turns) == CONCURRENCY)
    if is_journalled:
        wait_for(lambda: tries.accepted == CONCURRENCY)
    attempt.kill()
    assert sum(turn.state == "running" for turn in emulator.turns) == CONCURRENCY
    tries.start().finish()
    judge(emulator, tries, CONCURRENCY)


@pytest.mark.long
@pytest.mark.parametrize(
    "point",
    [
        "write:before:1",
        "write:after:1",
        "write:before:3",
        "write:after:3",
        "hand_over:before:1",
        "hand_over:after:1",
        "forget:before:1",
        "forget:half",
        "forget:after:1",
    ],
)
def test_killed_at_each_step_of_the_journal(
    point: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.turn_latency = 0.1
    tries = Tries(llamacloud_emulator, tmp_path / "results.jsonl", 24)
    tries.start(point).wait_for_death()
    if point != "forget:after:1":
        tries.start().finish()
    judge(llamacloud_emulator, tries, 24)
