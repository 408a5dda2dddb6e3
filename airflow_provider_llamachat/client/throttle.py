"""Limits the request rate of a client, and slows a whole batch down when the server responds with 429.

Without it, each of many concurrent turns would hit the rate limit separately. With it, the first 429 slows down all of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

from airflow_provider_llamachat.client.deadlines import NotSentError

log = logging.getLogger(__name__)

MAX_PAUSE = 300.0
"""Maximum ``Retry-After`` in seconds."""
MAX_SPACING = 30.0
"""Maximum number of seconds between two requests."""
# Seconds after which a request is assumed to have reached the server.
_TRAVEL = 2.0
# Number of accepted requests that are used to estimate the server's limit.
_REMEMBERED = 4096
# Factor that is applied to the spacing after each accepted request. The spacing halves in about 35 requests.
_RECOVERY = 0.98
# Seconds between two requests after a 429 without earlier accepted requests. Other clients may have used up the limit.
_FIRST_SPACING = 0.25


class Passage:
    """Context manager for one request: waits until the throttle permits it, and reports its end to the throttle.

    :param throttle: None means no limit, as in a synchronous client.
    :param deadline: epoch seconds at which the waiting ends.
    """

    __slots__ = ("_deadline", "_throttle", "arrived_by", "started")

    def __init__(self, throttle: Throttle | None, deadline: float | None = None) -> None:
        self._throttle = throttle
        self._deadline = deadline
        self.started = 0.0
        self.arrived_by: float | None = None

    async def __aenter__(self) -> Self:
        """Wait.

        :raises NotSentError: the deadline passed before.
        """
        if self._throttle is not None:
            try:
                async with asyncio.timeout(None if self._deadline is None else self._deadline - time.time()):
                    await self._throttle.enter(self)
            except TimeoutError:
                raise NotSentError from None
        return self

    async def __aexit__(self, *problem: object) -> None:
        self.answered(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        pass

    def answered(self, status: int | None, retry_after: float | None = None) -> None:
        """Report the response to the request. Only the first call counts.

        :param status: HTTP status, or None if there was no response.
        :param retry_after: ``Retry-After`` of a 429 in seconds, or None.
        """
        throttle, self._throttle = self._throttle, None
        if throttle is not None:
            throttle.leave(self, status, retry_after)


class Throttle:
    """Limits the rate of requests, in order of arrival. Belongs to one event loop.

    With ``requests_per_minute``, requests are spread evenly, and no sliding window of one minute *at the server* contains more
    of them: a request counts for a minute after it reached the server. All requests count, not only turns. Without it, requests
    are not limited until the server responds with 429.

    After a 429, all requests pause for ``Retry-After`` (or a growing back-off). They then continue at the rate that the server
    accepted before, which increases with each accepted request.

    :param requests_per_minute: maximum number of requests per minute; None means no limit.
    :param window: length of that "minute" in seconds.
    :ivar refused: number of 429 responses.
    :ivar spacing: current number of seconds between two requests.
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
        self.spacing = self._base
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

    def expected_wait(self) -> float:
        """Estimated seconds that a new request will wait. Add them to the time limit of a turn."""
        return max(0.0, self._delay(self._clock())) + self._waiting * self.spacing

    async def enter(self, passage: Passage) -> None:
        """Wait until a request may be sent."""
        self._waiting += 1
        try:
            async with self._door:
                # A 429 for another request may extend the wait during the sleep.
                while (delay := self._delay(self._clock())) > 0:
                    await self._sleep(delay)
                now = self._clock()
                passage.started = now
                self._next = now + self.spacing
                self._recent.append(passage)
        finally:
            self._waiting -= 1

    def _delay(self, now: float) -> float:
        delay = max(self._next, self._paused_until) - now
        if self._limit is not None and len(self._recent) == self._limit:
            oldest = self._recent[0]
            arrived = oldest.arrived_by if oldest.arrived_by is not None else min(now, oldest.started + _TRAVEL)
            delay = max(delay, arrived + self._window - now)
        return delay

    def leave(self, passage: Passage, status: int | None, retry_after: float | None) -> None:
        """Take note of the end of a request; see :meth:`Passage.answered`."""
        now = self._clock()
        passage.arrived_by = min(now, passage.started + _TRAVEL)
        if status == 429:
            self._refuse(passage, now, retry_after)
        elif status is not None and status < 500:
            self._accepted.append(now)
            self._in_a_row = 0
            if self.spacing > self._base:
                recovered = self.spacing * _RECOVERY
                self.spacing = self._base if recovered < max(self._base, 0.002) else recovered

    def _refuse(self, passage: Passage, now: float, retry_after: float | None) -> None:
        self.refused += 1
        fresh = passage.started > self._slowed_at
        if fresh:
            self._in_a_row += 1
        pause = min(2.0 ** min(self._in_a_row, 6) if retry_after is None else retry_after, MAX_PAUSE)
        # The extra time covers a rounded Retry-After and small clock differences.
        self._paused_until = max(self._paused_until, now + pause + min(0.5, 0.05 * pause))
        if not fresh:
            return  # sent before the rate was lowered
        # The server's rate is estimated from the requests that it accepted in a span of the same length as the pause.
        span = max(pause, 0.1)
        accepted = sum(1 for moment in self._accepted if moment > now - span)
        pace = span / accepted if accepted else max(_FIRST_SPACING, 2 * self.spacing)
        self.spacing = min(MAX_SPACING, max(pace, 1.3 * self.spacing))
        self._slowed_at = now
        log.warning(
            "LlamaCloud limits the request rate (429). All requests pause for %.1f s and then continue at about %.0f per minute. "
            "Set requests_per_minute to stay below the limit.",
            self._paused_until - now,
            60.0 / self.spacing,
        )
