"""Code that the operators share: connection arguments, XComs, and being stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_llamachat import arguments

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.airflow_support.templated import Templated
    from airflow_provider_llamachat.client import LlamaCloudClient
    from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook


class LlamaCloudOperator(BaseOperator):
    """Base class of this provider's operators.

    :param llamacloud_conn_id: the Airflow connection. (templated)
    :param project_id: project (UUID) that overrides the one of the connection. (templated)
    :param organization_id: organization (UUID) that overrides the one of the connection. (templated)
    """

    template_fields: Sequence[str] = ("llamacloud_conn_id", "project_id", "organization_id")
    ui_color = "#e9e4f7"

    def __init__(
        self,
        *,
        llamacloud_conn_id: Templated[str] = "llamacloud_default",
        project_id: Templated[str] | None = None,
        organization_id: Templated[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.llamacloud_conn_id = llamacloud_conn_id
        self.project_id = project_id
        self.organization_id = organization_id
        self._client: LlamaCloudClient | None = None
        self._is_killed = False

    def get_hook(self) -> LlamaCloudHook:
        """Return a hook for the connection. Call this when the task runs, because templates are rendered by then."""
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

        return LlamaCloudHook(arguments.connection_id(self.llamacloud_conn_id))

    def scope(self) -> dict[str, Any]:
        """Return project and organization for a client call. None means that the connection decides."""
        return arguments.scope(self.project_id, self.organization_id)

    def push(self, context: Context, key: str, value: Any) -> None:
        """Push an XCom unless ``do_xcom_push`` is False."""
        if self.do_xcom_push:
            context["ti"].xcom_push(key=key, value=value)

    def watch(self, client: LlamaCloudClient) -> None:
        """Stop ``client`` when the task is stopped."""
        self._client = client
        if self._is_killed:  # while the connection was being read
            client.stop()

    def on_kill(self) -> None:
        """Send nothing more, and stop waiting."""
        self._is_killed = True
        if self._client is not None:
            self._client.stop()
