"""Runs many schedules side by side: each lane is a process with an emulator of its own, and what it finds goes to one queue."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from airflow_provider_llamachat.client.config import ssl_context
from airflow_provider_llamachat.testing import EmulatorControl, EmulatorProcess
from tests.chaos.dagruns import DagRun
from tests.chaos.judging import Evidence, Finding, judge
from tests.chaos.plans import INDEX, Schedule, documents, schedule

KEY = "llx-chaos-Jq3vT0pWzR8mYk1"
"""The key of these emulators: a text that nothing else contains."""


@dataclass
class Verdict:
    """What came of one schedule.

    :ivar counts: what happened, for the table.
    """

    seed: int
    shape: str
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)
    known: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


def run_schedule(chosen: Schedule, emulator: EmulatorControl, folder: Path) -> Verdict:
    """Run one schedule in an empty folder against an emulator, and judge it."""
    began = time.monotonic()
    emulator.reset()
    emulator.add_index(INDEX, documents=documents())
    emulator.update_settings(**chosen.settings)
    emulator.inject(*chosen.faults)
    extra = json.dumps(chosen.connection)
    connection = {**json.loads(emulator.airflow_connection_json), "extra": extra}
    os.environ["AIRFLOW_CONN_LLAMACLOUD_DEFAULT"] = json.dumps(connection)
    run = DagRun(chosen, folder)
    run.run()
    evidence = _evidence(emulator)
    finding = judge(run, evidence)
    if finding.violations:
        _keep(evidence, folder)
    return Verdict(
        chosen.seed,
        chosen.shape,
        time.monotonic() - began,
        finding.violations,
        dict(finding.known),
        _counts(run, evidence, finding),
    )


def _evidence(emulator: EmulatorControl) -> Evidence:
    deadline = time.monotonic() + 30
    turns = emulator.turns
    while any(turn.state == "running" for turn in turns):
        assert time.monotonic() < deadline, "turns run on and on"
        time.sleep(0.05)
        turns = emulator.turns
    return Evidence(emulator.requests, turns, emulator.sessions, KEY)


def _keep(evidence: Evidence, folder: Path) -> None:
    told = {
        "requests": [request.to_json() for request in evidence.requests],
        "turns": [turn.to_json() for turn in evidence.turns],
        "sessions": evidence.sessions,
    }
    (folder / "evidence.json").write_text(json.dumps(told, indent=1))


def _counts(run: DagRun, evidence: Evidence, finding: Finding) -> Counter[str]:
    counts: Counter[str] = Counter(schedules=1, violations=len(finding.violations))
    counts["faults"] = sum(request.fault is not None for request in evidence.requests)
    counts["requests"] = len(evidence.requests)
    counts["turns"] = len(evidence.turns)
    for task in run.tasks.values():
        counts["kills"] += task.kills
        counts["tries"] += len({process.try_number for process in task.processes})
        counts["restarts"] += sum(process.step == "trigger" and process.killed for process in task.processes)
        if task.task.kind == "ask":
            counts["asked"] += sum(end != "skipped" for end in task.ends)
            counts["answered"] += len(task.answers)
        elif task.task.kind == "batch" and task.ends[-1] != "skipped":
            counts["asked"] += len(task.task.vaults)
            counts["answered"] += sum(manifest["answered"] for manifest in task.answers)
        counts["clear errors"] += sum(
            process.result is not None and process.result["state"] == "failed" for process in task.processes
        )
    return counts


def _lane(seeds: list[int], folder: Path, line: Connection) -> None:
    try:
        with EmulatorProcess(api_keys=[KEY]) as emulator:
            for seed in seeds:
                place = folder / str(seed)
                place.mkdir(parents=True)
                try:
                    verdict = run_schedule(schedule(seed), emulator, place)
                except Exception:  # noqa: BLE001  # a schedule that cannot be run is reported like one that went wrong
                    verdict = Verdict(seed, schedule(seed).shape, violations=[traceback.format_exc()])
                if not verdict.violations:
                    shutil.rmtree(place)
                line.send(verdict)
    finally:
        line.close()


def run_lanes(seeds: Iterable[int], folder: Path, lanes: int) -> list[Verdict]:
    """Run the schedules of these seeds; those that found something keep their folder."""
    wanted = list(seeds)
    # Made once here, it is there in every process that is forked off.
    ssl_context()
    fork = multiprocessing.get_context("fork")
    lines: list[Connection] = []
    processes: list[Any] = []
    for number in range(min(lanes, len(wanted))):
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=_lane, args=(wanted[number::lanes], folder, theirs))
        process.start()
        theirs.close()
        lines.append(ours)
        processes.append(process)
    verdicts: list[Verdict] = []
    open_lines = list(lines)
    while open_lines:
        for line in wait(open_lines):
            assert isinstance(line, Connection)
            try:
                verdicts.append(line.recv())
            except EOFError:
                open_lines.remove(line)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0, f"a lane ended with {process.exitcode}"
    return sorted(verdicts, key=lambda verdict: verdict.seed)
