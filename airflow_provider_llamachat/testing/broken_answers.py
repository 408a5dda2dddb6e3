"""Answers in good order through aiohttp, and those that are not: what the faults that meet any request do on the socket."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from http import HTTPStatus
from typing import Any, NoReturn

from aiohttp import web

from airflow_provider_llamachat.testing.faults import Fault
from airflow_provider_llamachat.testing.ledger import RequestRecord
from airflow_provider_llamachat.testing.script import encode

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


def as_json(payload: Any, status: int = 200, headers: Any = None, *, default: Any = None) -> web.Response:
    """An answer with a JSON body; ``default`` as :func:`json.dumps` has it."""
    text = encode(payload) if default is None else json.dumps(payload, default=default)
    body = text.encode("utf-8", "backslashreplace")
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


def _reason(status: int) -> str:
    """The standard phrase of a status, empty for one that has none."""
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""


async def park(_: web.Request) -> NoReturn:
    """Wait for ever: until the client leaves, or the emulator resets or stops, which cancels the request's task."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("a parked request goes on only by being cancelled")


async def flushed(request: web.Request) -> None:
    """Wait until the kernel has all that was written (at most a second, for a client that does not read)."""
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
    headers = _retry_after(fault)
    if fault.kind == "html":
        status = fault.status or 500
        text = _HTML.format(status=status, reason=_reason(status))
        return web.Response(status=status, text=text, content_type="text/html", headers=headers)
    if fault.kind == "redirect":
        return as_json(None, fault.status or 307, {"location": fault.location})
    if fault.kind == "huge":
        status = fault.status or 200
        return await _huge(request, status, stream=record.endpoint == "stream" and status < 300)
    return await (reset if fault.kind == "reset_before" else park)(request)


async def spoilt(request: web.Request, record: RequestRecord, fault: Fault, good: web.Response) -> web.StreamResponse:
    """Answer a request that was processed as the fault wants, in place of the ``good`` answer."""
    body = good.body if isinstance(good.body, bytes) else b""
    if fault.kind == "status_after":
        return _refusal(fault, 429)
    if fault.kind == "malformed_json":
        # A stream has many JSON values to break; its answer is one that is none, as a gateway gone wrong would give it.
        good_json = good.content_type == "application/json"
        half = body[: len(body) // 2] if good_json and body else b'{"session_id": "ses-'
        status = 200 if good.status == 204 else good.status
        return web.Response(status=status, body=half, content_type="application/json")
    if fault.kind == "truncated_body" and request.transport is not None:
        record.status = good.status
        head = [f"HTTP/1.1 {good.status} {_reason(good.status)}", f"content-type: {good.headers.get('content-type')}"]
        head += [f"x-request-id: {record.request_id}", f"content-length: {len(body) + 512}", "", ""]
        request.transport.write("\r\n".join(head).encode() + body[: max(1, len(body) // 2)])
        request.transport.close()
    return await (reset if fault.kind == "reset_after" else park)(request)


def _retry_after(fault: Fault) -> dict[str, str]:
    return {} if fault.retry_after is None else {"Retry-After": fault.retry_after}


def _refusal(fault: Fault, default: int) -> web.Response:
    status = fault.status or default
    detail = fault.detail if fault.detail is not None else _reason(status) or "Error"
    return as_json({"detail": detail}, status, _retry_after(fault))


async def _huge(request: web.Request, status: int, *, stream: bool) -> web.StreamResponse:
    """Send :data:`HUGE` bytes that never complete a JSON value, or for a stream an event."""
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
