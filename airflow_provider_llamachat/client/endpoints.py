"""Each endpoint is described here once: method, path and response model.

Both clients read these descriptions, so the synchronous and the asynchronous client cannot drift apart.
API reference: https://developers.llamaindex.ai/reference/ (chat, projects, indexes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from airflow_provider_llamachat import models
from airflow_provider_llamachat.arguments import MAX_ID
from airflow_provider_llamachat.exceptions import InvalidArgumentError

MAX_SESSION_INDEXES = 10
"""Maximum number of indexes that a session can be bound to (API reference, create session)."""


class Endpoint(NamedTuple):
    """One operation of the API.

    A client may send a request twice after a connection error. This is safe for creating a session (at worst, an empty session is left
    over) and for syncing an index (a running sync is not started twice). It is not safe for a prompt.

    :param purpose: completes "Could not …" in error messages.
    :param answer: name of the model of the response (see :mod:`~airflow_provider_llamachat.models`), or of each item if ``many`` is
        set; None if the response has no body or is a stream.
    :param is_secret: whether the response is a secret, which no message quotes.
    """

    method: str
    path: str
    purpose: str
    answer: str | None = None
    many: bool = False
    is_secret: bool = False

    def call(
        self,
        path: Mapping[str, str] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Call:
        """Fill in the path (percent-encoded, so that an id cannot change the path) and drop values that are None."""
        if self.answer is not None:
            getattr(models, self.answer)  # loaded before the request, so that no response is lost if it fails
        ids = dict(path or {})
        return Call(
            endpoint=self,
            url=self.path.format(**{name: path_segment(name, value) for name, value in ids.items()}),
            ids=ids,
            query={key: value for key, value in (query or {}).items() if value is not None},
            body=None if body is None else {key: value for key, value in body.items() if value is not None},
        )


class Call(NamedTuple):
    """An endpoint with its arguments: everything that a request needs except the host and the key.

    :param ids: what the path names.
    """

    endpoint: Endpoint
    url: str
    ids: dict[str, str]
    query: dict[str, Any]
    body: dict[str, Any] | None

    @property
    def session_id(self) -> str | None:
        """The chat session that the path names."""
        return self.ids.get("session_id")


def path_segment(name: str, value: Any) -> str:
    """Percent-encode ``value`` as one path segment.

    :raises InvalidArgumentError: the value is empty, too long, not valid Unicode, or is ``.`` or ``..``, which URL normalization would
        remove.
    """
    if not isinstance(value, str) or not value.strip():
        raise InvalidArgumentError(f"{name} is empty. Use the id that LlamaCloud returned.")
    if value in {".", ".."}:
        raise InvalidArgumentError(f"{name} is {value!r}, which is not an id. Use the id that LlamaCloud returned.")
    if len(value) > MAX_ID:
        raise InvalidArgumentError(
            f"{name} has {len(value)} characters, so it is not an id. Use the id that LlamaCloud returned."
        )
    try:
        return quote(value, safe="")
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            f"{name} contains half of a surrogate pair, so it is not an id. Use the id that LlamaCloud returned."
        ) from None


_CHAT = "/api/v1/chat"

CREATE_SESSION = Endpoint("POST", _CHAT, "create a chat session", "SessionSummary")
LIST_SESSIONS = Endpoint("GET", _CHAT, "list chat sessions", "SessionPage")
GET_SESSION = Endpoint("GET", _CHAT + "/{session_id}", "read chat session {session_id}", "Session")
GET_SESSION_SUMMARY = Endpoint(
    "GET", _CHAT + "/{session_id}/summary", "read the summary of chat session {session_id}", "SessionSummary"
)
DELETE_SESSION = Endpoint("DELETE", _CHAT + "/{session_id}", "delete chat session {session_id}")
# Never sent through a client's _send, which may send a request twice: the turn would be paid for twice.
STREAM_MESSAGE = Endpoint("POST", _CHAT + "/{session_id}/messages/stream", "ask in chat session {session_id}")
LIST_PROJECTS = Endpoint("GET", "/api/v1/projects", "list projects", "Project", many=True)
GET_PROJECT = Endpoint("GET", "/api/v1/projects/{project_id}", "read project {project_id}", "Project")
LIST_INDEXES = Endpoint("GET", "/api/v1/indexes", "list indexes", "IndexPage")
GET_INDEX = Endpoint("GET", "/api/v1/indexes/{index_id}", "read index {index_id}", "Index")
SYNC_INDEX = Endpoint("POST", "/api/v1/indexes/{index_id}/sync", "sync index {index_id}")
CANCEL_SYNC = Endpoint("POST", "/api/v1/indexes/{index_id}/sync/cancel", "cancel the sync of index {index_id}")
GET_ATTACHMENT = Endpoint(
    "GET",
    "/api/v1/beta/attachments/{attachment_name}",
    "get the URL of an attachment",
    "AttachmentUrl",
    is_secret=True,
)
