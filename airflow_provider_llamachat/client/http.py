"""Settings and request arguments that both clients pass to httpx."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from http.cookiejar import CookieJar
from typing import Any, TypeVar

import httpx

from airflow_provider_llamachat import __version__
from airflow_provider_llamachat.client import decoding, endpoints
from airflow_provider_llamachat.client.config import ClientConfig, ssl_context
from airflow_provider_llamachat.client.deadlines import NotSentError
from airflow_provider_llamachat.client.endpoints import Call
from airflow_provider_llamachat.client.proxies import proxy_for
from airflow_provider_llamachat.exceptions import LlamaCloudConfigError
from airflow_provider_llamachat.redaction import excerpt

LOCATION = "x-refused-location"
"""Header that stores the target of a redirect; see :func:`hide_location`."""

Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


class _NoCookies(CookieJar):
    # The API does not need cookies, and a proxy must not add them to all later requests.
    def extract_cookies(self, response: Any, request: Any) -> None:
        pass

    def add_cookie_header(self, request: Any) -> None:
        pass


def http_client(kind: type[Http], config: ClientConfig, **options: Any) -> Http:
    """Create an httpx client. The callers enforce the total time of a call.

    :raises LlamaCloudConfigError: the certificates or proxies of the environment are invalid.
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
            # httpx cannot parse address ranges in NO_PROXY.
            trust_env=False,
            proxy=named[1] if named else None,
            cookies=_NoCookies(),
            **options,
        )
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as problem:
        reason = re.sub(r"//[^/@\s]*@", "//…@", str(problem))  # the URL of a proxy may contain a password
        raise LlamaCloudConfigError(
            f"Could not create an HTTP client: the proxy in {named[0] if named else 'the environment'} is invalid. "
            f"Correct it in the environment of this Airflow component. Cause: {excerpt(reason, limit=200)}"
        ) from None


def hide_location(response: httpx.Response) -> None:
    """Hide the target of a redirect from httpx, which parses it and fails for some targets even if redirects are not followed."""
    if "location" in response.headers:
        response.headers[LOCATION] = response.headers.pop("location")


async def ahide_location(response: httpx.Response) -> None:
    """Asynchronous form of :func:`hide_location`."""
    hide_location(response)


class Connecting:
    """Records whether a request opened a new connection, with httpcore's ``trace`` extension.

    :ivar is_new: whether the connection is new. The server may have closed a reused one.
    """

    def __init__(self) -> None:
        self.is_new = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Called by httpcore for each step of a request."""
        self.is_new |= event == "connection.connect_tcp.started"

    async def atrace(self, event: str, info: Mapping[str, Any]) -> None:
        """Asynchronous form of :meth:`trace`."""
        self.trace(event, info)


def request(call: Call, config: ClientConfig, deadline: float) -> dict[str, Any]:
    """Return the arguments of httpx's ``build_request`` for a call.

    :raises NotSentError: the deadline has passed.
    """
    if deadline <= time.time():
        raise NotSentError
    # A connection that is cancelled during its TLS handshake would stay open until it is garbage collected. The connect timeout
    # therefore ends before the deadline.
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
    """Whether the response is the stream of a turn. An error response is JSON, whatever was requested.

    A response without a content type is read as a stream, because it may answer a prompt that was paid for.
    """
    kind = response.headers.get("content-type", "").lower()
    return response.status_code == 200 and (not kind or "text/event-stream" in kind)
