"""An end for waiting, whatever a server drips, and a gate that a stopped task closes.

httpx limits each single wait for bytes. A server that sends one byte of a header now and then, or endless ``100 Continue``,
keeps such a client for ever without its caller ever seeing a chunk; asyncio has its own means against that, threads have not.
So the network streams below a synchronous httpx client look at the deadline of whoever reads, and at the gate.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

_deadline: ContextVar[float] = ContextVar("llamacloud_deadline", default=float("inf"))


TICK = 0.25
"""Seconds after which a synchronous wait looks whether it was stopped."""


class Gate:
    """What a stopped task closes, so that nothing is sent any more. A signal handler may do so.

    :ivar is_closed: whether it is.
    """

    is_closed = False


class NotSentError(TimeoutError):
    """The deadline passed before anything was sent."""


class StoppedError(NotSentError):
    """The client was stopped before anything was sent."""


def auntil(deadline: float) -> asyncio.Timeout:
    """Asynchronous form of :func:`until`."""
    return asyncio.timeout(max(0.0, deadline - time.time()))


async def asleep(seconds: float, gate: Gate) -> None:  # noqa: ARG001  # as in :func:`sleep`
    """Asynchronous form of :func:`sleep`; a task that is stopped is cancelled."""
    await asyncio.sleep(seconds)


def sleep(seconds: float, gate: Gate) -> None:
    """Wait, but no longer than until ``gate`` is closed."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not gate.is_closed:
        time.sleep(min(left, TICK))


@contextlib.contextmanager
def until(deadline: float) -> Iterator[None]:
    """Let no network operation in this block last beyond ``deadline`` (epoch seconds); it then fails as a time-out."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def bounded(timeout: float | None, kind: type[Exception]) -> float | None:
    """``timeout``, shortened to what is left.

    :raises kind: nothing is left.
    """
    deadline = _deadline.get()
    if deadline == float("inf"):
        return timeout
    left = deadline - time.time()
    if left <= 0:
        raise kind("the deadline has passed")
    return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, gate: Gate) -> None:
        self._stream = stream
        self._gate = gate

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._gate.is_closed:
                raise httpcore.ReadError("the task was stopped")
            left = bounded(None if end is None else max(0.0, end - time.monotonic()), httpcore.ReadTimeout)
            try:
                return self._stream.read(max_bytes, TICK if left is None else min(left, TICK))
            except httpcore.ReadTimeout:
                if left is not None and left <= TICK:
                    raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._gate.is_closed:
            raise httpcore.WriteError("the task was stopped")
        self._stream.write(buffer, bounded(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        inner = self._stream.start_tls(ssl_context, server_hostname, bounded(timeout, httpcore.ConnectTimeout))
        return _Stream(inner, self._gate)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.SyncBackend):
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = bounded(timeout, httpcore.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, left, local_address, socket_options), self._gate)


def obey(client: httpx.Client, gate: Gate) -> None:
    """Make ``client``'s connections, those through proxies included, obey :func:`until` and ``gate``.

    :raises AttributeError: this release of httpx keeps its connections elsewhere; waiting would have no end there.
    """
    # httpx has no public way to choose the network backend that its transports' pools take.
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001  # see above
        if transport is not None:  # what NO_PROXY exempts
            pool: Any = transport._pool  # type: ignore[attr-defined]  # noqa: SLF001  # see above
            pool._network_backend.connect_tcp  # noqa: B018, SLF001  # fails where it is gone: see above
            pool._network_backend = _Backend(gate)  # noqa: SLF001  # see above
