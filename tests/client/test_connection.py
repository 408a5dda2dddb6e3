"""Connections that are not what they should be: of another type, with an extra that is wrong, masked or not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from airflow_provider_llamachat.airflow_support import connection
from airflow_provider_llamachat.exceptions import LlamaCloudConfigError
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.testing import LlamaCloudEmulator


@pytest.mark.parametrize("conn_type", ["postgres", "http", "generic", "", None])
def test_a_connection_of_another_type_is_refused_before_anything_is_sent(
    conn_type: str | None, connect: Any, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    hook = connect(conn_type=conn_type)
    with pytest.raises(LlamaCloudConfigError, match=r"^The connection 'llamacloud_default' .*not llamacloud"):
        hook.get_conn()
    with pytest.raises(LlamaCloudConfigError, match=r"^The connection 'llamacloud_default' .*not llamacloud"):
        asyncio.run(hook.get_async_conn())
    assert hook.test_connection()[0] is False
    assert llamacloud_emulator.requests == []


@pytest.mark.parametrize("conn_id", ["None", " ", None, 7])
def test_a_connection_id_that_renders_to_nothing_is_named_in_the_error(conn_id: Any) -> None:
    hook = LlamaCloudHook(conn_id)
    with pytest.raises(LlamaCloudConfigError, match="llamacloud_conn_id must be the id"):
        hook.get_conn()
    with pytest.raises(LlamaCloudConfigError, match="llamacloud_conn_id must be the id"):
        asyncio.run(hook.get_async_conn())


class Stored:
    """A connection as a secrets backend may give it, whatever Airflow's own checks are."""

    conn_type, password, host, port, schema = "llamacloud", "llx-abcdefgh", "", None, None

    def __init__(self, extra: str | None) -> None:
        self.extra = extra


@pytest.mark.parametrize("extra", ["[1, 2]", "[]", "7", '"region"', "true", "{'region': 'eu'}", "region=eu"])
def test_an_extra_that_is_not_a_json_object_is_named_in_the_error(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaCloudHook, "get_connection", lambda self, conn_id: Stored(extra))
    monkeypatch.setattr(LlamaCloudHook, "aget_connection", _aget(extra), raising=False)
    with pytest.raises(LlamaCloudConfigError, match=r"extra .*JSON object"):
        LlamaCloudHook().get_conn()
    with pytest.raises(LlamaCloudConfigError, match=r"extra .*JSON object"):
        asyncio.run(LlamaCloudHook().get_async_conn())


def _aget(extra: str | None) -> Any:
    async def aget_connection(self: Any, conn_id: str) -> Stored:
        return Stored(extra)

    return aget_connection


@pytest.mark.parametrize("extra", [None, "", " ", "{}", "null", '{"region": "eu"}'])
def test_an_empty_extra_uses_the_defaults(extra: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaCloudHook, "get_connection", lambda self, conn_id: Stored(extra))
    assert LlamaCloudHook().get_config().region == ("eu" if extra and "eu" in extra else "us")


def test_an_unknown_extra_field_is_warned_about_once_with_the_nearest_name(
    connect: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_warned", set())  # what other tests warned of
    for _ in range(2):
        connect(extra=json.dumps({"regoin": "eu", "llx-canary-0123456789": 1, "timeout": 5})).get_config()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2, warnings
    assert "extra field 'regoin' is unknown and has no effect. Did you mean 'region'?" in warnings[0]
    assert "Valid fields: region, project_id, organization_id, timeout, max_retries, history_lag" in warnings[1]
    assert "canary" not in caplog.text


@pytest.mark.long
def test_a_region_causes_no_warning_about_short_secrets() -> None:
    """In a process of its own, because Airflow warns once in each."""
    code = (
        "import asyncio; from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook;"
        "config = LlamaCloudHook().get_config();"
        "assert config.region == 'eu';"
        "assert asyncio.run(LlamaCloudHook().get_async_conn()).config.region == 'eu'"
    )
    connection = json.dumps({"conn_type": "llamacloud", "password": "llx-abcdefgh", "extra": {"region": "eu"}})
    environment = {**os.environ, "AIRFLOW_CONN_LLAMACLOUD_DEFAULT": connection}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=environment,
    )
    assert "too short" not in done.stdout + done.stderr


def test_a_key_that_airflow_masked_is_not_masked_again(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    masked: list[str] = []
    monkeypatch.setattr("airflow_provider_llamachat.hooks.llamacloud.mask_secret", masked.append)
    connect(password="llx-0123456789").get_config()
    assert masked == []
    connect(password=" llx-0123456789\n").get_config()
    assert masked == ["llx-0123456789"]
