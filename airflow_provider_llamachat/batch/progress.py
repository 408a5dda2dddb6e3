"""Logs the progress of a batch: prompts done, rate, tokens, failures and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

EVERY = 15.0
"""Maximum number of seconds between two lines."""
AT_LEAST = 2.0
"""Minimum number of seconds between two lines, however fast the batch is."""


class Meter:
    """Counts results, and logs progress every 15 seconds and after each tenth of the batch.

    :param logger: where to log.
    :param total: items of the batch.
    :param kept: items that an earlier attempt had finished.
    """

    def __init__(self, logger: Any, total: int, kept: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = logger
        self._total = total
        self._kept = kept
        self._clock = clock
        self.done = 0
        self.failed = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self._began = self._said_at = clock()
        self._said_tenth = self._tenth()
        self._said: tuple[int, int] | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the batch started."""
        return self._clock() - self._began

    def add(self, *, answered: bool, usage: dict[str, Any] | None) -> None:
        """Count an item."""
        self.done += 1
        self.failed += not answered
        self.input_tokens += (usage or {}).get("total_input_tokens") or 0
        self.output_tokens += (usage or {}).get("total_output_tokens") or 0
        if self._tenth() > self._said_tenth and self._clock() - self._said_at >= AT_LEAST:
            self.say()

    def reopen(self, count: int, usages: Iterable[dict[str, Any] | None] = ()) -> None:
        """Uncount failures and their usage, because they are retried."""
        self.done -= count
        self.failed -= count
        for usage in usages:
            self.input_tokens -= (usage or {}).get("total_input_tokens") or 0
            self.output_tokens -= (usage or {}).get("total_output_tokens") or 0

    def due_in(self) -> float:
        """Seconds until the next line is due."""
        return max(0.0, self._said_at + EVERY - self._clock())

    def finish(self) -> None:
        """Log the final state, unless the last line has logged it."""
        if self._said != (self.done, self.failed):
            self.say()

    def say(self) -> None:
        """Log the current state."""
        self._said = self.done, self.failed
        self._said_at = self._clock()
        self._said_tenth = self._tenth()
        seconds = max(self.seconds, 0.001)
        done = self._kept + self.done
        rate = self.done / seconds
        missing = self._total - done
        left = _duration(missing / rate if missing else 0.0) if self.done or not missing else "unknown"
        self._log.info(
            "Batch: %d of %d done (%d %%), %d failed, %.1f a minute, %d input and %d output tokens, time left %s.",
            done,
            self._total,
            100 * done // max(1, self._total),
            self.failed,
            60 * rate,
            self.input_tokens,
            self.output_tokens,
            left,
        )

    def _tenth(self) -> int:
        return 10 * (self._kept + self.done) // max(1, self._total)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
