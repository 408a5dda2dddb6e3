"""Code that both clients share: it turns arguments into calls and questions, and a configuration into the limits of a turn."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.arguments import SharedAccess, checked_uuid, id_list, optional_choice, seconds
from airflow_provider_llamachat.arguments import prompt as checked_prompt
from airflow_provider_llamachat.client import endpoints
from airflow_provider_llamachat.client.config import ClientConfig
from airflow_provider_llamachat.client.endpoints import Call
from airflow_provider_llamachat.client.retry import pause
from airflow_provider_llamachat.exceptions import (
    ChatTurnInterruptedError,
    InvalidArgumentError,
    LlamaCloudConnectionError,
    LlamaCloudProtocolError,
)
from airflow_provider_llamachat.redaction import excerpt

# The rule of a turn is imported when a turn is asked: most calls are none.
if TYPE_CHECKING:
    from airflow_provider_llamachat.conversation.question import Question, Scope, Trace
    from airflow_provider_llamachat.conversation.steps import Limits
    from airflow_provider_llamachat.models import Event, Session

log = logging.getLogger(__name__)

DEFAULT_TURN_TIMEOUT = 600.0
"""Default for the maximum duration of a turn, in seconds."""

STALL = 2.0
"""How often the connection's timeout may pass without growth of a turn in the history, before the turn counts as cut off. The
history grows by whole events, which is slower than the stream."""

LAST_LOOK = 30.0
"""Minimum number of seconds for reading a session's history, even if the deadline of the turn has passed."""

MAX_PAGES = 10_000
"""Maximum number of pages of a listing, for a server that always returns another page."""

_SCOPE = ("project_id", "organization_id")

MAX_TOKEN = 8192
"""Maximum length of a page token; it must fit into a URL."""


def _checked(scope: Scope) -> dict[str, Any]:
    # What is misspelled must not be ignored: the call would go to the connection's project.
    if others := set(scope) - set(_SCOPE):
        raise TypeError(f"Unknown argument: {', '.join(sorted(others))}. Use {' or '.join(_SCOPE)}.")
    return {name: checked_uuid(name, scope.get(name)) for name in _SCOPE}


