"""Answers and failures: an HTTP answer becomes a model or a typed error that says what happened, where, and what to do."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import ValidationError

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client.config import REGIONS, ClientConfig
from airflow_provider_llamachat.endpoints import Call
from airflow_provider_llamachat.redaction import excerpt

MAX_BODY = 64 * 1024 * 1024
"""Bytes of one answer that are read at the most: far above any session history, far below a worker's memory."""

_REFUSALS: dict[int, type[errors.RequestRefusedError]] = {
    401: errors.AuthenticationError,
    402: errors.PaymentRequiredError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    422: errors.UnprocessableError,
}

_ADVICE = {
    402: "The organization has no credits left: top them up, or use another organization.",
    403: "The API key may not do this here: check project_id and organization_id, and the key's role.",
    404: "Check the id, and that project_id is the project it belongs to.",
    409: "The session or index is busy with, or already in, another state: wait for that, or use another session.",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer: what is left when the connection is no longer needed."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def request_id(self) -> str | None:
        """The server's id of the request, for a support ticket."""
        value = self.headers.get("x-request-id")
        return excerpt(value, limit=100) if value else None


def decode(call: Call, reply: Reply, config: ClientConfig) -> Any:
    """Return the model the endpoint promises, or raise what the answer means."""
    raise_for_status(call, reply, config)
    endpoint = call.endpoint
    if endpoint.answer is None:
        # Nothing is expected here, so only what is certainly not the API's is refused: the page of a proxy or a log-in.
        if "html" in reply.headers.get("content-type", "").lower():
            raise _not_the_apis(call, reply, config, "it is an HTML page")
        return None
    try:
        data = json.loads(reply.body)
        if endpoint.many:
            return [endpoint.answer.model_validate(item) for item in data]
        return endpoint.answer.model_validate(data)
    except (ValueError, TypeError, RecursionError, ValidationError) as problem:
        what = (
            "; ".join(f"{'.'.join(map(str, item['loc'])) or 'answer'}: {item['msg']}" for item in problem.errors()[:3])
            if isinstance(problem, ValidationError)
            else "it is not JSON"
        )
        raise _not_the_apis(call, reply, config, what) from None


def _not_the_apis(call: Call, reply: Reply, config: ClientConfig, what: str) -> errors.LlamaCloudProtocolError:
    return errors.LlamaCloudProtocolError(
        f"Could not {purpose(call)}: {where(call, config)} answered {reply.status}, but not with what the API promises ({what}). "
        f"Check that the connection's Host is LlamaCloud and that no proxy answers in its place. "
        f"The answer begins: {_quoted(reply.body, config)}",
        status=reply.status,
        request_id=reply.request_id,
        session_id=call.session_id,
    )


def raise_for_status(call: Call, reply: Reply, config: ClientConfig) -> None:
    """Raise the typed error for a status that is not a success."""
    status = reply.status
    if 200 <= status < 300:
        return
    known: dict[str, Any] = {"status": status, "request_id": reply.request_id, "session_id": call.session_id}
    begin = f"Could not {purpose(call)}: {where(call, config)} answered {status}"
    if 300 <= status < 400:
        location = reply.headers.get("location", "")
        raise errors.LlamaCloudProtocolError(
            f"{begin}, a redirect to {excerpt(location, secrets=(config.api_key,), limit=200)!r}. It was not followed, because the API key "
            "would travel along. Check the connection's Host.",
            **known,
        )
    detail = error_detail(reply, config)
    message = f"{begin}{f' ({detail})' if detail else ''}."
    ticket = f" [request {reply.request_id}]" if reply.request_id else ""
    if status == 401:
        raise errors.AuthenticationError(f"{message} {_key_advice(config)}{ticket}", **known)
    if refusal := _REFUSALS.get(status):
        raise refusal(f"{message} {_ADVICE.get(status, 'Correct the fields named.')}{ticket}", **known)
    wait = retry_after(reply.headers)
    if status == 429:
        raise errors.RateLimitError(
            f"{message} Too many requests (free plans allow 20 a minute): ask less often, or let fewer tasks run at once "
            f"(an Airflow pool does that).{ticket}",
            retry_after=wait,
            **known,
        )
    if status >= 500:
        raise errors.ServerError(
            f"{message} The server, or a proxy before it, failed; later it may work.{ticket}", retry_after=wait, **known
        )
    raise errors.RequestRefusedError(f"{message} The request is not one this server takes.{ticket}", **known)


def error_detail(reply: Reply, config: ClientConfig) -> str:
    """Return FastAPI's ``detail`` as one bounded, redacted line; for other bodies their beginning."""
    try:
        detail = json.loads(reply.body)["detail"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return _quoted(reply.body, config) if reply.body else ""
    if isinstance(detail, list):
        fields = []
        for item in detail[:5]:
            if not isinstance(item, dict):
                continue
            loc = item.get("loc")
            place = ".".join(str(part) for part in loc[:8] if part != "body") if isinstance(loc, list) else ""
            fields.append(f"{place or 'request'}: {item.get('msg', 'invalid')}")
        more = f"; and {len(detail) - 5} more" if len(detail) > 5 else ""
        return excerpt("; ".join(fields) + more, secrets=(config.api_key,))
    return excerpt(detail if isinstance(detail, str) else json.dumps(detail), secrets=(config.api_key,))


def connection_error(
    call: Call, problem: Exception, config: ClientConfig, *, accepted: bool | None = None
) -> errors.LlamaCloudConnectionError:
    """Translate what httpx raised.

    :param accepted: True when the answer had begun, so that the server is known to have taken the request.
    """
    begin = f"Could not {purpose(call)}: {where(call, config)}"
    known: dict[str, Any] = {"session_id": call.session_id}
    if isinstance(problem, httpx.ConnectTimeout | httpx.PoolTimeout):
        return errors.LlamaCloudTimeoutError(
            f"{begin} could not be reached within {config.connect_timeout:g} s. Check Host, proxy and firewall.",
            accepted=False,
            **known,
        )
    if isinstance(problem, httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol):
        reason = excerpt(str(problem), secrets=(config.api_key,), limit=200)
        return errors.LlamaCloudConnectionError(
            f"{begin} could not be reached ({reason}). Check Host, proxy, certificates (SSL_CERT_FILE) and firewall.",
            accepted=False,
            **known,
        )
    if isinstance(problem, httpx.TimeoutException | TimeoutError):
        return errors.LlamaCloudTimeoutError(
            f"{begin} sent nothing for {config.timeout:g} s, or took longer than allowed in all. "
            "The connection's timeout says how long a silence may last.",
            accepted=accepted,
            **known,
        )
    reason = excerpt(str(problem), secrets=(config.api_key,), limit=200) or type(problem).__name__
    return errors.LlamaCloudConnectionError(f"{begin} broke the connection ({reason}).", accepted=accepted, **known)


def not_a_stream(call: Call, reply: Reply, config: ClientConfig) -> errors.LlamaCloudProtocolError:
    """The error for a successful answer to a prompt that is no event stream."""
    kind = excerpt(reply.headers.get("content-type", "none"), limit=60)
    return errors.LlamaCloudProtocolError(
        f"Could not {purpose(call)}: {where(call, config)} answered {reply.status} with content type {kind!r} in place of an event stream. "
        f"Check that no proxy answers for LlamaCloud. The answer begins: {_quoted(reply.body, config)}",
        status=reply.status,
        request_id=reply.request_id,
        session_id=call.session_id,
    )


def too_large(call: Call, config: ClientConfig) -> errors.LlamaCloudProtocolError:
    """The error for an answer beyond :data:`MAX_BODY`."""
    return errors.LlamaCloudProtocolError(
        f"Could not {purpose(call)}: {where(call, config)} answered with more than {MAX_BODY // 2**20} MiB, "
        "which no answer of the API needs. Check that the connection's Host is LlamaCloud.",
        session_id=call.session_id,
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` asks for, in both of its forms (RFC 9110); None when absent or unreadable."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def purpose(call: Call) -> str:
    """What the call is for, with the ids it concerns."""
    ids = {"session_id": call.session_id or "", "project_id": "", "index_id": ""}
    if "{" in call.endpoint.purpose and call.session_id is None:
        value = call.url.removesuffix("/sync").rpartition("/")[2]
        ids["project_id"] = ids["index_id"] = value
    return call.endpoint.purpose.format(**{name: excerpt(value, limit=100) for name, value in ids.items()})


def where(call: Call, config: ClientConfig) -> str:
    """The host, and the project the call was for."""
    project = call.query.get("project_id")
    return f"{config.base_url} ({f'project {project}' if project else 'default project of the key'})"


def _key_advice(config: ClientConfig) -> str:
    others = " and ".join(f"{name} is {url}" for name, url in REGIONS.items() if name != config.region)
    return (
        "This host does not accept the API key. A key belongs to one region: this one was tried at "
        f"{f'region {config.region}' if config.region else 'the Host of the connection'}; {others}. "
        "Check the connection's API Key and Region (or Host)."
    )


def _quoted(body: bytes, config: ClientConfig) -> str:
    return repr(excerpt(body, secrets=(config.api_key,), limit=200))
