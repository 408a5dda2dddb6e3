"""Calls every method of both clients against a server that says what a test wants, and judges what comes out."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from airflow_provider_llamachat.client import AsyncLlamaCloudClient, ClientConfig, LlamaCloudClient, no_backoff
from airflow_provider_llamachat.exceptions import LlamaCloudError
from tests.hostile.rawserver import Answer, RawServer

KEY = "secret/key+'\"&<canary>=0123456789"
"""Not of LlamaCloud's form, so that nothing but knowing it redacts it; and of characters that each notation writes otherwise."""

SESSION = "ses-1"
PROMPT = "What was the revenue in Q3?"


def send_in(seconds: float) -> Callable[[Any], Any]:
    """Sending a prompt, for this long at most."""
    return lambda c: c.send_message(SESSION, PROMPT, index_ids=["idx-1"], baseline=0, turn_timeout=seconds)


METHODS: dict[str, Callable[[Any], Any]] = {
    "create": lambda c: c.create_session(["idx-1"]),
    "get": lambda c: c.get_session(SESSION),
    "summary": lambda c: c.get_session_summary(SESSION),
    "delete": lambda c: c.delete_session(SESSION),
    "list": lambda c: c.list_sessions(),
    "projects": lambda c: c.list_projects(),
    "project": lambda c: c.get_project("0f0e0d0c-0b0a-4908-8706-050403020100"),
    "indexes": lambda c: c.list_indexes(),
    "index": lambda c: c.get_index("idx-1", expand_sync=True),
    "sync": lambda c: c.sync_index("idx-1"),
    "cancel sync": lambda c: c.cancel_sync("idx-1"),
    "stream": lambda c: c.stream_message(SESSION, PROMPT, index_ids=["idx-1"], turn_timeout=60.0),
    "send": send_in(60.0),
}
"""Everything a client can be asked for."""

IN_SHORT = {
    **METHODS,
    "stream": lambda c: c.stream_message(SESSION, PROMPT, index_ids=["idx-1"], turn_timeout=0.5),
    "send": send_in(0.5),
}
"""The same, where the end of the turn's time is what a test is about, or what it meets after all else."""


@dataclass
class Caller:
    """Calls methods of one kind of client against a :class:`RawServer`.

    No limit of ``config`` is reached by an answer that comes, however busy the machine is. A test of a limit sets it, and its server
    never answers.
    """

    asynchronous: bool
    config: dict[str, Any] = field(
        default_factory=lambda: {
            "timeout": 30.0,
            "connect_timeout": 30.0,
            "max_retries": 1,
            "total_timeout": 60.0,
            "history_lag": 0.0,
        }
    )

    def __call__(self, call: str | Callable[[Any], Any], url: str, **values: Any) -> Any:
        """Return what the call returns; iterators as lists."""
        config = ClientConfig(**{"api_key": KEY, "base_url": url, **self.config, **values})
        method = METHODS[call] if isinstance(call, str) else call
        return asyncio.run(self._run(method, config)) if self.asynchronous else self._run_here(method, config)

    @staticmethod
    def _run_here(method: Callable[[Any], Any], config: ClientConfig) -> Any:
        with LlamaCloudClient(config) as client:
            made = method(client)
            return list(made) if hasattr(made, "__next__") else made

    @staticmethod
    async def _run(method: Callable[[Any], Any], config: ClientConfig) -> Any:
        async with await AsyncLlamaCloudClient.open(config) as client:
            made = method(client)
            return [item async for item in made] if hasattr(made, "__aiter__") else await made

    def meets(self, call: str | Callable[[Any], Any], answer: Answer, *, within: float = 90.0, **values: Any) -> Any:
        """What a call returns or raises, when a server answers with what it likes: right or typed, and in time."""
        with RawServer(answer) as server:
            begin = time.monotonic()
            try:
                result = self(call, server.url, **values)
            except LlamaCloudError as problem:
                assert_harmless(problem)
                result = problem
            assert time.monotonic() - begin < within
        return result


def assert_harmless(problem: LlamaCloudError) -> None:
    """An error that may go to any log, database or other process."""
    for text in (str(problem), str(problem.request_id)):
        assert len(text) <= 2500
        strange = [c for c in text if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} or c in "\u202a\u202e\u2066"]
        assert not strange, text
        assert KEY not in text
        assert json.dumps(KEY)[1:-1] not in text
        assert "canary" not in text.lower()
    again = pickle.loads(pickle.dumps(problem))  # our own bytes
    assert (type(again), str(again), vars(again)) == (type(problem), str(problem), vars(problem))
    assert len(pickle.dumps(problem)) < 20_000
    json.dumps(vars(problem), allow_nan=False).encode()


@pytest.fixture(autouse=True)
def _without_pauses() -> Iterator[None]:
    with no_backoff():
        yield


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param == "async")


@pytest.fixture
def peak() -> Iterator[Callable[[], float]]:
    """Tells how many MB of Python's memory were in use at most since the test began."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
