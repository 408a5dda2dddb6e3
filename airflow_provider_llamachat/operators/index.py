"""Index operators: have an index take in its changed documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.operators.base import LlamaCloudOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.operators.base import Templated


class SyncIndexOperator(LlamaCloudOperator):
    """Start a sync of an index, or adopt the one that is running already.

    It does not wait: follow it with :class:`~..sensors.index.IndexReadySensor` and ``wait_for_sync=True``. XCom ``return_value``:
    ``index_id``, and ``started`` (False when a sync was running already).

    API: POST /api/v1/indexes/{index_id}/sync (https://developers.llamaindex.ai/reference/).

    :param index_id: the index. (templated)
    :raises InvalidArgumentError: it is not one id.
    :raises LlamaCloudError: see :mod:`airflow_provider_llamachat.exceptions`.
    """

    template_fields: Sequence[str] = (*LlamaCloudOperator.template_fields, "index_id")

    def __init__(self, *, index_id: Templated[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.index_id = index_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the sync."""
        ids = arguments.id_list(self.index_id, "index_id")
        if not ids or len(ids) != 1:
            raise InvalidArgumentError("index_id has to be the id of one index; map the task over several.")
        with self.get_hook().get_conn() as client:
            started = client.sync_index(ids[0], **self.scope())
        self.log.info("Index %s: %s.", ids[0], "sync started" if started else "a sync was running already")
        return {"index_id": ids[0], "started": started}
