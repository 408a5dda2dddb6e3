"""What the operators share: connection arguments, XComs, the link to a conversation, being stopped, and waiting for indexes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import IndexNotReadyError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.airflow_support.conversation_link import LlamaCloudConversationLink
    from airflow_provider_llamachat.airflow_support.templated import Templated
    from airflow_provider_llamachat.client import LlamaCloudClient
    from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
    from airflow_provider_llamachat.triggers.events import IndexEvent


def conversation_links(operator: Any) -> tuple[LlamaCloudConversationLink, ...]:
    """Return the extra links of an operator that asks: the value of its property ``operator_extra_links``.

    The plugin gives the button to the provider's own operators, but Airflow has no such way for subclasses. Tasks of subclasses push
    the address as an XCom when they end, unless ``do_xcom_push`` is False.

    :param operator: the operator. Airflow passes a mapped one before it is expanded.
    """
    of_class = getattr(operator, "operator_class", type(operator))
    is_own = str(getattr(of_class, "__module__", "")).startswith("airflow_provider_llamachat.")
    if is_own or not getattr(operator, "do_xcom_push", True):
        return ()
    from airflow_provider_llamachat.airflow_support.conversation_link import LlamaCloudConversationLink, has_view

    return (LlamaCloudConversationLink(),) if has_view() else ()


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


class IndexWaitingOperator(LlamaCloudOperator):
    """Base class of operators that can wait for indexes, on a worker or in the triggerer."""

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after a deferral. Airflow calls this.

        :raises IndexNotReadyError: the trigger did not fire in time.
        """
        from airflow_provider_llamachat.airflow_support.task_state import is_deferral_timeout

        if is_deferral_timeout(next_method, next_kwargs):
            raise IndexNotReadyError(
                "The waiting time ended while the task was deferred, and no triggerer resumed it. Check that a triggerer (airflow "
                "triggerer) is running and not overloaded."
            )
        return super().resume_execution(next_method, next_kwargs, context)

    def defer_until(
        self, context: Context, kind: str, index_ids: list[str], deadline: float, longest: float, **values: Any
    ) -> None:
        """Defer until the indexes are ready.

        :param kind: name of the trigger's class.
        :param deadline: epoch seconds.
        :param longest: maximum number of seconds between two checks.
        :param values: other arguments of the trigger.
        """
        from airflow_provider_llamachat.airflow_support.task_state import deferral_timeout
        from airflow_provider_llamachat.client.readiness import FIRST_LOOK
        from airflow_provider_llamachat.triggers import index

        self.defer(
            trigger=getattr(index, kind)(
                llamacloud_conn_id=self.llamacloud_conn_id,
                index_ids=index_ids,
                deadline=deadline,
                poke_interval=min(FIRST_LOOK, longest),
                exponential_backoff=True,
                max_wait=longest,
                **self.scope(),
                **values,
            ),
            timeout=deferral_timeout(context, deadline - time.time()),
            method_name="execute_complete",
            kwargs={"try_number": context["ti"].try_number},
        )

    def outcome(self, event: Any) -> IndexEvent:
        """Read the trigger's event.

        :raises LlamaCloudError: the indexes did not become ready, or the event is invalid.
        """
        from airflow_provider_llamachat.triggers.events import READY, IndexEvent

        told = IndexEvent.parse(event)
        if told.state != READY:
            raise told.failure.exception()
        self.log.info("All indexes are ready: %s.", ", ".join(told.index_ids))
        return told
