"""The operators that create and delete a chat session."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import XComNotFound, conf

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError, NotFoundError
from airflow_provider_llamachat.operators.base import IndexWaitingOperator, LlamaCloudOperator

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context
    from jinja2 import Environment

    from airflow_provider_llamachat.airflow_support.templated import Templated
    from airflow_provider_llamachat.client import LlamaCloudClient
    from airflow_provider_llamachat.models import Index, SessionSummary


class CreateChatSessionOperator(IndexWaitingOperator):
    """Create a LlamaCloud chat session.

    XComs: ``session_id`` (text, pushed as soon as the session exists), ``index_ids`` (list of text, empty for an unbound
    session), ``return_value`` (the whole session as JSON).

    On Airflow 3.3 and later, a retry uses the session of the previous attempt if it is unused. On older versions, a retry may leave
    an empty session behind, which costs nothing.

    API: POST /api/v1/chat (https://developers.llamaindex.ai/reference/).

    :param index_ids: indexes of the session, at most ten: a list, an XComArg, a JSON list in a string, or one id. None creates
        an unbound session. After the first message they cannot be changed. (templated)
    :param shared_access: what the session's share link grants: ``query`` or ``read_only``; None means the server's default. (templated)
    :param wait_for_indexes: wait until all ``index_ids`` are ready before creating the session. (templated)
    :param deferrable: wait for the indexes in the triggerer instead of on a worker. Default: Airflow's ``[operators]
        default_deferrable``.
    :param index_timeout: maximum time to wait for the indexes, in seconds or as a timedelta. (templated)
    :param poke_interval: maximum time between two checks of the indexes, in seconds or as a timedelta. (templated)
    :param llamacloud_conn_id: the Airflow connection. (templated)
    :param project_id: project (UUID) that overrides the one of the connection. (templated)
    :param organization_id: organization (UUID) that overrides the one of the connection. (templated)
    :raises InvalidArgumentError: an argument is invalid; nothing was sent.
    :raises IndexFailedError: ``wait_for_indexes`` is set, and the build of an index failed.
    :raises IndexNotReadyError: ``wait_for_indexes`` is set, and ``index_timeout`` passed. A retry waits again.
    :raises LlamaCloudError: see :mod:`airflow_provider_llamachat.exceptions`.
    """

    template_fields: Sequence[str] = (
        *LlamaCloudOperator.template_fields,
        "index_ids",
        "shared_access",
        "wait_for_indexes",
        "index_timeout",
        "poke_interval",
    )

    def __init__(
        self,
        *,
        index_ids: Templated[list[str]] | None = None,
        shared_access: Templated[arguments.SharedAccess] | None = None,
        wait_for_indexes: Templated[bool] = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        index_timeout: Templated[float | timedelta] = 3600,
        poke_interval: Templated[float | timedelta] = 15,
        llamacloud_conn_id: Templated[str] = "llamacloud_default",
        project_id: Templated[str] | None = None,
        organization_id: Templated[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            llamacloud_conn_id=llamacloud_conn_id, project_id=project_id, organization_id=organization_id, **kwargs
        )
        self.index_ids = index_ids
        self.shared_access = shared_access
        self.wait_for_indexes = wait_for_indexes
        self.deferrable = deferrable
        self.index_timeout = index_timeout
        self.poke_interval = poke_interval

    def execute(self, context: Context) -> dict[str, Any]:
        """Create the session, or reuse it on a retry, and push its ids. Wait for the indexes first if ``wait_for_indexes`` is set."""
        return self._create(context, waits=arguments.flag(self.wait_for_indexes, "wait_for_indexes"))

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None, **known: Any) -> dict[str, Any]:
        """Resume after the trigger: create the session, or raise the trigger's error.

        :param known: ``try_number`` of the attempt that deferred.
        """
        from airflow_provider_llamachat.airflow_support.task_state import is_stale

        if is_stale(context, known.get("try_number")):
            return self.execute(context)
        self.outcome(event)
        return self._create(context, waits=False)

    def _create(self, context: Context, *, waits: bool) -> dict[str, Any]:
        from airflow_provider_llamachat.airflow_support.task_state import TaskMemory

        index_ids = arguments.id_list(self.index_ids)
        shared_access: Any = arguments.optional_choice(self.shared_access, "shared_access", arguments.SharedAccess)
        patience = arguments.seconds(self.index_timeout, "index_timeout")
        longest = arguments.seconds(self.poke_interval, "poke_interval")
        with self.get_hook().get_conn() as client:
            if waits:
                self._wait(context, client, index_ids or [], time.time() + patience, longest)
            session = self._earlier_session(context, client, index_ids, shared_access)
            if session is None:
                session = client.create_session(index_ids, shared_access=shared_access, **self.scope())
                self.log.info("Created chat session %s.", session.session_id)
                TaskMemory(context, self.log).set("session_id", session.session_id)
        self.push(context, "session_id", session.session_id)
        # Not None, because Airflow 3.0 rejects that as an XCom. The task would fail after creating the session.
        self.push(context, "index_ids", session.index_ids or [])
        return session.as_json()

    def _wait(
        self, context: Context, client: LlamaCloudClient, index_ids: list[str], deadline: float, longest: float
    ) -> None:
        from airflow_provider_llamachat.client.readiness import Readiness, wait_until_ready

        if not index_ids:
            raise InvalidArgumentError(
                "wait_for_indexes requires index_ids. Set index_ids, or remove wait_for_indexes."
            )
        readiness, scope = Readiness(), self.scope()

        def look() -> list[Index]:
            return [client.get_index(index_id, **scope) for index_id in index_ids]

        if not self.deferrable:
            wait_until_ready(look, deadline, readiness, longest)
        elif readiness.pending(look()):
            self.defer_until(context, "IndexReadyTrigger", index_ids, deadline, longest)

    def _earlier_session(
        self,
        context: Context,
        client: LlamaCloudClient,
        index_ids: list[str] | None,
        shared_access: arguments.SharedAccess | None,
    ) -> SessionSummary | None:
        from airflow_provider_llamachat.airflow_support.task_state import TaskMemory, is_retry

        if not is_retry(context):
            return None
        memory = TaskMemory(context, self.log)
        session_id = memory.get("session_id")
        if not isinstance(session_id, str):
            if not memory.exists:
                self.log.info(
                    "This is a retry. If a previous attempt created a session, it remains empty and costs nothing. Airflow 3.3 and later "
                    "would reuse it."
                )
            return None
        try:
            session = client.get_session_summary(session_id, **self.scope())
        except NotFoundError:
            return None
        pristine = session.job_metadata is None and set(session.index_ids or []) == set(index_ids or [])
        if not pristine or (shared_access is not None and session.shared_access not in {None, shared_access}):
            self.log.info(
                "The session of a previous attempt was used or changed. Creating another one. Session: %s.", session_id
            )
            return None
        self.log.info("Reusing the session of a previous attempt. Session: %s.", session_id)
        return session


class DeleteChatSessionOperator(LlamaCloudOperator):
    """Delete a chat session and its history. Can be used with ``.as_teardown()``.

    API: DELETE /api/v1/chat/{session_id} (https://developers.llamaindex.ai/reference/).

    :param session_id: the session to delete, or the whole session as its task returned it. (templated)
    :param ignore_missing: do not fail if the session does not exist, or was not created because an upstream task failed.
        (templated)
    :param transcript_path: save the conversation to this path first, as :class:`~.transcript.SaveTranscriptOperator` does. If that
        fails, or if the path renders to nothing or holds the transcript of another session, nothing is deleted. (templated)
    :param transcript_format: ``markdown``, ``json`` or ``html``. (templated)
    :param llamacloud_conn_id: the Airflow connection. (templated)
    :param project_id: project (UUID) that overrides the one of the connection. (templated)
    :param organization_id: organization (UUID) that overrides the one of the connection. (templated)
    :raises NotFoundError: the session does not exist, and ``ignore_missing`` is False.
    :raises TranscriptError: the transcript could not be written; the session was not deleted.
    :raises InvalidArgumentError: an argument is invalid, or the transcript of another session is at ``transcript_path``; the session was
        not deleted.
    """

    # The id is first, so that no other field is rendered twice if it is missing.
    template_fields: Sequence[str] = (
        "session_id",
        *LlamaCloudOperator.template_fields,
        "ignore_missing",
        "transcript_path",
        "transcript_format",
    )

    def __init__(
        self,
        *,
        session_id: Templated[dict[str, Any]],
        ignore_missing: Templated[bool] = True,
        transcript_path: Any = None,
        transcript_format: Templated[arguments.TranscriptFormat] = "markdown",
        llamacloud_conn_id: Templated[str] = "llamacloud_default",
        project_id: Templated[str] | None = None,
        organization_id: Templated[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            llamacloud_conn_id=llamacloud_conn_id, project_id=project_id, organization_id=organization_id, **kwargs
        )
        self.session_id = session_id
        self.ignore_missing = ignore_missing
        self.transcript_path = arguments.path(transcript_path)
        self._keeps_transcript = transcript_path is not None
        self.transcript_format = transcript_format

    def render_template_fields(self, context: Context, jinja_env: Environment | None = None) -> None:
        """Render templates. A session id that was not pushed to XCom becomes empty, which :meth:`execute` checks."""
        try:
            super().render_template_fields(context, jinja_env)
        except XComNotFound as problem:
            self.log.info("session_id: %s", problem)
            self.session_id = ""
            super().render_template_fields(context, jinja_env)

    def execute(self, context: Context) -> None:
        """Save the transcript if there is a path for it, and delete the session."""
        from airflow_provider_llamachat.airflow_support.paths import resolved_path
        from airflow_provider_llamachat.operators.transcript import save

        ignore_missing = arguments.flag(self.ignore_missing, "ignore_missing")
        if ignore_missing and arguments.is_nothing(self.session_id):
            self.log.info("Nothing to delete, because no session was created.")
            return
        session_id = arguments.session_id(self.session_id)
        form = arguments.choice(self.transcript_format, "transcript_format", arguments.TranscriptFormat)
        if self._keeps_transcript and arguments.is_nothing(self.transcript_path):
            raise InvalidArgumentError(
                "transcript_path was set, but rendered to nothing, so the session was not deleted. Check the template or the XCom."
            )
        path = resolved_path(self.transcript_path, "transcript_path")
        with self.get_hook().get_conn() as client:
            try:
                if path is not None:
                    save(self, context, client, session_id, path, form, deletes=True)
                client.delete_session(session_id, **self.scope())
            except NotFoundError as problem:
                if not ignore_missing:
                    raise
                client.confirm(problem, **self.scope())
                self.log.info("Nothing to delete, because the chat session does not exist. Session: %s.", session_id)
            else:
                self.log.info("Deleted chat session %s.", session_id)
