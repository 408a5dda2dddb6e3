"""Records become durable in groups, in order, and never half."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from airflow_provider_llamachat.batch.committer import Committer
from airflow_provider_llamachat.exceptions import ChatBatchError


def test_records_are_committed_in_groups_in_order_and_off_the_loop() -> None:
    groups: list[list[dict[str, Any]]] = []
    threads = set()

    def write(group: list[dict[str, Any]]) -> None:
        threads.add(threading.current_thread())
        time.sleep(0.02)
        groups.append(group)

    async def run() -> None:
        async with Committer(write, 0.02) as committer:
            await asyncio.gather(*(committer.commit({"n": number}) for number in range(5)))
            assert len(groups) == 1
            await committer.durable()
            assert len(groups) == 1
            committer.note({"n": 5})
            await committer.durable()
            assert groups[-1] == [{"n": 5}]
            committer.note({"n": 6})
            waiting = asyncio.create_task(committer.commit({"n": 7}))
            await asyncio.sleep(0)
            waiting.cancel()
            committer.note({"n": 8})

    asyncio.run(run())
    assert [record["n"] for group in groups for record in group] == list(range(9))
    assert threading.main_thread() not in threads


def test_a_journal_that_cannot_be_written_fails_the_batch_with_the_reason() -> None:
    def write(group: list[dict[str, Any]]) -> None:
        raise ChatBatchError("the disk is full")

    async def wait() -> None:
        async with Committer(write, 0.0) as committer:
            with pytest.raises(ChatBatchError, match="disk is full"):
                await asyncio.gather(committer.commit({}), committer.commit({}))
            with pytest.raises(ChatBatchError, match="disk is full"):
                committer.note({})

    async def end() -> None:
        async with Committer(write, 10.0) as committer:
            committer.note({})

    for broken in (wait, end):
        with pytest.raises(ChatBatchError, match="disk is full"):
            asyncio.run(broken())


def test_a_group_is_written_completely_before_the_next_one_begins() -> None:
    written: list[int] = []
    begun = threading.Event()

    def write(group: list[dict[str, Any]]) -> None:
        begun.set()
        time.sleep(0.1)
        written.extend(record["n"] for record in group)

    async def run() -> None:
        async with Committer(write, 0.0) as committer:
            committer.note({"n": 0})
            await asyncio.to_thread(begun.wait)
            committer.note({"n": 1})

    asyncio.run(run())
    assert written == [0, 1]
