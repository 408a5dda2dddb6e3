"""Answers and failures: an HTTP answer becomes a model or a typed error that says what happened, where, and what to do."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import httpx
from pydantic import ValidationError

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client.config import REGIONS, ClientConfig
from airflow_provider_llamachat.client.deadlines import NotSentError, StoppedError
from airflow_provider_llamachat.client.decoding import parse_json
from airflow_provider_llamachat.client.http import LOCATION
from airflow_provider_llamachat.endpoints import Call
from airflow_provider_llamachat.models import SessionSummary
from airflow_provider_llamachat.redaction import MAX_EXCERPT, excerpt, scrub

MAX_BODY = 64 * 1024 * 1024
"""Bytes of one answer that are read at the most: far above any session history, far below a worker's memory."""

TRANSPORT_PROBLEMS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, UnicodeError)
"""What httpx and the layers below it raise; UnicodeError comes from host names that no name server could be asked for."""

DISCONNECTS = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""How a connection shows that the server had closed it before a request was sent on it."""

LARGE = 512 * 1024
"""Bytes of an answer from which on it is decoded in a thread: a history of some megabytes would stop the event loop."""

_REFUSALS: dict[int, type[errors.LlamaCloudStatusError]] = {
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


async def adecode(call: Call, reply: Reply, config: ClientConfig) -> Any:
    """Asynchronous form of :func:`decode`."""
    if len(reply.body) < LARGE:
        return decode(call, reply, config)
    return await asyncio.to_thread(decode, call, reply, config)


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
        data = parse_json(reply.body)
        if endpoint.many:
            return [endpoint.answer.model_validate(item) for item in data]
        answer = endpoint.answer.model_validate(data)
    except ValidationError as problem:
        wrong = problem.errors(include_url=False, include_context=False, include_input=False)[:3]
        what = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'answer'}: {item['msg']}" for item in wrong)
    except (ValueError, TypeError) as problem:
        what = f"it is not JSON: {problem}"
    else:
        if not _is_of_another_session(answer, call):
            return answer
        what = "it is another session's"
    raise _not_the_apis(call, reply, config, what)


def _not_the_apis(call: Call, reply: Reply, config: ClientConfig, what: str) -> errors.LlamaCloudProtocolError:
    return errors.LlamaCloudProtocolError(
        f"Could not {purpose(call)}: {where(call, config)} answered {reply.status}, but not with what the API promises "
        f"({_safe(what, config, 300)}). "
        f"Check that the connection's Host is LlamaCloud and that no proxy answers in its place. "
        f"The answer begins: {_quoted(reply.body, config)}",
        **_known(call, reply, config),
    )


def _is_of_another_session(answer: Any, call: Call) -> bool:
    # Whatever mixed the answers up: another session's history would tell of other turns, of the same prompt perhaps.
    if call.session_id is None or not isinstance(answer, SessionSummary):
        return False
    return answer.session_id.strip().casefold() != call.session_id.strip().casefold()


def raise_for_status(call: Call, reply: Reply, config: ClientConfig) -> None:
    """Raise the typed error for a status that is not a success."""
    status = reply.status
    if 200 <= status < 300:
        return
    known = _known(call, reply, config)
    begin = f"Could not {purpose(call)}: {where(call, config)} answered {status}"
    if status < 200:
        raise errors.LlamaCloudProtocolError(f"{begin}, which ends no request. Check the connection's Host.", **known)
    if 300 <= status < 400:
        location = reply.headers.get(LOCATION, "")
        raise errors.LlamaCloudProtocolError(
            f"{begin}, a redirect to {excerpt(location, secrets=(config.api_key,), limit=200)!r}. It was not followed, because the API key "
            "would travel along. Check the connection's Host.",
            **known,
        )
    detail = error_detail(reply, config)
    message = f"{begin}{f' ({detail})' if detail else ''}."
    ticket = f" [request {known['request_id']}]" if known["request_id"] else ""
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
    if status == 408:
        raise errors.LlamaCloudTimeoutError(
            f"{message} The server, or a proxy before it, gave up waiting; later it may work.{ticket}", **known
        )
    if status >= 500 or status == 425:
        raise errors.ServerError(
            f"{message} The server, or a proxy before it, failed; later it may work.{ticket}", retry_after=wait, **known
        )
    raise errors.RequestRefusedError(f"{message} The request is not one this server takes.{ticket}", **known)


def error_detail(reply: Reply, config: ClientConfig) -> str:
    """Return FastAPI's ``detail`` as one bounded, redacted line; for other bodies their beginning."""
    try:
        detail = parse_json(reply.body)["detail"]
    except (ValueError, TypeError, KeyError):
        return _quoted(reply.body, config) if reply.body else ""
    if isinstance(detail, list):
        fields = []
        for item in detail[:5]:
            if not isinstance(item, dict):
                continue
            loc = item.get("loc")
            parts = loc[:8] if isinstance(loc, list) else []
            place = ".".join(_safe(part, config, 60) for part in parts if part != "body")
            fields.append(f"{place or 'request'}: {_safe(item.get('msg', 'invalid'), config, 200)}")
        more = f"; and {len(detail) - 5} more" if len(detail) > 5 else ""
        return _safe("; ".join(fields) + more, config)
    return _safe(detail, config)


