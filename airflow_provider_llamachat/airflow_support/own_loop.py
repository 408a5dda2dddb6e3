"""Runs a coroutine in a task, whether or not an event loop is running."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

R = TypeVar("R")


def run(work: Awaitable[R], stop: Callable[[], object] | None = None) -> R:
    """Wait for ``work``, which runs on an event loop in a thread of its own.

    Airflow raises a task's timeout from a signal handler, which interrupts the main thread at any point. If it interrupted a callback of
    an event loop, the loop would log the exception and continue. In a notebook, the main thread already runs a loop.

    :param stop: makes ``work`` end if the wait is interrupted. By default, it is cancelled.
    """
    cancel: Future[Callable[[], object]] = Future()

    async def whole() -> R:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # asyncio.run makes one
        loop = asyncio.get_running_loop()
        cancel.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await work

    with ThreadPoolExecutor(1, thread_name_prefix="llamachat-loop") as thread:
        result: Future[R] | None = None
        try:
            result = thread.submit(contextvars.copy_context().run, asyncio.run, whole())
            return result.result()
        except BaseException:
            if result is None or not result.done():
                if stop is not None:
                    stop()
                elif not cancel.cancel():
                    with contextlib.suppress(RuntimeError):  # the loop has ended
                        cancel.result()()
            raise
