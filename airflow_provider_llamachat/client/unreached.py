"""Why no connection was made: what httpx and the layers below it raise becomes the one likely cause, and what to do about it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator

import httpx

from airflow_provider_llamachat.client.config import OUT_OF_FILES, is_out_of_files
from airflow_provider_llamachat.client.proxies import proxy_for

PROBLEMS = (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError)
"""What is raised before a request can have reached a server."""


def why(problem: Exception, base_url: str, reason: str) -> str:
    """Return the likely cause of a connection that was not made, and what to do about it, as sentences.

    :param problem: one of :data:`PROBLEMS`.
    :param reason: its text, safe to show.
    """
    chain = list(causes(problem))
    if any(map(is_out_of_files, chain)) or _has_no_file_left():
        return OUT_OF_FILES

    def root(kind: type[BaseException]) -> bool:
        return any(isinstance(one, kind) for one in chain)

    named = proxy_for(base_url)
    if isinstance(problem, httpx.ProxyError):
        if "407" in reason:
            return proxy_wants_a_password(base_url)
        return f"the proxy refused ({reason}). Check {named[0] if named else 'HTTPS_PROXY'} where this Airflow component is started."
    here = "where this Airflow component is started"
    check = "Check the connection's Base URL"
    lost = "LlamaCloud could not be reached"
    if root(ssl.SSLCertVerificationError):
        return (
            f"LlamaCloud's certificate is not trusted ({reason}). Name a file with the certificates to trust in SSL_CERT_FILE {here}, "
            "or correct the connection's Base URL."
        )
    if root(ssl.SSLError):
        return f"no TLS connection to LlamaCloud could be made ({reason}). {check}: its scheme and port."
    if named is not None:
        return f"{lost}: the proxy that {named[0]} names is not there ({reason}). Check {named[0]} and NO_PROXY {here}."
    if root(socket.gaierror) or isinstance(problem, UnicodeError):
        return f"{lost}: the name in its Base URL cannot be resolved ({reason}). {check}, and this machine's name service (DNS)."
    if root(ConnectionRefusedError):
        return f"{lost}: the connection was refused ({reason}). {check}: its host and port."
    if root(OSError):
        return f"{lost} ({reason}). Check this machine's network and firewall, and the connection's Base URL."
    return f"{lost} ({reason}). {check}."


def causes(problem: BaseException) -> Iterator[BaseException]:
    """The exception and all that led to it."""
    pending, seen = [problem], set[int]()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        pending += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions


def _has_no_file_left() -> bool:
    # A name that cannot be looked up for want of a socket is reported as a name that does not exist.
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as problem:
        return is_out_of_files(problem)
    return False


def proxy_wants_a_password(base_url: str) -> str:
    """The cause of a 407, and what to do about it."""
    named = proxy_for(base_url)
    return (
        "the proxy between here and LlamaCloud wants a user name and a password, or other ones. "
        f"Correct {named[0] if named else 'HTTPS_PROXY'} where this Airflow component is started."
    )
