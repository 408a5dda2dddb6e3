"""Answers as the API words them, and what the faults that meet any request do on the socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Any, NoReturn

from aiohttp import web

from airflow_provider_llamachat.testing.records import Fault, RequestRecord, encode

HUGE = 64 * 1024 * 1024
"""Bytes of the body that fault ``huge`` sends."""

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
"""Headers of a turn's stream."""

_HTML = """<!DOCTYPE html>
<html><head><title>{0.status} {0.reason}</title></head>
<body><center><h1>{0.status} {0.reason}</h1></center><hr><center>nginx/1.25.4</center></body></html>
"""


class ApiError(Exception):
    """An answer with an error status; ``detail`` is what its body says."""

    def __init__(self, status: int, detail: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.headers = headers


def as_json(payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer with a JSON body."""
    body = encode(payload).encode("utf-8", "backslashreplace")
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


async def park(_: web.Request) -> NoReturn:
    """Wait for ever: until the client leaves, or the emulator resets or stops, which cancels the request's task."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("a parked request goes on only by being cancelled")


async def flushed(request: web.Request) -> None:
    """Wait until the kernel has everything that was written (at most a second, for a client that does not read)."""
    for _ in range(100):
        if request.transport is None or not request.transport.get_write_buffer_size():
            return
        await asyncio.sleep(0.01)


async def reset(request: web.Request) -> NoReturn:
    """Break the connection with a TCP reset."""
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        # A linger time of zero makes the kernel answer close() with RST in place of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    await park(request)


async def unprocessed(request: web.Request, record: RequestRecord, fault: Fault) -> web.StreamResponse:
    """Answer, or do not, as a fault wants that keeps the request from being processed."""
    if fault.kind == "status":
        return _refusal(fault, 500)
    if fault.kind == "html":
        page = web.Response(status=fault.status or 500, content_type="text/html", headers=_retry_after(fault))
        page.text = _HTML.format(page)
        return page
    if fault.kind == "redirect":
        return as_json(None, fault.status or 307, {"location": fault.location or ""})
    if fault.kind == "huge":
        return await _huge(request, fault.status or 200, stream=record.endpoint == "stream")
    return await (reset if fault.kind == "reset_before" else park)(request)


async def spoilt(request: web.Request, fault: Fault, good: web.Response) -> web.StreamResponse:
    """Answer a request that was processed as the fault wants, in place of the ``good`` answer."""
    body = good.body if isinstance(good.body, bytes) else b""
    if fault.kind == "status_after":
        return _refusal(fault, 429)
    if fault.kind == "malformed_json":
        # A stream has many JSON values to break; it is answered like a gateway out of order, with a value that is none.
        good_json = good.content_type == "application/json"
        half = body[: len(body) // 2] if good_json and body else b'{"session_id": "ses-'
        status = 200 if good.status == 204 else good.status
        return web.Response(status=status, body=half, content_type="application/json")
    if fault.kind == "truncated_body" and request.transport is not None:
        answer = web.StreamResponse(status=good.status, headers={"content-type": good.headers["content-type"]})
        answer.content_length = len(body) + 512
        await answer.prepare(request)
        await answer.write(body[: max(1, len(body) // 2)])
        request.transport.close()
    return await (reset if fault.kind == "reset_after" else park)(request)


def _retry_after(fault: Fault) -> dict[str, str]:
    return {} if fault.retry_after is None else {"Retry-After": fault.retry_after}


def _refusal(fault: Fault, default: int) -> web.Response:
    status = fault.status or default
    detail = fault.detail if fault.detail is not None else web.Response(status=status).reason or "Error"
    return as_json({"detail": detail}, status, _retry_after(fault))


async def _huge(request: web.Request, status: int, *, stream: bool) -> web.StreamResponse:
    """Send :data:`HUGE` bytes that never complete a JSON value, or for a stream an event."""
    stream = stream and status < 300
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
