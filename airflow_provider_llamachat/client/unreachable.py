"""Explains why no connection was made: finds the likely cause in an exception of httpx, and what to do about it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator

import httpx

from airflow_provider_llamachat.client.config import OUT_OF_FILES, is_out_of_files
from airflow_provider_llamachat.client.proxies import proxy_for

PROBLEMS = (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError)
"""Exceptions that are raised before a request can have reached the server."""


def why(problem: Exception, base_url: str, reason: str) -> str:
    """Return the likely cause of a failed connection, and what to do about it.

    :param problem: one of :data:`PROBLEMS`.
    :param reason: its message, without secrets.
    """
    chain = list(causes(problem))
    if any(map(is_out_of_files, chain)) or _has_no_file_left():
        return OUT_OF_FILES

    def root(kind: type[BaseException]) -> bool:
        return any(isinstance(one, kind) for one in chain)

    named = proxy_for(base_url)
    here = "in the environment of this Airflow component"
    if isinstance(problem, httpx.ProxyError):
        if "407" in reason:
            return proxy_wants_a_password(base_url)
        return f"the proxy refused the connection ({reason}). Check {named[0] if named else 'HTTPS_PROXY'} {here}."
    check = "Check the connection's Base URL"
    lost = "LlamaCloud could not be reached"
    if root(ssl.SSLCertVerificationError):
        return (
            f"LlamaCloud's certificate is not trusted ({reason}). Set SSL_CERT_FILE to a file with the trusted certificates {here}, "
            "or correct the connection's Base URL."
        )
    if root(ssl.SSLError):
        return f"the TLS connection to LlamaCloud failed ({reason}). {check}: its scheme and port."
    if named is not None:
        return f"{lost}: the proxy in {named[0]} is unavailable ({reason}). Check {named[0]} and NO_PROXY {here}."
    if root(socket.gaierror) or isinstance(problem, UnicodeError):
        return f"{lost}: the host name of the Base URL cannot be resolved ({reason}). {check}, and the DNS configuration of this machine."
    if root(ConnectionRefusedError):
        return f"{lost}: the connection was refused ({reason}). {check}: its host and port."
    if root(OSError):
        return f"{lost} ({reason}). Check the network and firewall of this machine, and the connection's Base URL."
    return f"{lost} ({reason}). {check}."


def causes(problem: BaseException) -> Iterator[BaseException]:
    """Yield the exception and all its causes."""
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
    # If no socket is available for DNS, the host name is reported as unknown.
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as problem:
        return is_out_of_files(problem)
    return False


def proxy_wants_a_password(base_url: str) -> str:
    """Return the cause of a 407, and what to do about it."""
    named = proxy_for(base_url)
    return (
        "the proxy requires a valid user name and password. "
        f"Correct {named[0] if named else 'HTTPS_PROXY'} in the environment of this Airflow component."
    )
