"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(check: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    """Poll until ``check`` returns true; a failed assertion says what did not come."""
    begin = time.monotonic()
    while not check():
        assert time.monotonic() - begin < timeout, f"waited {timeout:.0f} s for {what}"
        time.sleep(0.2)
