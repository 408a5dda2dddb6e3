"""A batch as the tests here run it: against the emulator, with results and journal in a temporary folder."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_llamachat.batch.engine import Batch
from airflow_provider_llamachat.batch.items import BatchScope, parse
from airflow_provider_llamachat.batch.journal import Journal, PartsJournal
from airflow_provider_llamachat.batch.report import Report
from airflow_provider_llamachat.batch.sessions import Options
from airflow_provider_llamachat.client import AsyncLlamaCloudClient, ClientConfig, no_backoff
from airflow_provider_llamachat.client.throttle import Throttle
from airflow_provider_llamachat.testing import INDEX_FILINGS, LlamaCloudEmulator

PROMPT = "What was the revenue in Q3?"
SCOPE = BatchScope("dag", "task", "run")


def prompts(count: int) -> list[dict[str, Any]]:
    """Prompts that the emulator's log can tell apart."""
    return [{"id": f"item-{number}", "prompt": f"Question {number}: {PROMPT}"} for number in range(count)]


@dataclass
class Runner:
    """Tries of one batch, each with a client and an event loop of its own, as Airflow's retries have."""

    config: ClientConfig
    output: Path
    prompts: Any
    options: Options = field(default_factory=lambda: Options(index_ids=[INDEX_FILINGS], turn_timeout=60))
    scope: BatchScope = SCOPE
    throttle: Callable[[], Throttle] = Throttle
    journal: Callable[[], Journal] | None = None
    told: list[tuple[str, dict[str, Any] | None]] = field(default_factory=list)

    def run(self, during: Callable[[Batch], None] | None = None, **options: Any) -> Report:
        """One try; ``during`` is called on the loop when it has begun. Raises the failure of a batch that handed over its results."""
        chosen = replace(self.options, **options)
        items = parse(self.prompts, index_ids=chosen.index_ids, session_mode=chosen.session_mode)
        journal = self.journal() if self.journal else PartsJournal(self.output, self.scope)

        async def go() -> Report:
            async with await AsyncLlamaCloudClient.open(self.config, throttle=self.throttle()) as client:
                logger = logging.getLogger("tests.batch")
                batch = Batch(
                    client,
                    items,
                    self.scope,
                    chosen,
                    journal,
                    logger,
                    on_result=lambda outcome, usage: self.told.append((outcome, usage)),
                    commit_interval=0.02,
                )
                if during is not None:
                    during(batch)
                return await batch.run()

        report = asyncio.run(go())
        if report.failure is not None:
            raise report.failure
        return report

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The results."""
        return [json.loads(line) for line in self.output.read_bytes().split(b"\n") if line]

    @property
    def parts(self) -> list[Path]:
        """The part files that are there."""
        return sorted(Path(f"{self.output}.parts").glob("*/*"))


def outcomes(runner: Runner) -> list[str]:
    """The outcome in each line of the results."""
    return [line["outcome"] for line in runner.lines]


def once_each(emulator: LlamaCloudEmulator) -> bool:
    """Whether every prompt that was completed was completed once."""
    return all(
        count == 1 for count in Counter(turn.prompt for turn in emulator.turns if turn.state == "completed").values()
    )


def kill_when(batch: Batch, condition: Callable[[], Any]) -> None:
    """Stop a batch, on its loop, as soon as something has come about."""
    loop = asyncio.get_running_loop()

    def look() -> None:
        if condition():
            batch.kill()
        else:
            loop.call_later(0.02, look)

    look()


def running(emulator: LlamaCloudEmulator) -> int:
    """How many turns are under way."""
    return sum(turn.state == "running" for turn in emulator.turns)


@pytest.fixture(autouse=True)
def _without_pauses() -> Iterator[None]:
    with no_backoff():
        yield


@pytest.fixture
def config(llamacloud_emulator: LlamaCloudEmulator) -> ClientConfig:
    return ClientConfig(
        history_lag=0.0,
        api_key=llamacloud_emulator.api_key,
        base_url=llamacloud_emulator.url,
        timeout=30.0,
        max_retries=2,
    )


@pytest.fixture
def runner(config: ClientConfig, tmp_path: Path) -> Runner:
    """A batch of six prompts."""
    return Runner(config, tmp_path / "results.jsonl", prompts(6))
