"""Group commit: records of many concurrent turns become durable together, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

INTERVAL = 0.2
"""Seconds that the first record of a group waits for others. Sessions are opened ahead of the asking, which hides it."""


class Committer:
    """Writes records in groups; an asynchronous context manager that writes the rest on its way out.

    :param write: makes a group durable; blocking, called in a thread, one group at a time.
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

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None  # noqa: S101  # __aenter__ made it
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        # What ended while the batch was being stopped has been paid for: it is written whatever the reason was.
        await asyncio.shield(self._flush())
        if problem is None and self._failure is not None:
            raise self._failure

    def note(self, *records: dict[str, Any]) -> None:
        """Hand over records that nothing waits for.

        :raises ChatBatchError: an earlier group could not be written.
        """
        if self._failure is not None:
            raise self._failure
        self._records.extend(records)
        self._wake.set()

    async def commit(self, *records: dict[str, Any]) -> None:
        """Hand over records and wait until they, and all before them, are durable."""
        self.note(*records)
        # In the group that is collected now, or, for no records, in the one that is being written: both end in order.
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    async def durable(self) -> None:
        """Wait until everything handed over so far is durable; returns at once when it is."""
        if self._records or self._writing.locked():
            await self.commit()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._interval)
            # A group whose writing has begun is written to its end, also when the batch is cancelled meanwhile.
            await asyncio.shield(asyncio.ensure_future(self._flush()))

    async def _flush(self) -> None:
        async with self._writing:
            self._wake.clear()
            group, self._records = self._records, []
            waiters, self._waiters = self._waiters, []
            if group and self._failure is None:
                try:
                    await asyncio.to_thread(self._write, group)
                except Exception as problem:  # noqa: BLE001  # handed to everyone who waits, and to the batch
                    self._failure = problem
            for waiter in waiters:
                if waiter.done():
                    continue
                if self._failure is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(self._failure)
