"""Each endpoint described once: method, path, query, body, answer, and what may be replayed.

The clients are thin senders of what stands here, so the synchronous and the asynchronous one can not drift apart.
API reference: https://developers.llamaindex.ai/reference/ (chat, projects, indexes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from airflow_provider_llamachat.arguments import MAX_ID
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.models import Index, IndexPage, Project, Session, SessionPage, SessionSummary

MAX_SESSION_INDEXES = 10
"""Index ids that a session can be bound to at the most (API reference, create session)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation of the API.

    :param purpose: completes "could not …" in messages.
    :param answer: model of the answer, ``list[...]`` of it when ``many``; None where the answer has no body or is a stream.
    :param replay: whether a request that may have been processed can be sent again. Creating a session can: at worst an
        empty session is left over. So can syncing an index: a sync that runs is not started twice (409). A turn can not: that would
        be paid for twice.
    """

    name: str
    method: str
    path: str
    purpose: str
    answer: type[Any] | None = None
    many: bool = False
    replay: bool = True

    def call(
        self,
        path: Mapping[str, str] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Call:
        """Fill in the path's segments (percent-encoded, so that no id can leave its segment) and drop absent values."""
        segments = {name: path_segment(name, value) for name, value in (path or {}).items()}
        return Call(
            endpoint=self,
            url=self.path.format(**segments),
            query={key: value for key, value in (query or {}).items() if value is not None},
            body=None if body is None else {key: value for key, value in body.items() if value is not None},
            session_id=(path or {}).get("session_id"),
        )


@dataclass(frozen=True, slots=True)
class Call:
    """An endpoint with its arguments: everything a sender needs but the host and the key."""

    endpoint: Endpoint
    url: str
    query: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    session_id: str | None = None


def path_segment(name: str, value: Any) -> str:
    """Percent-encode ``value`` as one path segment.

    :raises InvalidArgumentError: for an empty value, for ``.`` and ``..``, which no encoding protects from URL normalisation, and
        for what is too long or can not be written as UTF-8.
    """
    if not isinstance(value, str) or not value.strip():
        raise InvalidArgumentError(f"{name} is empty. Give the id as LlamaCloud returned it.")
    if value in {".", ".."}:
        raise InvalidArgumentError(f"{name} is {value!r}, which is no id. Give the id as LlamaCloud returned it.")
    if len(value) > MAX_ID:
        raise InvalidArgumentError(
            f"{name} has {len(value)} characters, so it is no id. Give the id as LlamaCloud returned it."
        )
    try:
        return quote(value, safe="")
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            f"{name} contains half of a surrogate pair, so it is no id. Give the id as LlamaCloud returned it."
        ) from None


_CHAT = "/api/v1/chat"

CREATE_SESSION = Endpoint("create", "POST", _CHAT, "create a chat session", SessionSummary)
LIST_SESSIONS = Endpoint("list", "GET", _CHAT, "list chat sessions", SessionPage)
GET_SESSION = Endpoint("get", "GET", _CHAT + "/{session_id}", "read chat session {session_id}", Session)
GET_SESSION_SUMMARY = Endpoint(
    "summary", "GET", _CHAT + "/{session_id}/summary", "read the summary of chat session {session_id}", SessionSummary
)
DELETE_SESSION = Endpoint("delete", "DELETE", _CHAT + "/{session_id}", "delete chat session {session_id}")
STREAM_MESSAGE = Endpoint(
    "stream", "POST", _CHAT + "/{session_id}/messages/stream", "ask in chat session {session_id}", replay=False
)
LIST_PROJECTS = Endpoint("projects", "GET", "/api/v1/projects", "list projects", Project, many=True)
GET_PROJECT = Endpoint("project", "GET", "/api/v1/projects/{project_id}", "read project {project_id}", Project)
LIST_INDEXES = Endpoint("indexes", "GET", "/api/v1/indexes", "list indexes", IndexPage)
GET_INDEX = Endpoint("index", "GET", "/api/v1/indexes/{index_id}", "read index {index_id}", Index)
SYNC_INDEX = Endpoint("sync", "POST", "/api/v1/indexes/{index_id}/sync", "sync index {index_id}")
