"""Group commit: writes the records of many concurrent turns together, outside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

INTERVAL = 0.2
"""Seconds that the first record of a group waits for others. Sessions are opened ahead of time, which hides this delay."""


class Committer:
    """Writes records in groups. Use it as an asynchronous context manager, which writes the remaining records on exit.

    :param write: makes a group durable. It may block; it is called in a thread, for one group at a time.
    """

    def __init__(self, write: Callable[[list[dict[str, Any]]], None], interval: float = INTERVAL) -> None:
        self._write = write
        self._interval = interval
        self._records: list[dict[str, Any]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="batch-committer")
        return self

    async def __aexit__(self, _kind: object, problem: BaseException | None, _trace: object) -> None:
        assert self._task is not None  # noqa: S101  # __aenter__ made it
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        # Turns that ended while the batch was stopping have been paid for, so they are always written.
        await asyncio.shield(self._flush())
        if problem is None and self._failure is not None:
            raise self._failure

    def note(self, *records: dict[str, Any]) -> None:
        """Add records without waiting for them.

        :raises ChatBatchError: an earlier group could not be written.
        """
        if self._failure is not None:
            raise self._failure
        self._records.extend(records)
        self._wake.set()

    async def commit(self, *records: dict[str, Any]) -> None:
        """Add records, and wait until they and all earlier ones are durable."""
        self.note(*records)
        # Groups are written in order, so this also waits for a group that is being written.
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    async def durable(self) -> None:
        """Wait until all records that were added so far are durable."""
        if self._records or self._writing.locked():
            await self.commit()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._interval)
            # A write that has started is completed even if the batch is cancelled.
            await asyncio.shield(asyncio.ensure_future(self._flush()))

    async def _flush(self) -> None:
        async with self._writing:
            self._wake.clear()
            group, self._records = self._records, []
            waiters, self._waiters = self._waiters, []
            if group and self._failure is None:
                try:
                    await asyncio.to_thread(self._write, group)
                except Exception as problem:  # noqa: BLE001  # passed on to all waiters and to the batch
                    self._failure = problem
            for waiter in waiters:
                if waiter.done():
                    continue
                if self._failure is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(self._failure)
