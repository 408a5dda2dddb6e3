"""Turns an HTTP response or a transport failure into a model or a typed error that states the cause and the remedy."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Any, NamedTuple

import httpx
from pydantic import ValidationError

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat import models
from airflow_provider_llamachat.client import unreachable
from airflow_provider_llamachat.client.config import OUT_OF_FILES, REGIONS, ClientConfig, is_out_of_files
from airflow_provider_llamachat.client.deadlines import NotSentError, StoppedError
from airflow_provider_llamachat.client.decoding import parse_json
from airflow_provider_llamachat.client.endpoints import LIST_PROJECTS, STREAM_MESSAGE, Call
from airflow_provider_llamachat.client.http import LOCATION
from airflow_provider_llamachat.client.proxies import proxy_for
from airflow_provider_llamachat.redaction import MAX_EXCERPT, excerpt, scrub

MAX_BODY = 64 * 1024 * 1024
"""Maximum size of a response in bytes: larger than any session history, and small compared with a worker's memory."""

TRANSPORT_PROBLEMS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, UnicodeError)
"""Exceptions of httpx and the layers below it. UnicodeError is raised for invalid host names."""

DISCONNECTS = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""Exceptions that a connection raises if the server had already closed it."""

LARGE = 512 * 1024
"""Size in bytes from which a response is decoded in a thread, so that it does not block the event loop."""

_FAILED = (errors.ServerError, "the server, or a proxy in front of it, failed. A retry may succeed.")

_CAUSES: dict[int, tuple[type[errors.LlamaCloudError], str]] = {
    402: (
        errors.PaymentRequiredError,
        "the organization has no credits left. Add credits, or use another organization.",
    ),
    403: (
        errors.PermissionDeniedError,
        (
            "the API key is not allowed to do this. Check the key's role, and the project and organization "
            "(the connection's Project ID and Organization ID, or the task's project_id and organization_id)."
        ),
    ),
    408: (errors.LlamaCloudTimeoutError, "the server, or a proxy in front of it, timed out. A retry may succeed."),
    409: (errors.ConflictError, "the session or index is busy. A retry may succeed."),
    422: (errors.UnprocessableError, "the server does not accept some fields. Correct the fields that it names."),
    425: _FAILED,
    429: (
        errors.RateLimitError,
        "too many requests (free plans allow 20 per minute). Send fewer requests, or run fewer tasks at once (use an Airflow pool).",
    ),
}
"""The error, its likely cause and what to do about it, for statuses that determine them."""

_FROM_ANYONE = {407, 408, 425, 429}
"""Statuses that mean the same whether LlamaCloud or a proxy sent them, as do those from 500."""

_BUSY = r"(?i)\b(in progress|in flight|busy|running|concurrent(ly)?|another|already|try again)\b"
"""Words in a refusal that indicate another turn. The API does not document them."""

NOT_THE_API = "the response does not come from LlamaCloud's API"
"""The cause in a message about a response that LlamaCloud's API did not send."""

_CHECK_BASE_URL = "Check the connection's Base URL, and that no proxy responds instead of LlamaCloud."


class Reply(NamedTuple):
    """A complete response, independent of its connection."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def adecode(call: Call, reply: Reply, config: ClientConfig) -> Any:
    """Asynchronous form of :func:`decode`."""
    if len(reply.body) < LARGE:
        return decode(call, reply, config)
    return await asyncio.to_thread(decode, call, reply, config)


def decode(call: Call, reply: Reply, config: ClientConfig) -> Any:
    """Return the endpoint's model of the response, or raise the typed error."""
    raise_for_status(call, reply, config)
    endpoint = call.endpoint
    if endpoint.answer is None:
        # No body is expected here, so only an HTML page (of a proxy or a login form) is an error.
        if _is_page(reply):
            raise _not_the_apis(call, reply, config, "it is an HTML page")
        return None
    try:
        data = parse_json(reply.body)
        form, wanted = (list, "a list") if endpoint.many else (dict, "an object")
        if not isinstance(data, form):
            raise _not_the_apis(call, reply, config, f"it is JSON, but {_kind(data)} instead of {wanted}")
        model: type[models.ApiModel] = getattr(models, endpoint.answer)
        if endpoint.many:
            return [model.model_validate(item) for item in data]
        answer = model.model_validate(data)
    except ValidationError as problem:
        wrong = problem.errors(include_url=False, include_context=False, include_input=False)[:3]
        what = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'answer'}: {item['msg']}" for item in wrong)
    except (ValueError, TypeError) as problem:
        what = f"it cannot be read as JSON: {problem}"
    else:
        if not _is_of_another_session(answer, call):
            return answer
        what = "it belongs to another session"
    raise _not_the_apis(call, reply, config, what)


