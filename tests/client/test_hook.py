"""The hook: connections as they are written become clients, and the test button says what is wrong."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from airflow.providers.common.compat.sdk import redact

from airflow_provider_llamachat.airflow_support import connection
from airflow_provider_llamachat.client import AsyncLlamaCloudClient
from airflow_provider_llamachat.exceptions import InvalidApiKeyError, LlamaCloudConfigError
from airflow_provider_llamachat.hooks import llamacloud
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.testing import (
    DEFAULT_ORGANIZATION_ID,
    DEFAULT_PROJECT_ID,
    FOREIGN_PROJECT_ID,
    INDEX_FILINGS,
    OTHER_PROJECT_ID,
    Fault,
    LlamaCloudEmulator,
)
from tests.hostile.rawserver import RawServer, http


def test_every_field_of_the_connection_reaches_the_client(connect: Any) -> None:
    extra = {
        "region": "eu",
        "project_id": DEFAULT_PROJECT_ID.upper(),
        "organization_id": DEFAULT_ORGANIZATION_ID,
        "timeout": "7.5",
        "max_retries": "0",
        "history_lag": "0",
    }
    config = connect(host="", password=" llx-key\n", extra=json.dumps(extra)).get_config()
    assert (config.base_url, config.api_key) == ("https://api.cloud.eu.llamaindex.ai", "llx-key")
    assert (config.project_id, config.organization_id) == (DEFAULT_PROJECT_ID, DEFAULT_ORGANIZATION_ID)
    assert (config.timeout, config.max_retries, config.history_lag) == (7.5, 0, 0.0)


def test_a_connection_uri_works_too(monkeypatch: pytest.MonkeyPatch, llamacloud_emulator: LlamaCloudEmulator) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", llamacloud_emulator.airflow_connection_uri)
    assert LlamaCloudHook().get_config().base_url == llamacloud_emulator.url
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", "llamacloud://:llx-k%2Fey@/?region=eu&timeout=120")
    config = LlamaCloudHook("other").get_config()
    assert (config.api_key, config.region, config.timeout) == ("llx-k/ey", "eu", 120.0)
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", "llamacloud://:llx-k@127.0.0.1:8080/http")
    assert LlamaCloudHook("other").get_config().base_url == "http://127.0.0.1:8080"


def test_environment_variables_of_other_tools_are_not_read(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CLOUD_API_KEY", "llx-of-somebody-else")
    monkeypatch.setenv("LLAMA_CLOUD_BASE_URL", "http://elsewhere.invalid")
    config = connect().get_config()
    assert "somebody" not in config.api_key
    assert "elsewhere" not in config.base_url
    with pytest.raises(InvalidApiKeyError):
        connect(password="").get_conn()


def test_calls_override_the_connections_project(connect: Any, llamacloud_emulator: LlamaCloudEmulator) -> None:
    hook = connect(extra=json.dumps({"project_id": DEFAULT_PROJECT_ID}))
    session = hook.create_session([INDEX_FILINGS])
    other = hook.create_session(project_id=OTHER_PROJECT_ID)
    assert hook.get_session(session.session_id).events == []
    assert hook.get_session_summary(other.session_id, project_id=OTHER_PROJECT_ID).session_id == other.session_id
    assert [s.session_id for s in hook.list_sessions(project_id=OTHER_PROJECT_ID)] == [other.session_id]
    assert [event.type for event in hook.stream_message(session.session_id, "Hello?", index_ids=[INDEX_FILINGS])][
        -1
    ] == "stop"
    assert hook.send_message(session.session_id, "What was the revenue in Q3?").answer
    hook.delete_session(session.session_id)
    projects = [request.query.get("project_id") for request in llamacloud_emulator.requests]
    assert projects.count(OTHER_PROJECT_ID) == 3
    assert None not in projects
    hook.close()
    assert hook.create_session().session_id, "a closed hook makes a new client"


def test_the_hook_reaches_projects_and_indexes_too(connect: Any) -> None:
    hook = connect()
    assert DEFAULT_PROJECT_ID in {project.id for project in hook.list_projects()}
    assert INDEX_FILINGS in {index.id for index in hook.list_indexes(page_size=1)}
    assert hook.get_index(INDEX_FILINGS, expand_sync=True).sync_in_progress is False
    assert (hook.sync_index(INDEX_FILINGS), hook.sync_index(INDEX_FILINGS)) == (True, False)
    assert (hook.cancel_sync(INDEX_FILINGS), hook.cancel_sync(INDEX_FILINGS)) == (True, False)
    events = list(hook.stream_message(hook.create_session([INDEX_FILINGS]).session_id, "Hello?"))
    assert events[-1].type == "stop"


def test_importing_the_client_does_not_block_the_loop(connect: Any) -> None:
    import threading

    connect()
    imported_on: list[threading.Thread] = []

    def watched(name: str) -> Any:
        imported_on.append(threading.current_thread())
        return importlib.import_module(name)

    async def run() -> None:
        async with await LlamaCloudHook().get_async_conn():
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llamacloud, "importlib", SimpleNamespace(import_module=watched))
        asyncio.run(run())
    assert imported_on
    assert threading.main_thread() not in imported_on


def test_the_asynchronous_client_never_blocks_the_loop(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_llamachat.client import config

    connect()
    monkeypatch.setattr(config, "_contexts", {})  # the first client of a process builds it
    built_on: list[str] = []
    build = config.ssl_context

    async def run() -> None:
        import threading

        loop_thread = threading.current_thread().name

        def watched() -> Any:
            if not config.ssl_context_is_ready():
                built_on.append(threading.current_thread().name)
                assert threading.current_thread().name != loop_thread
            return build()

        monkeypatch.setattr("airflow_provider_llamachat.client.sender.ssl_context", watched)
        async with await LlamaCloudHook().get_async_conn() as client:
            assert isinstance(client, AsyncLlamaCloudClient)
            assert await client.list_projects()

    asyncio.run(run())
    assert len(built_on) == 1


def test_plain_http_to_another_machine_warns_once(
    connect: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_warned", set())  # what other tests warned of
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        connect(host="http://llamacloud.example").get_config()
    assert caplog.text.count("plain http") == 1
    connect().get_config()
    assert caplog.text.count("plain http") == 1, "loopback is no network"


OK: list[tuple[dict[str, Any], str]] = [
    ({}, r"^Connected to http://127.*default project '.+' \("),
    ({"extra": json.dumps({"project_id": DEFAULT_PROJECT_ID})}, r"^Connected to http://127.*, project '.+' \("),
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"password": "llx-wrong"}, r"^API key or region: .*works in only one region"),
    ({"password": "***"}, r"consists of asterisks"),
    ({"password": ""}, r"has no API key"),
    ({"extra": json.dumps({"region": "mars"}), "host": ""}, r"Region \(extra field region\) must be one of us, eu"),
    ({"extra": json.dumps({"project_id": "mine"})}, r"Project ID \(extra field project_id\) must be a UUID"),
    ({"extra": json.dumps({"project_id": "00000000-0000-4000-8000-00000000dead"})}, r"^Project or organization: "),
    (
        {"host": "http://127.0.0.1:9"},
        r"^Could not list projects: LlamaCloud could not be reached: the connection was refused",
    ),
    ({"host": "ftp://x"}, r"only https"),
]


@pytest.mark.parametrize(("values", "words"), OK)
def test_the_test_button_names_host_and_project(
    values: dict[str, Any], words: str, connect: Any, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    import re

    ok, message = connect(**values).test_connection()
    assert ok, message
    assert re.search(words, message), message
    assert len(llamacloud_emulator.requests) == 1, "one free call"


@pytest.mark.parametrize(("values", "words"), WRONG)
def test_the_test_button_says_what_is_wrong(values: dict[str, Any], words: str, connect: Any) -> None:
    import re

    ok, message = connect(**values).test_connection()
    assert not ok
    assert re.search(words, message), message


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("status", status=503), r"^Could not list projects: the server, or a proxy in front of it, failed.*503"),
        (Fault("html", status=200), "Check the connection's Base URL"),
        (
            Fault("html", status=403),
            "^Could not list projects: the response does not come from LlamaCloud's API, but is an HTML page",
        ),
        (
            Fault("html", status=404),
            "^Could not list projects: the response does not come from LlamaCloud's API, but is an HTML page",
        ),
        (Fault("status", status=404), "^Could not list projects: the response does not come from LlamaCloud's API"),
        (Fault("status", status=405), "^Could not list projects: the response does not come from LlamaCloud's API"),
        (Fault("status", status=407), "^Could not list projects: the proxy .* a valid user name"),
        (Fault("status", status=403, detail="no"), "^API key: .*403"),
    ],
)
def test_the_test_button_reports_a_failing_server(
    fault: Fault, words: str, connect: Any, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    import re

    llamacloud_emulator.inject(fault)
    ok, message = connect().test_connection()
    assert (ok, bool(re.search(words, message))) == (False, True), message
    assert len(llamacloud_emulator.requests) == 1


def test_the_test_button_names_a_wrong_base_url_first(connect: Any, llamacloud_emulator: LlamaCloudEmulator) -> None:
    extra = json.dumps({"project_id": DEFAULT_PROJECT_ID})
    ok, message = connect(extra=extra, host=llamacloud_emulator.url + "/wrong").test_connection()
    assert not ok
    assert message.startswith(
        f"Could not read project {DEFAULT_PROJECT_ID}: the Base URL is wrong, or there is no such"
    )


def test_a_project_of_another_organization_is_reported(connect: Any) -> None:
    extra = json.dumps({"project_id": FOREIGN_PROJECT_ID, "organization_id": DEFAULT_ORGANIZATION_ID})
    ok, message = connect(extra=extra).test_connection()
    assert not ok
    assert message.startswith("Project or organization: ")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SSL_CERT_FILE", "/nonexistent/ca.pem", "SSL_CERT_FILE=/nonexistent/ca.pem"),
        ("SSL_CERT_FILE", "/", "SSL_CERT_FILE=/"),
        ("SSL_CERT_FILE", __file__, "SSL_CERT_FILE="),
        ("HTTPS_PROXY", "proxy:bad:port", "the proxy in HTTPS_PROXY is invalid"),
        ("HTTPS_PROXY", "ftp://user:hidden@proxy.example:1", "the proxy in HTTPS_PROXY is invalid"),
        ("ALL_PROXY", "socks5://user:hidden@proxy.example:1", "the proxy in ALL_PROXY is invalid"),
    ],
)
def test_an_environment_that_prevents_a_client_is_named(
    variable: str, value: str, words: str, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_llamachat.client import config

    monkeypatch.setattr(config, "_contexts", {})  # the first client of a process builds it
    monkeypatch.setenv(variable, value)
    hook = connect(host="https://llamacloud.example")
    ok, message = hook.test_connection()
    assert (ok, words in message) == (False, True), message
    assert "hidden" not in message
    with pytest.raises(LlamaCloudConfigError):
        hook.get_conn()
    with pytest.raises(LlamaCloudConfigError):
        asyncio.run(hook.get_async_conn())


def test_a_project_with_an_endless_name_is_shown_in_part(connect: Any) -> None:
    project = {"id": DEFAULT_PROJECT_ID, "name": "x" * 100_000, "is_default": True}
    for extra in ({}, {"project_id": DEFAULT_PROJECT_ID}):
        body = json.dumps(project if extra else [project]).encode()
        with RawServer(lambda _: [http(body)]) as server:  # noqa: B023  # the server ends with this round
            ok, message = connect(host=server.url, extra=json.dumps(extra)).test_connection()
        assert (ok, len(message) < 400) == (True, True), message


def test_a_key_with_white_space_around_it_is_masked_as_it_is_used(connect: Any) -> None:
    key = "a-key-of-no-special-form-0123456789"
    assert connect(password=f" {key}\n").get_config().api_key == key
    assert key not in redact(f"the header is Bearer-like: {key}")


def test_a_configuration_error_is_a_llamacloud_error(connect: Any) -> None:
    with pytest.raises(LlamaCloudConfigError, match="max_retries"):
        connect(extra=json.dumps({"max_retries": "many"})).get_conn()


@pytest.mark.parametrize("password", ["llx-emulator-0000", " llx-emulator-0000\n"], ids=["plain", "white space"])
def test_masking_the_key_never_blocks_a_triggerers_loop(
    password: str, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow 3.0's triggerer refuses to be told of a secret from its event loop, and the trigger fails."""
    masked = []

    def tell_the_supervisor(secret: str) -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        masked.append(secret)

    connect(password=password)
    monkeypatch.setattr("airflow_provider_llamachat.hooks.llamacloud.mask_secret", tell_the_supervisor)

    async def run() -> None:
        async with await LlamaCloudHook().get_async_conn() as client:
            assert await client.list_projects()

    asyncio.run(run())
    assert masked == ([password.strip()] if password != password.strip() else [])


@pytest.mark.parametrize("keep_alive", [True, False])
def test_a_client_keeps_idle_connections_unless_told_not_to(keep_alive: bool, connect: Any) -> None:
    connect()
    config = LlamaCloudHook().get_config()

    def connections() -> int:
        port = urlsplit(config.base_url).port
        mine = psutil.Process().net_connections("tcp")
        return sum(each.status == "ESTABLISHED" and bool(each.raddr) and each.raddr.port == port for each in mine)

    async def kept() -> int:
        before = connections()
        async with await AsyncLlamaCloudClient.open(config, keep_alive=keep_alive) as client:
            session = await client.create_session([INDEX_FILINGS])
            await client.send_message(session.session_id, "What was the revenue in Q3?", index_ids=[INDEX_FILINGS])
            return connections() - before

    assert asyncio.run(kept()) == keep_alive
