"""The hook creates clients from Airflow connections.

This module does not import httpx or pydantic, because Airflow's web server imports it for the connection form.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_llamachat import arguments, exceptions
from airflow_provider_llamachat.airflow_support.connection import mask_secret, read, without_noise
from airflow_provider_llamachat.provider_info import CONNECTION_TYPE, airflow_core_version
from airflow_provider_llamachat.redaction import excerpt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from airflow_provider_llamachat import models
    from airflow_provider_llamachat.arguments import SharedAccess
    from airflow_provider_llamachat.client import AsyncLlamaCloudClient, ClientConfig, LlamaCloudClient


class LlamaCloudHook(BaseHook):
    """Interact with LlamaCloud.

    Connection: password is the API key; host is the base URL, which overrides the region; extra contains ``region`` (``us`` or
    ``eu``), ``project_id``, ``organization_id`` (UUIDs), ``timeout`` (seconds without any data), ``max_retries`` and ``history_lag``
    (seconds until an accepted prompt appears in the session's history). Only the Airflow connection is used; environment variables
    of other LlamaCloud tools are not read.

    Methods with ``project_id`` and ``organization_id`` (UUIDs) use the connection's values for those that are None. All methods raise
    the classes of :mod:`airflow_provider_llamachat.exceptions`: :class:`~..exceptions.LlamaCloudConfigError` before anything is sent,
    and otherwise refusals (such as :class:`~..exceptions.NotFoundError`), network errors and server errors.

    :param llamacloud_conn_id: the Airflow connection.
    """

    conn_name_attr = "llamacloud_conn_id"
    default_conn_name = "llamacloud_default"
    conn_type = "llamacloud"
    hook_name = "LlamaCloud"

    def __init__(self, llamacloud_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.llamacloud_conn_id = llamacloud_conn_id
        self._client: LlamaCloudClient | None = None

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form fields for Airflow before 3.2, derived from the declarative ones.

        On Airflow 2, numbers are text fields. Its form shows the value 0 of a number field as empty, and saving the form would
        lose it. The hook converts text to numbers.
        """
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from flask_babel import lazy_gettext
        from wtforms import IntegerField, StringField
        from wtforms.validators import Optional, any_of

        widgets: dict[str, Any] = {}
        for name, field in CONNECTION_TYPE["conn-fields"].items():
            kind = IntegerField if "integer" in field["schema"]["type"] and airflow_core_version() else StringField
            # Airflow 3.0 and 3.1 show a drop-down for this validator.
            allowed = [any_of(field["schema"]["enum"])] if "enum" in field["schema"] else []
            widgets[name] = kind(
                label=lazy_gettext(field["label"]),
                description=field["description"],
                validators=[Optional(), *allowed],
                widget=BS3TextFieldWidget(),
            )
        return widgets

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return labels and placeholders for Airflow before 3.2, derived from the declarative ones."""
        behaviour = copy.deepcopy(CONNECTION_TYPE["ui-field-behaviour"])
        return {name.replace("-", "_"): value for name, value in behaviour.items()}

    def get_conn(self) -> LlamaCloudClient:
        """Return the synchronous client for this connection. The hook reuses it for later calls.

        :raises LlamaCloudConfigError: the connection is invalid; no request was sent.
        """
        from airflow_provider_llamachat.client import LlamaCloudClient

        if self._client is None or self._client.is_closed:
            self._client = LlamaCloudClient(self.get_config())
        return self._client

    async def get_async_conn(self) -> AsyncLlamaCloudClient:
        """Return a new asynchronous client without blocking the event loop. Close it, or use ``async with``."""
        config = await self.get_async_config()
        from airflow_provider_llamachat.client import AsyncLlamaCloudClient

        return await AsyncLlamaCloudClient.open(config)

    async def get_async_config(self) -> ClientConfig:
        """Return the validated configuration of the connection without blocking the event loop.

        :raises LlamaCloudConfigError: the connection is invalid.
        """
        from airflow.providers.common.compat.sdk import AirflowNotFoundException, Connection
        from asgiref.sync import sync_to_async

        conn_id = arguments.connection_id(self.llamacloud_conn_id)
        # The first import takes about a quarter of a second.
        await asyncio.to_thread(importlib.import_module, "airflow_provider_llamachat.client")
        with without_noise():
            connection = None
            # Before Airflow 3.3.2, aget_connection masks synchronously, which raises DeadlockImminentError when many triggers start in
            # one loop. 3.3.2 brought aextra_dejson along with the asynchronous masking.
            if hasattr(Connection, "aextra_dejson"):
                # A trigger that dag.test() runs inline can read a connection from the database only synchronously, because its
                # supervisor has no asynchronous interface.
                with contextlib.suppress(AirflowNotFoundException):
                    connection = await self.aget_connection(conn_id)
            if connection is None:
                connection = await sync_to_async(self.get_connection)(conn_id)
        config = read(connection, conn_id)
        if config.api_key != connection.password:
            # In Airflow 3.0's triggerer, mask_secret must not be called in the event loop.
            await sync_to_async(mask_secret)(config.api_key)
        return config

    def get_config(self) -> ClientConfig:
        """Return the validated configuration of the connection.

        :raises LlamaCloudConfigError: the connection is invalid.
        """
        conn_id = arguments.connection_id(self.llamacloud_conn_id)
        with without_noise():
            connection = self.get_connection(conn_id)
        config = read(connection, conn_id)
        # Airflow masks the password including surrounding white space, which is not part of the key.
        if config.api_key != connection.password:
            mask_secret(config.api_key)
        return config

    def close(self) -> None:
        """Close the client, if it exists."""
        if self._client is not None:
            self._client.close()

    def test_connection(self) -> tuple[bool, str]:
        """Test the connection with one free call. The message names the project, or the cause of the error."""
        from dataclasses import replace

        from airflow_provider_llamachat.client import LlamaCloudClient

        try:
            config = replace(self.get_config(), max_retries=0, connect_timeout=10.0, total_timeout=30.0)
        except exceptions.LlamaCloudConfigError as problem:
            return False, str(problem)
        about_scope = bool(config.project_id or config.organization_id)
        try:
            with LlamaCloudClient(config) as client:
                if config.project_id:
                    project = client.get_project(config.project_id)
                    return True, f"Connected to {config.base_url}, project {_named(project)}."
                projects = client.list_projects()
        except exceptions.AuthenticationError as problem:
            return False, f"API key or region: {problem}"
        except (exceptions.NotFoundError, exceptions.PermissionDeniedError) as problem:
            if isinstance(problem, exceptions.NotFoundError) and problem.is_vague:
                return False, str(problem)
            return False, f"{'Project or organization' if about_scope else 'API key'}: {problem}"
        except exceptions.LlamaCloudError as problem:
            return False, str(problem)
        default = next((project for project in projects if project.is_default), projects[0] if projects else None)
        if default is None:
            return (
                False,
                f"API key: the key is valid, but has no access to a project. Check its organization and role. Base URL: {config.base_url}.",
            )
        more = f"; the key has access to {len(projects)} projects" if len(projects) > 1 else ""
        return True, f"Connected to {config.base_url}, default project {_named(default)}{more}."

    def create_session(
        self,
        index_ids: list[str] | None = None,
        *,
        shared_access: SharedAccess | None = None,
        project_id: str | None = None,
        organization_id: str | None = None,
    ) -> models.SessionSummary:
        """Create a chat session; see :meth:`~..client.sync.LlamaCloudClient.create_session`."""
        return self.get_conn().create_session(
            index_ids, shared_access=shared_access, project_id=project_id, organization_id=organization_id
        )

    def get_session(
        self, session_id: str, *, project_id: str | None = None, organization_id: str | None = None
    ) -> models.Session:
        """Read a session with its whole history."""
        return self.get_conn().get_session(session_id, project_id=project_id, organization_id=organization_id)

    def get_session_summary(
        self, session_id: str, *, project_id: str | None = None, organization_id: str | None = None
    ) -> models.SessionSummary:
        """Read a session without its history."""
        return self.get_conn().get_session_summary(session_id, project_id=project_id, organization_id=organization_id)

    def list_sessions(
        self, *, page_size: int | None = None, project_id: str | None = None, organization_id: str | None = None
    ) -> Iterator[models.SessionSummary]:
        """Iterate over the project's sessions, and fetch pages as needed."""
        return self.get_conn().list_sessions(
            page_size=page_size, project_id=project_id, organization_id=organization_id
        )

    def delete_session(
        self, session_id: str, *, project_id: str | None = None, organization_id: str | None = None
    ) -> None:
        """Delete a session."""
        self.get_conn().delete_session(session_id, project_id=project_id, organization_id=organization_id)

    def get_attachment_url(
        self, source_id: str, attachment_name: str, *, project_id: str | None = None, organization_id: str | None = None
    ) -> models.AttachmentUrl:
        """Get a URL from which an attachment can be downloaded for some time. The URL is a secret, and masked in the task log.

        :param source_id: id of the file. This and ``attachment_name`` are in the ``attachment`` of a source.
        :returns: ``url`` and ``expires_at`` (ISO text).
        """
        found = self.get_conn().get_attachment_url(
            source_id, attachment_name, project_id=project_id, organization_id=organization_id
        )
        # Libraries log the part after the path separately.
        for secret in (found.url, found.url.partition("?")[2]):
            mask_secret(secret)
        return found

    def stream_message(
        self,
        session_id: str,
        prompt: str,
        *,
        index_ids: list[str] | None = None,
        require_all_indexes: bool = False,
        turn_timeout: float | timedelta = 600.0,
        project_id: str | None = None,
        organization_id: str | None = None,
    ) -> Iterator[models.Event]:
        """Post a prompt once and iterate over its events; see :meth:`~..client.sync.LlamaCloudClient.stream_message`."""
        return self.get_conn().stream_message(
            session_id,
            prompt,
            index_ids=index_ids,
            require_all_indexes=require_all_indexes,
            turn_timeout=turn_timeout,
            project_id=project_id,
            organization_id=organization_id,
        )

    def send_message(
        self,
        session_id: str,
        prompt: str,
        *,
        index_ids: list[str] | None = None,
        require_all_indexes: bool = False,
        turn_timeout: float | timedelta = 600.0,
        project_id: str | None = None,
        organization_id: str | None = None,
        **options: Any,
    ) -> models.ChatTurn:
        """Ask and return the finished turn, which is paid for once; see :meth:`~..client.sync.LlamaCloudClient.send_message`.

        :param options: options for resuming an earlier question (``baseline``, ``resume``, ``accepted``, ``ask_again``,
            ``deadline``), and ``on_event``.
        """
        return self.get_conn().send_message(
            session_id,
            prompt,
            index_ids=index_ids,
            require_all_indexes=require_all_indexes,
            turn_timeout=turn_timeout,
            project_id=project_id,
            organization_id=organization_id,
            **options,
        )

    def list_projects(
        self, *, project_name: str | None = None, organization_id: str | None = None
    ) -> list[models.Project]:
        """List the projects that the key has access to; see :meth:`~..client.sync.LlamaCloudClient.list_projects`."""
        return self.get_conn().list_projects(project_name=project_name, organization_id=organization_id)

    def list_indexes(
        self, *, page_size: int | None = None, project_id: str | None = None, organization_id: str | None = None
    ) -> Iterator[models.Index]:
        """Iterate over the project's indexes, and fetch pages as needed."""
        return self.get_conn().list_indexes(page_size=page_size, project_id=project_id, organization_id=organization_id)

    def get_index(
        self,
        index_id: str,
        *,
        expand_sync: bool = False,
        project_id: str | None = None,
        organization_id: str | None = None,
    ) -> models.Index:
        """Read an index; see :meth:`~..client.sync.LlamaCloudClient.get_index`."""
        return self.get_conn().get_index(
            index_id, expand_sync=expand_sync, project_id=project_id, organization_id=organization_id
        )

    def sync_index(self, index_id: str, *, project_id: str | None = None, organization_id: str | None = None) -> bool:
        """Start a sync of an index. Return False if one was already running."""
        return self.get_conn().sync_index(index_id, project_id=project_id, organization_id=organization_id)

    def cancel_sync(self, index_id: str, *, project_id: str | None = None, organization_id: str | None = None) -> bool:
        """Cancel the running sync of an index, whoever started it. Return False if none was running."""
        return self.get_conn().cancel_sync(index_id, project_id=project_id, organization_id=organization_id)


def _named(project: models.Project) -> str:
    return f"{excerpt(project.name, limit=100)!r} ({excerpt(project.id, limit=60)})"
