"""Triggers that start in the same moment are spread, and a single one does not wait."""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_llamachat.triggers import pacing


@pytest.fixture(autouse=True)
def _slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a busy machine adds to a start is small beside this.
    monkeypatch.setattr(pacing, "SPACING", 0.1)


async def _starts(count: int) -> list[float]:
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one() -> float:
        await pacing.wait_for_start()
        return loop.time() - began

    return sorted(await asyncio.gather(*(one() for _ in range(count))))


def test_starts_are_spaced_within_one_loop_only() -> None:
    starts = asyncio.run(_starts(6))
    assert starts[0] < pacing.SPACING
    assert starts[-1] >= 5 * pacing.SPACING * 0.9
    assert asyncio.run(_starts(1))[0] < pacing.SPACING


def test_a_pause_resets_the_spacing() -> None:
    async def twice() -> float:
        await _starts(3)
        await asyncio.sleep(4 * pacing.SPACING)
        return (await _starts(1))[0]

    assert asyncio.run(twice()) < pacing.SPACING
