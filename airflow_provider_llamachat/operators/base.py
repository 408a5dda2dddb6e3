"""What the operators share: connection arguments, XComs, and telling a retry from a first try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.airflow_support.task_state import TaskMemory, is_retry, is_stale

__all__ = ["LlamaCloudOperator", "TaskMemory", "is_retry", "is_stale"]

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
