"""An error names the one likely cause first: the field as the form calls it, the proxy, the certificate, or this process itself."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import (
    AsyncLlamaCloudClient,
    ClientConfig,
    LlamaCloudClient,
    endpoints,
    responses,
)
from airflow_provider_llamachat.client.proxies import proxy_for
from tests.hostile.rawserver import RawServer, http

PROJECT = "0f0e0d0c-0b0a-4908-8706-050403020100"
HTML = b"<html><h1>Welcome to nginx!</h1></html>"
FASTAPI = json.dumps({"detail": "Not Found"}).encode()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def meets(method: Callable[[LlamaCloudClient], Any], answer: bytes, **values: Any) -> errors.LlamaCloudError:
    """The error that a call ends in when a server gives this answer."""
    with RawServer(lambda _: [answer]) as server:
        config = ClientConfig(
            **{"api_key": "llx-a", "base_url": server.url, "max_retries": 0, "timeout": 5.0, **values}
        )
        with LlamaCloudClient(config) as client, pytest.raises(errors.LlamaCloudError) as caught:
            method(client)
    return caught.value


def projects(client: LlamaCloudClient) -> Any:
    return client.list_projects()


def session(client: LlamaCloudClient) -> Any:
    return client.get_session("ses-1")


@pytest.mark.parametrize(
    ("status", "body", "kind", "method"),
    [
        ("404 Not Found", HTML, "text/html", session),
        ("404 Not Found", HTML, "text/html", projects),
        ("404 Not Found", FASTAPI, "application/json", projects),
        ("404 Not Found", b"", "text/plain", session),
        ("404 Not Found", b'{"error": "no route"}', "application/json", session),
        ("405 Method Not Allowed", FASTAPI, "application/json", session),
        ("405 Method Not Allowed", HTML, "text/html", projects),
        ("403 Forbidden", HTML, "text/html", projects),
        ("403 Forbidden", b"denied", "text/plain", session),
        ("401 Unauthorized", HTML, "text/html", session),
        ("400 Bad Request", HTML, "text/html", session),
    ],
)
def test_a_response_that_is_not_the_apis_points_to_the_base_url(
    status: str, body: bytes, kind: str, method: Callable[[Any], Any]
) -> None:
    problem = meets(method, http(body, status, kind=kind))
    assert type(problem) is errors.RequestRefusedError, "final, and no proof that a session does not exist"
    assert re.search(
        r"^Could not .*?: the response does not come from LlamaCloud's API.*?Check the connection's Base URL",
        str(problem),
    )
    assert "Check the id" not in str(problem)
    assert "key" not in str(problem).replace("default project of the key", "")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("401 X", "the API key is not valid at this host.*Check the connection's API Key and Region"),
        ("403 X", "the API key is not allowed to do this.*Project ID"),
        ("404 X", "there is no such chat session in this project.*Check the id"),
    ],
)
def test_a_refusal_names_what_was_refused(status: str, words: str) -> None:
    problem = meets(session, http(b'{"detail": "no"}', status))
    assert re.search(rf"^Could not read chat session ses-1: {words}.*answered \d+ \(no\)", str(problem)), problem
    assert "Host" not in str(problem)


MISSING: list[tuple[Callable[[Any], Any], dict[str, Any], str]] = [
    (lambda c: c.create_session(["idx-1"]), {}, "no such index in this project"),
    (lambda c: c.create_session(), {"project_id": PROJECT}, "no such project. Check project_id"),
    (lambda c: list(c.list_indexes()), {"project_id": PROJECT}, "no such project. Check project_id"),
    (projects, {"organization_id": PROJECT}, "no such organization. Check"),
    (lambda c: c.get_project(PROJECT), {}, "no such project. Check project_id"),
    (lambda c: c.get_index("idx-1"), {}, "no such index in this project"),
    (
        lambda c: list(c.stream_message("ses-1", "Why?", index_ids=["idx-1"])),
        {},
        "no such chat session in this project",
    ),
    (session, {}, "no such chat session in this project"),
    (lambda c: c.delete_session("ses-1"), {"project_id": PROJECT}, "no such chat session in this project"),
    (lambda c: c.sync_index("idx-1"), {}, "no such index in this project"),
    (lambda c: c.get_attachment_url("fil-1", "a.png"), {}, "no such attachment in this project"),
]


@pytest.mark.parametrize(("method", "values", "thing"), MISSING)
def test_the_error_names_the_object_that_does_not_exist(
    method: Callable[[Any], Any], values: dict[str, Any], thing: str
) -> None:
    problem = meets(method, http(b'{"detail": "Nothing here"}', "404 X"), **values)
    assert isinstance(problem, errors.NotFoundError)
    assert f": there is {thing}" in str(problem)
    assert "Base URL" not in str(problem)


@pytest.mark.parametrize(
    "body",
    [
        FASTAPI,
        b'{"detail": "Not found."}',
        b'{"status_code": 404, "detail": "Not Found"}',
        b'{"title": "Not Found", "detail": "The requested URL was not found on the server. Check your spelling."}',
    ],
)
@pytest.mark.parametrize(("method", "values", "thing"), MISSING)
def test_a_404_that_an_unknown_path_gets_too_names_the_base_url_first(
    method: Callable[[Any], Any], values: dict[str, Any], thing: str, body: bytes
) -> None:
    problem = meets(method, http(body, "404 X"), **values)
    assert isinstance(problem, errors.NotFoundError)
    assert re.search(
        f": the Base URL is wrong, or there is {thing.partition('.')[0]}. Check the connection's Base URL, ",
        str(problem),
    )


@pytest.mark.parametrize(
    ("method", "values", "words", "not_words"),
    [
        (lambda c: c.get_project(PROJECT), {}, f"(project {PROJECT})", "default project"),
        (projects, {"project_id": PROJECT}, "http://127", "project of the key"),
        (projects, {}, "http://127", "project of the key"),
        (session, {}, "(default project of the key)", "organization 0"),
        (session, {"project_id": PROJECT}, f"(project {PROJECT})", "default project"),
        (session, {"organization_id": PROJECT}, f"(default project of organization {PROJECT})", "of the key"),
        (lambda c: c.get_project(PROJECT), {"organization_id": PROJECT}, f"organization {PROJECT}", "default"),
    ],
)
def test_the_project_that_was_asked_is_named(
    method: Callable[[Any], Any], values: dict[str, Any], words: str, not_words: str
) -> None:
    problem = str(meets(method, http(b'{"detail": "no"}', "403 X"), **values))
    assert words in problem
    assert not_words not in problem


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"5", "it is JSON, but a number instead of"),
        (b"null", "it is JSON, but null instead of"),
        (b"true", "it is JSON, but true instead of"),
        (b'"x"', "it is JSON, but text instead of"),
        (b"{", "it cannot be read as JSON"),
    ],
)
@pytest.mark.parametrize("method", [projects, session])
def test_the_error_names_the_kind_of_unexpected_json(body: bytes, words: str, method: Callable[[Any], Any]) -> None:
    problem = meets(method, http(body))
    assert isinstance(problem, errors.LlamaCloudProtocolError)
    assert words in str(problem)
    assert ("cannot be read" in str(problem)) is (body == b"{")


def test_a_list_and_an_object_are_distinguished() -> None:
    assert "an object instead of a list" in str(meets(projects, http(b"{}")))
    assert "a list instead of an object" in str(meets(session, http(b"[]")))


def test_a_proxy_that_wants_a_password_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(lambda _: [http(b"", "407 Proxy Authentication Required")]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//user:hidden@"))
        monkeypatch.setenv("http_proxy", proxy.url)
        for url, variable in (
            ("https://llamacloud.invalid", "HTTPS_PROXY"),
            ("http://llamacloud.invalid", "http_proxy"),
        ):
            with (
                LlamaCloudClient(ClientConfig(api_key="llx-a", base_url=url, max_retries=0)) as client,
                pytest.raises(errors.LlamaCloudError) as caught,
            ):
                client.list_projects()
            assert re.search(
                r"^Could not list projects: the proxy .*requires a valid user name and password", str(caught.value)
            )
            assert variable in str(caught.value)
            assert "hidden" not in str(caught.value)
            assert "firewall" not in str(caught.value)


def test_an_unavailable_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{port}")
    config = ClientConfig(api_key="llx-a", base_url="https://llamacloud.invalid", max_retries=0)
    with LlamaCloudClient(config) as client, pytest.raises(errors.LlamaCloudConnectionError) as caught:
        client.list_projects()
    assert re.search(r"could not be reached: the proxy in ALL_PROXY", str(caught.value))


CONNECT = errors.LlamaCloudConnectionError


@pytest.mark.parametrize("asynchronous", [False, True])
def test_too_many_open_files_are_reported_as_this_process_problem(asynchronous: bool) -> None:
    config = ClientConfig(api_key="llx-a", base_url="http://127.0.0.1:9", max_retries=0)

    def here() -> None:
        with LlamaCloudClient(config) as client, exhausted():
            client.list_projects()

    async def on_a_loop() -> None:
        async with await AsyncLlamaCloudClient.open(config) as client:
            with contextlib.suppress(CONNECT):
                await client.list_projects()  # what it imports is read from files
            with exhausted():
                await client.list_projects()

    with pytest.raises(CONNECT, match=r"^Could not list projects: this process has too many open files") as caught:
        asyncio.run(on_a_loop()) if asynchronous else here()
    assert "firewall" not in str(caught.value)
    assert caught.value.accepted is False


def test_too_many_open_files_in_the_middle_of_an_answer_prove_nothing() -> None:
    call = endpoints.LIST_PROJECTS.call()
    shown = responses.connection_error(
        call, OSError(errno.EMFILE, "Too many open files"), ClientConfig(api_key="llx-a")
    )
    assert "this process has too many open files" in str(shown)
    assert shown.accepted is None


class exhausted:  # noqa: N801  # reads as a statement
    """No file or socket more can be opened by this process."""

    def __enter__(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, self._limits[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)


def chained(*causes: BaseException) -> httpx.ConnectError:
    """What httpx raises for these, the last one at the root."""
    problem = httpx.ConnectError(str(causes[-1]))
    one: BaseException = problem
    for cause in causes:
        one.__cause__ = cause
        one = cause
    return problem


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (
            chained(ssl.SSLCertVerificationError(1, "self-signed certificate")),
            "certificate is not trusted.*SSL_CERT_FILE",
        ),
        (chained(ssl.SSLError(1, "wrong version number")), "the TLS connection to LlamaCloud failed.*Base URL"),
        (
            chained(socket.gaierror(-2, "Name or service not known")),
            "the host name of the Base URL cannot be resolved.*Base URL",
        ),
        (chained(OSError("All attempts"), ConnectionRefusedError(111, "Connection refused")), "refused.*Base URL"),
        (
            chained(
                ExceptionGroup("all", [ConnectionRefusedError(111, "r"), OSError(errno.EMFILE, "Too many open files")])
            ),
            "too many open files",
        ),
        (chained(OSError(errno.ENETUNREACH, "Network is unreachable")), "unreachable.*network"),
        (httpx.UnsupportedProtocol("no scheme"), "Check the connection's Base URL"),
    ],
)
def test_each_kind_of_connection_failure_has_its_own_message(problem: Exception, words: str) -> None:
    call = endpoints.LIST_PROJECTS.call()
    shown = responses.connection_error(call, problem, ClientConfig(api_key="llx-a"))
    assert re.search(rf"^Could not list projects: .*{words}", str(shown)), shown
    assert shown.accepted is False
    assert "Host" not in str(shown)


@pytest.mark.parametrize(
    ("no_proxy", "host", "bypassed"),
    [
        ("fd00::/8", "http://[fd00::1]", True),
        ("fd00::/8", "http://[fe00::1]", False),
        ("[fd00::/8]", "http://[fd00::1]", True),
        ("::1", "http://[::1]:8080", True),
        ("10.0.0.0/8, 192.168.1.1", "http://10.1.2.3", True),
        ("10.0.0.0/8, 192.168.1.1", "http://192.168.1.1", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("example.com", "http://example.com", True),
        ("EXAMPLE.com", "http://API.example.com", True),
        ("example.com", "http://notexample.com", False),
        (".example.com", "http://api.example.com", True),
        (".example.com", "http://example.com", False),
        ("example.com:8080", "http://example.com:8080", True),
        ("example.com:8080", "http://example.com", False),
        ("example.com:80", "http://example.com", True),
        ("http://example.com", "http://example.com", True),
        ("https://example.com", "http://example.com", False),
        ("localhost", "http://localhost:1", True),
        ("a,*", "http://example.com", True),
        ("[::1,,:,/,a:\u00b2", "http://example.com", False),
        ("", "http://example.com", False),
    ],
)
def test_no_proxy_is_read_with_ranges(
    no_proxy: str, host: str, bypassed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_for(host) is None) is bypassed
    if not bypassed:
        assert proxy_for(host) == ("HTTP_PROXY", "http://proxy.example:3128")
    with LlamaCloudClient(ClientConfig(api_key="llx-a", base_url=host)):
        pass


def test_a_proxy_is_the_one_for_the_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for("https://example.com") is None
    monkeypatch.setenv("ALL_PROXY", "http://all.example")
    assert proxy_for("https://example.com") == ("ALL_PROXY", "http://all.example")
    monkeypatch.setenv("https_proxy", "http://one.example")
    assert proxy_for("https://example.com") == ("https_proxy", "http://one.example")
    assert proxy_for("http://example.com") == ("ALL_PROXY", "http://all.example")
