"""Bare HTTP access to the emulator: nothing of the provider's own client, so that the two cannot share a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from airflow_provider_llamachat.testing import INDEX_FILINGS, LlamaCloudEmulator

Events = list[tuple[str, dict[str, Any]]]


class Api:
    """A client of the emulator that says what it sends."""

    def __init__(self, emulator: LlamaCloudEmulator) -> None:
        self.emulator = emulator
        self.http = httpx.Client(
            base_url=emulator.url,
            headers={"Authorization": f"Bearer {emulator.api_key}"},
            timeout=60.0,
            trust_env=False,
            verify=False,  # reading the machine's certificates takes longer than most of these tests
        )

    def create(self, index_ids: list[str] | None = None, **query: str) -> str:
        answer = self.http.post("/api/v1/chat", json={"index_ids": index_ids}, params=query)
        assert answer.status_code == 201, answer.text
        session_id: str = answer.json()["session_id"]
        return session_id

    def bound(self) -> str:
        return self.create([INDEX_FILINGS])

    def ask(
        self,
        session_id: str,
        prompt: str = "What was the revenue in Q3?",
        index_ids: list[str] | None = None,
        **body: Any,
    ) -> httpx.Response:
        return self.http.post(
            f"/api/v1/chat/{session_id}/messages/stream",
            json={"index_ids": [INDEX_FILINGS] if index_ids is None else index_ids, "prompt": prompt, **body},
        )

    def history(self, session_id: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self.http.get(f"/api/v1/chat/{session_id}").json()["events"]
        return events

    def types(self, session_id: str) -> list[str]:
        return [event["type"] for event in self.history(session_id)]


WHOLE = ["user_input", "thinking", "tool_call", "tool_result", "text", "stop"]


def events(text: str) -> Events:
    """The events of a stream, read by the letter of the format that the emulator sends."""
    found: Events = []
    for block in text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            kind, data = lines
            assert kind.startswith("event: ")
            assert data.startswith("data: ")
            found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for something that happens at the server a moment later."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


def python(code: str) -> str:
    """Run code in a process of its own, and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Clock:
    """The time of this process, which a test moves on: nothing is too late on a busy machine, and nobody waits.

    It goes by itself as well, so what lasts a minute is under way until :meth:`forward` says otherwise.
    """

    def __init__(self, emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
        self._emulator = emulator
        self._ahead = 0.0
        for name in ("time", "monotonic"):
            monkeypatch.setattr(time, name, self._moved(getattr(time, name)))

    def _moved(self, real: Callable[[], float]) -> Callable[[], float]:
        return lambda: real() + self._ahead

    def forward(self, seconds: float = 60.0) -> None:
        """Let time pass, and what was due in it happen."""
        self._ahead += seconds
        # Reading this wakes the emulator's event loop, which otherwise sleeps until its next timer was due before.
        assert self._emulator.turns is not None


@pytest.fixture
def clock(emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(emulator, monkeypatch)


@pytest.fixture
def emulator(llamacloud_emulator: LlamaCloudEmulator) -> LlamaCloudEmulator:
    return llamacloud_emulator


@pytest.fixture
def api(emulator: LlamaCloudEmulator) -> Iterator[Api]:
    made = Api(emulator)
    with made.http:
        yield made