def _not_the_apis(
    call: Call,
    reply: Reply,
    config: ClientConfig,
    what: str,
    *,
    wanted: str = "a LlamaCloud API response",
    accepted: bool | None = None,
) -> errors.LlamaCloudProtocolError:
    return errors.LlamaCloudProtocolError(
        f"Could not {purpose(call)}: {where(call, config)} did not return {wanted} ({_safe(what, config, 300)}). "
        f"{_CHECK_BASE_URL} Status {reply.status}; the response {_begin(call, reply, config)}.",
        accepted=accepted,
        **_known(call, reply, config),
    )


def _begin(call: Call, reply: Reply, config: ClientConfig) -> str:
    return f"has {len(reply.body)} bytes" if call.endpoint.is_secret else f"begins with {_quoted(reply.body, config)}"


def _is_of_another_session(answer: Any, call: Call) -> bool:
    # A proxy may mix up responses. The history of another session could contain a turn with the same prompt.
    if call.session_id is None or not isinstance(answer, models.SessionSummary):
        return False
    return answer.session_id.strip().casefold() != call.session_id.strip().casefold()


def raise_for_status(call: Call, reply: Reply, config: ClientConfig) -> None:
    """Raise the typed error for a status that is not a success."""
    if 200 <= reply.status < 300:
        return
    known = _known(call, reply, config)
    detail = error_detail(reply, config)
    kind, cause = _refusal(call, reply, config, detail)
    if issubclass(kind, errors.LlamaCloudStatusError) and kind.retryable:
        known["retry_after"] = retry_after(reply.headers)
    details = f" ({detail})" if detail else ""
    ticket = f" [request {known['request_id']}]" if known["request_id"] else ""
    end = f"{where(call, config)} answered {reply.status}{details}.{ticket}"
    problem = kind(f"Could not {purpose(call)}: {cause} {end}", **known)
    if isinstance(problem, errors.RequestRefusedError):
        is_bare = kind is errors.NotFoundError and _is_vague(detail)
        problem.is_vague = is_bare or cause.startswith(NOT_THE_API) or not _has_detail(reply)
    raise problem


def _refusal(call: Call, reply: Reply, config: ClientConfig, detail: str) -> tuple[type[errors.LlamaCloudError], str]:
    """Return the error for a status, with its likely cause and what to do about it."""
    status, thing = reply.status, _thing(call)
    if status < 200:
        return errors.LlamaCloudProtocolError, f"{NOT_THE_API}. {_CHECK_BASE_URL}"
    if status < 400:
        cause = f"the response is a redirect to {_location(call, reply, config)!r}."
        return errors.LlamaCloudProtocolError, f"{cause} It was not followed, to protect the API key. {_CHECK_BASE_URL}"
    if status >= 500:
        return _FAILED
    # The API supports each path and method used here, and explains a refusal in JSON. Any other response proves nothing, for
    # example that a session does not exist or that a sync is running.
    is_elsewhere = status == 405 or (status == 404 and thing is None) or _is_page(reply)
    if status not in _FROM_ANYONE and (is_elsewhere or (status in {403, 404} and not _has_detail(reply))):
        page = ", but is an HTML page" if _is_page(reply) else ""
        return errors.RequestRefusedError, f"{NOT_THE_API}{page}. {_CHECK_BASE_URL}"
    kind, cause = _CAUSES.get(status, (errors.RequestRefusedError, "the server does not accept this request."))
    if status == 401:
        kind, cause = errors.AuthenticationError, _key_advice(config)
    elif status == 404:
        place, check = " in this project", "the id, and that project_id is its project"
        if thing in {"project", "organization"}:
            place, check = "", "project_id and organization_id"
        doubt, first = ("the Base URL is wrong, or ", "the connection's Base URL, ") if _is_vague(detail) else ("", "")
        kind, cause = errors.NotFoundError, f"{doubt}there is no such {thing}{place}. Check {first}{check}."
    elif status == 407:
        cause = unreachable.proxy_wants_a_password(config.base_url)
    elif status == 409 and call.endpoint is STREAM_MESSAGE:
        tells_of_a_turn = retry_after(reply.headers) is not None or re.search(_BUSY, detail)
        kind = errors.SessionBusyError if tells_of_a_turn else kind
    return kind, cause


