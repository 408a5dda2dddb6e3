"""A client of the bare socket: it tells a reset from an end, which HTTP libraries blur."""

from __future__ import annotations

import json
import socket
from typing import Any, Literal
from urllib.parse import urlsplit

from airflow_provider_llamachat.testing import INDEX_FILINGS, LlamaCloudEmulator

End = Literal["end", "reset", "silence"]


def exchange(
    emulator: LlamaCloudEmulator, method: str, path: str, body: Any = None, *, patience: float = 0.5, most: int = 2**20
) -> tuple[bytes, End]:
    """Send one request and read until the server ends, resets, or is silent for ``patience`` seconds."""
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
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=5) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        sock.settimeout(patience)
        while len(received) < most:
            try:
                chunk = sock.recv(65536)
            except ConnectionResetError:
                return bytes(received), "reset"
            except TimeoutError:
                return bytes(received), "silence"
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
