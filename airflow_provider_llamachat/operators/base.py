"""What the operators share: connection arguments, XComs, and telling a retry from a first try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_llamachat import arguments

if TYPE_CHECKING:
    from typing import TypeAlias, TypeVar

    from airflow.providers.common.compat.sdk import Context, XComArg

    T = TypeVar("T")
    Templated: TypeAlias = T | str | XComArg
    """What a templated argument takes: a value, text that becomes one when the task runs, or another task's output."""

    from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook


class LlamaCloudOperator(BaseOperator):
    """Base of this provider's operators.

    :param llamacloud_conn_id: the Airflow connection.
    :param project_id: project (UUID) in place of the connection's.
    :param organization_id: organization (UUID) in place of the connection's.
    """

    template_fields: Sequence[str] = ("llamacloud_conn_id", "project_id", "organization_id")
    ui_color = "#e9e4f7"

    def __init__(
        self,
        *,
        llamacloud_conn_id: str = "llamacloud_default",
        project_id: Templated[str] | None = None,
        organization_id: Templated[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.llamacloud_conn_id = llamacloud_conn_id
        self.project_id = project_id
        self.organization_id = organization_id

    def get_hook(self) -> LlamaCloudHook:
        """Return a hook for the connection; made when the task runs, because templates are rendered by then."""
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

        return LlamaCloudHook(self.llamacloud_conn_id)

    def scope(self) -> dict[str, Any]:
        """Project and organization for a client call; None (or what it renders to) leaves it to the connection."""
        return arguments.scope(self.project_id, self.organization_id)

    def push(self, context: Context, key: str, value: Any) -> None:
        """Push an XCom unless the task was told not to (``do_xcom_push=False``)."""
        if self.do_xcom_push:
            context["ti"].xcom_push(key=key, value=value)


def is_retry(context: Context) -> bool:
    """Whether this try is a retry of an earlier one, and not a first try or the first after the task was cleared.

    Clearing a task raises ``max_tries`` by the tries used, so the first try of each round is ``max_tries - retries + 1``.
    """
    ti: Any = context["ti"]
    retries = getattr(context["task"], "retries", 0) or 0
    return int(ti.try_number) > int(ti.max_tries) - int(retries) + 1


def is_stale(context: Context, try_number: Any) -> bool:
    """Whether the event that a task resumes with is an earlier try's.

    Airflow 3.0 and 3.1 forget to clear how a try that failed after its deferral was resumed, so its retry begins with the old event.

    :param try_number: of the try that deferred; None (deferred by an older release): it is taken for this one.
    """
    return try_number is not None and int(try_number) != int(context["ti"].try_number)


class TaskMemory:
    """A task's own memory across its tries: Airflow 3.3's task state store; without one, nothing is remembered.

    A store that fails is reported and then treated as absent: the memory makes retries more exact, but a task must not fail
    for it.

    A *round* is a first try with its retries; clearing the task begins another. What :meth:`set_in_round` keeps is told apart from what
    a later round keeps, whose retries must not take an earlier round's turn for their own.
    """

    def __init__(self, context: Context, log: Any) -> None:
        # Only this key: Airflow 2 warns of a dozen old ones when all are looked at.
        self._store: Any = cast("Mapping[str, Any]", context).get("task_state_store")
        self._log = log
        # Clearing a task raises it, nothing else does.
        self._round = int(context["ti"].max_tries)

    @property
    def exists(self) -> bool:
        """Whether this Airflow has a task state store."""
        return self._store is not None

    def get(self, key: str) -> Any:
        """Return what an earlier try kept under ``key``, or None."""
        if self._store is None:
            return None
        try:
            return self._store.get(key)
        except Exception as problem:  # noqa: BLE001  # the store's backends raise whatever they like
            self._log.warning(
                "The task state store could not be read (%s): going on without it.", type(problem).__name__
            )
            self._store = None
            return None

    def set(self, key: str, value: Any) -> None:
        """Keep ``value`` under ``key`` for this task's retries."""
        if self._store is None:
            return
        try:
            self._store.set(key, value)
        except Exception as problem:  # noqa: BLE001  # the store's backends raise whatever they like
            self._log.warning(
                "The task state store could not be written (%s): going on without it.", type(problem).__name__
            )
            self._store = None

    def recall(self, key: str) -> tuple[Any, bool]:
        """Return what :meth:`set_in_round` kept under ``key`` last, or None, and whether that was in this round."""
        kept = self.get(key)
        if not isinstance(kept, dict):
            return None, False
        return kept.get("value"), kept.get("round") == self._round

    def get_in_round(self, key: str) -> Any:
        """Return what an earlier try of this round kept under ``key``, or None."""
        value, is_ours = self.recall(key)
        return value if is_ours else None

    def set_in_round(self, key: str, value: Any) -> None:
        """Keep ``value`` under ``key`` for the retries of this round."""
        self.set(key, {"round": self._round, "value": value})
