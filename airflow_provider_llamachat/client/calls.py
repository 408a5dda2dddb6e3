"""What both clients say alike: arguments become calls, and a configuration becomes httpx settings and turn limits."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import timedelta
from http.cookiejar import CookieJar
from typing import Any, TypeVar

import httpx

from airflow_provider_llamachat import __version__, endpoints
from airflow_provider_llamachat.arguments import id_list, optional_choice, seconds
from airflow_provider_llamachat.arguments import prompt as checked_prompt
from airflow_provider_llamachat.asking import Limits, Outcome, Question
from airflow_provider_llamachat.client import decoding
from airflow_provider_llamachat.client.config import ClientConfig, checked_uuid, ssl_context
from airflow_provider_llamachat.client.deadlines import NotSentError
from airflow_provider_llamachat.client.proxies import proxy_for
from airflow_provider_llamachat.client.replaying import pause
from airflow_provider_llamachat.endpoints import Call
from airflow_provider_llamachat.exceptions import (
    ChatTurnInterruptedError,
    InvalidArgumentError,
    LlamaCloudConfigError,
    LlamaCloudConnectionError,
    LlamaCloudError,
    LlamaCloudProtocolError,
)
from airflow_provider_llamachat.models import Event, Session, UserInputEvent
from airflow_provider_llamachat.redaction import excerpt
from airflow_provider_llamachat.turns import TurnFolder, count_turns, indexes_to_ask, is_plainly_another

SHARED_ACCESS = ("query", "read_only")

DEFAULT_TURN_TIMEOUT = 600.0
"""Seconds that one turn may take in all when the caller does not say."""

LAST_LOOK = 30.0
"""Seconds that reading a session's history may take at least, when the turn's own time is over."""

MAX_PAGES = 10_000
"""Pages of one listing at the most: a server that always has another one must not be followed for ever."""

MAX_TOKEN = 8192
"""Characters of a page token at the most; it has to fit into a URL."""

LOCATION = "x-refused-location"
"""Header under which a redirect's target is kept; see :func:`hide_location`."""


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

    def history(self, question: Question) -> Call:
        """Read the session of a question."""
        return self.session(endpoints.GET_SESSION, question.session_id, question.project_id, question.organization_id)

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
    """Check the arguments of a turn, before anything is sent; ``index_ids`` may be left for :func:`completed`."""
    endpoints.path_segment("session_id", session_id)
    return Question(
        session_id,
        checked_prompt(prompt),
        id_list(index_ids) or [],
        require_all_indexes,
        checked_uuid("project_id", project_id),
        checked_uuid("organization_id", organization_id),
    )


def completed(asked: Question, baseline: int | None, session: Session) -> tuple[Question, int]:
    """Take from the session what the caller left open: the indexes (the API wants at least one id, for a bound session too), and
    how many turns there were before.
    """
    known = replace(asked, index_ids=indexes_to_ask(session, asked.index_ids))
    return known, count_turns(session.events) if baseline is None else baseline


def limits(config: ClientConfig, deadline: float | None, turn_timeout: float | timedelta) -> Limits:
    """The limits of one turn: an absolute deadline wins over a duration."""
    return Limits(
        deadline=time.time() + seconds(turn_timeout, "turn_timeout") if deadline is None else deadline,
        # The history grows by whole events, more seldom than the stream's bytes: it gets twice the silence of a stream.
        stall_after=2 * config.timeout,
        max_posts=config.max_retries + 1,
        poll=min(1.0, config.timeout / 4),
        poll_max=5.0,
        pause=pause,
    )


class _NoCookies(CookieJar):
    # The API knows its callers by their key. A server, or a proxy before it, must not make all later requests heavier.
    def extract_cookies(self, response: Any, request: Any) -> None:
        pass

    def add_cookie_header(self, request: Any) -> None:
        pass


def http_options(config: ClientConfig) -> dict[str, Any]:
    """Settings of both httpx clients. The total time of a call is watched by the senders."""
    return {
        "base_url": config.base_url,
        "headers": {
            "Authorization": f"Bearer {config.api_key}",
            "Accept": "application/json",
            "Accept-Encoding": decoding.ACCEPTED,
            "User-Agent": f"airflow-provider-llamachat/{__version__} httpx/{httpx.__version__}",
        },
        "verify": ssl_context(),
        "follow_redirects": False,
        # httpx' own reading of the environment fails over a range of addresses in NO_PROXY.
        "trust_env": False,
        "proxy": named[1] if (named := proxy_for(config.base_url)) else None,
        "cookies": _NoCookies(),
    }


Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


