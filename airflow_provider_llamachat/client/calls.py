"""What both clients say alike: arguments become calls, and a configuration becomes httpx settings and turn limits."""

from __future__ import annotations

import time
from typing import Any

import httpx

from airflow_provider_llamachat import __version__, endpoints
from airflow_provider_llamachat.arguments import id_list, optional_choice
from airflow_provider_llamachat.arguments import prompt as checked_prompt
from airflow_provider_llamachat.asking import Limits, Outcome, Question
from airflow_provider_llamachat.client.config import ClientConfig, checked_uuid
from airflow_provider_llamachat.client.replaying import pause
from airflow_provider_llamachat.endpoints import Call
from airflow_provider_llamachat.exceptions import (
    ChatTurnInterruptedError,
    InvalidArgumentError,
    LlamaCloudConnectionError,
    LlamaCloudError,
)
from airflow_provider_llamachat.turns import TurnFolder

SHARED_ACCESS = ("query", "read_only")

DEFAULT_TURN_TIMEOUT = 600.0
"""Seconds that one turn may take in all when the caller does not say."""


class Calls:
    """Builds the :class:`~..endpoints.Call` for each operation; project and organization travel on every one of them."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config

    def _scope(self, project_id: str | None, organization_id: str | None) -> dict[str, Any]:
        return {
            "organization_id": checked_uuid("organization_id", organization_id) or self._config.organization_id,
            "project_id": checked_uuid("project_id", project_id) or self._config.project_id,
        }

    def create(
        self,
        index_ids: list[str] | None,
        shared_access: str | None,
        project_id: str | None,
        organization_id: str | None,
    ) -> Call:
        """Create a session."""
        ids = id_list(index_ids)
        if ids is not None and len(ids) > endpoints.MAX_SESSION_INDEXES:
            raise InvalidArgumentError(
                f"index_ids has {len(ids)} ids; a session can be bound to {endpoints.MAX_SESSION_INDEXES} at the most."
            )
        body = {"index_ids": ids, "shared_access": optional_choice(shared_access, "shared_access", SHARED_ACCESS)}
        return endpoints.CREATE_SESSION.call(query=self._scope(project_id, organization_id), body=body)

    def session(
        self, endpoint: endpoints.Endpoint, session_id: str, project_id: str | None, organization_id: str | None
    ) -> Call:
        """Read, summarize or delete one session."""
        return endpoint.call({"session_id": session_id}, query=self._scope(project_id, organization_id))

    def page(
        self,
        endpoint: endpoints.Endpoint,
        page_size: int | None,
        page_token: str | None,
        project_id: str | None,
        organization_id: str | None,
    ) -> Call:
        """Read one page of sessions or indexes."""
        query = {**self._scope(project_id, organization_id), "page_size": page_size, "page_token": page_token}
        return endpoint.call(query=query)

    def stream(self, question: Question) -> Call:
        """Ask one question."""
        body: dict[str, Any] = {"index_ids": question.index_ids, "prompt": question.prompt}
        if question.require_all_indexes:
            body["require_all_indexes"] = True
        return endpoints.STREAM_MESSAGE.call(
            {"session_id": question.session_id},
            query=self._scope(question.project_id, question.organization_id),
            body=body,
        )

    def projects(self, project_name: str | None, organization_id: str | None) -> Call:
        """List projects; the listing is not about one project."""
        return endpoints.LIST_PROJECTS.call(
            query={
                "organization_id": self._scope(None, organization_id)["organization_id"],
                "project_name": project_name,
            }
        )

    def project(self, project_id: str, organization_id: str | None) -> Call:
        """Read one project."""
        return endpoints.GET_PROJECT.call(
            {"project_id": checked_uuid("project_id", project_id) or ""},
            query={"organization_id": self._scope(None, organization_id)["organization_id"]},
        )

    def index(
        self,
        endpoint: endpoints.Endpoint,
        index_id: str,
        project_id: str | None,
        organization_id: str | None,
        *,
        expand: bool,
    ) -> Call:
        """Read or sync one index."""
        query = self._scope(project_id, organization_id)
        if expand:
            query["expand"] = ["sync_in_progress"]
        return endpoint.call({"index_id": index_id}, query=query)


def question(
    session_id: str,
    prompt: str,
    index_ids: list[str] | None,
    *,
    require_all_indexes: bool,
    project_id: str | None,
    organization_id: str | None,
) -> Question:
    """Check the arguments of a turn; the API wants at least one index id, for a bound session too."""
    endpoints.path_segment("session_id", session_id)
    ids = id_list(index_ids)
    if not ids:
        raise InvalidArgumentError("index_ids has to name at least one index for a turn.", session_id=session_id)
    return Question(session_id, checked_prompt(prompt), ids, require_all_indexes, project_id, organization_id)


def limits(config: ClientConfig, deadline: float | None, turn_timeout: float) -> Limits:
    """The limits of one turn: an absolute deadline wins over a duration."""
    return Limits(
        deadline=time.time() + turn_timeout if deadline is None else deadline,
        # The history grows by whole events, more seldom than the stream's bytes: it gets twice the silence of a stream.
        stall_after=2 * config.timeout,
        max_posts=config.max_retries + 1,
        poll=min(1.0, config.timeout / 4),
        poll_max=5.0,
        pause=pause,
    )


def headers(config: ClientConfig) -> dict[str, str]:
    """Headers of every request."""
    return {
        "Authorization": f"Bearer {config.api_key}",
        "Accept": "application/json",
        "User-Agent": f"airflow-provider-llamachat/{__version__} httpx/{httpx.__version__}",
    }


def timeouts(config: ClientConfig) -> httpx.Timeout:
    """Connect and silence limits; the total of a call is watched by the senders."""
    return httpx.Timeout(config.timeout, connect=config.connect_timeout, pool=config.connect_timeout)


def stream_timeouts(config: ClientConfig, deadline: float) -> httpx.Timeout:
    """Limits for a turn's stream: a silence ends it at the deadline too, when that comes first."""
    read = max(0.001, min(config.timeout, deadline - time.time()))
    return httpx.Timeout(read, connect=min(config.connect_timeout, read), pool=config.connect_timeout)


def outcome(folder: TurnFolder, problem: LlamaCloudError | None) -> Outcome:
    """What a post came to, from the events seen and the error that ended them."""
    turn = folder.turn()
    return Outcome(turn, None if turn.finished else problem)


def is_event_stream(response: httpx.Response) -> bool:
    """Whether the answer is a turn's stream. The status comes first: an error body is JSON, whatever was asked for."""
    return response.status_code == 200 and "text/event-stream" in response.headers.get("content-type", "").lower()


def next_token(page: Any, token: str | None) -> str | None:
    """The token of the next page; None at the end, and for a server that gives the same page again and again."""
    following: str | None = page.next_page_token
    return following if following and following != token else None


def cut_stream(session_id: str) -> LlamaCloudConnectionError:
    """The doubt left by a stream that ended cleanly, but without ``stop``."""
    return LlamaCloudConnectionError(
        f"The stream of the turn in session {session_id} ended without its stop event.",
        accepted=True,
        session_id=session_id,
    )


def ended_early(session_id: str) -> ChatTurnInterruptedError:
    """The error for a stream that ends without ``stop``."""
    return ChatTurnInterruptedError(
        f"The stream of the turn in session {session_id} ended without its stop event: it was cut on the way. "
        "The session's history tells whether the turn went on at the server.",
        session_id=session_id,
    )
