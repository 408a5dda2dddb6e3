"""A batch's progress as log lines: done/total, rate, tokens, failures, time left; at a cadence that a log can bear."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

EVERY = 15.0
"""Seconds between two lines at most."""
AT_LEAST = 2.0
"""Seconds between two lines at the least, however fast tenths of the batch go by."""


class Meter:
    """Counts what is done and says so every quarter of a minute, and at each tenth of the batch.

    :param logger: where to log.
    :param total: items of the batch.
    :param kept: items that an earlier try had finished.
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
        """Seconds since the beginning."""
        return self._clock() - self._began

    def add(self, *, answered: bool, usage: dict[str, Any] | None) -> None:
        """Count one more item."""
        self.done += 1
        self.failed += not answered
        self.input_tokens += (usage or {}).get("total_input_tokens") or 0
        self.output_tokens += (usage or {}).get("total_output_tokens") or 0
        if self._tenth() > self._said_tenth and self._clock() - self._said_at >= AT_LEAST:
            self.say()

    def reopen(self, count: int, usages: Iterable[dict[str, Any] | None] = ()) -> None:
        """Take back that many failures, and what they are known to have cost: they are looked after once more."""
        self.done -= count
        self.failed -= count
        for usage in usages:
            self.input_tokens -= (usage or {}).get("total_input_tokens") or 0
            self.output_tokens -= (usage or {}).get("total_output_tokens") or 0

    def due_in(self) -> float:
        """Seconds until a line is due although no tenth was completed."""
        return max(0.0, self._said_at + EVERY - self._clock())

    def finish(self) -> None:
        """Log where the batch ended, unless the last line says it."""
        if self._said != (self.done, self.failed):
            self.say()

    def say(self) -> None:
        """Log where the batch is."""
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