def _location(call: Call, reply: Reply, config: ClientConfig) -> str:
    target = reply.headers.get(LOCATION, "")
    # What follows the path may be a signature, which gives access.
    target = target.partition("?")[0] if call.endpoint.is_secret else target
    return excerpt(target, secrets=(config.api_key,), limit=200)


def _thing(call: Call) -> str | None:
    """The object that a 404 may refer to: the one in the path, or else one in the body or query."""
    things = {"session_id": "chat session", "attachment_name": "attachment"}
    named = [things.get(name, name.removesuffix("_id")) for name in call.ids]
    if call.body and call.body.get("index_ids"):
        named.append("index")
    named += [thing for thing in ("project", "organization") if f"{thing}_id" in call.query]
    return named[0] if named else None


def _is_vague(detail: str) -> bool:
    # What web frameworks say of a path that they do not know: FastAPI and Litestar, Django, and Flask.
    words = detail.casefold().rstrip(".")
    return words == "not found" or words.startswith("the requested url was not found")


def _is_page(reply: Reply) -> bool:
    return "html" in reply.headers.get("content-type", "").lower()


def _has_detail(reply: Reply) -> bool:
    try:
        return "detail" in parse_json(reply.body)
    except (ValueError, TypeError):
        return False


def error_detail(reply: Reply, config: ClientConfig) -> str:
    """Return FastAPI's ``detail`` as a bounded, redacted line, or the beginning of any other body."""
    try:
        detail = parse_json(reply.body)["detail"]
    except (ValueError, TypeError, KeyError):
        return _quoted(reply.body, config) if reply.body else ""
    if isinstance(detail, list):
        fields = []
        for item in (one for one in detail[:5] if isinstance(one, dict)):
            loc = item.get("loc")
            parts = [part for part in loc[:8] if part != "body"] if isinstance(loc, list) else []
            place = ".".join(_safe(part, config, 60) for part in parts)
            fields.append(f"{place or 'request'}: {_safe(item.get('msg', 'invalid'), config, 200)}")
        return _safe("; ".join(fields) + (f"; and {len(detail) - 5} more" if len(detail) > 5 else ""), config)
    return _safe(detail, config)


