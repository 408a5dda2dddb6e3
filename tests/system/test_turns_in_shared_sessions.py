"""Mapped tasks that share busy sessions on a real Airflow: each prompt is paid for once, and each task gets its own answer.

The server refuses a turn in a session where another one is running. Its log of turns is the judge.

``BUSY_TASKS`` says how many tasks there are, and ``BUSY_SESSIONS`` how many sessions they share.
"""

from __future__ import annotations

from collections import Counter

import pytest

from airflow_provider_llamachat.testing import EmulatorProcess
from tests.chaos.amount import number
from tests.chaos.judging import wrong_answer
from tests.chaos.plans import INDEX, documents, prompt
from tests.system.stack import AirflowStack
from tests.system.waiting import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
TASKS = number("BUSY_TASKS", 12)
SESSIONS = number("BUSY_SESSIONS", 3)
LATENCY = 1.0
# How a trigger that starts late may end (docs/RELIABILITY.md); how many do is up to the machine.
FOREIGN = "Another prompt stands in the session where this one should."


@pytest.fixture
def busy(emulator: EmulatorProcess) -> EmulatorProcess:
    emulator.reset()
    emulator.add_index(INDEX, documents=documents(TASKS))
    emulator.settings.update(concurrent_turns="refuse", turn_latency=LATENCY)
    return emulator


def refusals(busy: EmulatorProcess) -> int:
    return sum(request.status == 409 for request in busy.requests)


def ask_all(stack: AirflowStack, dag_id: str) -> str:
    """Start a run. Tasks of one session are next to each other, so that they run at the same time."""
    each = -(-TASKS // SESSIONS)
    prompts = [prompt(index) for index in range(TASKS)]
    return stack.trigger(dag_id, {"prompts": [prompts[first : first + each] for first in range(0, TASKS, each)]})


def outcome(stack: AirflowStack, run: str, index: int, state: str) -> str:
    """Return how a task ended: its state, or why it failed."""
    log = stack.task_log(run, "ask", map_index=index) if state == "failed" else ""
    if log and FOREIGN not in log:
        print(f"Task {index} failed:\n{log[-3000:]}")
    return "foreign" if FOREIGN in log else state


def outcomes(stack: AirflowStack, run: str, busy: EmulatorProcess) -> Counter[str]:
    """Count how the tasks ended, after comparing them with the turns.

    A task that succeeded has the answer to its own prompt, which was asked once. The prompts of the others were not asked.
    """
    states = stack.task_states(run)
    ends = {index: outcome(stack, run, index, states[f"ask[{index}]"]) for index in range(TASKS)}
    print(
        f"| {TASKS} tasks, {SESSIONS} sessions | {dict(Counter(ends.values()))} | turns completed {busy.completed()} "
        f"| times refused {refusals(busy)} |"
    )
    answered = [index for index, end in ends.items() if end == "success"]
    assert Counter(turn.prompt for turn in busy.turns) == Counter(map(prompt, answered))
    assert busy.completed() == len(answered)
    for index in answered:
        assert not list(wrong_answer(stack.xcom(run, "ask", map_index=index), index, TASKS))
    return Counter(ends.values())


def test_tasks_on_workers_each_get_their_own_answer(stack: AirflowStack, busy: EmulatorProcess) -> None:
    # However slow the machine is, the first turn lasts until another task has met it.
    busy.settings.turn_latency = 600.0
    run = ask_all(stack, "shared_sessions_direct")
    until(lambda: refusals(busy) > 0, "a task to meet another one's turn", timeout=120)
    busy.settings.turn_latency = LATENCY
    assert stack.wait(run, timeout=1200) == "success"
    assert outcomes(stack, run, busy) == {"success": TASKS}


def test_deferred_tasks_get_their_own_answer_or_fail_unpaid(stack: AirflowStack, busy: EmulatorProcess) -> None:
    run = ask_all(stack, "shared_sessions_deferred")
    stack.wait(run, timeout=1200)
    assert set(outcomes(stack, run, busy)) <= {"success", "foreign"}