def http_client(kind: type[Http], config: ClientConfig, **options: Any) -> Http:
    """Make an httpx client.

    :raises LlamaCloudConfigError: the environment's certificates or proxies do not allow it.
    """
    settings = http_options(config)
    try:
        return kind(**settings, **options)
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as problem:
        reason = re.sub(r"//[^/@\s]*@", "//…@", str(problem))  # a proxy's URL may hold a password
        named = proxy_for(config.base_url)
        raise LlamaCloudConfigError(
            f"No HTTP client can be made with the proxy that {named[0] if named else 'the environment'} names: "
            f"{excerpt(reason, limit=200)} Correct that variable where this Airflow component is started."
        ) from None


def hide_location(response: httpx.Response) -> None:
    """Keep a redirect's target from httpx, which parses it, and fails over some, although it is not to be followed."""
    if "location" in response.headers:
        response.headers[LOCATION] = response.headers.pop("location")


async def ahide_location(response: httpx.Response) -> None:
    """Asynchronous form of :func:`hide_location`."""
    hide_location(response)


def request(call: Call, config: ClientConfig, deadline: float) -> dict[str, Any]:
    """A call as arguments of httpx' ``build_request``.

    :raises NotSentError: the deadline has passed.
    """
    if deadline <= time.time():
        raise NotSentError
    # A connection that is given up in the middle of its TLS handshake would stay open until it is collected: that wait, and the one
    # for TCP before it, end by themselves before the deadline does.
    connect = min(config.connect_timeout, max(0.001, deadline - time.time()) / 2)
    return {
        "timeout": httpx.Timeout(config.timeout, connect=connect, pool=connect),
        "method": call.endpoint.method,
        "url": call.url,
        "params": call.query or None,
        "json": call.body,
        "headers": {"Accept": "text/event-stream"} if call.endpoint is endpoints.STREAM_MESSAGE else None,
    }


def left(deadline: float) -> float:
    """Seconds until ``deadline``.

    :raises TimeoutError: there are none.
    """
    seconds = deadline - time.time()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def patience(deadline: float) -> float:
    """Seconds for reading the history of a turn that ends at ``deadline``."""
    return max(LAST_LOOK, deadline - time.time())


def checked(event: Event, asked: Question) -> Event:
    """Return an event of our turn's stream.

    :raises LlamaCloudProtocolError: the stream answers another prompt; something on the way mixed answers up.
    """
    if isinstance(event, UserInputEvent) and is_plainly_another(event.content, asked.prompt):
        raise LlamaCloudProtocolError(
            f"The stream of the turn in session {asked.session_id} answers another prompt than was asked. Nothing of it was used. "
            "Check that no proxy stands between here and LlamaCloud that mixes answers up.",
            accepted=True,
            session_id=asked.session_id,
        )
    return event


def outcome(folder: TurnFolder, problem: LlamaCloudError | None) -> Outcome:
    """What a post came to, from the events seen and the error that ended them."""
    turn = folder.turn()
    return Outcome(turn, None if turn.finished else problem)


def is_event_stream(response: httpx.Response) -> bool:
    """Whether the answer is a turn's stream. The status comes first: an error body is JSON, whatever was asked for.

    One without any content type is read as a stream: it answers a prompt that was paid for.
    """
    kind = response.headers.get("content-type", "").lower()
    return response.status_code == 200 and (not kind or "text/event-stream" in kind)


class Pages:
    """Follows a listing's page tokens, as long as they lead anywhere.

    :ivar token: the token of the next page; None for the first.
    :ivar more: whether there is a next page.
    """

    def __init__(self, endpoint: endpoints.Endpoint) -> None:
        self._purpose = endpoint.purpose
        self._seen: set[str] = set()
        self.token: str | None = None
        self.more = True

    def turn(self, token: str | None) -> None:
        """Go on to the page that a page named, if it did.

        :raises LlamaCloudProtocolError: the listing goes round in circles, or does not end.
        """
        self.token, self.more = token, bool(token)
        if not token:
            return
        if token in self._seen or len(self._seen) >= MAX_PAGES or len(token) > MAX_TOKEN:
            raise LlamaCloudProtocolError(
                f"Could not {self._purpose} to the end: after {len(self._seen) + 1} pages the server names "
                f"{'a page that was there before' if token in self._seen else 'yet another page'}. "
                "Check that the connection's Host is LlamaCloud."
            )
        self._seen.add(token)


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
