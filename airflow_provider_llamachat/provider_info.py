"""What Airflow reads of this provider without importing anything else of it.

Shape: Airflow's ``provider_info.schema.json``; the connection form follows
https://airflow.apache.org/docs/apache-airflow/stable/howto/connection.html. The hook's form methods for Airflow before 3.2
derive from :data:`CONNECTION_TYPE`, so that there is one definition of the form.
"""

from __future__ import annotations

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
            "timeout": "60",
            "max_retries": "5",
        },
    },
    "conn-fields": {
        "region": {
            "label": "Region",
            "description": "Where the API key was made: us (default) or eu. A Base URL wins over it.",
            "schema": {"type": ["string", "null"], "enum": ["us", "eu"]},
        },
        "project_id": {
            "label": "Project ID",
            "description": "UUID of the project that calls work in. Empty: the default project of the key.",
            "schema": {"type": ["string", "null"]},
        },
        "organization_id": {
            "label": "Organization ID",
            "description": "UUID of the organization. Empty: the organization of the key.",
            "schema": {"type": ["string", "null"]},
        },
        "timeout": {
            "label": "Timeout (s)",
            "description": "Seconds without a byte before a read fails. Empty: 60.",
            "schema": {"type": ["number", "null"], "minimum": 0},
        },
        "max_retries": {
            "label": "Max retries",
            "description": "How often a request that is safe to repeat is sent again; 0 means never. Empty: 5.",
            "schema": {"type": ["integer", "null"], "minimum": 0},
        },
    },
}

_ASSET_URIS: dict[str, Any] = {
    "schemes": ["llamacloud"],
    "handler": f"{_PACKAGE}.lineage.sanitize_uri",
    "factory": f"{_PACKAGE}.lineage.create_asset",
    "to_openlineage_converter": f"{_PACKAGE}.lineage.convert_to_openlineage",
}


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
        "connection-types": [CONNECTION_TYPE],
        "hooks": _modules("hooks.llamacloud"),
        "operators": _modules("operators.chat", "operators.batch", "operators.index"),
        "sensors": _modules("sensors.index"),
        "triggers": _modules("triggers.chat", "triggers.index"),
        "asset-uris": [_ASSET_URIS],
        # The same under its name of Airflow 2.
        "dataset-uris": [_ASSET_URIS],
        "task-decorators": [
            {"name": "llamachat", "class-name": f"{_PACKAGE}.decorators.chat.llamachat_task"},
        ],
    }
