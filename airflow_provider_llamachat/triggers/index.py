"""The triggers that wait until indexes are ready, or until an index was synced again."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import IndexNotReadyError, InvalidArgumentError, LlamaCloudError
from airflow_provider_llamachat.triggers.events import FAILED, READY, TIMED_OUT, Failure, IndexEvent
from airflow_provider_llamachat.triggers.looks import watching
from airflow_provider_llamachat.triggers.pacing import wait_for_start

try:
    from airflow.triggers.base import BaseEventTrigger
except ImportError:  # Airflow 2 has no asset watchers; the class then serves as a plain trigger
    BaseEventTrigger = BaseTrigger  # type: ignore[assignment,misc]  # stands in where the name does not exist

if TYPE_CHECKING:
    from airflow_provider_llamachat.client.readiness import Readiness
    from airflow_provider_llamachat.conversation.question import Scope
    from airflow_provider_llamachat.models import Index
    from airflow_provider_llamachat.triggers.looks import Watch


class _Serialized:
    project_id: str | None
    organization_id: str | None

    @property
    def _scope(self) -> Scope:
        return {"project_id": self.project_id, "organization_id": self.organization_id}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments that make this trigger again."""
        # Each argument is an attribute of the same name.
        kind = type(self)
        own = [
            init for parent in kind.__mro__ if parent.__module__ == __name__ and (init := vars(parent).get("__init__"))
        ]
        every = [one for init in own for one in inspect.signature(init).parameters.values()]
        names = [one.name for one in every if one.kind is one.KEYWORD_ONLY]
        return f"{kind.__module__}.{kind.__qualname__}", {name: getattr(self, name) for name in names}


