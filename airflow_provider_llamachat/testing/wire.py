"""Answers as the API words them, and what the faults that meet any request do on the socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NoReturn

from aiohttp import web

from airflow_provider_llamachat.testing.records import PROCESSED_KINDS, Fault, encode

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
"""Headers of a turn's stream."""

_HTML = "<!DOCTYPE html>\n<html><body><center><h1>{} {}</h1><hr>nginx/1.25.4</center></body></html>\n"


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
    given = {"Retry-After": fault.retry_after, "Location": fault.location}
    headers = {name: value for name, value in given.items() if value is not None}
    reason = web.Response(status=status).reason or "Error"
    if fault.kind in ("status", "status_after", "redirect"):
        return as_json({"detail": reason if fault.detail is None else fault.detail}, status, headers)
    if fault.kind == "html":
        return web.Response(status=status, text=_HTML.format(status, reason), content_type="text/html", headers=headers)
    if fault.kind == "malformed_json":
        # A stream has many JSON values to break; in its place comes what a broken gateway might send.
        is_json = good.content_type == "application/json" and body
        status, half = (good.status, body[: len(body) // 2]) if is_json else (200, b'{"session_id": "ses-')
        return web.Response(status=status, body=half, content_type="application/json")
    if fault.kind == "huge":
        # Never a whole JSON value, or for a stream a whole event.
        stream = request.match_info.route.name == "stream" and status < 300
        content_type = STREAM_HEADERS["content-type"] if stream else "application/json"
        start = b'event: message\ndata: {"type":"text","content":"' if stream else b'{"items":[{"session_id":"'
        return await _begin(request, status, content_type, None, [start, *[b"a" * 65536] * 1024])
    if fault.kind == "truncated_body":
        half = body[: max(1, len(body) // 2)]
        await _begin(request, good.status, good.headers.get("content-type", ""), len(body) + 512, [half])
        if request.transport is not None:
            request.transport.close()
    return await (reset(request) if fault.kind in ("reset_before", "reset_after") else park())


async def _begin(
    request: web.Request, status: int, content_type: str, length: int | None, pieces: Iterable[bytes]
) -> web.StreamResponse:
    """Send the head of an answer, and the pieces of its body that there are."""
    answer = web.StreamResponse(status=status, headers={"content-type": content_type})
    answer.content_length = length
    await answer.prepare(request)
    for piece in pieces:
        await answer.write(piece)
        # Without this a client that keeps up would never let anybody else have the loop.
        await asyncio.sleep(0)
    return answer
