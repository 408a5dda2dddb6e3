"""Spreads the starts of many triggers over time, so that they do not block the event loop of the triggerer.

Starting a turn takes some milliseconds of CPU time. If a thousand turns start at once, for example after a restart of the
triggerer, they would block the event loop for seconds.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

SPACING = 0.01
"""Seconds between two starts in an event loop. A thousand starts take ten seconds; a single one does not wait."""

_next_start: WeakKeyDictionary[asyncio.AbstractEventLoop, float] = WeakKeyDictionary()


async def wait_for_start() -> None:
    """Wait until this trigger may start."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    start = max(now, _next_start.get(loop, 0.0))
    _next_start[loop] = start + SPACING
    if start > now:
        await asyncio.sleep(start - now)
