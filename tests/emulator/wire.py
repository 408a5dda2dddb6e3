"""A client of the bare socket: it tells a reset from an end, which HTTP libraries blur."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

from airflow_provider_llamachat.testing import INDEX_FILINGS, LlamaCloudEmulator

End = Literal["end", "reset", "silence"]

SILENCE = 0.3
"""Seconds without a byte that show that none comes, once everything has come that should."""


def exchange(
    emulator: LlamaCloudEmulator,
    method: str,
    path: str,
    body: Any = None,
    *,
    silent_after: Callable[[bytes], bool] | None = None,
    most: int = 2**20,
) -> tuple[bytes, End]:
    """Send one request and read until the server ends, resets, or is silent.

    :param silent_after: whether what was received is all that should come, so that it is time to listen to the silence; None where
        an end or a reset is due.
    """
    address = urlsplit(emulator.url)
    data = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {address.netloc}",
        f"Authorization: Bearer {emulator.api_key}",
        "Content-Type: application/json",
        "Connection: close",
        f"Content-Length: {len(data)}",
    ]
    received = bytearray()
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        sock.settimeout(60 if silent_after is None else SILENCE)
        while len(received) < most:
            is_all = silent_after is None or silent_after(bytes(received))
            try:
                chunk = sock.recv(65536)
            except ConnectionResetError:
                return bytes(received), "reset"
            except TimeoutError:
                if is_all:
                    return bytes(received), "silence"
                continue
            if not chunk:
                return bytes(received), "end"
            received += chunk
    return bytes(received), "silence"


def ask(
    emulator: LlamaCloudEmulator, session_id: str, prompt: str = "Revenue in Q3?", **options: Any
) -> tuple[bytes, End]:
    """Post a prompt over the bare socket."""
    body = {"index_ids": [INDEX_FILINGS], "prompt": prompt}
    return exchange(emulator, "POST", f"/api/v1/chat/{session_id}/messages/stream", body, **options)
