"""How both clients use httpx: settings, the arguments of one request, and what is kept from httpx."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from http.cookiejar import CookieJar
from typing import Any, TypeVar

import httpx

from airflow_provider_llamachat import __version__, endpoints
from airflow_provider_llamachat.client import decoding
from airflow_provider_llamachat.client.config import ClientConfig, ssl_context
from airflow_provider_llamachat.client.deadlines import NotSentError
from airflow_provider_llamachat.client.proxies import proxy_for
from airflow_provider_llamachat.endpoints import Call
from airflow_provider_llamachat.exceptions import LlamaCloudConfigError
from airflow_provider_llamachat.redaction import excerpt

LOCATION = "x-refused-location"
"""Header under which a redirect's target is kept; see :func:`hide_location`."""

Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


class _NoCookies(CookieJar):
    # The API knows its callers by their key. A server, or a proxy before it, must not make all later requests heavier.
    def extract_cookies(self, response: Any, request: Any) -> None:
        pass

    def add_cookie_header(self, request: Any) -> None:
        pass


def http_client(kind: type[Http], config: ClientConfig, **options: Any) -> Http:
    """Make an httpx client. The total time of a call is watched by the senders.

    :raises LlamaCloudConfigError: the environment's certificates or proxies do not allow it.
    """
    headers = {
        "Authorization": f"Bearer {config.api_key}",
        "Accept": "application/json",
        "Accept-Encoding": decoding.ACCEPTED,
        "User-Agent": f"airflow-provider-llamachat/{__version__} httpx/{httpx.__version__}",
    }
    named = proxy_for(config.base_url)
    try:
        return kind(
            base_url=config.base_url,
            headers=headers,
            verify=ssl_context(),
            follow_redirects=False,
            # httpx' own reading of the environment fails over a range of addresses in NO_PROXY.
            trust_env=False,
            proxy=named[1] if named else None,
            cookies=_NoCookies(),
            **options,
        )
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as problem:
        reason = re.sub(r"//[^/@\s]*@", "//…@", str(problem))  # a proxy's URL may hold a password
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


class Connecting:
    """Notes whether a request made a connection of its own. An extension of httpcore's: ``trace``.

    :ivar is_new: whether it did; a connection that was used before may have been closed by the server meanwhile.
    """

    def __init__(self) -> None:
        self.is_new = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Is called by httpcore for each step of a request."""
        self.is_new |= event == "connection.connect_tcp.started"

    async def atrace(self, event: str, info: Mapping[str, Any]) -> None:
        """Asynchronous form of :meth:`trace`."""
        self.trace(event, info)


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


def is_event_stream(response: httpx.Response) -> bool:
    """Whether the answer is a turn's stream. The status comes first: an error body is JSON, whatever was asked for.

    One without any content type is read as a stream: it answers a prompt that was paid for.
    """
    kind = response.headers.get("content-type", "").lower()
    return response.status_code == 200 and (not kind or "text/event-stream" in kind)
