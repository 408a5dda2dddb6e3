"""Random schedules on a whole Airflow: its workers and its triggerer are killed while the server misbehaves.

Long form only (``CHAOS_SYSTEM`` says how many): what Airflow takes to notice a lost worker makes each of them last a minute.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_llamachat.testing import EmulatorProcess, Fault
from tests.chaos.amount import seeds
from tests.chaos.judging import wrong_answer
from tests.chaos.lanes import KEY
from tests.chaos.plans import INDEX, VAULTS, documents, prompt
from tests.system.stack import AirflowStack

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]
PREFIX = "system-"


@dataclass(frozen=True)
class Plan:
    """One run of a Dag, what goes wrong in it, and which task's worker (or whether the triggerer) is killed after how many seconds."""

    seed: int
    dag: str
    vaults: tuple[int, ...]
    settings: dict[str, Any]
    faults: tuple[Fault, ...]
    victim: str
    after: float


def plan(seed: int) -> Plan:
    dice = random.Random(f"{PREFIX}{seed}")
    dag = dice.choice(("worker", "trigger", "trigger", "batch"))
    victim = {
        "worker": ("create", "ask_0", "ask_1", "delete"),
        "trigger": ("triggerer", "triggerer", "ask_0"),
        "batch": ("batch",),
    }
    faults = (
        Fault("status", endpoint="stream", status=503),
        Fault("stream_reset", endpoint="stream", after_events=dice.choice((0, 2, 5))),
        Fault("stall", endpoint="stream", after_events=dice.choice((0, 2, 5))),
        Fault("cut", endpoint="stream", after_events=3),
        Fault("error_stop", endpoint="stream", after_events=2),
        Fault("reset_before", endpoint="get"),
        Fault("hang", endpoint="create"),
        Fault("reset_after", endpoint="delete"),
    )
    return Plan(
        seed,
        dag,
        tuple(dice.sample(range(VAULTS), 6 if dag == "batch" else 2)),
        {"survives_disconnect": dice.random() < 0.8, "turn_latency": dice.uniform(2.0, 7.0), "keepalive_interval": 1.0},
        tuple(dice.sample(faults, dice.choice((0, 1, 1, 2)))),
        dice.choice(victim[dag]),
        dice.uniform(0.0, 6.0),
    )


@pytest.fixture(scope="module")
def wanted() -> list[int]:
    found = seeds("CHAOS_SYSTEM", 0, prefix=PREFIX)
    if not found:
        pytest.skip("no schedules on a whole Airflow are asked for (CHAOS_SYSTEM)")
    return found


@pytest.fixture(scope="module")
def stack(wanted: list[int], emulator: EmulatorProcess) -> Iterator[AirflowStack]:
    connection = {**json.loads(emulator.airflow_connection_json), "extra": json.dumps({"timeout": 4, "max_retries": 2})}
    environment = {"AIRFLOW_CONN_LLAMACLOUD_DEFAULT": json.dumps(connection)}
    with AirflowStack(dags=[Path(__file__).parent / "dags" / "life.py"], environment=environment) as running:
        yield running


def start(stack: AirflowStack, emulator: EmulatorProcess, chosen: Plan, output: Path) -> str:
    """Set the server up, start the run, and kill who is to be killed, if that one is still there."""
    emulator.reset()
    emulator.add_index(INDEX, documents=documents())
    emulator.update_settings(**chosen.settings)
    emulator.inject(*chosen.faults)
    conf = {"prompts": [prompt(vault) for vault in chosen.vaults], "output_path": str(output)}
    run = stack.trigger(f"chaos_{chosen.dag}", conf)
    if chosen.victim == "triggerer":
        stack.wait_for_task(run, "ask_0", "deferred", "success", timeout=90)
        time.sleep(chosen.after)
        stack.kill("triggerer")
        stack.restart("triggerer")
        return run
    stack.wait_for_task(run, chosen.victim, "running", "deferred", "success", "upstream_failed", timeout=180)
    time.sleep(min(chosen.after, 0.3) if chosen.victim in {"create", "delete"} else chosen.after)
    for pid in reversed(stack.worker_pids(run, chosen.victim)):
        os.kill(pid, 9)
    return run


def judge(stack: AirflowStack, emulator: EmulatorProcess, chosen: Plan, run: str, output: Path) -> Iterator[str]:
    """Yield what is wrong."""
    turns = emulator.turns
    for vault in chosen.vaults:
        completed = [turn for turn in turns if turn.prompt == prompt(vault) and turn.state == "completed"]
        if len(completed) > 1:
            yield f"{prompt(vault)!r} was completed {len(completed)} times"
    states = stack.task_states(run)
    if chosen.dag == "batch":
        if states["batch"] == "success":
            lines = [json.loads(line) for line in output.read_text().splitlines()]
            for vault, line in zip(chosen.vaults, lines, strict=True):
                if line["outcome"] == "answered":
                    yield from wrong_answer(line["answer"], vault)
    else:
        for number, vault in enumerate(chosen.vaults):
            if states[f"ask_{number}"] == "success":
                yield from wrong_answer(stack.xcom(run, f"ask_{number}"), vault)
    logs = stack.logs()
    for session_id, session in emulator.sessions.items():
        if session["events"] and session_id not in logs:
            yield f"session {session_id} was left over, and no log names it"


def test_no_schedule_on_a_whole_airflow_breaks_a_promise(
    wanted: list[int], stack: AirflowStack, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    broken: dict[str, list[str]] = {}
    ends: Counter[str] = Counter()
    print("\n| seed | Dag | killed | faults | end | tries | turns | violations |\n|---|---|---|---|---|---:|---:|---:|")
    for seed in wanted:
        chosen = plan(seed)
        output = tmp_path / f"{seed}.jsonl"
        run = start(stack, emulator, chosen, output)
        end = stack.wait(run, timeout=400)
        violations = list(judge(stack, emulator, chosen, run, output))
        tries = sum(task["try_number"] for task in stack.api.task_instances(f"chaos_{chosen.dag}", run))
        faults = ", ".join(fault.kind for fault in chosen.faults) or "none"
        print(
            f"| {PREFIX}{seed} | {chosen.dag} | {chosen.victim} after {chosen.after:.1f} s | {faults} | {end} | {tries} | "
            f"{len(emulator.turns)} | {len(violations)} |",
            flush=True,
        )
        ends[end] += 1
        if violations:
            broken[f"CHAOS_SEED={PREFIX}{seed} make chaos"] = violations
    for place, text in (("database", stack.metadata_dump()), ("logs", stack.logs())):
        if KEY in text:
            broken[place] = ["the key is in there"]
    assert not broken, broken
    assert ends["success"] or len(wanted) == 1
