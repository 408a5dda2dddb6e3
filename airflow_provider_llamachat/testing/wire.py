"""Responses as the API words them, and what the faults that affect any request do on the socket."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NoReturn

from aiohttp import web

from airflow_provider_llamachat.testing.faults import PROCESSED_KINDS, Fault, encode

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}

_HTML = "<!DOCTYPE html>\n<html><body><center><h1>{} {}</h1><hr>nginx/1.25.4</center></body></html>\n"


def as_json(payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A response with a JSON body."""
    body = encode(payload).encode("utf-8", "backslashreplace")
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


class ApiError(Exception):
    """A response with an error status. Its body has ``detail``."""

    def __init__(self, status: int, detail: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.answer = as_json({"detail": detail}, status, headers)


async def park() -> NoReturn:
    """Wait until the client leaves, or the emulator resets or stops. Each of them cancels the request's task."""
    while True:
        await asyncio.get_running_loop().create_future()


async def reset(request: web.Request) -> NoReturn:
    """Break the connection with a TCP reset after what was written (a client that does not read gets a second for that)."""
    for _ in range(100):
        if request.transport is not None and request.transport.get_write_buffer_size():
            await asyncio.sleep(0.01)
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        # With a linger time of zero, the kernel sends RST instead of FIN on close().
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    await park()


async def answer_with(fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
    """Do what the fault does. ``handler`` processes the request, if that fault lets it be processed."""
    await asyncio.sleep(fault.delay)
    if fault.kind == "delay":
        return await handler(request)
    good: Any = await handler(request) if fault.kind in PROCESSED_KINDS else web.Response()
    body = good.body or b""
    status = fault.status or {"status_after": 429, "redirect": 307, "huge": 200}.get(fault.kind, 500)
    reason = web.Response(status=status).reason or "Error"
    headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    if fault.kind in ("status", "status_after"):
        return as_json({"detail": reason if fault.detail is None else fault.detail}, status, headers)
    if fault.kind == "redirect":
        return as_json(None, status, {"Location": fault.location or ""})
    if fault.kind == "html":
        return web.Response(status=status, text=_HTML.format(status, reason), content_type="text/html", headers=headers)
    if fault.kind == "malformed_json":
        # A stream has many JSON values to break. It is replaced by what a broken gateway might send.
        is_json = good.content_type == "application/json" and body
        status, half = (good.status, body[: len(body) // 2]) if is_json else (200, b'{"session_id": "ses-')
        return web.Response(status=status, body=half, content_type="application/json")
    if fault.kind == "huge":
        # Never a whole JSON value, nor a whole event of a stream.
        stream = request.match_info.route.name == "stream" and status < 300
        content_type = STREAM_HEADERS["content-type"] if stream else "application/json"
        start = b'event: message\ndata: {"type":"text","content":"' if stream else b'{"items":[{"session_id":"'
        answer = web.StreamResponse(status=status, headers={"content-type": content_type})
        return await _send(request, answer, [start, *[b"a" * 65536] * 1024])
    if fault.kind == "truncated_body":
        answer = web.StreamResponse(status=good.status, headers={"content-type": good.headers.get("content-type", "")})
        answer.content_length = len(body) + 512
        await _send(request, answer, [body[: max(1, len(body) // 2)]])
        if request.transport is not None:
            request.transport.close()
    return await (reset(request) if fault.kind in ("reset_before", "reset_after") else park())


async def _send(request: web.Request, answer: web.StreamResponse, pieces: Iterable[bytes]) -> web.StreamResponse:
    await answer.prepare(request)
    for piece in pieces:
        await answer.write(piece)
        # Otherwise a client that keeps up would occupy the loop.
        await asyncio.sleep(0)
    return answer
