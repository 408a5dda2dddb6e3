"""Connections as people really enter them."""

from __future__ import annotations

import errno
import itertools
import re
import ssl
import uuid
from typing import Any

import pytest

from airflow_provider_llamachat.arguments import checked_uuid
from airflow_provider_llamachat.client import config as config_module
from airflow_provider_llamachat.client.config import ClientConfig, base_url, checked_api_key, ssl_context
from airflow_provider_llamachat.exceptions import (
    InvalidApiKeyError,
    InvalidArgumentError,
    LlamaCloudConfigError,
    LlamaCloudConnectionError,
)
from airflow_provider_llamachat.provider_info import CONNECTION_TYPE

LABELS = {
    "host": "Base URL",
    **{name: field["label"] for name, field in CONNECTION_TYPE["conn-fields"].items()},
}
US, EU = "https://api.cloud.llamaindex.ai", "https://api.cloud.eu.llamaindex.ai"


@pytest.mark.parametrize(
    ("host", "kwargs", "expected"),
    [
        (None, {}, US),
        ("", {"region": " EU "}, EU),
        ("  ", {"region": ""}, US),
        ("api.cloud.eu.llamaindex.ai", {"region": "us"}, EU),
        (US + "/", {}, US),
        (US + "/api/v1", {}, US),
        (US + "/api/v1/", {}, US),
        (US + "/api", {}, US),
        (US + "/API/V1", {}, US),
        (US + "/api/v1/chat/ses-1", {}, US),
        ("https://proxy.example/api/v10", {}, "https://proxy.example/api/v10"),
        ("HTTPS://API.cloud.llamaindex.ai", {}, US),
        ("https://proxy.example/llama/api/v1", {}, "https://proxy.example/llama"),
        ("127.0.0.1", {"port": 8080, "scheme": "http"}, "http://127.0.0.1:8080"),
        ("http://127.0.0.1:9", {"port": 8080}, "http://127.0.0.1:9"),
        ("example.com", {"scheme": "ftp"}, "https://example.com"),
        ("http://[::1]:80", {}, "http://[::1]"),
        (US, {"port": 443}, US),
        (US + ":443/api/v1", {}, US),
        ("https://example.com", {"port": 8443}, "https://example.com:8443"),
    ],
)
def test_the_base_url_is_built_from_the_given_fields(
    host: str | None, kwargs: dict[str, object], expected: str
) -> None:
    assert base_url(host, **kwargs) == expected  # type: ignore[arg-type]  # mixed keyword values


