"""The sensor that waits until indexes are ready."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
    conf,
)

from airflow_provider_llamachat import arguments

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.airflow_support.templated import Templated
    from airflow_provider_llamachat.client.readiness import Readiness


GRACE = 300.0
"""Seconds that a triggerer may be late before Airflow ends a deferred sensor."""


class IndexReadySensor(BaseSensorOperator):
    """Wait until all indexes are ``ready``. Fail immediately, with the index's own error message, if one has ``failed``.

    Use the sensor before the first message of a session, because after it the indexes of the session cannot be changed, even if
    they are not ready. All states except ``ready`` and ``failed`` mean waiting.

    API: GET /api/v1/indexes/{index_id} (https://developers.llamaindex.ai/reference/). The usual arguments of sensors
    (``poke_interval``, ``timeout``, ``mode``, ``soft_fail``, ``exponential_backoff``) apply, and have the same meaning in both modes; see
    https://airflow.apache.org/docs/apache-airflow/stable/core-concepts/sensors.html.

    :param index_ids: the indexes: a list, an XComArg, a JSON list in a string, or one id. (templated)
    :param wait_for_sync: also wait for running syncs. (templated)
    :param deferrable: wait in the triggerer instead of on a worker. Default: Airflow's ``[operators] default_deferrable``.
    :param llamacloud_conn_id: the Airflow connection. (templated)
    :param project_id: project (UUID) that overrides the one of the connection. (templated)
    :param organization_id: organization (UUID) that overrides the one of the connection. (templated)
    :raises IndexFailedError: an index's build failed.
    :raises AirflowSensorTimeout: ``timeout`` passed before all indexes were ready.
    :raises AirflowTaskTimeout: ``execution_timeout`` passed before all indexes were ready.
    :raises InvalidArgumentError: the index ids are missing or invalid.
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
        index_ids: Templated[list[str]],
        wait_for_sync: Templated[bool] = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        llamacloud_conn_id: Templated[str] = "llamacloud_default",
        project_id: Templated[str] | None = None,
        organization_id: Templated[str] | None = None,
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
        """Wait on the worker, or check once and defer."""
        if self.deferrable:
            self._look_and_defer(context)
        else:
            super().execute(context)

    def _look_and_defer(self, context: Context) -> None:
        began = time.time()
        with self._as_on_a_worker():
            try:
                if self.poke(context):
                    return
            except Exception as problem:
                if not self.silent_fail or isinstance(problem, AirflowFailException):
                    raise
                self.log.warning("Continuing to wait, because silent_fail is set. %s", problem)
        from airflow_provider_llamachat.triggers.index import IndexReadyTrigger

        deadline = began + self._limit()[0]
        self.defer(
            trigger=IndexReadyTrigger(
                llamacloud_conn_id=arguments.connection_id(self.llamacloud_conn_id),
                index_ids=arguments.ids_to_wait_for(self.index_ids),
                deadline=deadline,
                poke_interval=float(self.poke_interval),
                exponential_backoff=bool(self.exponential_backoff),
                max_wait=arguments.seconds(self.max_wait, "max_wait") if self.max_wait else None,
                wait_for_sync=arguments.flag(self.wait_for_sync, "wait_for_sync"),
                silent_fail=bool(self.silent_fail),
                **arguments.scope(self.project_id, self.organization_id),
            ),
            # The trigger enforces the deadline. This timeout is for a triggerer that does not run.
            timeout=timedelta(seconds=max(0.0, deadline - time.time()) + GRACE),
            method_name="execute_complete",
            kwargs={"try_number": context["ti"].try_number},
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after a deferral. Airflow calls this."""
        from airflow_provider_llamachat.airflow_support.task_state import is_deferral_timeout

        with self._as_on_a_worker():
            if is_deferral_timeout(next_method, next_kwargs):
                raise self._timed_out(
                    f"The {self._limit()[1]} of this deferred sensor passed, and no triggerer resumed it within {GRACE:.0f} s. Check that "
                    "a triggerer (airflow triggerer) is running and not overloaded."
                )
            # Not the method of BaseSensorOperator, which skips more than a sensor on a worker and differs between Airflow versions.
            return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)

    @contextmanager
    def _as_on_a_worker(self) -> Iterator[None]:
        """Skip or fail after an error of a deferred sensor as Airflow does for a sensor on a worker."""
        try:
            yield
        except AirflowSkipException:
            raise
        except Exception as problem:
            is_late = isinstance(problem, AirflowSensorTimeout)
            applies = {"soft_fail": is_late or isinstance(problem, AirflowFailException), "never_fail": not is_late}
            for option, is_meant in applies.items():
                if is_meant and getattr(self, option):
                    raise AirflowSkipException(f"Skipped, because {option} is set. {problem}") from problem
            raise

    def _limit(self) -> tuple[float, str]:
        """Return the maximum number of seconds that an attempt waits, and the argument that defines it."""
        limits = [(float(self.timeout), "timeout")]
        if self.execution_timeout is not None:
            limits.append((self.execution_timeout.total_seconds(), "execution_timeout"))
        return min(limits)

    def _timed_out(self, message: str) -> BaseException:
        return AirflowSensorTimeout(message) if self._limit()[1] == "timeout" else AirflowTaskTimeout(message)

    def poke(self, context: Context) -> bool:
        """Check all indexes once."""
        from airflow_provider_llamachat.client.readiness import Readiness
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

        ids = arguments.ids_to_wait_for(self.index_ids)
        wait_for_sync = arguments.flag(self.wait_for_sync, "wait_for_sync")
        if self._readiness is None:
            self._readiness = Readiness(wait_for_sync=wait_for_sync)
        scope = arguments.scope(self.project_id, self.organization_id)
        with LlamaCloudHook(arguments.connection_id(self.llamacloud_conn_id)).get_conn() as client:
            indexes = (client.get_index(index_id, expand_sync=wait_for_sync, **scope) for index_id in ids)
            return not self._readiness.pending(indexes)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None, **known: Any) -> None:
        """Resume after the trigger: succeed, or raise its error.

        :param known: ``try_number`` of the attempt that deferred.
        """
        from airflow_provider_llamachat.airflow_support.task_state import is_stale
        from airflow_provider_llamachat.triggers.events import READY, TIMED_OUT, IndexEvent

        if is_stale(context, known.get("try_number")):
            self._look_and_defer(context)
            return
        outcome = IndexEvent.parse(event)
        if outcome.state == TIMED_OUT:
            raise self._timed_out(outcome.failure.message or "The deadline passed before all indexes were ready.")
        if outcome.state != READY:
            raise outcome.failure.exception()
        self.log.info("All indexes are ready: %s.", ", ".join(outcome.index_ids))
