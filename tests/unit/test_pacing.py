"""Triggers that start in the same moment are spread, and a single one does not wait."""

from __future__ import annotations

import asyncio

from airflow_provider_llamachat.triggers import pacing


async def _starts(count: int) -> list[float]:
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one() -> float:
        await pacing.wait_for_start()
        return loop.time() - began

    return sorted(await asyncio.gather(*(one() for _ in range(count))))


def test_starts_are_spaced_within_one_loop_only() -> None:
    starts = asyncio.run(_starts(30))
    assert starts[0] < pacing.SPACING
    assert starts[-1] >= 29 * pacing.SPACING * 0.9
    assert asyncio.run(_starts(1))[0] < pacing.SPACING


def test_a_pause_resets_the_spacing() -> None:
    async def twice() -> float:
        await _starts(3)
        await asyncio.sleep(5 * pacing.SPACING)
        return (await _starts(1))[0]

    assert asyncio.run(twice()) < pacing.SPACING
