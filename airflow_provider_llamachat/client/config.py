"""The configuration of a client, validated before any request, and the TLS context of the process."""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import re
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_llamachat.arguments import checked_uuid
from airflow_provider_llamachat.exceptions import (
    InvalidApiKeyError,
    LlamaCloudConfigError,
    LlamaCloudConnectionError,
)
from airflow_provider_llamachat.provider_info import CONNECTION_TYPE
from airflow_provider_llamachat.redaction import describe, excerpt, remember

REGIONS = {"us": "https://api.cloud.llamaindex.ai", "eu": "https://api.cloud.eu.llamaindex.ai"}
"""Base URL of each region. An API key works in only one of them."""

DEFAULT_REGION = "us"
DEFAULT_TIMEOUT = 60.0
DEFAULT_MAX_RETRIES = 5
DEFAULT_HISTORY_LAG = 10.0


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How to reach LlamaCloud.

    :param api_key: the API key. It is not part of the ``repr``.
    :param base_url: scheme and host, without ``/api/v1``.
    :param project_id: project of calls that do not specify one; None means the default project of the key.
    :param organization_id: organization of calls that do not specify one; None means the organization of the key.
    :param timeout: seconds without any data after which a read fails.
    :param connect_timeout: seconds for opening a connection (TCP and TLS).
    :param max_retries: maximum number of retries of a call that is safe to repeat; 0 means none.
    :param total_timeout: maximum duration of a call in seconds, including its retries. Streams have their own deadline.
    :param history_lag: seconds until an accepted prompt appears in the session's history; 0 means immediately.
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
        """Validate the values of a connection and return a configuration. Values may be strings, blank or missing.

        :raises InvalidApiKeyError: the key is invalid.
        :raises LlamaCloudConfigError: another value is invalid; the message names it.
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
        """The region of the base URL, or None for another host."""
        return next((name for name, url in REGIONS.items() if url == self.base_url), None)

    @property
    def is_plain_http(self) -> bool:
        """Whether the key would be sent unencrypted over a network (plain http, except to loopback)."""
        return urlsplit(self.base_url).scheme == "http" and not self.is_loopback

    @property
    def is_loopback(self) -> bool:
        """Whether the base URL leads to this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")


def checked_api_key(api_key: str | None) -> str:
    """Return the key without surrounding white space.

    :raises InvalidApiKeyError: the key is missing, masked, or cannot be sent in a header. The message does not contain it.
    """
    where = "Enter the key in the field API Key (the password) of the connection."
    if not isinstance(api_key, str) or not (key := api_key.strip()):
        raise InvalidApiKeyError(f"The LlamaCloud connection has no API key. {where}")
    if not key.strip("*"):
        raise InvalidApiKeyError(
            "The LlamaCloud connection's API key consists of asterisks: an export or an API client saved the masked value "
            f"instead of the key. {where}"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidApiKeyError(
            "The LlamaCloud connection's API key contains spaces, line breaks or characters that are not printable ASCII. "
            f"Check that only the key was pasted. {where}"
        )
    return key


def base_url(host: str | None, *, port: int | None = None, scheme: str | None = None, region: Any = None) -> str:
    """Return the base URL of a connection. ``host`` overrides ``region``.

    A host may omit the scheme (the default is https), end with slashes, or include ``/api/v1`` from a pasted example.

    :raises LlamaCloudConfigError: the values are invalid. The message does not contain credentials of a URL.
    """
    text = (host or "").strip()
    if not text:
        name = ("" if region is None else str(region)).strip().lower() or DEFAULT_REGION
        if name not in REGIONS:
            raise LlamaCloudConfigError(
                f"{_field('region')} must be one of {', '.join(REGIONS)}, got {describe(region)}. "
                "Choose the region in which the API key was created, or enter a Base URL."
            )
        return REGIONS[name]
    if re.match(r"(?i)(https?://)?(llx-|[a-z0-9_]{32,}/*$)", text):
        raise LlamaCloudConfigError(
            "The connection's Base URL looks like an API key. Enter it in the field API Key, leave Base URL empty, and choose a Region."
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
            f"The connection's Base URL contains user information (…@host). {advice} Enter the key in the field API Key."
        )
    if parts.scheme.lower() not in {"http", "https"}:
        raise LlamaCloudConfigError(
            f"The connection's Base URL has an unsupported scheme; only https and http are supported. {advice}"
        )
    if not parts.hostname or parts.query or parts.fragment or not re.fullmatch(r"[A-Za-z0-9.\-_:%\[\]]+", parts.netloc):
        raise LlamaCloudConfigError(f"The connection's Base URL is not a plain base URL. {advice}")
    if own_port == 0 or parts.hostname in {"http", "https"}:
        raise LlamaCloudConfigError(f"The connection's Base URL is not a plain base URL. {advice}")
    # A URL copied from an API example may include the path of a call.
    path = re.sub(r"(?i)/api(/v1(/.*)?)?$", "", parts.path.rstrip("/"))
    # An explicit default port is dropped, so that the base URL of a region is still recognized.
    number = own_port or port
    if number == {"https": 443, "http": 80}[parts.scheme.lower()]:
        number = None
    hostname = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme.lower()}://{hostname}{f':{number}' if number else ''}{path}"


def _field(name: str) -> str:
    return f"The connection's {CONNECTION_TYPE['conn-fields'][name]['label']} (extra field {name})"


def _number(name: str, value: Any, default: float) -> float:
    """Return a number within the limits of the connection form."""
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
            f"{_field(name)} must be a {'whole ' if whole else ''}number {limit}, "
            f"got {describe(value) if math.isnan(number) else f'{number:g}'}. Correct it in the connection."
        )
    return number


OUT_OF_FILES = (
    "this process has too many open files. Run fewer tasks or triggers in it, or raise the limit (ulimit -n) in the environment of this "
    "Airflow component."
)


def is_out_of_files(problem: BaseException) -> bool:
    """Whether the process has too many open files or sockets."""
    return isinstance(problem, OSError) and problem.errno in {errno.EMFILE, errno.ENFILE}


_contexts: dict[tuple[str | None, str | None], ssl.SSLContext] = {}
_contexts_lock = threading.Lock()


def ssl_context() -> ssl.SSLContext:
    """Return the TLS context of the process. Creating it takes tens of milliseconds: do not do that in an event loop.

    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` are used as in httpx. If they change, a new context is created.

    :raises LlamaCloudConfigError: the files that they name cannot be read.
    :raises LlamaCloudConnectionError: this process has too many open files.
    """
    import httpx

    key = (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    with _contexts_lock:
        if key not in _contexts:
            try:
                if key[0]:
                    Path(key[0]).open("rb").close()  # httpx before 0.28 ignores anything but a file
                _contexts[key] = httpx.create_ssl_context()
            except OSError as problem:  # the file is missing, or (SSLError) contains no certificates
                if is_out_of_files(problem):
                    raise LlamaCloudConnectionError(
                        f"Could not create an HTTP client: {OUT_OF_FILES}", accepted=False
                    ) from None
                named = ", ".join(
                    f"{name}={os.environ[name]}" for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)
                )
                raise LlamaCloudConfigError(
                    f"The TLS certificates cannot be read: {excerpt(str(problem), limit=200)}. Correct the variable in the environment "
                    f"of this Airflow component: {excerpt(named, limit=300)}."
                ) from None
        return _contexts[key]


def ssl_context_is_ready() -> bool:
    """Whether :func:`ssl_context` would return immediately."""
    return (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")) in _contexts
