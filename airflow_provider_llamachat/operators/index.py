"""The operator that syncs an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.operators.base import LlamaCloudOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.airflow_support.templated import Templated


class SyncIndexOperator(LlamaCloudOperator):
    """Start a sync of an index, unless one is already running.

    The operator does not wait for the sync. To wait, use :class:`~..sensors.index.IndexReadySensor` with ``wait_for_sync=True``.
    XCom ``return_value``: ``index_id``, and ``started`` (False if a sync was already running).

    API: POST /api/v1/indexes/{index_id}/sync (https://developers.llamaindex.ai/reference/).

    :param index_id: the index. (templated)
    :param llamacloud_conn_id: the Airflow connection. (templated)
    :param project_id: project (UUID) that overrides the one of the connection. (templated)
    :param organization_id: organization (UUID) that overrides the one of the connection. (templated)
    :raises InvalidArgumentError: ``index_id`` is not one id.
    :raises LlamaCloudError: see :mod:`airflow_provider_llamachat.exceptions`.
    """

    template_fields: Sequence[str] = (*LlamaCloudOperator.template_fields, "index_id")

    def __init__(
        self,
        *,
        index_id: Templated[str],
        llamacloud_conn_id: str = "llamacloud_default",
        project_id: Templated[str] | None = None,
        organization_id: Templated[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            llamacloud_conn_id=llamacloud_conn_id, project_id=project_id, organization_id=organization_id, **kwargs
        )
        self.index_id = index_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the sync."""
        ids = arguments.id_list(self.index_id, "index_id")
        if not ids or len(ids) != 1:
            raise InvalidArgumentError("index_id must be the id of one index. To sync several indexes, map the task.")
        with self.get_hook().get_conn() as client:
            started = client.sync_index(ids[0], **self.scope())
        self.log.info("Index %s: %s.", ids[0], "sync started" if started else "a sync was already running")
        return {"index_id": ids[0], "started": started}
