"""The metadata that Airflow's provider discovery reads, without importing other modules.

The format is defined by Airflow's ``provider_info.schema.json``. The connection form follows
https://airflow.apache.org/docs/apache-airflow/stable/howto/connection.html. The hook's form methods for Airflow before 3.2
derive from :data:`CONNECTION_TYPE`, so that there is one definition of the form.
"""

from __future__ import annotations

import copy
import re
from importlib import metadata
from typing import Any

_PACKAGE = "airflow_provider_llamachat"
_INTEGRATION = "LlamaCloud"

CONNECTION_TYPE: dict[str, Any] = {
    "connection-type": "llamacloud",
    "hook-class-name": f"{_PACKAGE}.hooks.llamacloud.LlamaCloudHook",
    "hook-name": "LlamaCloud",
    "ui-field-behaviour": {
        "hidden-fields": ["schema", "port", "login", "extra"],
        "relabeling": {"password": "API Key", "host": "Base URL"},
        "placeholders": {
            "password": "llx-…",
            "host": "empty: chosen by Region",
            "region": "us",
            "timeout": "60",
            "max_retries": "5",
            "history_lag": "10",
        },
    },
    "conn-fields": {
        "region": {
            "label": "Region",
            "description": "Region in which the API key was created: us (default) or eu. A Base URL overrides it.",
            "schema": {"type": ["string", "null"], "enum": ["us", "eu"]},
        },
        "project_id": {
            "label": "Project ID",
            "description": "UUID of the project to use. Empty: the default project of the key.",
            "schema": {"type": ["string", "null"], "format": "uuid"},
        },
        "organization_id": {
            "label": "Organization ID",
            "description": "UUID of the organization. Empty: the organization of the key.",
            "schema": {"type": ["string", "null"], "format": "uuid"},
        },
        "timeout": {
            "label": "Timeout (s)",
            "description": "Seconds without any data after which a read fails; above 0. Empty: 60.",
            # The number field of the form uses only "minimum".
            "schema": {"type": ["number", "null"], "minimum": 0, "exclusiveMinimum": 0},
        },
        "max_retries": {
            "label": "Max retries",
            "description": "Maximum number of retries of a request that is safe to repeat; 0 means none. Empty: 5.",
            "schema": {"type": ["integer", "null"], "minimum": 0},
        },
        "history_lag": {
            "label": "History lag (s)",
            "description": "Seconds to wait, after a lost request, for the prompt to appear in the session's history before asking again. "
            "Empty: 10.",
            "schema": {"type": ["number", "null"], "minimum": 0},
        },
    },
}

_ASSET_URIS: dict[str, Any] = {
    "schemes": ["llamacloud"],
    "handler": f"{_PACKAGE}.airflow_support.lineage.sanitize_uri",
    "factory": f"{_PACKAGE}.airflow_support.lineage.create_asset",
    "to_openlineage_converter": f"{_PACKAGE}.airflow_support.lineage.convert_to_openlineage",
}

_CONFIG: dict[str, Any] = {
    "llamachat": {
        "description": "Options of the LlamaCloud Chat provider.",
        "options": {
            "view_enabled": {
                "description": "Whether Airflow (3.1 and later) has the page *LlamaCloud chats* and the links to it.\n",
                "version_added": "1.1.0",
                "type": "boolean",
                "example": None,
                "default": "True",
            },
        },
    },
}

TEST_NEEDS_A_PORT = ((3, 3, 1), (3, 4, 0))
"""The Airflow versions (from, to before) whose *Test* button rejects a stored connection without a port, with a "Bad Request":
https://github.com/apache/airflow/pull/73298. The last of them may not need the field."""


def connection_type(airflow_version: str) -> dict[str, Any]:
    """Return the connection form for a version of Airflow. The field for the port is shown only if the *Test* button requires one.

    :param airflow_version: :func:`airflow_core_version`.
    """
    found = copy.deepcopy(CONNECTION_TYPE)
    first, after = TEST_NEEDS_A_PORT
    if first <= release(airflow_version) < after:
        behaviour = found["ui-field-behaviour"]
        behaviour["hidden-fields"].remove("port")
        behaviour["placeholders"]["port"] = "443; required by the Test button of this Airflow version"
    return found


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, such as ``(3, 3, 1)`` for ``3.3.1rc1``."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def airflow_core_version() -> str:
    """Return the version of the package ``apache-airflow-core``, or an empty string on Airflow 2, which does not have it."""
    try:
        return metadata.version("apache-airflow-core")
    except metadata.PackageNotFoundError:
        return ""


def _modules(*names: str) -> list[dict[str, Any]]:
    return [{"integration-name": _INTEGRATION, "python-modules": [f"{_PACKAGE}.{name}" for name in names]}]


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata (entry point ``apache_airflow_provider``)."""
    from airflow_provider_llamachat import __version__

    return {
        "package-name": "airflow-provider-llamachat",
        "name": "LlamaCloud Chat",
        "description": "Chat sessions over documents that `LlamaCloud <https://cloud.llamaindex.ai/>`__ has indexed.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://developers.llamaindex.ai/",
                "tags": ["service"],
            }
        ],
        "connection-types": [connection_type(airflow_core_version())],
        "hooks": _modules("hooks.llamacloud"),
        "operators": _modules(
            "operators.chat", "operators.session", "operators.transcript", "operators.batch", "operators.index"
        ),
        "sensors": _modules("sensors.index"),
        "triggers": _modules("triggers.chat", "triggers.index"),
        "asset-uris": [_ASSET_URIS],
        # The name of asset-uris in Airflow 2.
        "dataset-uris": [_ASSET_URIS],
        "task-decorators": [
            {"name": "llamachat", "class-name": f"{_PACKAGE}.decorators.chat.llamachat_task"},
        ],
        "extra-links": [f"{_PACKAGE}.airflow_support.conversation_link.LlamaCloudConversationLink"],
        "config": _CONFIG,
    }
