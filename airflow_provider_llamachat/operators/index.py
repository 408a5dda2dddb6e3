"""The operator that syncs an index."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import LlamaCloudError
from airflow_provider_llamachat.operators.base import IndexWaitingOperator

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.airflow_support.templated import Templated


class SyncIndexOperator(IndexWaitingOperator):
    """Start a sync of an index, unless one is already running, and optionally wait for it.

    XCom ``return_value``: ``index_id``, and ``started`` (False if a sync was already running). With ``wait``, also ``status`` and
    ``last_synced_at`` of the index after the sync.

    A task that waits for a sync that it started cancels the sync when it is stopped: on a worker when a user stops the task or
    ``execution_timeout`` passes, and in the triggerer when a user stops the task (Airflow 3.3 and later). A sync that outlasts
    ``sync_timeout`` is not cancelled, and a retry waits for it. Neither is the sync of a task that is stopped while it starts the sync,
    before LlamaCloud has answered: it may be another task's.

    API: POST /api/v1/indexes/{index_id}/sync, POST /api/v1/indexes/{index_id}/sync/cancel
    (https://developers.llamaindex.ai/reference/).

    :param index_id: the index. (templated)
    :param wait: wait until the sync has ended and the index is ready. (templated)
    :param deferrable: wait in the triggerer instead of on a worker. Default: Airflow's ``[operators] default_deferrable``.
    :param sync_timeout: maximum time to wait, in seconds or as a timedelta. (templated)
    :param poke_interval: maximum time between two checks, in seconds or as a timedelta. (templated)
    :param llamacloud_conn_id: the Airflow connection. (templated)
    :param project_id: project (UUID) that overrides the one of the connection. (templated)
    :param organization_id: organization (UUID) that overrides the one of the connection. (templated)
    :raises InvalidArgumentError: an argument is invalid; nothing was sent.
    :raises IndexFailedError: ``wait`` is set, and the sync failed.
    :raises IndexNotReadyError: ``wait`` is set, and ``sync_timeout`` passed.
    :raises LlamaCloudError: see :mod:`airflow_provider_llamachat.exceptions`.
    """

    template_fields: Sequence[str] = (
        *IndexWaitingOperator.template_fields,
        "index_id",
        "wait",
        "sync_timeout",
        "poke_interval",
    )

    def __init__(
        self,
        *,
        index_id: Templated[str],
        wait: Templated[bool] = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        sync_timeout: Templated[float | timedelta] = 3600,
        poke_interval: Templated[float | timedelta] = 15,
        llamacloud_conn_id: Templated[str] = "llamacloud_default",
        project_id: Templated[str] | None = None,
        organization_id: Templated[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            llamacloud_conn_id=llamacloud_conn_id, project_id=project_id, organization_id=organization_id, **kwargs
        )
        self.index_id = index_id
        self.wait = wait
        self.deferrable = deferrable
        self.sync_timeout = sync_timeout
        self.poke_interval = poke_interval
        self._starting: str | None = None
        self._started: str | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the sync, and wait for it if ``wait`` is set."""
        from airflow_provider_llamachat.client.readiness import SETTLED, SyncProgress, wait_until_ready

        index_id = arguments.index_id(self.index_id, "To sync several indexes, map the task.")
        wait = arguments.flag(self.wait, "wait")
        deadline = time.time() + arguments.seconds(self.sync_timeout, "sync_timeout")
        longest = arguments.seconds(self.poke_interval, "poke_interval")
        with self.get_hook().get_conn() as client:
            self.watch(client)
            before = client.get_index(index_id, **self.scope()).last_synced_at if wait else None
            self._starting = index_id if wait else None
            started = client.sync_index(index_id, **self.scope())
            self._starting = None
            self.log.info("Index %s: %s.", index_id, "sync started" if started else "a sync was already running")
            if not wait:
                return {"index_id": index_id, "started": started}
            self._started = index_id if started else None
            if self._is_killed:  # while the sync was being started
                self._cancel()
            settled_at = time.time() + SETTLED
            if self.deferrable and not self._is_killed:
                known = {"before": before, "settled_at": settled_at, "started": started}
                self.defer_until(context, "IndexSyncedTrigger", [index_id], deadline, longest, **known)
            (index,) = wait_until_ready(
                lambda: [client.get_index(index_id, expand_sync=True, **self.scope())],
                deadline,
                SyncProgress(before, settled_at),
                longest,
                sleep=client.pause,
            )
            self._started = None
        return self._result(index_id, index.last_synced_at, started=started)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None, **known: Any) -> dict[str, Any]:
        """Resume after the trigger: return the result, or raise the trigger's error.

        :param known: ``try_number`` of the attempt that deferred.
        """
        from airflow_provider_llamachat.airflow_support.task_state import is_stale

        if is_stale(context, known.get("try_number")):
            return self.execute(context)
        told = self.outcome(event)
        index_id = told.index_ids[0]
        return self._result(index_id, told.last_synced_at.get(index_id), started=told.started)

    def _result(self, index_id: str, synced: str | None, *, started: bool) -> dict[str, Any]:
        from airflow_provider_llamachat.models import Index

        self.log.info("Index %s: synced. last_synced_at: %s.", index_id, synced)
        return {"index_id": index_id, "started": started, "status": Index.READY, "last_synced_at": synced}

    def on_kill(self) -> None:
        """Stop waiting, and cancel the sync if this task started it."""
        super().on_kill()
        self._cancel()

    def _cancel(self) -> None:
        from airflow_provider_llamachat.client import LlamaCloudClient

        if self._starting is not None:
            self.log.warning(
                "The task was stopped before LlamaCloud confirmed the sync of index %s. The sync may have started, and continues in that "
                "case. A retry waits for it.",
                self._starting,
            )
        index_id, self._started = self._started, None
        if index_id is None or self._client is None:
            return
        try:
            # Another client, because the one that waits was stopped.
            config = replace(self._client.config, max_retries=0, connect_timeout=5.0, total_timeout=10.0)
            with LlamaCloudClient(config) as client:
                cancelled = client.cancel_sync(index_id, **self.scope())
        except LlamaCloudError as problem:
            self.log.warning("The task was stopped, but its sync could not be cancelled, and may continue. %s", problem)
        else:
            self.log.warning(
                "The task was stopped. Index %s: %s.",
                index_id,
                "sync cancelled" if cancelled else "the sync had already ended",
            )