def connection_error(
    call: Call, problem: Exception, config: ClientConfig, *, accepted: bool | None = None
) -> errors.LlamaCloudConnectionError:
    """Translate what httpx raised.

    :param accepted: True when the answer had begun, so that the server is known to have taken the request.
    """
    begin = f"Could not {purpose(call)}: {where(call, config)}"
    known: dict[str, Any] = {"session_id": call.session_id}
    if isinstance(problem, StoppedError):
        return errors.LlamaCloudConnectionError("The task was stopped; nothing more is sent.", accepted=False, **known)
    if isinstance(problem, NotSentError):
        return errors.LlamaCloudTimeoutError(
            f"{begin} was not asked: the time allowed was over before.", accepted=False, **known
        )
    if isinstance(problem, httpx.ConnectTimeout | httpx.PoolTimeout) and not accepted:
        return errors.LlamaCloudTimeoutError(
            f"{begin} could not be reached in time (at most {config.connect_timeout:g} s). Check Host, proxy and firewall.",
            accepted=False,
            **known,
        )
    unreached = httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol | httpx.InvalidURL | UnicodeError
    if isinstance(problem, unreached) and not accepted:
        reason = _safe(str(problem), config, 200)
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
    if isinstance(problem, httpx.DecodingError):
        return errors.LlamaCloudConnectionError(
            f"{begin} sent an answer that can not be unpacked: {problem}.", accepted=accepted, **known
        )
    reason = _safe(str(problem), config, 200) or type(problem).__name__
    return errors.LlamaCloudConnectionError(f"{begin} broke the connection ({reason}).", accepted=accepted, **known)


def not_a_stream(call: Call, reply: Reply, config: ClientConfig) -> errors.LlamaCloudProtocolError:
    """The error for a successful answer to a prompt that is no event stream."""
    kind = _safe(reply.headers.get("content-type", "none"), config, 60)
    # A page in HTML comes from something before LlamaCloud; whatever else answers a prompt with a success may have taken it.
    is_page = "html" in kind.lower()
    return errors.LlamaCloudProtocolError(
        f"Could not {purpose(call)}: {where(call, config)} answered {reply.status} with content type {kind!r} in place of an event stream. "
        f"Check that no proxy answers for LlamaCloud. The answer begins: {_quoted(reply.body, config)}",
        accepted=None if is_page else True,
        **_known(call, reply, config),
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
            when = email.utils.parsedate_to_datetime(value)
            # The oldest of the three forms that RFC 9110 knows names no zone; all are in UTC.
            seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError, OSError, IndexError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


@contextlib.contextmanager
def redacting(config: ClientConfig) -> Iterator[None]:
    """Take the key out of an error that leaves this block: the reason of a failed turn is the server's own text."""
    try:
        yield
    except errors.LlamaCloudError as problem:
        problem.args = (scrub(str(problem), (config.api_key,)),)
        raise


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


def _known(call: Call, reply: Reply, config: ClientConfig) -> dict[str, Any]:
    request_id = reply.headers.get("x-request-id")
    return {
        "status": reply.status,
        "request_id": _safe(request_id, config, 100) if request_id else None,
        "session_id": call.session_id,
    }


def _safe(value: Any, config: ClientConfig, limit: int = MAX_EXCERPT) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return excerpt(text, secrets=(config.api_key,), limit=limit)


def _quoted(body: bytes, config: ClientConfig) -> str:
    return repr(excerpt(body, secrets=(config.api_key,), limit=200))
