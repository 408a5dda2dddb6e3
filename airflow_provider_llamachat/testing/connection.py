"""The Airflow connection that leads to an emulator, in the two forms of ``AIRFLOW_CONN_...``.

https://airflow.apache.org/docs/apache-airflow/stable/howto/connection.html#storing-connections-in-environment-variables
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from urllib.parse import quote


class Reachable(ABC):
    """Something with a base URL and a key that is accepted there."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Base URL, without a slash at its end."""

    @property
    @abstractmethod
    def api_key(self) -> str:
        """A key that is accepted."""

    @property
    def airflow_connection_json(self) -> str:
        """The connection as JSON."""
        extra = json.dumps({"history_lag": 0})  # by default the emulator's history shows a prompt at once
        return json.dumps({"conn_type": "llamacloud", "password": self.api_key, "host": self.url, "extra": extra})

    @property
    def airflow_connection_uri(self) -> str:
        """The connection as URI; the host is a whole URL, hence percent-encoded."""
        return f"llamacloud://:{quote(self.api_key, safe='')}@{quote(self.url, safe='')}?history_lag=0"
