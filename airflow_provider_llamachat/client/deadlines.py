"""An end for synchronous waiting, whatever a server drips.

httpx limits each single wait for bytes. A server that sends one byte of a header now and then, or endless ``100 Continue``,
keeps such a client for ever without its caller ever seeing a chunk; asyncio has its own means against that, threads have not.
So the network streams below httpx look at the deadline of whoever reads.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

_deadline: ContextVar[float] = ContextVar("llamacloud_deadline", default=float("inf"))


class NotSentError(TimeoutError):
    """The time was over before anything was sent."""


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
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, bounded(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, bounded(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, bounded(timeout, httpcore.ConnectTimeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = bounded(timeout, httpcore.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, left, local_address, socket_options))


def obey_deadlines(client: httpx.Client) -> None:
    """Make ``client``'s connections, those through proxies included, obey :func:`until`."""
    # httpx has no public way to choose the network backend that its transports' pools take.
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001  # see above
        pool: Any = getattr(transport, "_pool", None)
        if pool is not None and hasattr(pool, "_network_backend"):
            pool._network_backend = _Backend()  # noqa: SLF001  # see above
