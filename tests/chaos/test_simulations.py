"""Thousands of random schedules of the batch engine on a simulated clock; :mod:`tests.batch.simulation` is what runs and judges them.

make chaos                                   # the long form
CHAOS_SIMULATION_SEED=123456 make chaos      # one simulation again, and what happened in it
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.batch.simulation.judging import judge
from tests.batch.simulation.lives import Life, live
from tests.chaos.amount import seeds

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

COLUMNS = ("simulations", "attempts", "kills", "posts", "turns", "failed turns", "prompts", "answered", "violations")


def counts(life: Life, violations: int) -> dict[str, int]:
    """What happened in one simulation."""
    lines = life.attempts[-1].lines
    return {
        "simulations": 1,
        "attempts": len(life.attempts),
        "kills": sum(lived.end == "killed" for lived in life.attempts),
        "posts": len(life.server.posts),
        "turns": len(life.server.turns),
        "failed turns": sum(turn.kind == "error" for turn in life.server.turns),
        "prompts": len(lines),
        "answered": sum(line["outcome"] == "answered" for line in lines),
        "violations": violations,
    }


def table(rows: dict[str, Counter[str]]) -> str:
    """What happened, as Markdown: a row for each way to choose sessions and one for all."""
    order = sorted(rows, key=lambda name: (name == "together", name))
    lines = [f"| session_mode | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
    lines += [f"| {name} | {' | '.join(str(rows[name][column]) for column in COLUMNS)} |" for name in order]
    return "\n".join(lines)


def test_no_simulation_breaks_a_promise() -> None:
    one = os.environ.get("CHAOS_SIMULATION_SEED")
    wanted = [int(one)] if one else seeds("CHAOS_SIMULATIONS", 300)
    if not wanted or (os.environ.get("CHAOS_SEED") and not one):
        pytest.skip("CHAOS_SEED names a schedule of another kind")
    rows: dict[str, Counter[str]] = {}
    known: Counter[str] = Counter()
    broken: dict[int, list[str]] = {}
    for seed in wanted:
        life = live(seed)
        verdict = judge(life)
        known.update(verdict.known)
        for name in (life.plan.session_mode, "together"):
            rows.setdefault(name, Counter()).update(counts(life, len(verdict.violations)))
        if verdict.violations:
            broken[seed] = verdict.violations
        if one:
            print(f"\n{life.describe()}")
    print(f"\nSeeds {wanted[0]} to {wanted[-1]}.\n\n{table(rows)}\n")
    print("\n".join(f"- {what}: {times}" for what, times in sorted(known.items())))
    for seed, violations in broken.items():
        print(f"\nCHAOS_SIMULATION_SEED={seed} make chaos")
        print("\n".join(f"    {violation}" for violation in violations))
    assert rows["together"]["simulations"] == len(wanted)
    assert not broken, f"broken promises with seeds {list(broken)}"
    assert one or rows["together"]["answered"] > rows["together"]["prompts"] / 2, "too little came through"
