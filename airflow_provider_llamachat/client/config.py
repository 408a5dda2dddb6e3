"""What a client needs to know, checked before any request: base URL, key, project, limits; and the process' one TLS context."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_llamachat.exceptions import InvalidApiKeyError, InvalidArgumentError, LlamaCloudConfigError
from airflow_provider_llamachat.redaction import excerpt, remember

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

        :raises InvalidApiKeyError: the key can not be one.
        :raises LlamaCloudConfigError: another value is not usable; the message names it.
        """
        return cls(
            api_key=checked_api_key(api_key),
            base_url=base_url(host, port=port, scheme=scheme, region=region),
            project_id=checked_uuid("project_id", project_id),
            organization_id=checked_uuid("organization_id", organization_id),
            timeout=_number("timeout", timeout, DEFAULT_TIMEOUT, minimum=0.001),
            max_retries=int(_number("max_retries", max_retries, DEFAULT_MAX_RETRIES, minimum=0, whole=True)),
            history_lag=_number("history_lag", history_lag, DEFAULT_HISTORY_LAG, minimum=0),
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
    where = "Enter the key in the connection's password field (API Key)."
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
                f"The connection's region {excerpt(name, limit=40)!r} is not known. "
                f"Use one of {', '.join(REGIONS)}, or enter the base URL as Host."
            )
        return REGIONS[name]
    if re.match(r"(?i)(https?://)?llx-", text):
        raise LlamaCloudConfigError(
            "The connection's Host looks like an API key. The key goes into the password (API Key); leave Host empty and choose a region."
        )
    if "://" not in text:
        chosen = (scheme or "").strip().lower()
        text = f"{chosen if chosen in {'http', 'https'} else 'https'}://{text}"
    advice = "Enter the connection's Host like https://api.cloud.llamaindex.ai, or leave it empty and choose a region."
    try:
        parts = urlsplit(text)
        own_port = parts.port
    except ValueError:
        raise LlamaCloudConfigError(f"The connection's Host is not a URL. {advice}") from None
    if parts.username is not None or parts.password is not None:
        raise LlamaCloudConfigError(
            f"The connection's Host contains user information (…@host). {advice} The key goes into the password."
        )
    if parts.scheme.lower() not in {"http", "https"}:
        raise LlamaCloudConfigError(
            f"The connection's Host has the scheme {parts.scheme[:20]!r}; only https (or http) works. {advice}"
        )
    if not parts.hostname or parts.query or parts.fragment or not re.fullmatch(r"[A-Za-z0-9.\-_:%\[\]]+", parts.netloc):
        raise LlamaCloudConfigError(f"The connection's Host is not a plain base URL. {advice}")
    if own_port == 0 or parts.hostname in {"http", "https"}:
        raise LlamaCloudConfigError(f"The connection's Host is not a plain base URL. {advice}")
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
            f"{name} has to be a UUID (as in the address bar of the LlamaCloud project), got {excerpt(str(value), limit=60)!r}."
        ) from None


def _number(name: str, value: Any, default: float, *, minimum: float, whole: bool = False) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    kind = "a whole number" if whole else "a number"
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not minimum <= number < float("inf") or (whole and number != int(number)):
        raise LlamaCloudConfigError(
            f"The connection's {name} has to be {kind} of at least {minimum:g}, got {excerpt(str(value), limit=40)!r}. "
            "Correct it in the connection's extra fields."
        )
    return number


def _is_loopback(hostname: str) -> bool:
    if hostname == "localhost" or hostname.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


_contexts: dict[tuple[str | None, str | None], ssl.SSLContext] = {}
_contexts_lock = threading.Lock()


def ssl_context() -> ssl.SSLContext:
    """Return the process' one TLS context. Building it takes tens of milliseconds: never do that on an event loop.

    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` are honoured as by httpx; a change of theirs gives a new context.

    :raises LlamaCloudConfigError: they name nothing that can be read.
    """
    import httpx

    key = (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    with _contexts_lock:
        if key not in _contexts:
            try:
                _contexts[key] = httpx.create_ssl_context()
            except OSError as problem:  # a file that is not there, or (SSLError) holds no certificates
                named = ", ".join(
                    f"{name}={os.environ[name]}" for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)
                )
                raise LlamaCloudConfigError(
                    f"The certificates that this process' environment names can not be read ({excerpt(named, limit=300)}): "
                    f"{excerpt(str(problem), limit=200)}. Correct them where this Airflow component is started."
                ) from None
        return _contexts[key]


def ssl_context_is_ready() -> bool:
    """Whether :func:`ssl_context` would return at once."""
    return (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")) in _contexts
