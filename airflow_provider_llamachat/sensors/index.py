"""The sensor that waits until indexes can be asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    conf,
)

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.operators.base import is_stale

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.readiness import Readiness


GRACE = 300.0
"""Seconds that a triggerer may be late before Airflow itself ends a deferred sensor."""


class IndexReadySensor(BaseSensorOperator):
    """Wait until all indexes are ``ready``; fail at once when one has ``failed``, with the index's own error message.

    A session locks its indexes at its first message, ready or not: wait before that. States other than ``ready`` and ``failed``
    mean waiting, whatever they are called.

    API: GET /api/v1/indexes/{index_id} (https://developers.llamaindex.ai/reference/). The usual arguments of sensors
    (``poke_interval``, ``timeout``, ``mode``, ``soft_fail``, ``exponential_backoff``) apply; see
    https://airflow.apache.org/docs/apache-airflow/stable/core-concepts/sensors.html.

    :param index_ids: the indexes: a list, an XComArg, a JSON list in a string, or one id. (templated)
    :param wait_for_sync: wait for running syncs as well. (templated)
    :param deferrable: wait in the triggerer instead of on a worker. Default: Airflow's ``[operators] default_deferrable``.
    :param llamacloud_conn_id: the Airflow connection. (templated)
    :param project_id: project (UUID) in place of the connection's. (templated)
    :param organization_id: organization (UUID) in place of the connection's. (templated)
    :raises IndexFailedError: an index's build failed.
    :raises AirflowSensorTimeout: ``timeout`` passed before all were ready.
    :raises InvalidArgumentError: there are no index ids, or they are not usable.
    """

    template_fields: Sequence[str] = (
        "llamacloud_conn_id",
        "project_id",
        "organization_id",
        "index_ids",
        "wait_for_sync",
    )
    ui_color = "#e9e4f7"

    def __init__(
        self,
        *,
        index_ids: list[str] | str,
        wait_for_sync: bool | str = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        llamacloud_conn_id: str = "llamacloud_default",
        project_id: str | None = None,
        organization_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.index_ids = index_ids
        self.wait_for_sync = wait_for_sync
        self.deferrable = deferrable
        self.llamacloud_conn_id = llamacloud_conn_id
        self.project_id = project_id
        self.organization_id = organization_id
        self._readiness: Readiness | None = None

    def execute(self, context: Context) -> None:
        """Wait on this worker, or look once and defer."""
        if self.deferrable:
            self._look_and_defer(context)
        else:
            super().execute(context)

    def _look_and_defer(self, context: Context) -> None:
        # Airflow's own handling of failures covers poking and what follows a deferral, not what comes before it: the same here.
        try:
            ready = self.poke(context)
        except AirflowFailException as problem:
            if self.soft_fail or self.never_fail:
                asked_for = "soft_fail" if self.soft_fail else "never_fail"
                raise AirflowSkipException(f"Skipped, as {asked_for} asks for. {problem}") from problem
            raise
        except AirflowException as problem:
            if self.silent_fail:
                self.log.warning("Waiting on, as silent_fail asks for. %s", problem)
                ready = False
            elif self.never_fail:
                raise AirflowSkipException(f"Skipped, as never_fail asks for. {problem}") from problem
            else:
                raise
        if ready:
            return
        from airflow_provider_llamachat.triggers.index import IndexReadyTrigger

        self.defer(
            trigger=IndexReadyTrigger(
                llamacloud_conn_id=self.llamacloud_conn_id,
                index_ids=self._ids(),
                deadline=time.time() + float(self.timeout),
                poke_interval=float(self.poke_interval),
                exponential_backoff=bool(self.exponential_backoff),
                max_wait=None if self.max_wait is None else arguments.seconds(self.max_wait, "max_wait"),
                wait_for_sync=arguments.flag(self.wait_for_sync, "wait_for_sync"),
                **self._scope(),
            ),
            # The trigger keeps the time; this is for a triggerer that does not run.
            timeout=timedelta(seconds=float(self.timeout) + GRACE),
            method_name="execute_complete",
            kwargs={"try_number": context["ti"].try_number},
        )

    def poke(self, context: Context) -> bool:
        """Look at all indexes once."""
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
        from airflow_provider_llamachat.readiness import Readiness

        ids = self._ids()
        wait_for_sync = arguments.flag(self.wait_for_sync, "wait_for_sync")
        if self._readiness is None:
            self._readiness = Readiness(wait_for_sync=wait_for_sync)
        with LlamaCloudHook(self.llamacloud_conn_id).get_conn() as client:
            indexes = (client.get_index(index_id, expand_sync=wait_for_sync, **self._scope()) for index_id in ids)
            return not self._readiness.pending(indexes)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None, **known: Any) -> None:
        """Resume after the trigger: end, or raise what it met.

        :param known: ``try_number`` of the try that deferred.
        """
        if is_stale(context, known.get("try_number")):
            self._look_and_defer(context)
            return
        from airflow_provider_llamachat.triggers.events import READY, TIMED_OUT, IndexEvent

        outcome = IndexEvent.parse(event)
        if outcome.state == TIMED_OUT:
            raise AirflowSensorTimeout(outcome.failure.message or "The deadline passed before all indexes were ready.")
        if outcome.state != READY:
            raise outcome.failure.exception()
        self.log.info("All indexes are ready: %s.", ", ".join(outcome.index_ids))

    def _ids(self) -> list[str]:
        ids = arguments.id_list(self.index_ids)
        if not ids:
            raise InvalidArgumentError("index_ids has to name at least one index to wait for.")
        return ids

    def _scope(self) -> dict[str, Any]:
        return arguments.scope(self.project_id, self.organization_id)
