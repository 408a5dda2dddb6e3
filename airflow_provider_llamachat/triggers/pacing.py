"""Spreads the starts of many triggers over time, so that the triggerer's one event loop never stands still for them.

Starting a turn costs the loop some milliseconds (a client, a connection, two requests). A thousand that start in the same
moment, after a restart of the triggerer for instance, would block it for seconds and then stream in lockstep.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

SPACING = 0.008
"""Seconds between two starts in one loop: a thousand take eight seconds, a single one does not wait."""

_next_start: WeakKeyDictionary[asyncio.AbstractEventLoop, float] = WeakKeyDictionary()


async def wait_for_start() -> None:
    """Return when it is this trigger's turn to start."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    start = max(now, _next_start.get(loop, 0.0))
    _next_start[loop] = start + SPACING
    if start > now:
        await asyncio.sleep(start - now)
