"""A server on loopback that sends exactly the bytes a test gives it: what no HTTP library would let a server say."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

KEEP_ALIVE = "Connection: keep-alive"

Answer = Callable[["Request"], Iterable[bytes | float]]
"""Pieces to send for a request: bytes as they are, numbers as seconds of silence.

The connection is closed after them, unless one of them says ``Connection: keep-alive``.
"""


@dataclass(frozen=True)
class Request:
    """What arrived."""

    head: str
    body: bytes
    number: int

    @property
    def method(self) -> str:
        """GET, POST ..."""
        return self.head.split(" ", 1)[0]

    @property
    def target(self) -> str:
        """Path and query, as sent."""
        return self.head.split(" ", 2)[1]

    def header(self, name: str) -> str | None:
        """The value of a header."""
        found = re.search(rf"(?im)^{re.escape(name)}:[ \t]*(.*?)\r?$", self.head)
        return found.group(1) if found else None


@dataclass
class RawServer:
    """Serves one answer to every request, each connection on a thread of its own; ended by leaving the ``with`` block.

    :ivar requests: what arrived.
    :ivar sent: bytes that were handed to the network.
    """

    answer: Answer
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    sent: int = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10.0)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        # The client may leave at any moment: that is what many tests are about.
        with contextlib.suppress(OSError, ValueError), connection:
            stream = self.tls.wrap_socket(connection, server_side=True) if self.tls else connection
            with stream:
                self._converse(stream)

    def _converse(self, stream: socket.socket) -> None:
        while (request := self._read(stream)) is not None:
            self.requests.append(request)
            kept = False
            for piece in self.answer(request):
                if isinstance(piece, bytes):
                    stream.sendall(piece)
                    self.sent += len(piece)
                    kept = kept or KEEP_ALIVE.encode() in piece
                elif self._over.wait(piece):
                    return
            if not kept:
                # Closing while unread bytes are there would send a reset and could lose the answer.
                stream.shutdown(socket.SHUT_WR)
                stream.settimeout(0.5)
                while stream.recv(65536):
                    pass
                return

    def _read(self, stream: socket.socket) -> Request | None:
        data = b""
        while b"\r\n\r\n" not in data:
            got = stream.recv(65536)
            if not got:
                return None
            data += got
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        while length and len(body) < int(length.group(1)):
            body += stream.recv(65536)
        return Request(head.decode("latin-1"), body, len(self.requests))


def http(
    body: bytes = b"", status: str = "200 OK", *headers: str, kind: str | None = "application/json", length: bool = True
) -> bytes:
    """A whole answer, which says that the connection is closed after it unless ``headers`` say ``KEEP_ALIVE``.

    A client that is not told puts the connection back into its pool, and may send its next request into the closing.
    """
    lines = [f"HTTP/1.1 {status}", *headers]
    if KEEP_ALIVE not in headers:
        lines.append("Connection: close")
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def endless(piece: bytes, begin: bytes = b"", pause: float = 0.0, patience: float = 250.0) -> Iterable[bytes | float]:
    """``begin``, then ``piece`` again and again, for longer than any test waits."""
    yield begin
    until = time.monotonic() + patience
    while time.monotonic() < until:
        yield piece
        if pause:
            yield pause
