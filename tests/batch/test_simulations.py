"""Random schedules of the real engine against a simulated server; ``make chaos`` runs more of them, with seeds of its own."""

from __future__ import annotations

import pytest

from tests.batch.simulation.judging import judge
from tests.batch.simulation.lives import live
from tests.batch.simulation.plans import plan

BLOCKS = 6
IN_A_BLOCK = 20


@pytest.mark.parametrize("first", range(0, BLOCKS * IN_A_BLOCK, IN_A_BLOCK))
def test_no_schedule_breaks_a_promise(first: int) -> None:
    verdicts = {seed: judge(live(seed)) for seed in range(first, first + IN_A_BLOCK)}
    broken = {seed: verdict.violations for seed, verdict in verdicts.items() if verdict.violations}
    assert not broken, f"CHAOS_SIMULATION_SEED={next(iter(broken))} make chaos says what happened"


def test_the_schedules_have_what_breaks_promises() -> None:
    lives = [live(seed) for seed in range(60)]
    ends = [lived.end for life in lives for lived in life.attempts]
    turns = [turn for life in lives for turn in life.server.turns]
    assert ends.count("killed") > 30
    assert sum(life.attempts[-1].is_complete for life in lives) > 30
    assert {turn.kind for turn in turns} == {"ok", "error", "dies"}
    assert sum(not turn.is_seen for turn in turns) > 30
    assert {life.plan.session_mode for life in lives} == {"shared", "per_prompt"}
    assert any(turn.attempt > 0 and turn.kind == "ok" for turn in turns)


def test_a_seed_gives_the_same_schedule_and_the_same_life_each_time() -> None:
    assert len({repr(plan(seed)) for seed in range(100)}) == 100
    for seed in range(10):
        first, second = live(seed), live(seed)
        assert first.plan == second.plan
        assert first.describe() == second.describe()