class Calls:
    """Builds the :class:`~..endpoints.Call` for each operation; every call includes project and organization."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config

    def _query(self, scope: Scope) -> dict[str, Any]:
        return {name: value or getattr(self._config, name) for name, value in _checked(scope).items()}

    def create(self, index_ids: list[str] | None, shared_access: str | None, scope: Scope) -> Call:
        """Create a session."""
        ids = id_list(index_ids)
        if ids is not None and len(ids) > endpoints.MAX_SESSION_INDEXES:
            raise InvalidArgumentError(
                f"index_ids has {len(ids)} ids, but a session can be bound to at most {endpoints.MAX_SESSION_INDEXES}."
            )
        body = {"index_ids": ids, "shared_access": optional_choice(shared_access, "shared_access", SharedAccess)}
        return endpoints.CREATE_SESSION.call(query=self._query(scope), body=body)

    def session(self, endpoint: endpoints.Endpoint, session_id: str, scope: Scope) -> Call:
        """Read, summarize or delete one session."""
        return endpoint.call({"session_id": session_id}, query=self._query(scope))

    def page(self, endpoint: endpoints.Endpoint, page_size: int | None, page_token: str | None, scope: Scope) -> Call:
        """Read one page of sessions or indexes."""
        return endpoint.call(query={**self._query(scope), "page_size": page_size, "page_token": page_token})

    def history(self, question: Question) -> Call:
        """Read the session of a question."""
        return self.session(endpoints.GET_SESSION, question.session_id, question.scope)

    def stream(self, question: Question) -> Call:
        """Ask one question."""
        body: dict[str, Any] = {"index_ids": question.index_ids, "prompt": question.prompt}
        if question.require_all_indexes:
            body["require_all_indexes"] = True
        return endpoints.STREAM_MESSAGE.call(
            {"session_id": question.session_id}, query=self._query(question.scope), body=body
        )

    def projects(self, project_name: str | None, organization_id: str | None) -> Call:
        """List projects. The call does not include a project."""
        query = self._query({"organization_id": organization_id})
        return endpoints.LIST_PROJECTS.call(query=query | {"project_id": None, "project_name": project_name})

    def project(self, project_id: str, organization_id: str | None) -> Call:
        """Read one project."""
        query = self._query({"organization_id": organization_id}) | {"project_id": None}
        return endpoints.GET_PROJECT.call({"project_id": checked_uuid("project_id", project_id) or ""}, query=query)

    def attachment(self, source_id: str, attachment_name: str, scope: Scope) -> Call:
        """Get the URL of an attachment."""
        endpoints.path_segment("source_id", source_id)
        query = {**self._query(scope), "source_id": source_id}
        return endpoints.GET_ATTACHMENT.call({"attachment_name": attachment_name}, query=query)

    def index(self, endpoint: endpoints.Endpoint, index_id: str, scope: Scope, *, expand: bool = False) -> Call:
        """Read one index, or start or cancel a sync of it."""
        query = self._query(scope)
        if expand:
            query["expand"] = ["sync_in_progress"]
        return endpoint.call({"index_id": index_id}, query=query)


def question(
    session_id: str, prompt: str, index_ids: list[str] | None, *, require_all_indexes: bool = False, scope: Scope
) -> Question:
    """Validate the arguments of a turn before anything is sent. :func:`completed` fills in missing ``index_ids``."""
    from airflow_provider_llamachat.conversation.question import Question

    endpoints.path_segment("session_id", session_id)
    return Question(
        session_id,
        checked_prompt(prompt),
        id_list(index_ids) or [],
        require_all_indexes,
        **_checked(scope),
    )


def completed(question: Question, trace: Trace | None, session: Session) -> tuple[Question, Trace]:
    """Fill in what the caller omitted: the indexes (the API requires at least one id, even for a bound session) and the number of
    earlier turns.
    """
    from airflow_provider_llamachat.conversation.history import begin, indexes_to_ask

    known = replace(question, index_ids=indexes_to_ask(session, question.index_ids))
    return known, trace or begin(session, known, now=time.time())


def limits(config: ClientConfig, deadline: float) -> Limits:
    """Return the limits of a turn that ends at ``deadline`` (epoch seconds)."""
    from airflow_provider_llamachat.conversation.steps import Limits

    return Limits(
        deadline=deadline,
        stall_after=STALL * config.timeout,
        max_posts=config.max_retries + 1,
        lag=config.history_lag,
        poll=min(1.0, config.timeout / 4),
        poll_max=5.0,
        pause=pause,
    )


def end_of(turn_timeout: float | timedelta, deadline: float | None = None) -> float:
    """Return the epoch seconds at which a turn ends. ``deadline`` overrides a duration."""
    return time.time() + seconds(turn_timeout, "turn_timeout") if deadline is None else deadline


def history_patience(deadline: float) -> float:
    """Return the number of seconds for reading the history of a turn that ends at ``deadline``."""
    return max(LAST_LOOK, deadline - time.time())


def time_left(patience: float | None, began: float) -> float | None:
    """Return the seconds left for the next of several calls that share ``patience``, or None if each call has its own limit."""
    return None if patience is None else max(1.0, began + patience - time.time())


def next_page(endpoint: endpoints.Endpoint, token: str, seen: set[str]) -> str:
    """Return the token of the next page, and add it to those that were ``seen``.

    :raises LlamaCloudProtocolError: the listing repeats a page, or does not end.
    """
    if token in seen or len(seen) >= MAX_PAGES or len(token) > MAX_TOKEN:
        raise LlamaCloudProtocolError(
            f"Could not {endpoint.purpose} to the end: after {len(seen) + 1} pages the server returned "
            f"{'the same page token again' if token in seen else 'another page token'}. "
            "Check that the connection's Base URL is LlamaCloud's."
        )
    seen.add(token)
    return token


def compare(question: Question, known: Trace, before: Trace, event: Event) -> None:
    """Log if the server records the prompt in another form. The answer to our own post is still ours."""
    from airflow_provider_llamachat.conversation.question import fingerprint

    if known.recorded not in {before.recorded, fingerprint(question.prompt)}:
        log.warning(
            "LlamaCloud records the prompt as %r. Later attempts look for both forms. Session: %s.",
            excerpt(str(getattr(event, "content", "")), limit=200),
            question.session_id,
        )


def without_stop(question: Question) -> LlamaCloudConnectionError:
    """Return the problem of a post whose stream ended without ``stop``. The history is read next."""
    return LlamaCloudConnectionError(
        f"The answer's stream ended without its stop event. Session: {question.session_id}.",
        accepted=True,
        session_id=question.session_id,
    )


def ended_early(session_id: str) -> ChatTurnInterruptedError:
    """Return the error for a stream that ended without ``stop``."""
    return ChatTurnInterruptedError(
        "The answer stopped partway: its stream ended without a stop event. The session's history shows whether the turn finished. "
        f"Session: {session_id}.",
        session_id=session_id,
    )
