"""Logs a turn while it arrives: complete lines of the answer, and one line per tool call."""

from __future__ import annotations

import json
import time
from typing import Any

from airflow_provider_llamachat.models import (
    Event,
    StopEvent,
    TextDeltaEvent,
    TextEvent,
    ThinkingDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from airflow_provider_llamachat.redaction import excerpt

LINE = 160
"""Length from which a line of the answer is logged before it is complete."""
PATIENCE = 5.0
"""Seconds after which an incomplete line is logged, so that a slow answer is visible."""


class TurnLog:
    """Logs the events of a turn. Keeps at most one line in memory.

    :param logger: the logger (``self.log`` of an operator).
    :param prefix: prefix of each line, to distinguish turns.
    """

    def __init__(self, logger: Any, prefix: str = "") -> None:
        self._log = logger
        self._prefix = prefix
        self._line = ""
        self._since = time.monotonic()
        self._streamed = False
        self._thinking = False

    def __call__(self, event: Event) -> None:
        """Log the event, or keep it until its line is complete."""
        match event:
            case TextDeltaEvent():
                self._streamed = True
                self._add(event.content)
            case TextEvent():
                if not self._streamed:
                    self._add(event.content)
                self._flush()
                self._streamed = False
            case ThinkingDeltaEvent() if not self._thinking:
                self._thinking = True
                self._log.info("%sthinking …", self._prefix)
            case ToolCallEvent():
                self._flush()
                self._thinking = False
                self._log.info(
                    "%stool call %s %s", self._prefix, excerpt(event.name, limit=60), _brief(event.arguments)
                )
            case ToolResultEvent():
                self._log.debug(
                    "%stool result %s %s", self._prefix, excerpt(event.name, limit=60), _brief(event.result)
                )
            case StopEvent():
                self._flush()
            case _:
                pass

    def _add(self, text: str) -> None:
        pending = self._line + text
        *whole, rest = pending.splitlines() if pending and pending[-1] not in "\r\n" else [*pending.splitlines(), ""]
        for line in whole:
            self._write(line)
        # Uses positions, so that the rest of a large delta is not copied for each line.
        begin = 0
        while len(rest) - begin > LINE:
            cut = rest.rfind(" ", begin + 1, begin + LINE)
            cut = begin + LINE if cut < 0 else cut
            self._write(rest[begin:cut])
            begin = cut
            while rest.startswith(" ", begin):
                begin += 1
        self._line = rest[begin:]
        if self._line and time.monotonic() - self._since > PATIENCE:
            self._flush()

    def _flush(self) -> None:
        if self._line:
            self._write(self._line)
            self._line = ""

    def _write(self, line: str) -> None:
        self._since = time.monotonic()
        for begin in range(0, len(line), 2000):
            if (part := line[begin : begin + 2000]).strip():
                self._log.info("%s| %s", self._prefix, excerpt(part, limit=2000))


def _brief(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        text = type(value).__name__
    return excerpt(text, limit=200)