class IndexReadyTrigger(_Serialized, BaseTrigger):
    """Fire when all indexes are ready, when one has failed, or at the deadline.

    The trigger does not contain an API key. Unknown arguments are ignored, so that deferred tasks survive an upgrade or downgrade of
    the provider.

    :param deadline: epoch seconds at which waiting ends.
    :param poke_interval: seconds between two checks.
    :param exponential_backoff: double the interval after each check, up to ``max_wait`` seconds.
    :param wait_for_sync: also wait for running syncs.
    :param silent_fail: log errors and check again, unless the error is permanent.
    :raises InvalidArgumentError: an argument is invalid.
    """

    started = False

    def __init__(
        self,
        *,
        llamacloud_conn_id: str,
        index_ids: list[str],
        deadline: float,
        poke_interval: float | timedelta = 60.0,
        exponential_backoff: bool = False,
        max_wait: float | timedelta | None = None,
        wait_for_sync: bool = False,
        silent_fail: bool = False,
        project_id: str | None = None,
        organization_id: str | None = None,
        **_from_other_releases: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow does not type it
        self.llamacloud_conn_id = arguments.connection_id(llamacloud_conn_id)
        self.index_ids = arguments.ids_to_wait_for(index_ids)
        self.deadline = arguments.moment(deadline, "deadline")
        # A sensor may have an interval of 0.
        self.poke_interval = (
            0.0 if poke_interval in (0, timedelta()) else arguments.seconds(poke_interval, "poke_interval")
        )
        self.exponential_backoff = arguments.flag(exponential_backoff, "exponential_backoff")
        self.max_wait = None if max_wait is None else arguments.seconds(max_wait, "max_wait")
        self.wait_for_sync = arguments.flag(wait_for_sync, "wait_for_sync")
        self.silent_fail = arguments.flag(silent_fail, "silent_fail")
        self.project_id, self.organization_id = arguments.scope(project_id, organization_id).values()

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Check all indexes repeatedly, together with the other triggers of the triggerer, and fire once."""
        await wait_for_start()
        try:
            async with watching(
                self.llamacloud_conn_id, self.index_ids, expand_sync=self.wait_for_sync, **self._scope
            ) as watch:
                event = await self._wait(watch, await asyncio.to_thread(self._judge))
        except LlamaCloudError as problem:
            event = IndexEvent(FAILED, self.index_ids, Failure.of(problem))
        yield TriggerEvent(event.as_dict())  # type: ignore[no-untyped-call]  # Airflow does not type it

    def _judge(self) -> Readiness:
        # The first import takes some time.
        from airflow_provider_llamachat.client.readiness import Readiness

        return Readiness(wait_for_sync=self.wait_for_sync)

    async def _wait(self, watch: Watch, readiness: Readiness) -> IndexEvent:
        from airflow_provider_llamachat.client.readiness import not_ready

        pause = self.poke_interval
        states: dict[str, str] = {}
        while True:
            try:
                indexes = await watch.look()
                states = readiness.pending(indexes)
                if not states:
                    synced = {index.id: index.last_synced_at for index in indexes}
                    return IndexEvent(READY, self.index_ids, last_synced_at=synced, started=self.started)
            except LlamaCloudError as problem:
                if not self.silent_fail or isinstance(problem, AirflowFailException):
                    raise
                self.log.warning("Continuing to wait, because silent_fail is set. %s", problem)
            left = self.deadline - time.time()
            if left <= 0:
                return IndexEvent(TIMED_OUT, self.index_ids, Failure.of(IndexNotReadyError(not_ready(states))))
            await watch.pause(min(pause, left))
            if self.exponential_backoff:
                pause = min(2 * pause, self.max_wait or float("inf"))


class IndexSyncedTrigger(IndexReadyTrigger):
    """Fire when a sync of an index has ended, when the index has failed, or at the deadline.

    The arguments of :class:`IndexReadyTrigger` apply. On Airflow 3.3 and later, the sync is cancelled when a user stops the deferred
    task, if the task started it.

    :param before: the index's ``last_synced_at`` before the sync was started.
    :param settled_at: epoch seconds from which a sync that has left no trace in the index counts as finished.
    :param started: whether the task started the sync.
    """

    def __init__(
        self, *, before: str | None = None, settled_at: float = 0.0, started: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**{**kwargs, "wait_for_sync": True})
        self.index_ids = [arguments.index_id(self.index_ids, "Make a trigger for each index.", "index_ids")]
        if before is not None and not isinstance(before, str):  # any text, because it is the server's
            raise InvalidArgumentError(f"before must be the index's last_synced_at, got {arguments.got(before)}")
        self.before = before
        self.settled_at = arguments.moment(settled_at, "settled_at")
        self.started = arguments.flag(started, "started")

    def _judge(self) -> Readiness:
        from airflow_provider_llamachat.client.readiness import SyncProgress

        return SyncProgress(self.before, self.settled_at)

    async def on_kill(self) -> None:
        """Cancel the sync if the task started it. Airflow 3.3 calls this when a user stops the deferred task."""
        if not self.started:
            return
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

        (index_id,) = self.index_ids
        async with await LlamaCloudHook(self.llamacloud_conn_id).get_async_conn() as client:
            cancelled = await client.cancel_sync(index_id, **self._scope)
        self.log.warning(
            "The task was stopped. Index %s: %s.",
            index_id,
            "sync cancelled" if cancelled else "the sync had already ended",
        )


class IndexUpdatedTrigger(_Serialized, BaseEventTrigger):
    """Fire each time an index was synced: its ``last_synced_at`` is newer, and it is ready.

    For Airflow's asset watchers (3.0 and later)::

        Asset("llamacloud-filings", watchers=[AssetWatcher(name="synced", trigger=IndexUpdatedTrigger(index_id="idx-filings"))])

    The payload of the event contains ``index_id``, ``name``, ``last_synced_at`` and ``previous``. On Airflow 3.3 and later, the last sync
    is stored in the asset's state store, so that a restarted triggerer does not miss a sync. On older versions, a sync during the
    restart is missed. All triggers of a triggerer that use the same connection, project and organization share their requests. Errors
    are logged and retried, because an asset watcher has no task that could fail.

    :param index_id: the index to watch.
    :param poke_interval: time between two checks, in seconds or as a timedelta.
    :param since: fire for syncs after this time (ISO text or a datetime). None means after the first check.
    :raises InvalidArgumentError: an argument is invalid. Raised when the Dag file is parsed.
    """

    def __init__(
        self,
        *,
        index_id: str,
        llamacloud_conn_id: str = "llamacloud_default",
        poke_interval: float | timedelta = 60.0,
        since: str | datetime | None = None,
        project_id: str | None = None,
        organization_id: str | None = None,
        **_from_other_releases: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow does not type it
        self.index_id = arguments.index_id(index_id, "To watch several indexes, add a watcher for each.")
        self.llamacloud_conn_id = arguments.connection_id(llamacloud_conn_id)
        self.poke_interval = arguments.seconds(poke_interval, "poke_interval")
        self.since = _time(since)
        self.project_id, self.organization_id = arguments.scope(project_id, organization_id).values()

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Check repeatedly, and fire each time the index was synced."""
        await wait_for_start()
        remembered = await self._stored("aget", "read")
        # An index that was never synced is stored as an empty string, so that its first sync fires too.
        seen = remembered if isinstance(remembered, str) else self.since
        async with watching(self.llamacloud_conn_id, [self.index_id], **self._scope) as watch:
            while True:
                try:
                    (index,) = await watch.look()
                    if seen is None:
                        seen = index.last_synced_at or ""
                        await self._stored("aset", "written", seen)
                    elif self._is_news(index, seen):
                        previous, seen = seen, index.last_synced_at or ""
                        payload = {
                            "index_id": self.index_id,
                            "name": index.name,
                            "last_synced_at": seen,
                            "previous": previous or None,
                        }
                        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow does not type it
                        # Only now, because it is better to report a sync twice than to miss it.
                        await self._stored("aset", "written", seen)
                except Exception as problem:  # noqa: BLE001  # a watcher that ends is not restarted, and has no task that could fail
                    shown = problem if isinstance(problem, LlamaCloudError) else f"{type(problem).__name__}: {problem}"
                    self.log.warning("The index could not be read. Retrying. Index: %s. %s", self.index_id, shown)
                await watch.pause(self.poke_interval)

    @staticmethod
    def _is_news(index: Index, seen: str) -> bool:
        from airflow_provider_llamachat.client.readiness import is_newer

        return index.metadata.status == index.READY and is_newer(index.last_synced_at, seen)

    async def _stored(self, method: str, done: str, *values: str) -> Any:
        store: Any = getattr(self, "asset_state_store", None)
        key = f"llamacloud_{self.index_id}_last_synced_at"
        try:
            return None if store is None else await getattr(store, method)(key, *values)
        except Exception as problem:  # noqa: BLE001  # the store's backends raise exceptions of any class
            self.log.warning("The asset state store could not be %s (%s).", done, type(problem).__name__)
            return None


def _time(value: Any) -> str | None:
    """Return ``value`` as ISO text. Empty text is earlier than any time."""
    text: str | None = value.isoformat() if hasattr(value, "isoformat") else value
    if text is None or text == "":
        return text
    try:
        datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise InvalidArgumentError(
            f"since must be a time (ISO text or a datetime), got {arguments.got(value)}"
        ) from None
    return text
