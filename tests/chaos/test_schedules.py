"""Hundreds of random schedules over the whole life of conversations and batches; the emulator's log is the judge.

make chaos                      # the long form
CHAOS_SEED=123456 make chaos    # one schedule again
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.chaos.amount import number, seeds
from tests.chaos.lanes import Verdict, run_lanes

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

COLUMNS = (
    "schedules",
    "requests",
    "faults",
    "kills",
    "restarts",
    "tries",
    "asked",
    "answered",
    "clear errors",
    "turns",
    "violations",
)


def table(verdicts: Iterable[Verdict]) -> str:
    """What happened, as Markdown: a row for each shape and one for all."""
    rows: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        for name in (verdict.shape, "together"):
            rows.setdefault(name, Counter()).update(verdict.counts)
    order = sorted(rows, key=lambda name: (name == "together", name))
    lines = [f"| where it is asked | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
    lines += [f"| {name} | {' | '.join(str(rows[name][column]) for column in COLUMNS)} |" for name in order]
    return "\n".join(lines)


def test_no_schedule_breaks_a_promise(tmp_path: Path) -> None:
    wanted = seeds("CHAOS_SCHEDULES", 60)
    if not wanted:
        pytest.skip("CHAOS_SEED names a schedule of another kind")
    verdicts = run_lanes(wanted, tmp_path, number("CHAOS_LANES", 6))
    print(f"\nSeeds {wanted[0]} to {wanted[-1]}.\n\n{table(verdicts)}\n")
    known: Counter[str] = Counter()
    for verdict in verdicts:
        known.update(verdict.known)
    print("\n".join(f"- {what}: {times}" for what, times in sorted(known.items()) if times))
    broken = [verdict for verdict in verdicts if verdict.violations]
    for verdict in broken:
        print(f"\nCHAOS_SEED={verdict.seed} make chaos  ({verdict.shape}; kept in {tmp_path / str(verdict.seed)})")
        print("\n".join(f"    {violation}" for violation in verdict.violations))
    assert len(verdicts) == len(wanted)
    assert not broken, f"broken promises with seeds {[verdict.seed for verdict in broken]}"
    asked = sum(verdict.counts["asked"] for verdict in verdicts)
    assert len(wanted) == 1 or sum(verdict.counts["answered"] for verdict in verdicts) > asked / 3, (
        "too little came through"
    )
