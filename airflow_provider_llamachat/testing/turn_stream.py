"""Sends a turn's events to the client that asked, and the faults that meet a stream."""

from __future__ import annotations

import asyncio

from aiohttp import web

from airflow_provider_llamachat.testing.broken_answers import STREAM_HEADERS, flushed, park, reset
from airflow_provider_llamachat.testing.faults import Fault
from airflow_provider_llamachat.testing.script import encode, frame
from airflow_provider_llamachat.testing.settings import Settings
from airflow_provider_llamachat.testing.turn_run import TurnRun


class TurnStream:
    """The place that a client has reached in a turn's events."""

    def __init__(self, answer: web.StreamResponse, turn: TurnRun, settings: Settings) -> None:
        self._answer = answer
        self._turn = turn
        self._settings = settings
        self._sent = 0
        self._time = asyncio.get_running_loop().time
        self._quiet_since = self._time()
        # Seconds between two bytes; None sends all at once.
        self.drip: float | None = None

    async def send(self, upto: int | None = None) -> None:
        """Send events until ``upto`` of the turn's are sent, or all of them."""
        turn = self._turn
        while upto is None or self._sent < upto:
            ready = turn.frames[self._sent : upto]
            if ready:
                await self.put(b"".join(ready))
                self._sent += len(ready)
            elif turn.ended:
                return
            else:
                await self._wait()

    async def begun(self) -> None:
        """Wait until the turn's session is free for it."""
        while not self._turn.begun and not self._turn.ended:
            await self._wait()

    async def put(self, data: bytes) -> None:
        """Send bytes."""
        if self.drip is None:
            await self._answer.write(data)
        else:
            for place in range(len(data)):
                await self._answer.write(data[place : place + 1])
                await asyncio.sleep(self.drip)
        self._quiet_since = self._time()

    async def _wait(self) -> None:
        interval = self._settings.keepalive_interval
        try:
            async with asyncio.timeout_at(None if interval is None else self._quiet_since + interval):
                await self._turn.more()
        except TimeoutError:
            await self.put(f": keep-alive{self._settings.newline * 2}".encode())


def _odd_event(kind: str, newline: str) -> bytes:
    if kind == "garbage":
        return frame("message", '{"type": "text", "content": "not js', newline)
    if kind == "unknown_event":
        return frame("message", encode({"type": "citation_map", "content": {"1": "doc"}, "confidence": 0.5}), newline)
    return frame("delta", '{"type":"text_delta","content":"@"}', newline).replace(b"@", b"caf\xe9 \xff\xfe")


async def send_turn(request: web.Request, turn: TurnRun, fault: Fault | None, settings: Settings) -> web.StreamResponse:
    """Answer with the turn's events; the turn has been submitted."""
    answer = web.StreamResponse(headers=STREAM_HEADERS)
    try:
        await answer.prepare(request)
        stream = TurnStream(answer, turn, settings)
        if fault is None or fault.kind == "error_stop":
            await stream.send()
        else:
            await stream.begun()
            await _with_fault(request, stream, fault, turn.length, settings.newline)
        if turn.ended:
            await answer.write_eof()
    except ConnectionError:
        # The client left between two events; its task's cancellation comes a moment later.
        pass
    return answer


async def _with_fault(request: web.Request, stream: TurnStream, fault: Fault, length: int, newline: str) -> None:
    upto = min(fault.after_events, length)
    if fault.kind == "cut":
        await stream.send(min(upto, length - 1))
        return
    await stream.send(upto)
    if fault.kind == "stall":
        await park(request)
    if fault.kind == "stream_reset":
        await flushed(request)
        await reset(request)
    if fault.kind == "slow":
        stream.drip = fault.delay
    else:
        await stream.put(_odd_event(fault.kind, newline))
    await stream.send()
