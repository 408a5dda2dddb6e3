"""The operator that saves the whole conversation of a session to a file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import ChatBatchError, InvalidArgumentError, TranscriptError
from airflow_provider_llamachat.operators.base import LlamaCloudOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.airflow_support.templated import Templated
    from airflow_provider_llamachat.batch.storage import Folder
    from airflow_provider_llamachat.client import LlamaCloudClient
    from airflow_provider_llamachat.models import Session

POLL = 1.0
"""Seconds between two reads of a history whose last turn has no end yet."""


class SaveTranscriptOperator(LlamaCloudOperator):
    """Save the whole conversation of a session: questions, answers, tool calls, sources, tokens and times.

    The file is written completely or not at all, and a retry writes it again. XComs: ``return_value`` (the path as text).

    A history may lag: if its last turn has no end yet, it is read again until the connection's ``history_lag`` has passed.

    API: GET /api/v1/chat/{session_id} (https://developers.llamaindex.ai/reference/).

    :param session_id: the session, or the whole session as its task returned it. (templated)
    :param output_path: any path that Airflow's object storage knows (``s3://conn_id@bucket/key``, ``file:///...``), or an absolute
        local path, as text or as a path object. An existing file is replaced. (templated)
    :param format: ``markdown``, ``json`` or ``html`` (one file without scripts and without references to other files). (templated)
    :param llamacloud_conn_id: the Airflow connection. (templated)
    :param project_id: project (UUID) that overrides the one of the connection. (templated)
    :param organization_id: organization (UUID) that overrides the one of the connection. (templated)
    :raises TranscriptError: the file could not be written, or the session was used but its history is empty.
    :raises InvalidArgumentError: an argument is invalid; nothing was read.
    :raises NotFoundError: the session does not exist.
    """

    template_fields: Sequence[str] = (*LlamaCloudOperator.template_fields, "session_id", "output_path", "format")

    def __init__(
        self,
        *,
        session_id: Templated[dict[str, Any]],
        output_path: Any,
        format: Templated[arguments.TranscriptFormat] = "markdown",  # noqa: A002  # the name that users know
        llamacloud_conn_id: Templated[str] = "llamacloud_default",
        project_id: Templated[str] | None = None,
        organization_id: Templated[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            llamacloud_conn_id=llamacloud_conn_id, project_id=project_id, organization_id=organization_id, **kwargs
        )
        self.session_id = session_id
        self.output_path = arguments.path(output_path)
        self.format = format

    def execute(self, context: Context) -> str:
        """Read the session, write the file, and return its path."""
        from airflow_provider_llamachat.airflow_support.paths import resolved_path

        session_id = arguments.session_id(self.session_id)
        form = arguments.choice(self.format, "format", arguments.TranscriptFormat)
        path = resolved_path(self.output_path, "output_path")
        if path is None:
            raise InvalidArgumentError("output_path must be the path of a file. Set output_path.")
        with self.get_hook().get_conn() as client:
            return save(self, context, client, session_id, path, form)


def save(
    operator: LlamaCloudOperator,
    context: Context,
    client: LlamaCloudClient,
    session_id: str,
    path: Any,
    form: str,
    *,
    deletes: bool = False,
) -> str:
    """Write the transcript of a session to ``path``, and return the path as text.

    :param deletes: the session is deleted afterwards. Raise an error if it would be lost: the history has events that the transcript
        lacks, or two transcripts have the same path.
    :raises TranscriptError: the file could not be written, or is not whole.
    :raises InvalidArgumentError: the transcript of another session is there.
    """
    from airflow_provider_llamachat.airflow_support.lineage import record
    from airflow_provider_llamachat.batch.storage import Folder
    from airflow_provider_llamachat.models.turn import MALFORMED
    from airflow_provider_llamachat.transcripts.render import render

    session = _settled(operator, client, session_id)
    content = render(session, form).encode("utf-8", "replace")
    ti: Any = context["ti"]
    task = "/".join(map(str, (ti.dag_id, ti.task_id, ti.run_id, getattr(ti, "map_index", -1))))
    folder = Folder.around(path)
    failed = "The transcript was not saved."
    try:
        with folder.replacing(path.name, hashlib.sha256(task.encode()).hexdigest()[:24]) as file:
            file.write(content)
            if deletes:
                _check_place(folder, path, session)
        if deletes:  # another task may have written between the check and the end of the upload
            failed = "The session was not deleted, because its saved transcript could not be read."
            _check_place(folder, path, session)
    except ChatBatchError as problem:
        raise TranscriptError(f"{failed} {problem}", session_id=session_id) from problem
    operator.log.info("Saved the transcript of session %s to %s (%d bytes).", session_id, path, len(content))
    record(operator.get_hook(), session.index_ids or [], client.config.base_url, str(path))
    if deletes and (lost := sum(event.type == MALFORMED for event in session.events)):
        raise TranscriptError(
            f"The session was not deleted, because its transcript lacks {lost} events that are malformed. To delete it anyway, leave "
            f"out transcript_path. Session: {session_id}.",
            session_id=session_id,
        )
    return str(path)


def _check_place(folder: Folder, path: Any, session: Session) -> None:
    from airflow_provider_llamachat.transcripts.render import is_of_another

    if is_of_another(folder.head(path.name) or b"", session):
        raise InvalidArgumentError(
            "transcript_path already holds the transcript of another session, so this session was not deleted. Put the session's id "
            "into transcript_path, for example {{ ti.xcom_pull(task_ids='create', key='session_id') }}, or move the file away. "
            f"Session: {session.session_id}. File: {path}",
            session_id=session.session_id,
        )


def _settled(operator: LlamaCloudOperator, client: LlamaCloudClient, session_id: str) -> Session:
    """Read a session. While its last turn has no end, read it again until the history had its time to show it.

    :raises TranscriptError: the session was used, but shows no turn. An empty transcript must not be a reason to delete it.
    """
    from airflow_provider_llamachat.conversation.history import turns

    deadline = time.monotonic() + client.config.history_lag
    while True:
        session = client.get_session(session_id, **operator.scope())
        found = turns(session)
        is_lost = not found and session.job_metadata is not None
        if not is_lost and (not found or found[-1].finished):
            return session
        if time.monotonic() >= deadline:
            if is_lost:
                raise TranscriptError(
                    f"The transcript was not saved. The session was asked before, but its history is empty. Session: {session_id}.",
                    session_id=session_id,
                )
            operator.log.warning(
                "The last turn of session %s has no end: it is still running, or stopped partway. It is saved as it is.",
                session_id,
            )
            return session
        client.pause(POLL)