def connection_error(
    call: Call, problem: Exception, config: ClientConfig, *, accepted: bool | None = None
) -> errors.LlamaCloudConnectionError:
    """Turn an exception of httpx into a typed error.

    :param accepted: True if the response had begun, so that the server is known to have accepted the request.
    """
    if isinstance(problem, StoppedError):
        stopped = "The task was stopped, so nothing more is sent."
        return errors.LlamaCloudConnectionError(stopped, accepted=False, session_id=call.session_id)
    kind, place = errors.LlamaCloudConnectionError, where(call, config)
    if isinstance(problem, NotSentError):
        kind, accepted = errors.LlamaCloudTimeoutError, False
        what = f"the deadline passed before the request was sent. Tried: {place}."
    elif isinstance(problem, httpx.ConnectTimeout | httpx.PoolTimeout) and not accepted:
        kind, accepted = errors.LlamaCloudTimeoutError, False
        named = proxy_for(config.base_url)
        check = f"proxy ({named[0]})" if named else "network and the firewall"
        what = f"{place} could not be reached within {config.connect_timeout:g} s. Check the {check}, and the connection's Base URL."
    elif isinstance(problem, unreachable.PROBLEMS) and not accepted:
        accepted = False
        what = f"{unreachable.why(problem, config.base_url, _safe(str(problem), config, 200))} Tried: {place}."
    elif any(map(is_out_of_files, unreachable.causes(problem))):
        what = f"{OUT_OF_FILES} Tried: {place}."
    elif isinstance(problem, httpx.TimeoutException | TimeoutError):
        kind = errors.LlamaCloudTimeoutError
        what = (
            f"{place} sent nothing for {config.timeout:g} s, or exceeded the total time limit. "
            "If this happens often, increase the connection's Timeout (s)."
        )
    elif isinstance(problem, httpx.DecodingError):
        what = f"{place} sent a response that cannot be decompressed: {problem}."
    else:
        what = f"{place} closed the connection ({_safe(str(problem), config, 200) or type(problem).__name__})."
    return kind(f"Could not {purpose(call)}: {what}", accepted=accepted, session_id=call.session_id)


def not_a_stream(call: Call, reply: Reply, config: ClientConfig) -> errors.LlamaCloudProtocolError:
    """Return the error for a successful response to a prompt that is not an event stream."""
    what = f"it has the content type {_safe(reply.headers.get('content-type', 'none'), config, 60)!r}"
    # An HTML page comes from a proxy. Any other successful response may mean that the prompt was accepted.
    accepted = None if _is_page(reply) else True
    return _not_the_apis(call, reply, config, what, wanted="an event stream", accepted=accepted)


def too_large(call: Call, config: ClientConfig) -> errors.LlamaCloudProtocolError:
    """Return the error for a response larger than :data:`MAX_BODY`."""
    return errors.LlamaCloudProtocolError(
        f"Could not {purpose(call)}: {where(call, config)} sent more than {MAX_BODY // 2**20} MiB, "
        f"which is larger than any response of the API. {_CHECK_BASE_URL}",
        session_id=call.session_id,
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of ``Retry-After``, in both of its forms (RFC 9110), or None if it is missing or invalid."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
            # The oldest date format of RFC 9110 has no time zone; it is UTC.
            seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError, OSError, IndexError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


@contextlib.contextmanager
def redacting(config: ClientConfig) -> Iterator[None]:
    """Remove the key from errors that leave the block. The reason of a failed turn is text from the server."""
    try:
        yield
    except errors.LlamaCloudError as problem:
        problem.args = (scrub(str(problem), (config.api_key,)),)
        raise


def purpose(call: Call) -> str:
    """Return the purpose of the call, including its ids."""
    return call.endpoint.purpose.format(**{name: excerpt(value, limit=100) for name, value in call.ids.items()})


def where(call: Call, config: ClientConfig) -> str:
    """Return the base URL, and the project and organization of the call."""
    project = call.ids.get("project_id") or call.query.get("project_id")
    organization = call.query.get("organization_id")
    scope = [f"project {project}"] if project else []
    if organization:
        scope.append(f"organization {organization}")
    if not project and call.endpoint is not LIST_PROJECTS:
        scope = [f"default project of {scope[0] if scope else 'the key'}"]
    return f"{config.base_url} ({', '.join(scope)})" if scope else config.base_url


def _key_advice(config: ClientConfig) -> str:
    others = " and ".join(f"{name} is {url}" for name, url in REGIONS.items() if name != config.region)
    return (
        "the API key is not valid at this host. Check the connection's API Key and Region (or Base URL). A key works in only one "
        f"region. Used: {f'region {config.region}' if config.region else 'the Base URL of the connection'}; {others}."
    )


def _kind(data: Any) -> str:
    if data is None or isinstance(data, bool):
        return json.dumps(data)
    return {"dict": "an object", "list": "a list", "str": "text"}.get(type(data).__name__, "a number")


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
