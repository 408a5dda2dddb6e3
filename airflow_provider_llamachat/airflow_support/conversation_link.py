"""The link from a task instance to its conversation, and whether this Airflow has the page that it leads to."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from airflow.providers.common.compat.sdk import BaseOperatorLink, conf

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.provider_info import airflow_core_version, release

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey

log = logging.getLogger(__name__)

FIRST_AIRFLOW = (3, 1)
"""The first Airflow whose navigation takes pages of plugins."""
ROUTE = "llamacloud-chats"
"""Where the page is: ``/plugin/llamacloud-chats`` inside Airflow, and ``/llamacloud-chats/`` on its own."""


@cache
def has_view() -> bool:
    """Whether the page exists: on Airflow 3.1 and later, unless ``[llamachat] view_enabled`` is False.

    Dags are parsed with it, so a setting that is neither true nor false only switches the page off.
    """
    given = str(conf.get("llamachat", "view_enabled", fallback="True")).partition("#")[0]
    try:
        return release(airflow_core_version()) >= FIRST_AIRFLOW and arguments.flag(given, "[llamachat] view_enabled")
    except InvalidArgumentError as error:
        log.warning("The page LlamaCloud chats is off. %s", error)
        return False


class LlamaCloudConversationLink(BaseOperatorLink):
    """Button *LlamaCloud conversation* of a task instance. Its address is made of the task instance's key, so failed tasks have it too."""

    name = "LlamaCloud conversation"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address, or nothing if there is no page."""
        if not has_view():
            return ""
        base = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
        keys = {name: getattr(ti_key, name) for name in ("dag_id", "run_id", "task_id", "map_index")}
        return f"{base}/plugin/{ROUTE}#{urlencode(keys)}"
