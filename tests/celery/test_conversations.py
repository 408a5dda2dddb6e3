"""Many conversations at once on two Celery workers, one of which dies half-way: each is answered, and none is paid for twice.

A turn lasts longer than the broker's visibility timeout. So Redis gives the tasks that wait for one to a worker again and again,
those of the living worker as well as those of the dead one.

``CELERY_CONVERSATIONS`` says how many; half of them wait on a worker, half in the triggerer.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_llamachat.testing import EmulatorProcess
from tests.celery.judging import Conversation, Evidence, judge
from tests.chaos.amount import number
from tests.chaos.lanes import KEY
from tests.chaos.plans import INDEX, documents, prompt
from tests.system.celery_workers import CeleryWorkers
from tests.system.processes import freeze, tree
from tests.system.services import postgresql, redis
from tests.system.stack import AirflowStack

pytestmark = [pytest.mark.celery, pytest.mark.timeout(1200)]
LATENCY = 12.0
VISIBILITY_TIMEOUT = 5
WORKERS = ("celery-worker-1", "celery-worker-2")
TASKS = ("create", "ask", "delete")
DAGS = ("celery_worker", "celery_trigger")


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorProcess]:
    with EmulatorProcess(api_keys=[KEY]) as running:
        yield running


@pytest.fixture(scope="module")
def stack(emulator: EmulatorProcess) -> Iterator[AirflowStack]:
    with postgresql() as database, redis() as broker:
        workers = CeleryWorkers(broker, WORKERS, visibility_timeout=VISIBILITY_TIMEOUT)
        with AirflowStack(
            dags=[Path(__file__).parent / "dags" / "conversations.py"],
            database_url=f"postgresql+psycopg2://{database}",
            # Forty processes on two processors are late now and then; a task that only is late is not to be taken for dead.
            heartbeat_timeout=20,
            parallelism=workers.concurrency * len(WORKERS),
            celery=workers,
        ) as running:
            running.set_connection("llamacloud_default", emulator.airflow_connection_json)
            started = [running.pid(name) for name in WORKERS]
            yield running
        assert not [process for pid in started for process in tree(pid)]


@dataclass(frozen=True)
class Killed:
    """What a worker was doing when it was killed.

    :ivar asked, answered: conversations that had their turn, and their answer, by then.
    :ivar tasks: task and vault of each task that ran on it.
    :ivar in_flight: the vaults among these whose turn was running.
    """

    worker: str
    asked: int
    answered: int
    tasks: list[tuple[str, int]]
    in_flight: set[int]


def at_work(
    stack: AirflowStack, emulator: EmulatorProcess, runs: dict[str, range], pids: set[int]
) -> tuple[list[tuple[str, int]], set[int]]:
    """Return task and vault of each task that one of these processes runs, and the vaults whose turn such a task waits for."""
    tasks = [
        (task["task_id"].removeprefix("conversation."), runs[run][task["map_index"]])
        for dag_id, run in zip(DAGS, runs, strict=True)
        for task in stack.api.task_instances(dag_id, run)
        if task["state"] == "running" and task["pid"] in pids and task["map_index"] >= 0
    ]
    turns = {turn.prompt for turn in emulator.turns if turn.state == "running"}
    return tasks, {vault for name, vault in tasks if name == "ask" and prompt(vault) in turns}


def kill_half_way(stack: AirflowStack, emulator: EmulatorProcess, runs: dict[str, range]) -> Killed:
    """Kill a worker with turns in flight, once half of the conversations are asked, and leave it dead."""
    wanted = sum(map(len, runs.values()))
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and emulator.completed() < wanted:
        time.sleep(0.5)
        if len(emulator.turns) < wanted // 2:
            continue
        for worker in WORKERS:
            pids = {process.pid for process in tree(stack.pid(worker))}
            if len(at_work(stack, emulator, runs, pids)[1]) >= max(2, wanted // 10):
                # From here on it does nothing more, so that what is read afterwards is what it left undone.
                pids = {process.pid for process in freeze(stack.pid(worker))}
                stack.kill(worker)
                return Killed(worker, len(emulator.turns), emulator.completed(), *at_work(stack, emulator, runs, pids))
    raise AssertionError(f"no moment with turns in flight came; the turns are {emulator.turns}")


def read(stack: AirflowStack, dag_id: str, run: str, vaults: range) -> Iterator[Conversation]:
    """Yield each conversation of a run as Airflow shows it."""
    found = {(task["task_id"], task["map_index"]): task for task in stack.api.task_instances(dag_id, run)}
    for index, vault in enumerate(vaults):
        tasks = {name: found[f"conversation.{name}", index] for name in TASKS}
        xcoms: dict[str, Any] = {}
        for name, key in (("create", "session_id"), ("ask", "return_value"), ("ask", "usage")):
            try:
                xcoms[key] = stack.xcom(run, f"conversation.{name}", key, index)
            except KeyError:
                xcoms[key] = None
        yield Conversation(
            vault,
            {name: str(task["state"]) for name, task in tasks.items()},
            {name: task["try_number"] for name, task in tasks.items()},
            str(xcoms["session_id"]),
            xcoms["return_value"],
            xcoms["usage"],
        )


def redeliveries(stack: AirflowStack) -> int:
    """Return how many messages a worker took from the broker although one had taken them before."""
    logs = [(stack.home / "logs" / f"{name}.log").read_text(errors="replace") for name in WORKERS]
    taken = re.findall(r"Task execute_workload\[([^]]+)\] received", "\n".join(logs))
    return len(taken) - len(set(taken))


def test_a_worker_that_is_killed_costs_no_turn(stack: AirflowStack, emulator: EmulatorProcess) -> None:
    wanted = number("CELERY_CONVERSATIONS", 12)
    emulator.reset()
    emulator.add_index(INDEX, documents=documents(wanted))
    emulator.settings.turn_latency = LATENCY
    halves = (range(wanted // 2), range(wanted // 2, wanted))
    began = time.monotonic()
    runs = {
        stack.trigger(dag_id, {"questions": [prompt(vault) for vault in vaults]}): vaults
        for dag_id, vaults in zip(DAGS, halves, strict=True)
    }
    killed = kill_half_way(stack, emulator, runs)
    ends = {run: stack.wait(run, timeout=600) for run in runs}
    took = time.monotonic() - began

    conversations = [
        one
        for dag_id, (run, vaults) in zip(DAGS, runs.items(), strict=True)
        for one in read(stack, dag_id, run, vaults)
    ]
    left = emulator.sessions
    violations = list(judge(conversations, Evidence(emulator.turns, left)))
    again = redeliveries(stack)
    tasks = ", ".join(f"{count} {name}" for name, count in Counter(name for name, _ in killed.tasks).items())
    figures = {
        "conversations": wanted,
        "workers": f"{len(WORKERS)}, {killed.worker} killed",
        "asked, answered before": f"{killed.asked}, {killed.answered}",
        "tasks killed": tasks or "none",
        "turns in flight": len(killed.in_flight),
        "tries": sum(sum(one.tries.values()) for one in conversations),
        "redelivered": again,
        "POSTs": emulator.posts(),
        "turns completed": emulator.completed(),
        "sessions left": len(left),
        "violations": len(violations),
        "wall time": f"{took:.0f} s",
    }
    for row in (figures, ["---"] * len(figures), figures.values()):
        print("|", " | ".join(map(str, row)), "|", flush=True)

    assert not violations, violations
    assert set(ends.values()) == {"success"}
    # What the worker was killed with was tried again, and not asked again: the turn was there.
    asked = {one.vault: one.tries["ask"] for one in conversations}
    assert killed.in_flight
    assert all(asked[vault] > 1 for vault in killed.in_flight), asked
    assert {vault: emulator.posts(prompt=prompt(vault)) for vault in killed.in_flight} == dict.fromkeys(
        killed.in_flight, 1
    )
    assert again, "no task was delivered twice, so nothing was shown of that"
    for place, text in (("database", stack.metadata_dump()), ("logs", stack.logs())):
        assert "conversation.ask" in text
        assert KEY not in text, f"the key is in the {place}"
