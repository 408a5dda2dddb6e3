"""What a client needs to know, checked before any request: base URL, key, project, limits; and the process' one TLS context."""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import re
import ssl
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_llamachat.exceptions import (
    InvalidApiKeyError,
    InvalidArgumentError,
    LlamaCloudConfigError,
    LlamaCloudConnectionError,
)
from airflow_provider_llamachat.provider_info import CONNECTION_TYPE
from airflow_provider_llamachat.redaction import describe, excerpt, remember

REGIONS = {"us": "https://api.cloud.llamaindex.ai", "eu": "https://api.cloud.eu.llamaindex.ai"}
"""Base URL of each region. An API key belongs to one of them."""

DEFAULT_REGION = "us"
DEFAULT_TIMEOUT = 60.0
DEFAULT_MAX_RETRIES = 5
DEFAULT_HISTORY_LAG = 10.0


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How to reach LlamaCloud.

    :param api_key: the API key; not part of the representation.
    :param base_url: scheme and host, without ``/api/v1``.
    :param project_id: project of every call that does not name one; None leaves it to the key's default project.
    :param organization_id: likewise for the organization.
    :param timeout: seconds without a byte before a read fails.
    :param connect_timeout: seconds to make a connection (TCP, TLS).
    :param max_retries: how often a call that may be replayed is sent again; 0 means never.
    :param total_timeout: seconds that one call may take in all, its replays included (streams have their own deadline).
    :param history_lag: seconds that a session's history may lag behind what the server has accepted; 0 means not at all.
    """

    api_key: str = field(repr=False)
    base_url: str = REGIONS[DEFAULT_REGION]
    project_id: str | None = None
    organization_id: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    connect_timeout: float = 15.0
    max_retries: int = DEFAULT_MAX_RETRIES
    total_timeout: float = 300.0
    history_lag: float = DEFAULT_HISTORY_LAG

    def __post_init__(self) -> None:
        remember(self.api_key)

    @classmethod
    def build(
        cls,
        *,
        api_key: str | None,
        host: str | None = None,
        port: int | None = None,
        scheme: str | None = None,
        region: Any = None,
        project_id: Any = None,
        organization_id: Any = None,
        timeout: Any = None,
        max_retries: Any = None,
        history_lag: Any = None,
    ) -> ClientConfig:
        """Check values as people enter them (strings, blanks, missing ones) and make a configuration of them.

        :raises InvalidApiKeyError: the key cannot be one.
        :raises LlamaCloudConfigError: another value is not usable; the message names it.
        """
        return cls(
            api_key=checked_api_key(api_key),
            base_url=base_url(host, port=port, scheme=scheme, region=region),
            project_id=checked_uuid(_field("project_id"), project_id),
            organization_id=checked_uuid(_field("organization_id"), organization_id),
            timeout=_number("timeout", timeout, DEFAULT_TIMEOUT),
            max_retries=int(_number("max_retries", max_retries, DEFAULT_MAX_RETRIES)),
            history_lag=_number("history_lag", history_lag, DEFAULT_HISTORY_LAG),
        )

    @property
    def region(self) -> str | None:
        """The region whose base URL this is, None for any other host."""
        return next((name for name, url in REGIONS.items() if url == self.base_url), None)

    @property
    def is_plain_http(self) -> bool:
        """Whether the key would travel unencrypted over a network: plain http to anything but loopback."""
        parts = urlsplit(self.base_url)
        return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


def checked_api_key(api_key: str | None) -> str:
    """Return the key without surrounding white space.

    :raises InvalidApiKeyError: value-free, for a key that is missing, masked or could not be sent in a header.
    """
    where = "Enter the key in the connection's field API Key (its password)."
    if not isinstance(api_key, str) or not (key := api_key.strip()):
        raise InvalidApiKeyError(f"The LlamaCloud connection has no API key. {where}")
    if not key.strip("*"):
        raise InvalidApiKeyError(
            "The LlamaCloud connection's API key is a row of asterisks: a masked value was saved in place of the key, "
            f"by an export or an API client. {where}"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidApiKeyError(
            "The LlamaCloud connection's API key contains blanks, line breaks or characters that are not printable ASCII, "
            f"so it is not a key. It was probably pasted with something else. {where}"
        )
    return key


def base_url(host: str | None, *, port: int | None = None, scheme: str | None = None, region: Any = None) -> str:
    """Return the base URL for what a connection says. ``host`` wins over ``region``.

    A host may lack its scheme (https is meant), end in slashes, or carry ``/api/v1`` from a pasted example.

    :raises LlamaCloudConfigError: neither makes a base URL. The message does not repeat credentials in a URL.
    """
    text = (host or "").strip()
    if not text:
        name = ("" if region is None else str(region)).strip().lower() or DEFAULT_REGION
        if name not in REGIONS:
            raise LlamaCloudConfigError(
                f"{_field('region')} is not one of {', '.join(REGIONS)}; it holds {describe(region)}. "
                "Choose the region that the API key was made in, or enter a Base URL."
            )
        return REGIONS[name]
    if re.match(r"(?i)(https?://)?(llx-|[a-z0-9_]{32,}/*$)", text):
        raise LlamaCloudConfigError(
            "The connection's Base URL looks like an API key. Enter the key in the field API Key; leave Base URL empty and choose a Region."
        )
    if "://" not in text:
        chosen = (scheme or "").strip().lower()
        text = f"{chosen if chosen in {'http', 'https'} else 'https'}://{text}"
    advice = "Enter a Base URL like https://api.cloud.llamaindex.ai, or leave it empty and choose a Region."
    try:
        parts = urlsplit(text)
        own_port = parts.port
    except ValueError:
        raise LlamaCloudConfigError(f"The connection's Base URL is not a URL. {advice}") from None
    if parts.username is not None or parts.password is not None:
        raise LlamaCloudConfigError(
            f"The connection's Base URL contains user information (…@host). {advice} The key goes into the field API Key."
        )
    if parts.scheme.lower() not in {"http", "https"}:
        raise LlamaCloudConfigError(
            f"The connection's Base URL has a scheme that does not work: only https (or http) does. {advice}"
        )
    if not parts.hostname or parts.query or parts.fragment or not re.fullmatch(r"[A-Za-z0-9.\-_:%\[\]]+", parts.netloc):
        raise LlamaCloudConfigError(f"The connection's Base URL is not a plain base URL. {advice}")
    if own_port == 0 or parts.hostname in {"http", "https"}:
        raise LlamaCloudConfigError(f"The connection's Base URL is not a plain base URL. {advice}")
    # What was copied from an example of the API may name a call as well.
    path = re.sub(r"(?i)/api(/v1(/.*)?)?$", "", parts.path.rstrip("/"))
    # A default port that is written out is dropped, so that a region's base URL is still known as the region's.
    number = own_port or port
    if number == {"https": 443, "http": 80}[parts.scheme.lower()]:
        number = None
    hostname = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme.lower()}://{hostname}{f':{number}' if number else ''}{path}"


def checked_uuid(name: str, value: Any) -> str | None:
    """Return ``value`` as a canonical UUID string, None for None and blanks.

    :raises InvalidArgumentError: for anything else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return str(value if isinstance(value, uuid.UUID) else uuid.UUID(str(value).strip()))
    except ValueError:
        raise InvalidArgumentError(
            f"{name} has to be a UUID (as in the address bar of the LlamaCloud project), got {describe(value)}."
        ) from None


