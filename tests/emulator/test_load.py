"""The emulator keeps up: many streams at once, many turns in a row, from one process. Prints what it took."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from airflow_provider_llamachat.testing import INDEX_FILINGS, EmulatorProcess, Settings


class _Client:
    """One connection, as cheap as it can be, so that the server is what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader = reader
        self._writer = writer
        self._key = key

    async def post(self, path: str, body: object) -> bytes:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._key}\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if b"content-length: " in answer:
            return await self._reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r\n")[0]))
        parts = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            parts.append((await self._reader.readexactly(size + 2))[:-2])
        await self._reader.readexactly(2)
        return b"".join(parts)

    async def turns(self, numbers: list[int]) -> list[float]:
        took = []
        while numbers:
            number = numbers.pop()
            session_id = json.loads(await self.post("/api/v1/chat", {"index_ids": [INDEX_FILINGS]}))["session_id"]
            started = time.perf_counter()
            body = {"index_ids": [INDEX_FILINGS], "prompt": f"What was the revenue in Q3? ({number})"}
            stream = await self.post(f"/api/v1/chat/{session_id}/messages/stream", body)
            took.append(time.perf_counter() - started)
            assert stream.count(b"event: ") > 10
            assert b'"type":"stop"' in stream
        self._writer.close()
        await self._writer.wait_closed()
        return took


async def _load(emulator: EmulatorProcess, turns: int, at_once: int) -> list[float]:
    address = urlsplit(emulator.url)
    key = emulator.api_key
    numbers = list(range(turns))

    async def one() -> list[float]:
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**20)
        return await _Client(reader, writer, key).turns(numbers)

    return sorted(took for many in await asyncio.gather(*[one() for _ in range(at_once)]) for took in many)


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.long
@pytest.mark.parametrize(("turns", "at_once", "latency", "budget"), [(200, 200, 1.0, 20.0), (600, 16, 0.0, 8.0)])
def test_the_emulator_keeps_up_with_many_turns(
    turns: int, at_once: int, latency: float, budget: float, capsys: pytest.CaptureFixture[str]
) -> None:
    with EmulatorProcess(Settings(turn_latency=latency)) as emulator:
        before = _processor_seconds(emulator.pid)
        started = time.perf_counter()
        took = asyncio.run(_load(emulator, turns, at_once))
        wall = time.perf_counter() - started
        each = 1000 * (_processor_seconds(emulator.pid) - before) / turns
        assert emulator.completed() == len(took) == turns
    with capsys.disabled():
        print(
            f"\nemulator: {turns} turns, {at_once} at once, latency {latency} s: {wall:.2f} s; a turn (and its session) cost the "
            f"server {each:.2f} ms; median {took[turns // 2]:.3f} s, longest {took[-1]:.3f} s"
        )
    # Wide enough for a loaded machine; a cost that grows with the number of turns would not fit.
    assert each < budget
