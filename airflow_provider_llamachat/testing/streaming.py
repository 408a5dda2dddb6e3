"""Sends a turn's events to the client that asked, and the faults that meet a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.web_request import BaseRequest

from airflow_provider_llamachat.testing import wire
from airflow_provider_llamachat.testing.faults import Fault
from airflow_provider_llamachat.testing.scripts import encode, frame
from airflow_provider_llamachat.testing.settings import Settings
from airflow_provider_llamachat.testing.turns import Turn


class _Stream:
    """The place that a client has reached in a turn's events."""

    def __init__(self, turn: Turn, write: Callable[[bytes], Awaitable[None]], settings: Settings) -> None:
        self.turn = turn
        self.write = write
        self._settings = settings
        self._sent = 0
        self._quiet_since = asyncio.get_running_loop().time()

    async def send(self, upto: int | None) -> None:
        """Send events until ``upto`` of the turn's are sent, or all of them."""
        turn = self.turn
        while upto is None or self._sent < upto:
            there = len(turn.frames)
            if self._sent < there:
                end = there if upto is None else min(there, upto)
                await self._put(b"".join(turn.frames[self._sent : end]))
                self._sent = end
            elif turn.ended:
                return
            else:
                await self._wait()

    async def begun(self) -> None:
        """Wait until the turn's session is free for it."""
        while not self.turn.begun and not self.turn.ended:
            await self._wait()

    async def _put(self, data: bytes) -> None:
        await self.write(data)
        self._quiet_since = asyncio.get_running_loop().time()

    async def _wait(self) -> None:
        interval = self._settings.keepalive_interval
        wait = None if interval is None else self._quiet_since + interval - asyncio.get_running_loop().time()
        if self.turn.coupled and self.turn.begun:
            due = self.turn.due_in()
            if due <= 0:
                self.turn.advance()
                return
            wait = due if wait is None else min(wait, due)
        if wait is not None and wait <= 0:
            await self._put(f": keep-alive{self._settings.newline}{self._settings.newline}".encode())
        else:
            await self.turn.changed(wait)


def _odd_event(kind: str, newline: str) -> bytes:
    if kind == "garbage":
        return frame("message", '{"type": "text", "content": "not js', newline)
    if kind == "unknown_event":
        return frame("message", encode({"type": "citation_map", "content": {"1": "doc"}, "confidence": 0.5}), newline)
    good = frame("delta", encode({"type": "text_delta", "content": "@"}), newline)
    return good.replace(b"@", b"caf\xe9 \xff\xfe")


def _dribble(write: Callable[[bytes], Awaitable[None]], delay: float) -> Callable[[bytes], Awaitable[None]]:
    async def one_by_one(data: bytes) -> None:
        for place in range(len(data)):
            await write(data[place : place + 1])
            await asyncio.sleep(delay)

    return one_by_one


async def stream_turn(
    request: BaseRequest, turn: Turn, fault: Fault | None, settings: Settings, request_id: str
) -> web.StreamResponse:
    """Answer with the turn's events; the turn has been submitted."""
    answer = web.StreamResponse(headers={"x-request-id": request_id, **wire.STREAM_HEADERS})
    try:
        await answer.prepare(request)
        stream = _Stream(turn, answer.write, settings)
        if fault is not None and fault.kind != "error_stop":
            await _with_fault(request, stream, fault, settings)
        else:
            await stream.send(None)
        if turn.ended:
            await answer.write_eof()
    except ConnectionError:
        # The client left between two events; its task's cancellation comes a moment later.
        return answer
    finally:
        turn.client_left()
    return answer


async def _with_fault(request: BaseRequest, stream: _Stream, fault: Fault, settings: Settings) -> None:
    await stream.begun()
    upto = min(fault.after_events, stream.turn.length)
    if fault.kind == "cut":
        await stream.send(min(upto, stream.turn.length - 1))
        return
    await stream.send(upto)
    if fault.kind == "stall":
        await wire.park()
    if fault.kind == "stream_reset":
        await wire.flushed(request)
        wire.reset(request)
        await wire.park()
    if fault.kind == "slow":
        stream.write = _dribble(stream.write, fault.delay)
    else:
        await stream.write(_odd_event(fault.kind, settings.newline))
    await stream.send(None)
