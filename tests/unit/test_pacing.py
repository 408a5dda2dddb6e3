"""Triggers that start in the same moment are spread, and a single one does not wait."""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_llamachat.triggers import pacing

_sleep = asyncio.sleep


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; nobody waits for them."""
    found: list[float] = []

    async def note(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    return found


async def _start(count: int) -> None:
    await asyncio.gather(*(pacing.wait_for_start() for _ in range(count)))


def test_starts_are_spaced_within_one_loop_only(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "SPACING", 60.0)
    asyncio.run(_start(6))
    assert pauses == pytest.approx([60.0, 120.0, 180.0, 240.0, 300.0], abs=30.0)
    pauses.clear()
    asyncio.run(_start(1))
    assert pauses == []


def test_a_pause_resets_the_spacing(pauses: list[float]) -> None:
    async def twice() -> None:
        await _start(3)
        pauses.clear()
        await _sleep(4 * pacing.SPACING)
        await _start(1)

    asyncio.run(twice())
    assert pauses == []
