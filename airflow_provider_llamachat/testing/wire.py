"""Answers as the API words them, and what the faults that meet any request do on the socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

from aiohttp import web

from airflow_provider_llamachat.testing.records import PROCESSED_KINDS, Fault, encode

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HUGE = 64 * 1024 * 1024
"""Bytes of the body that fault ``huge`` sends."""

STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
"""Headers of a turn's stream."""

_HTML = "<!DOCTYPE html>\n<html><body><center><h1>{0.status} {0.reason}</h1><hr>nginx/1.25.4</center></body></html>\n"


def as_json(payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer with a JSON body."""
    body = encode(payload).encode("utf-8", "backslashreplace")
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


class ApiError(Exception):
    """An answer with an error status; ``detail`` is what its body says."""

    def __init__(self, status: int, detail: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.answer = as_json({"detail": detail}, status, headers)


async def park() -> NoReturn:
    """Wait for ever: until the client leaves, or the emulator resets or stops, which cancels the request's task."""
    while True:
        await asyncio.get_running_loop().create_future()


async def reset(request: web.Request) -> NoReturn:
    """Break the connection with a TCP reset, after what was written (at most a second, for a client that does not read)."""
    for _ in range(100):
        if request.transport is not None and request.transport.get_write_buffer_size():
            await asyncio.sleep(0.01)
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        # A linger time of zero makes the kernel answer close() with RST in place of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    await park()


async def answer_with(fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer, or do not, as a fault wants; what is processed in spite of it goes through ``handler``."""
    await asyncio.sleep(fault.delay)
    if fault.kind == "delay":
        return await handler(request)
    good: Any = await handler(request) if fault.kind in PROCESSED_KINDS else web.Response()
    body = good.body or b""
    status = fault.status or {"status_after": 429, "redirect": 307, "huge": 200}.get(fault.kind, 500)
    headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    if fault.kind in ("status", "status_after"):
        detail = fault.detail if fault.detail is not None else web.Response(status=status).reason or "Error"
        return as_json({"detail": detail}, status, headers)
    if fault.kind == "html":
        page = web.Response(status=status, content_type="text/html", headers=headers)
        page.text = _HTML.format(page)
        return page
    if fault.kind == "redirect":
        return as_json(None, status, {"location": fault.location or ""})
    if fault.kind == "malformed_json":
        # A stream has many JSON values to break; in its place comes what a broken gateway might send.
        is_json = good.content_type == "application/json" and body
        status, half = (good.status, body[: len(body) // 2]) if is_json else (200, b'{"session_id": "ses-')
        return web.Response(status=status, body=half, content_type="application/json")
    if fault.kind == "huge":
        return await _huge(request, status)
    if fault.kind == "truncated_body":
        answer = web.StreamResponse(status=good.status, headers={"content-type": good.headers.get("content-type", "")})
        answer.content_length = len(body) + 512
        await answer.prepare(request)
        await answer.write(body[: max(1, len(body) // 2)])
        if request.transport is not None:
            request.transport.close()
    return await (reset(request) if fault.kind in ("reset_before", "reset_after") else park())


async def _huge(request: web.Request, status: int) -> web.StreamResponse:
    """Send :data:`HUGE` bytes that never complete a JSON value, or for a stream an event."""
    stream = request.match_info.route.name == "stream" and status < 300
    answer = web.StreamResponse(status=status)
    answer.headers["content-type"] = STREAM_HEADERS["content-type"] if stream else "application/json"
    await answer.prepare(request)
    block = b"a" * 65536
    await answer.write(b'event: message\ndata: {"type":"text","content":"' if stream else b'{"items":[{"session_id":"')
    for _ in range(HUGE // len(block)):
        await answer.write(block)
        # Without this a client that keeps up would never let anybody else have the loop.
        await asyncio.sleep(0)
    return answer