def _field(name: str) -> str:
    return f"The connection's {CONNECTION_TYPE['conn-fields'][name]['label']} (extra field {name})"


def _number(name: str, value: Any, default: float) -> float:
    """Read a number within the limits that the form states."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    schema = CONNECTION_TYPE["conn-fields"][name]["schema"]
    whole, least, above = "integer" in schema["type"], schema["minimum"], schema.get("exclusiveMinimum")
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not least <= number < float("inf") or number == above or (whole and number != int(number)):
        limit = f"of at least {least}" if above is None else f"above {above}"
        raise LlamaCloudConfigError(
            f"{_field(name)} has to be a {'whole ' if whole else ''}number {limit}, "
            f"got {describe(value) if math.isnan(number) else f'{number:g}'}. Correct it in the connection."
        )
    return number


def _is_loopback(hostname: str) -> bool:
    if hostname == "localhost" or hostname.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


OUT_OF_FILES = (
    "this process has too many open files. Run fewer tasks or triggers in it, or raise its limit (ulimit -n) where this Airflow "
    "component is started."
)


def is_out_of_files(problem: BaseException) -> bool:
    """Whether the operating system refused this process another file or socket."""
    return isinstance(problem, OSError) and problem.errno in {errno.EMFILE, errno.ENFILE}


_contexts: dict[tuple[str | None, str | None], ssl.SSLContext] = {}
_contexts_lock = threading.Lock()


def ssl_context() -> ssl.SSLContext:
    """Return the process' one TLS context. Building it takes tens of milliseconds: never do that on an event loop.

    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` are honoured as by httpx; a change of theirs gives a new context.

    :raises LlamaCloudConfigError: they name nothing that can be read.
    :raises LlamaCloudConnectionError: this process has too many open files.
    """
    import httpx

    key = (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    with _contexts_lock:
        if key not in _contexts:
            try:
                _contexts[key] = httpx.create_ssl_context()
            except OSError as problem:  # a file that is not there, or (SSLError) holds no certificates
                if is_out_of_files(problem):
                    raise LlamaCloudConnectionError(
                        f"No HTTP client can be made: {OUT_OF_FILES}", accepted=False
                    ) from None
                named = ", ".join(
                    f"{name}={os.environ[name]}" for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)
                )
                raise LlamaCloudConfigError(
                    f"The certificates that this process' environment names cannot be read ({excerpt(named, limit=300)}): "
                    f"{excerpt(str(problem), limit=200)}. Correct them where this Airflow component is started."
                ) from None
        return _contexts[key]


def ssl_context_is_ready() -> bool:
    """Whether :func:`ssl_context` would return at once."""
    return (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")) in _contexts
