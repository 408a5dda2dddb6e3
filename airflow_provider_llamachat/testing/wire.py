"""Bytes on the socket: answers in good order through aiohttp, and those that are not, past it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from http import HTTPStatus
from typing import NoReturn

from aiohttp import web
from aiohttp.web_request import BaseRequest

from airflow_provider_llamachat.testing.routes import Reply
from airflow_provider_llamachat.testing.scripts import encode

HUGE = 64 * 1024 * 1024
"""Bytes of the body that fault ``huge`` sends."""

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
"""Headers of a turn's stream."""

_HTML = """<!DOCTYPE html>
<html><head><title>{status} {reason}</title></head>
<body><center><h1>{status} {reason}</h1></center><hr><center>nginx/1.25.4</center></body></html>
"""


def reason(status: int) -> str:
    """The standard phrase of a status, empty for one that has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def body_of(reply: Reply) -> bytes:
    """The JSON body of an answer."""
    return b"" if reply.status == 204 else encode(reply.payload).encode("utf-8", "backslashreplace")


def response(reply: Reply, request_id: str) -> web.Response:
    """The answer as aiohttp sends it."""
    headers = {"x-request-id": request_id, **reply.headers}
    if reply.status == 204:
        return web.Response(status=204, headers=headers)
    headers["content-type"] = "application/json"
    return web.Response(status=reply.status, body=body_of(reply), headers=headers)


def html_page(status: int, request_id: str, headers: Mapping[str, str]) -> web.Response:
    """What a proxy in front of the service says when it can not reach it."""
    text = _HTML.format(status=status, reason=reason(status))
    return web.Response(
        status=status, text=text, content_type="text/html", headers={"x-request-id": request_id, **headers}
    )


async def park() -> NoReturn:
    """Wait for ever: until the client leaves, or the emulator resets or stops, which cancels the request's task."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("a parked request goes on only by being cancelled")


async def flushed(request: BaseRequest) -> None:
    """Wait until the kernel has all that was written (at most a second, for a client that does not read)."""
    for _ in range(100):
        if request.transport is None or not request.transport.get_write_buffer_size():
            return
        await asyncio.sleep(0.01)


def reset(request: BaseRequest) -> None:
    """Break the connection with a TCP reset."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    # A linger time of zero makes the kernel answer close() with RST in place of FIN.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def truncated(request: BaseRequest, status: int, headers: Mapping[str, str], body: bytes) -> NoReturn:
    """Promise more bytes than are sent, then close in good order."""
    transport = request.transport
    if transport is not None:
        lines = [f"HTTP/1.1 {status} {reason(status)}", *(f"{name}: {value}" for name, value in headers.items())]
        lines.append(f"content-length: {len(body) + 512}")
        sent = body[: max(1, len(body) // 2)]
        transport.write("\r\n".join([*lines, "", ""]).encode() + sent)
        transport.close()
    await park()


async def huge(request: BaseRequest, status: int, request_id: str, *, stream: bool) -> web.StreamResponse:
    """Send :data:`HUGE` bytes that never complete a JSON value, or for a stream an event."""
    answer = web.StreamResponse(status=status, headers={"x-request-id": request_id})
    answer.headers["content-type"] = STREAM_HEADERS["content-type"] if stream else "application/json"
    await answer.prepare(request)
    block = b"a" * 65536
    await answer.write(b'event: message\ndata: {"type":"text","content":"' if stream else b'{"items":[{"session_id":"')
    for _ in range(HUGE // len(block)):
        await answer.write(block)
        # Without this a client that keeps up would never let anybody else have the loop.
        await asyncio.sleep(0)
    return answer
