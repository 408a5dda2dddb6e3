"""One try of a batch as a process of its own, for tests that kill it.

With a ``point`` the process kills itself, by SIGKILL, at that point of the journal's life: ``METHOD:before:N`` or
``METHOD:after:N`` for the Nth call of a method, ``forget:half`` in the middle of the tidying up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from airflow_provider_llamachat.batch.engine import Batch
from airflow_provider_llamachat.batch.items import parse
from airflow_provider_llamachat.batch.journal import PartsJournal
from airflow_provider_llamachat.batch.sessions import Options
from airflow_provider_llamachat.batch.storage import Folder
from airflow_provider_llamachat.client import AsyncLlamaCloudClient, ClientConfig
from airflow_provider_llamachat.testing import INDEX_FILINGS
from tests.batch.conftest import SCOPE, prompts


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Replace a method of the journal by one that dies; this process is made for that."""
    if point == "forget:half":
        remove, forget = Folder.remove, PartsJournal.forget

        def remove_half(folder: Folder, names: list[str]) -> None:
            remove(folder, names[: len(names) // 2])
            die()

        def forget_half(journal: PartsJournal, stopped_by: str | None) -> None:
            setattr(Folder, "remove", remove_half)  # noqa: B010  # a plain assignment is not what mypy allows
            forget(journal, stopped_by)

        setattr(PartsJournal, "forget", forget_half)  # noqa: B010  # as above
        return
    name, when, number = point.split(":")
    method = getattr(PartsJournal, name)
    calls = 0

    def dying(journal: PartsJournal, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if when == "before" and calls == int(number):
            die()
        result = method(journal, *arguments)
        if when == "after" and calls == int(number):
            die()
        return result

    setattr(PartsJournal, name, dying)


@dataclass(frozen=True)
class Order:
    """What a try asks, of whom, and where its results go."""

    url: str
    api_key: str
    output: str
    count: int
    concurrency: int
    point: str = ""
    history_lag: float = 0.0


async def _run(order: Order, line: Connection) -> dict[str, int]:
    options = Options(
        index_ids=[INDEX_FILINGS],
        max_concurrency=order.concurrency,
        turn_timeout=60,
        delete_sessions=bool(order.point),
    )
    items = parse(prompts(order.count), index_ids=options.index_ids)
    config = ClientConfig(api_key=order.api_key, base_url=order.url, timeout=5, history_lag=order.history_lag)
    async with await AsyncLlamaCloudClient.open(config) as client:
        journal = PartsJournal(Path(order.output), SCOPE)
        batch = Batch(client, items, SCOPE, options, journal, logging.getLogger("worker"), commit_interval=0.05)
        line.send("begun")
        report = await batch.run()
    return {"kept": report.kept, "settled": report.settled, "opened": report.opened}


def run(order: Order, line: Connection) -> None:
    """The process: tells when it has begun, and the numbers of its report when it has ended."""
    if order.point:
        arm(order.point)
    line.send(asyncio.run(_run(order, line)))
