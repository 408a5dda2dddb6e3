"""The throttle by the clock of a simulation: what a sliding window at the server would count, and how the pace comes back."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_llamachat.client.deadlines import NotSentError
from airflow_provider_llamachat.client.throttle import MAX_PAUSE, MAX_SPACING, Passage, Throttle


class Clock:
    """A time that goes on only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        await asyncio.sleep(0)


def throttle(clock: Clock, rate: float | None = None, window: float = 60.0) -> Throttle:
    return Throttle(rate, window=window, clock=clock, sleep=clock.sleep)


async def entered(gate: Throttle) -> Passage:
    return await Passage(gate).__aenter__()


def simulate(run: Callable[[Clock], Awaitable[None]]) -> None:
    async def go() -> None:
        await run(Clock())

    asyncio.run(go())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32))
def test_no_window_at_the_server_exceeds_the_limit(rate: int, seed: int) -> None:
    chance = random.Random(seed)
    arrivals: list[float] = []

    async def run(clock: Clock) -> None:
        gate = throttle(clock, rate)
        for _ in range(3 * rate):
            passage = await entered(gate)
            # A request needs a while to arrive, and its answer a while longer; others start meanwhile.
            travel = chance.uniform(0, 0.4)
            arrivals.append(clock.now + travel)
            clock.now += travel + chance.choice([0, 0, chance.uniform(0, 3)])
            passage.answered(200)

    simulate(run)
    for number, arrival in enumerate(arrivals[rate:], start=rate):
        # The rate-th request before it has left the window when this one arrives.
        assert arrival - arrivals[number - rate] >= 60.0 - 1e-6


def test_requests_are_spread_and_not_sent_as_a_burst() -> None:
    async def run(clock: Clock) -> None:
        gate = throttle(clock, 20)
        starts = []
        for _ in range(5):
            starts.append(clock.now)
            (await entered(gate)).answered(200)
        assert [round(start - starts[0], 6) for start in starts] == [0.0, 0.0, 3.0, 6.0, 9.0]
        assert gate.expected_wait() == pytest.approx(3.0)

    simulate(run)


def test_a_slow_response_counts_only_until_its_request_arrived() -> None:
    async def run(clock: Clock) -> None:
        gate = throttle(clock, 1)
        await entered(gate)
        assert gate.expected_wait() == pytest.approx(60.0)
        clock.now += 50
        assert gate.expected_wait() == pytest.approx(12.0)  # two seconds for the way

    simulate(run)


def test_without_a_rate_requests_are_not_limited_until_a_429() -> None:
    async def run(clock: Clock) -> None:
        gate = throttle(clock)
        begun = clock.now
        for _ in range(100):
            (await entered(gate)).answered(200)
        assert clock.now == begun
        assert gate.expected_wait() == 0.0
        late = await entered(gate)
        (await entered(gate)).answered(429, 10.0)
        assert gate.expected_wait() == pytest.approx(10.5)
        # Sent before the pace was lowered: it may prolong the pause, but says nothing about the new pace.
        spacing = gate.spacing
        late.answered(429, 20.0)
        assert gate.spacing == spacing == pytest.approx(0.1)
        assert gate.expected_wait() == pytest.approx(20.5)
        await entered(gate)
        assert clock.now == pytest.approx(begun + 20.5)
        assert gate.refused == 2

    simulate(run)


def test_after_a_429_the_rate_is_what_the_server_accepted_and_then_recovers() -> None:
    async def run(clock: Clock) -> None:
        gate = throttle(clock)
        for _ in range(20):
            (await entered(gate)).answered(200)
        (await entered(gate)).answered(429, 60.0)
        assert gate.spacing == pytest.approx(3.0)
        for _ in range(35):
            (await entered(gate)).answered(200)
        assert gate.spacing == pytest.approx(1.5, rel=0.05)
        for _ in range(500):
            (await entered(gate)).answered(200)
        assert gate.spacing == 0.0

    simulate(run)


def test_with_a_rate_the_throttle_recovers_to_that_rate() -> None:
    async def run(clock: Clock) -> None:
        gate = throttle(clock, 60)
        (await entered(gate)).answered(200)
        (await entered(gate)).answered(429, None)
        assert gate.spacing > 1.0
        for _ in range(100):
            (await entered(gate)).answered(200)
        assert gate.spacing == 1.0

    simulate(run)


def test_consecutive_429s_lengthen_pause_and_spacing_up_to_a_limit() -> None:
    async def run(clock: Clock) -> None:
        gate = throttle(clock)
        waits, spacings = [], []
        for _ in range(14):
            (await entered(gate)).answered(429)
            waits.append(gate.expected_wait())
            spacings.append(gate.spacing)
        assert waits[:3] == pytest.approx([2.1, 4.2, 8.4])
        assert max(waits) == pytest.approx(64.5)
        assert spacings == sorted(spacings)
        assert spacings[0] == 0.25
        assert spacings[-1] == MAX_SPACING
        (await entered(gate)).answered(429, 10_000.0)
        assert gate.expected_wait() <= MAX_PAUSE + 1

    simulate(run)


def test_a_429_also_delays_requests_that_are_waiting() -> None:
    async def run(clock: Clock) -> None:
        gate = throttle(clock, 60)
        first = await entered(gate)
        passed: list[float] = []

        async def follow() -> None:
            (await entered(gate)).answered(200)
            passed.append(clock.now)

        begun = clock.now
        waiting = [asyncio.create_task(follow()) for _ in range(3)]
        await asyncio.sleep(0)
        first.answered(429, 30.0)
        await asyncio.gather(*waiting)
        assert passed[0] - begun >= 30.0
        assert passed == sorted(passed)

    simulate(run)


def test_a_request_counts_exactly_once_whatever_its_result() -> None:
    async def run(clock: Clock) -> None:
        gate = throttle(clock, 2)
        with pytest.raises(ConnectionError):
            async with Passage(gate):
                raise ConnectionError
        async with Passage(gate) as passage:
            passage.answered(503)
            passage.answered(429, 100.0)
        assert gate.refused == 0
        assert gate.expected_wait() > 20
        async with Passage(None) as free:
            free.answered(429, 100.0)

    simulate(run)


def test_a_request_that_is_cancelled_or_late_while_it_waits_leaves_no_trace() -> None:
    async def run() -> None:
        gate = Throttle(60, window=60.0)
        async with Passage(gate):
            pass
        wait = gate.expected_wait()
        with pytest.raises(NotSentError):
            async with Passage(gate, time.time() + 0.05):
                pytest.fail("nothing may be sent")
        waiting = asyncio.create_task(entered(gate))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert wait - 1.0 < gate.expected_wait() <= wait

    asyncio.run(run())
