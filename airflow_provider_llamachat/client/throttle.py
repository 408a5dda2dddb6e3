"""A gate before every HTTP request of a client: paces a whole batch, and slows all of it down when the server says 429.

Without it a rate limit is found out by each of many concurrent turns alone, again and again; with it the first refusal
holds back all of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from airflow_provider_llamachat.client.deadlines import NotSentError

log = logging.getLogger(__name__)

MAX_PAUSE = 300.0
"""Seconds that one ``Retry-After`` is obeyed at most."""
MAX_SPACING = 30.0
"""Seconds between two requests at most, however often the server refuses."""
# Seconds after its start by which a request has surely reached the server, although the answer's first byte is not there yet.
_TRAVEL = 2.0
# Accepted requests that are looked back at when the server's limit has to be guessed.
_REMEMBERED = 4096
# Factor on the spacing with each accepted request: half of it is won back in about 35 requests.
_RECOVERY = 0.98
# Seconds between two requests after a refusal that nothing is known about: others may have used the limit up.
_FIRST_SPACING = 0.25


class Passage:
    """One request's way through the gate (or, without a throttle, past it)."""

    __slots__ = ("_leave", "arrived_by", "started")

    def __init__(self, leave: Callable[[Passage, int | None, float | None], None] | None, started: float = 0.0) -> None:
        self._leave = leave
        self.started = started
        self.arrived_by: float | None = None

    def answered(self, status: int | None, retry_after: float | None = None) -> None:
        """Tell what came of the request; only the first telling counts.

        :param status: the HTTP status; None when there was no answer.
        :param retry_after: seconds that a 429 asked to wait, None when it did not say.
        """
        leave, self._leave = self._leave, None
        if leave is not None:
            leave(self, status, retry_after)


class Throttle:
    """Lets requests through at a bounded pace, first come first served. Belongs to one event loop.

    With ``requests_per_minute`` requests are spread evenly and, on top, no sliding window of a minute *at the server* ever
    holds more of them: a request counts until a minute after the server had it, not after we sent it. All requests count,
    not turns alone. Without it requests pass freely until the server answers 429.

    A 429 stops everything for ``Retry-After`` (or a growing back-off), then lets requests through at the pace the server had
    accepted before it refused, and recovers from there request by request.

    :param requests_per_minute: how many requests a minute may hold; None for no limit of our own.
    :param window: length of that "minute" in seconds.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        *,
        window: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.refused = 0
        self._window = window
        self._limit = None if requests_per_minute is None else max(1, int(requests_per_minute))
        self._base = 0.0 if requests_per_minute is None else window / requests_per_minute
        self._spacing = self._base
        self._clock = clock
        self._sleep = sleep
        self._door = asyncio.Lock()
        self._waiting = 0
        self._next = 0.0
        self._paused_until = 0.0
        self._slowed_at = float("-inf")
        self._in_a_row = 0
        self._recent: deque[Passage] = deque(maxlen=self._limit or 1)
        self._accepted: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def spacing(self) -> float:
        """Seconds between two requests at present."""
        return self._spacing

    def expected_wait(self) -> float:
        """About how long a request that comes now will wait, in seconds; limits on a turn's time should allow for it."""
        return max(0.0, self._delay(self._clock())) + self._waiting * self._spacing

    async def enter(self) -> Passage:
        """Wait until a request may be sent."""
        self._waiting += 1
        try:
            async with self._door:
                # A refusal of another request may prolong the wait while we sleep.
                while (delay := self._delay(self._clock())) > 0:
                    await self._sleep(delay)
                now = self._clock()
                passage = Passage(self._leave, now)
                self._next = now + self._spacing
                self._recent.append(passage)
                return passage
        finally:
            self._waiting -= 1

    def _delay(self, now: float) -> float:
        delay = max(self._next, self._paused_until) - now
        if self._limit is not None and len(self._recent) == self._limit:
            oldest = self._recent[0]
            arrived = oldest.arrived_by if oldest.arrived_by is not None else min(now, oldest.started + _TRAVEL)
            delay = max(delay, arrived + self._window - now)
        return delay

    def _leave(self, passage: Passage, status: int | None, retry_after: float | None) -> None:
        now = self._clock()
        passage.arrived_by = min(now, passage.started + _TRAVEL)
        if status == 429:
            self._refuse(passage, now, retry_after)
        elif status is not None and status < 500:
            self._accepted.append(now)
            self._in_a_row = 0
            if self._spacing > self._base:
                recovered = self._spacing * _RECOVERY
                self._spacing = self._base if recovered < max(self._base, 0.002) else recovered

    def _refuse(self, passage: Passage, now: float, retry_after: float | None) -> None:
        self.refused += 1
        fresh = passage.started > self._slowed_at
        if fresh:
            self._in_a_row += 1
        pause = min(2.0 ** min(self._in_a_row, 6) if retry_after is None else retry_after, MAX_PAUSE)
        # Half a second covers a Retry-After that was rounded down and clocks that differ a little.
        self._paused_until = max(self._paused_until, now + pause + min(0.5, 0.05 * pause))
        if not fresh:
            return  # sent before the pace was lowered: it says nothing about the new pace
        # The server accepted so many in the span that it now wants us to wait for: that is its pace.
        span = max(pause, 0.1)
        accepted = sum(1 for moment in self._accepted if moment > now - span)
        pace = span / accepted if accepted else max(_FIRST_SPACING, 2 * self._spacing)
        self._spacing = min(MAX_SPACING, max(pace, 1.3 * self._spacing))
        self._slowed_at = now
        log.warning(
            "LlamaCloud limits the rate (429): all requests pause for %.1f s and then go on at about %.0f a minute. "
            "requests_per_minute keeps a batch below the limit from the start.",
            self._paused_until - now,
            60.0 / self._spacing,
        )


@contextmanager
def passing(_throttle: None, _deadline: float | None = None) -> Iterator[Passage]:
    """Synchronous form of :func:`apassing`: threads have no gate."""
    yield Passage(None)


@asynccontextmanager
async def apassing(throttle: Throttle | None, deadline: float | None = None) -> AsyncIterator[Passage]:
    """Wait at the gate, if there is one, and let the request be counted whatever comes of it.

    :param deadline: epoch seconds at which the waiting ends.
    :raises NotSentError: it came before the gate opened.
    """
    if throttle is None:
        passage = Passage(None)
    else:
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.time()):
                passage = await throttle.enter()
        except TimeoutError:
            raise NotSentError from None
    try:
        yield passage
    finally:
        passage.answered(None)
