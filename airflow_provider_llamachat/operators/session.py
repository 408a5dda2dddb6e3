"""Chat sessions as tasks: one that creates a session, and one that deletes it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import XComNotFound

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError, NotFoundError
from airflow_provider_llamachat.operators.base import LlamaCloudOperator, TaskMemory, is_retry

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context
    from jinja2 import Environment

    from airflow_provider_llamachat.client import LlamaCloudClient
    from airflow_provider_llamachat.models import SessionSummary
    from airflow_provider_llamachat.operators.base import Templated


class CreateChatSessionOperator(LlamaCloudOperator):
    """Create a LlamaCloud chat session, and hand its id to the tasks after it.

    XComs: ``session_id`` (text, pushed the moment the API answers), ``index_ids`` (list of text, empty for an unbound
    session), ``return_value`` (the whole session as JSON).

    A retry on Airflow 3.3 and later takes over the session that the earlier try created, if it is untouched. On older versions
    a retry may leave an empty session over; it costs nothing, and the log names what is known of it.

    API: POST /api/v1/chat (https://developers.llamaindex.ai/reference/).

    :param index_ids: indexes the session is bound to, at most ten: a list, an XComArg, a JSON list in a string, or one id.
        None makes an unbound session. The first message locks them. (templated)
    :param shared_access: what the session's share link grants: ``query`` or ``read_only``; None leaves it to the server. (templated)
    :param wait_for_indexes: wait, on the worker, until all ``index_ids`` are ready. For long waits put an
        :class:`~..sensors.index.IndexReadySensor` before: it can defer. (templated)
    :param index_timeout: seconds (or a timedelta) to wait for them at the most. (templated)
    :raises InvalidArgumentError: an argument is not usable; nothing was sent.
    :raises IndexFailedError: ``wait_for_indexes``, and the build of one has failed.
    :raises IndexNotReadyError: ``wait_for_indexes``, and ``index_timeout`` passed.
    :raises LlamaCloudError: see :mod:`airflow_provider_llamachat.exceptions`.
    """

    template_fields: Sequence[str] = (
        *LlamaCloudOperator.template_fields,
        "index_ids",
        "shared_access",
        "wait_for_indexes",
        "index_timeout",
    )

    def __init__(
        self,
        *,
        index_ids: Templated[list[str]] | None = None,
        shared_access: Templated[str] | None = None,
        wait_for_indexes: Templated[bool] = False,
        index_timeout: Templated[float | timedelta] = 3600,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.index_ids = index_ids
        self.shared_access = shared_access
        self.wait_for_indexes = wait_for_indexes
        self.index_timeout = index_timeout

    def execute(self, context: Context) -> dict[str, Any]:
        """Create (or, on a retry, take over) the session and push its ids."""
        index_ids = arguments.id_list(self.index_ids)
        shared_access = arguments.optional_choice(self.shared_access, "shared_access", ("query", "read_only"))
        patience = arguments.seconds(self.index_timeout, "index_timeout")
        wait = arguments.flag(self.wait_for_indexes, "wait_for_indexes")
        with self.get_hook().get_conn() as client:
            if wait:
                self._wait(client, index_ids or [], time.time() + patience)
            session = self._earlier_session(context, client, index_ids, shared_access)
            if session is None:
                session = client.create_session(index_ids, shared_access=shared_access, **self.scope())
                self.log.info("Created chat session %s.", session.session_id)
                TaskMemory(context, self.log).set("session_id", session.session_id)
        self.push(context, "session_id", session.session_id)
        # Never None: Airflow 3.0 refuses that as an XCom, and a task that failed for it would leave its session behind.
        self.push(context, "index_ids", session.index_ids or [])
        return session.as_json()

    def _wait(self, client: LlamaCloudClient, index_ids: list[str], deadline: float) -> None:
        from airflow_provider_llamachat.readiness import wait_until_ready

        if not index_ids:
            raise InvalidArgumentError("wait_for_indexes needs index_ids: there is no index to wait for.")
        scope = self.scope()
        wait_until_ready(lambda: (client.get_index(index_id, **scope) for index_id in index_ids), deadline)

    def _earlier_session(
        self, context: Context, client: LlamaCloudClient, index_ids: list[str] | None, shared_access: str | None
    ) -> SessionSummary | None:
        if not is_retry(context):
            return None
        memory = TaskMemory(context, self.log)
        session_id = memory.get("session_id")
        if not isinstance(session_id, str):
            if not memory.exists:
                self.log.info(
                    "This is a retry. If an earlier try got as far as creating a session, that session is left over, empty and "
                    "without cost: this Airflow has no task state store (3.3 has) to remember it in."
                )
            return None
        try:
            session = client.get_session_summary(session_id, **self.scope())
        except NotFoundError:
            return None
        pristine = session.job_metadata is None and set(session.index_ids or []) == set(index_ids or [])
        if not pristine or (shared_access is not None and session.shared_access not in {None, shared_access}):
            self.log.info(
                "Session %s of an earlier try was used or bound otherwise since: creating another one.", session_id
            )
            return None
        self.log.info("Taking over session %s, which an earlier try created.", session_id)
        return session


class DeleteChatSessionOperator(LlamaCloudOperator):
    """Delete a chat session with its history. Fits ``.as_teardown()``.

    API: DELETE /api/v1/chat/{session_id} (https://developers.llamaindex.ai/reference/).

    :param session_id: the session to delete, or the whole session as its task returned it. (templated)
    :param ignore_missing: a session that does not exist (any more), or that was never created because the task before failed,
        is no error. (templated)
    :raises NotFoundError: there is no such session, and ``ignore_missing`` is false.
    """

    # The id first: when it is not there, no other field was rendered yet, and none is rendered twice.
    template_fields: Sequence[str] = ("session_id", *LlamaCloudOperator.template_fields, "ignore_missing")

    def __init__(
        self, *, session_id: Templated[dict[str, Any]], ignore_missing: Templated[bool] = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.session_id = session_id
        self.ignore_missing = ignore_missing

    def render_template_fields(self, context: Context, jinja_env: Environment | None = None) -> None:
        """Render; an id that was never pushed to XCom becomes None, for :meth:`execute` to judge."""
        try:
            super().render_template_fields(context, jinja_env)
        except XComNotFound as problem:
            self.log.info("session_id: %s", problem)
            self.session_id = ""
            super().render_template_fields(context, jinja_env)

    def execute(self, context: Context) -> None:
        """Delete the session."""
        ignore_missing = arguments.flag(self.ignore_missing, "ignore_missing")
        if ignore_missing and arguments.is_nothing(self.session_id):
            self.log.info("No session was created, so there is none to delete.")
            return
        session_id = arguments.session_id(self.session_id)
        with self.get_hook().get_conn() as client:
            try:
                client.delete_session(session_id, **self.scope())
            except NotFoundError:
                if not ignore_missing:
                    raise
                self.log.info("Chat session %s does not exist (any more): nothing to delete.", session_id)
            else:
                self.log.info("Deleted chat session %s.", session_id)
