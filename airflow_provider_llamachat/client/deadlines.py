"""Deadlines for network operations, and a gate that a stopped task closes.

httpx limits only each single read. A server that slowly sends the bytes of a header, or endless ``100 Continue`` responses,
can block a client forever. asyncio can cancel such a read, but threads cannot. Therefore the network streams of the synchronous
client check the deadline and the gate.
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
"""Seconds between two checks of the gate during a synchronous wait."""


class Gate:
    """A flag that a stopped task sets, so that nothing more is sent. A signal handler may set it.

    :ivar is_closed: whether it is set.
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
    """Asynchronous form of :func:`sleep`. The gate is not checked, because a stopped asyncio task is cancelled."""
    await asyncio.sleep(seconds)


def sleep(seconds: float, gate: Gate) -> None:
    """Wait, but no longer than until ``gate`` is closed."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not gate.is_closed:
        time.sleep(min(left, TICK))


@contextlib.contextmanager
def until(deadline: float) -> Iterator[None]:
    """Make network operations in the block time out at ``deadline`` (epoch seconds)."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def bounded(timeout: float | None, kind: type[Exception]) -> float | None:
    """Return ``timeout``, limited to the time until the deadline.

    :raises kind: the deadline has passed.
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

    :raises AttributeError: this release of httpx is not supported, because its internal structure differs.
    """
    # httpx has no public way to set the network backend of its connection pools.
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001  # see above
        if transport is not None:  # None for the hosts of NO_PROXY
            pool: Any = transport._pool  # type: ignore[attr-defined]  # noqa: SLF001  # see above
            pool._network_backend.connect_tcp  # noqa: B018, SLF001  # raises AttributeError if it does not exist
            pool._network_backend = _Backend(gate)  # noqa: SLF001  # see above