@pytest.mark.parametrize(
    ("host", "kwargs", "words"),
    [
        (None, {"region": "mars"}, "Region (extra field region) must be one of us, eu"),
        ("https://user:llx-secret@example.com", {}, "user information"),
        ("ftp://example.com", {}, "only https and http are supported"),
        ("https://", {}, "not a plain base URL"),
        ("https://example.com/?key=llx-secret", {}, "not a plain base URL"),
        ("https://exa mple.com", {}, "not a plain base URL"),
        ("https://example.com:notaport", {}, "not a URL"),
        ("https://[::1", {}, "not a URL"),
        ("https:/example.com", {}, "not a plain base URL"),
        ("example.com:0", {}, "not a plain base URL"),
        ("llx-secret", {}, "looks like an API key"),
        ("https://llx-secret", {}, "looks like an API key"),
        ("a1b2C3d4e5F6a7b8c9D0e1f2a3b4c5d6llxsecret", {}, "looks like an API key"),
    ],
)
def test_an_invalid_host_is_refused_without_repeating_it(host: str | None, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(LlamaCloudConfigError, match=re.escape(words)) as caught:
        base_url(host, **kwargs)
    assert "llx-secret" not in str(caught.value)
    assert "llxsecret" not in str(caught.value)
    assert "Host" not in str(caught.value), "the form calls it Base URL"
    assert "mars" not in str(caught.value)


@pytest.mark.parametrize(
    "key", [None, "", "  \n", "***", "********", "llx-a b", "llx-a\nb", "llx-ü", "llx-\x00", "\u2018llx-a\u2019"]
)
def test_an_invalid_key_is_refused_without_showing_it(key: str | None) -> None:
    with pytest.raises(InvalidApiKeyError) as caught:
        checked_api_key(key)
    assert "llx" not in str(caught.value)
    assert "password" in str(caught.value)


def test_white_space_around_a_key_is_dropped() -> None:
    assert checked_api_key(" llx-abc\n") == "llx-abc"


def test_a_configuration_does_not_show_its_key() -> None:
    config = ClientConfig.build(api_key="llx-canary")
    assert "canary" not in repr(config)
    assert (config.base_url, config.region, config.timeout, config.max_retries, config.history_lag) == (
        US,
        "us",
        60.0,
        5,
        10.0,
    )


def test_values_may_be_strings_as_forms_store_them() -> None:
    project = uuid.uuid4()
    config = ClientConfig.build(
        api_key="llx-a", timeout=" 2.5", max_retries="0", project_id=str(project).upper(), organization_id=project
    )
    assert (config.timeout, config.max_retries, config.project_id, config.organization_id) == (
        2.5,
        0,
        str(project),
        str(project),
    )


@pytest.mark.parametrize(
    "values",
    [
        {"timeout": "soon"},
        {"timeout": 0},
        {"timeout": float("inf")},
        {"timeout": True},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"max_retries": [1]},
        {"history_lag": -0.1},
        {"history_lag": "soon"},
        {"history_lag": True},
        {"history_lag": float("inf")},
        {"project_id": "my project"},
        {"organization_id": 17},
        {"timeout": 10**400},
        {"region": 1},
    ],
)
def test_an_invalid_value_is_named(values: dict[str, object]) -> None:
    with pytest.raises(LlamaCloudConfigError, match=next(iter(values))):
        ClientConfig.build(api_key="llx-a", **values)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *itertools.product(LABELS, ["llx-canary-0123456789", "LLX-canary-0123456789", "canary0123456789" * 3]),
        # As a host, these could be names of a machine.
        *itertools.product(CONNECTION_TYPE["conn-fields"], ["canary", "canary-0123456789"]),
    ],
)
def test_a_key_in_the_wrong_field_is_not_shown(name: str, key: str) -> None:
    with pytest.raises(LlamaCloudConfigError) as caught:
        ClientConfig.build(api_key="llx-a", **{name: key})  # type: ignore[arg-type]  # wrong on purpose
    assert "canary" not in str(caught.value)
    assert LABELS[name] in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"timeout": 0}, "The connection's Timeout (s) (extra field timeout) must be a number above 0, got 0."),
        ({"timeout": "-3"}, "a number above 0, got -3."),
        (
            {"max_retries": "1.5"},
            "Max retries (extra field max_retries) must be a whole number of at least 0, got 1.5.",
        ),
        ({"history_lag": -1}, "History lag (s) (extra field history_lag) must be a number of at least 0, got -1."),
        ({"timeout": "a minute"}, "a number above 0, got text of 8 characters."),
        ({"timeout": True}, "got a value of type bool."),
        ({"project_id": "my project"}, "The connection's Project ID (extra field project_id) must be a UUID"),
    ],
)
def test_a_field_is_named_as_the_form_calls_it(values: dict[str, Any], words: str) -> None:
    with pytest.raises(LlamaCloudConfigError, match=re.escape(words)):
        ClientConfig.build(api_key="llx-a", **values)


def test_a_wrong_argument_is_described_too() -> None:
    with pytest.raises(InvalidArgumentError, match=r"project_id must be a UUID.* got text of 6 characters") as caught:
        checked_uuid("project_id", "canary")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(("value", "expected"), [(None, 10.0), ("", 10.0), (0, 0.0), ("0", 0.0), (" 2.5", 2.5)])
def test_the_history_lag_is_ten_seconds_or_the_connections_value(value: Any, expected: float) -> None:
    assert ClientConfig.build(api_key="llx-a", history_lag=value).history_lag == expected


def test_blank_ids_are_none() -> None:
    assert checked_uuid("project_id", " ") is None
    with pytest.raises(InvalidArgumentError, match="must be a UUID"):
        checked_uuid("project_id", "x" * 500)


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("http://example.com", True),
        ("http://10.0.0.1", True),
        ("http://127.0.0.1:1", False),
        ("http://localhost", False),
        ("http://[::1]", False),
        ("https://example.com", False),
    ],
)
def test_plain_http_is_distinguished_from_loopback(host: str, plain: bool) -> None:
    assert ClientConfig.build(api_key="llx-a", host=host).is_plain_http is plain


def test_there_is_one_tls_context_for_each_set_of_certificates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    first = ssl_context()
    assert first is ssl_context()
    assert first.verify_mode is ssl.CERT_REQUIRED
    import certifi

    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    monkeypatch.setenv("SSL_CERT_DIR", "")
    assert ssl_context() is not first


def test_too_many_open_files_are_not_blamed_on_the_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted() -> ssl.SSLContext:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(config_module, "_contexts", {})  # the first client of a process builds it
    monkeypatch.setattr("httpx.create_ssl_context", exhausted)
    with pytest.raises(LlamaCloudConnectionError, match="too many open files") as caught:
        ssl_context()
    assert caught.value.retryable
    assert "SSL_CERT" not in str(caught.value)
