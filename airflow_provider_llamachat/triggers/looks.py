"""All index triggers in an event loop look at the indexes of one connection and project together.

If each trigger sent its own requests, a few dozen of them would use up a plan's requests per minute. Here, one trigger reads the
indexes of all triggers that are due, and the others use what it read. Airflow's own way to share a poll
(``BaseEventTrigger.shared_stream_key``, Airflow 3.3) is not used, because triggers of deferred tasks cannot take part in it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Unpack
from weakref import WeakKeyDictionary

from airflow_provider_llamachat import exceptions

if TYPE_CHECKING:
    from airflow_provider_llamachat.client import AsyncLlamaCloudClient
    from airflow_provider_llamachat.conversation.question import Scope
    from airflow_provider_llamachat.models import Index

log = logging.getLogger(__name__)

AGE = 0.5
"""Maximum age of what another trigger has read, as a fraction of the pause before it is used."""

GATHER = 0.25
"""Seconds that the first look waits for others that start at the same time, for example after a restart of the triggerer."""

PAGE = 100
"""Number of indexes that are requested at once."""

PATIENCE = 15.0
"""Seconds after which the triggers of the other indexes no longer wait for a slow list or a slow index."""


class _Seen(NamedTuple):
    """What a read showed of an index.

    :ivar began: when it was read, by the clock of the event loop.
    :ivar expanded: whether ``sync_in_progress`` was read too.
    """

    began: float
    expanded: bool
    result: Index | Exception


class Watch:
    """The looks of one trigger.

    :ivar due: when what is read is recent enough for the next look, by the clock of the event loop.
    :ivar began: when what the last look used was read, by the same clock; None before the first look.
    """

    def __init__(self, board: _Board, index_ids: list[str], *, expand_sync: bool) -> None:
        self.index_ids = index_ids
        self.expand_sync = expand_sync
        # Whatever was read before a trigger started may be older than what its task knows.
        self.due = asyncio.get_running_loop().time()
        self._board = board
        self.began: float | None = None

    async def look(self) -> list[Index]:
        """Return the indexes. They were read after the previous look, not necessarily by this trigger.

        :raises Exception: the connection or an index could not be read.
        """
        if self.began is None:
            await asyncio.sleep(GATHER)
        seen = await self._board.look(self)
        self.began = min(state.began for state in seen)
        indexes = []
        for state in seen:
            if isinstance(state.result, Exception):
                raise state.result.with_traceback(None)
            indexes.append(state.result)
        return indexes

    async def pause(self, seconds: float) -> None:
        """Wait until the next look, which is ``seconds`` after the read that the last look used.

        Triggers that used the same read therefore also share the next one.
        """
        now = asyncio.get_running_loop().time()
        began = now if self.began is None else self.began
        wait = min(seconds, max(AGE * seconds, began + seconds - now))
        self.due = now + (1 - AGE) * wait
        await asyncio.sleep(wait)


class _Board:
    """What is known about the indexes of one connection and project in one event loop."""

    def __init__(self, llamacloud_conn_id: str, scope: Scope) -> None:
        self.watches: set[Watch] = set()
        self._conn_id = llamacloud_conn_id
        self._scope = scope
        self._seen: dict[str, _Seen] = {}
        self._slow: dict[str, asyncio.Task[Index | Exception]] = {}
        self._reading = asyncio.Lock()
        self._client: AsyncLlamaCloudClient | None = None
        # Number of indexes that cost fewer requests one by one than by the pages of the list.
        self._few = 1

    async def look(self, watch: Watch) -> list[_Seen]:
        """Return what is known about the indexes of ``watch``. Read them first if that is too old."""
        # A read that begins now is recent enough even for a look that comes early.
        watch.due = min(watch.due, asyncio.get_running_loop().time())
        while self._outdated(watch):
            async with self._reading:
                if self._outdated(watch):
                    await self._read(watch)
            if slow := [self._slow[index_id] for index_id in watch.index_ids if index_id in self._slow]:
                await asyncio.wait(slow)
        return [self._seen[index_id] for index_id in watch.index_ids]

    def _outdated(self, watch: Watch) -> set[str]:
        return {index_id for index_id in watch.index_ids if not self._is_recent(watch, index_id)}

    def _is_recent(self, watch: Watch, index_id: str) -> bool:
        seen = self._seen.get(index_id)
        if seen is None or seen.began < watch.due:
            return False
        return seen.expanded or not watch.expand_sync or isinstance(seen.result, Exception)

    async def _read(self, watch: Watch) -> None:
        """Read the indexes of this watch, and of all others that will accept the result."""
        began = asyncio.get_running_loop().time()
        watches = {watch, *(other for other in self.watches if other.due <= began)}
        expand: dict[str, bool] = {}
        for other in watches:
            for index_id in self._outdated(other) - set(self._slow):
                expand[index_id] = other.expand_sync or expand.get(index_id, False)
        if not expand:
            return
        # A new trigger may have been started because the connection was changed.
        is_current = self._client is None or any(other.began is None for other in watches)
        try:
            client = await self._connected(again=is_current)
            results = await self._results(client, began, expand)
            refused = {
                name: expand[name]
                for name, result in results.items()
                if isinstance(result, exceptions.RequestRefusedError)
            }
            if refused and not is_current:
                newer = await self._connected(again=True)
                if newer is not client:
                    results |= await self._results(newer, began, refused)
        except Exception as problem:  # noqa: BLE001  # each trigger decides what an error means
            results = dict.fromkeys(expand, problem)
        for index_id, result in results.items():
            self._seen[index_id] = _Seen(began, expand[index_id], result)
        if any(map(_is_about_the_connection, results.values())):
            # The connection may be corrected before the next look.
            await self.close()

    async def _connected(self, *, again: bool) -> AsyncLlamaCloudClient:
        """Return the client.

        :param again: read the connection again, and open a new client if it has changed.
        """
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

        old = self._client
        if old is not None and not again:
            return old
        try:
            config = await LlamaCloudHook(self._conn_id).get_async_config()
        except Exception as problem:
            if old is None:
                raise
            log.warning(
                "The connection %s could not be read again, so what was read earlier is used (%s).",
                self._conn_id,
                type(problem).__name__,
            )
            return old
        if old is not None and old.config == config:
            return old
        from airflow_provider_llamachat.client import AsyncLlamaCloudClient

        await self.close()
        self._client = await AsyncLlamaCloudClient.open(config)
        return self._client

    async def _results(
        self, client: AsyncLlamaCloudClient, began: float, expand: dict[str, bool]
    ) -> dict[str, Index | Exception]:
        """Read these indexes, and ``sync_in_progress`` of those with True. Slow ones are absent, and stored when they arrive."""
        results = await self._listed(client, {index_id for index_id, expanded in expand.items() if not expanded})
        reads = {
            index_id: asyncio.create_task(self._one(client, index_id, expanded))
            for index_id, expanded in expand.items()
            if index_id not in results
        }
        if not reads:
            return results
        try:
            await asyncio.wait(reads.values(), timeout=PATIENCE)
        except asyncio.CancelledError:
            for task in reads.values():
                task.cancel()
            raise
        for index_id, task in reads.items():
            if task.done():
                results[index_id] = task.result()
            else:
                self._slow[index_id] = task
                task.add_done_callback(partial(self._arrived, index_id, began, expand[index_id]))
        return results

    def _arrived(self, index_id: str, began: float, expanded: bool, task: asyncio.Task[Index | Exception]) -> None:
        if self._slow.get(index_id) is task:
            del self._slow[index_id]
            self._seen[index_id] = _Seen(began, expanded, task.result())

    async def _listed(self, client: AsyncLlamaCloudClient, index_ids: set[str]) -> dict[str, Index | Exception]:
        """Return the indexes that the list shows, as far as it takes fewer requests than reading the indexes one by one.

        An exception stands for the other indexes if reading them one by one would raise it too.
        """
        found: dict[str, Index | Exception] = {}
        if len(index_ids) <= self._few:
            return found
        try:
            async with asyncio.timeout(PATIENCE):
                pages = client.list_indexes(page_size=PAGE, max_pages=len(index_ids) - 1, **self._scope)
                async for index in pages:
                    if index.id in index_ids and index.metadata.status is not None:
                        found[index.id] = index
                        if len(found) == len(index_ids):
                            return found
        except (exceptions.AuthenticationError, exceptions.RateLimitError) as problem:
            return {**dict.fromkeys(index_ids, problem), **found}
        except Exception as problem:  # noqa: BLE001  # reading one by one tells which index it is about
            log.info("The list of indexes could not be read, so they are read one by one. %s", problem)
        if 2 * len(found) < len(index_ids):
            self._few = len(index_ids)
        return found

    async def _one(self, client: AsyncLlamaCloudClient, index_id: str, expanded: bool) -> Index | Exception:
        try:
            return await client.get_index(index_id, expand_sync=expanded, **self._scope)
        except Exception as problem:  # noqa: BLE001  # as in _read
            return problem

    async def close(self) -> None:
        """Close the client. The next read makes another one, and repeats what was being read."""
        slow, self._slow = self._slow, {}
        for task in slow.values():
            task.cancel()
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _is_about_the_connection(result: Index | Exception) -> bool:
    """Whether a corrected connection may help. Other statuses are about the index, or will pass."""
    if isinstance(result, exceptions.LlamaCloudStatusError):
        return isinstance(result, exceptions.AuthenticationError)
    return isinstance(result, Exception)


_boards: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str | None, str | None], _Board]] = (
    WeakKeyDictionary()
)


@asynccontextmanager
async def watching(
    llamacloud_conn_id: str, index_ids: list[str], *, expand_sync: bool = False, **scope: Unpack[Scope]
) -> AsyncIterator[Watch]:
    """Look at indexes together with the other triggers of this event loop.

    :param expand_sync: also read ``sync_in_progress``, which takes one request for each index.
    """
    boards = _boards.setdefault(asyncio.get_running_loop(), {})
    key = (llamacloud_conn_id, scope.get("project_id"), scope.get("organization_id"))
    if (board := boards.get(key)) is None:
        board = boards[key] = _Board(llamacloud_conn_id, scope)
    watch = Watch(board, index_ids, expand_sync=expand_sync)
    board.watches.add(watch)
    try:
        yield watch
    finally:
        board.watches.discard(watch)
        if not board.watches:
            del boards[key]
            await board.close()
