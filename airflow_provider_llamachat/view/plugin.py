"""The Airflow plugin (entry point ``airflow.plugins``) that adds the page. Every component of Airflow imports this module."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import urlsplit

from airflow.plugins_manager import AirflowPlugin
from airflow.providers.common.compat.sdk import conf

from airflow_provider_llamachat.airflow_support.conversation_link import ROUTE, LlamaCloudConversationLink, has_view


class LlamaCloudChatsPlugin(AirflowPlugin):
    """The page, its entry in the navigation, and the button of task instances."""

    name = "llamacloud_chats"

    # Airflow's schedulers and workers load plugins, but only the API server asks for these. Nothing is imported before that.
    @cached_property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]  # Airflow reads it from an instance
        """Return the application."""
        from airflow_provider_llamachat.view.app import create_app

        return [{"app": create_app(), "url_prefix": f"/{ROUTE}", "name": "LlamaCloud chats"}]

    @cached_property
    def external_views(self) -> list[Any]:  # type: ignore[override]  # as above
        """Return the entry in the navigation."""
        base = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
        return [{"name": "LlamaCloud chats", "href": f"{base}/{ROUTE}/", "url_route": ROUTE, "destination": "nav"}]

    @cached_property
    def operator_extra_links(self) -> list[Any]:  # type: ignore[override]  # as above
        """Return the button, which Airflow shows for all tasks of these classes, with or without XComs. Subclasses have their own."""
        from airflow_provider_llamachat.decorators.chat import LlamaChatDecoratedOperator
        from airflow_provider_llamachat.operators.batch import ChatBatchOperator
        from airflow_provider_llamachat.operators.chat import SendChatMessageOperator

        class Link(LlamaCloudConversationLink):
            operators: ClassVar[list[Any]] = [SendChatMessageOperator, LlamaChatDecoratedOperator, ChatBatchOperator]

        return [Link()]


# Airflow silently ignores an entry point that is not a plugin.
plugin = LlamaCloudChatsPlugin if has_view() else None
