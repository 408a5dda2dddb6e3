"""Clients of the emulator, as the tests here use them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_llamachat.client import ClientConfig, LlamaCloudClient, no_backoff
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.testing import LlamaCloudEmulator


@pytest.fixture(autouse=True)
def _without_pauses() -> Iterator[None]:
    with no_backoff():
        yield


@pytest.fixture
def config(llamacloud_emulator: LlamaCloudEmulator) -> Callable[..., ClientConfig]:
    def build(**values: Any) -> ClientConfig:
        defaults = {
            "api_key": llamacloud_emulator.api_key,
            "base_url": llamacloud_emulator.url,
            "timeout": 30.0,
            "max_retries": 2,
            "history_lag": 0.0,
        }
        return ClientConfig(**{**defaults, **values})

    return build


@pytest.fixture
def client(config: Callable[..., ClientConfig]) -> Iterator[LlamaCloudClient]:
    with LlamaCloudClient(config()) as made:
        yield made


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, llamacloud_emulator: LlamaCloudEmulator) -> Any:
    """Set the default connection: the emulator's, but for what is given."""

    def make(**values: Any) -> LlamaCloudHook:
        connection = {
            "conn_type": "llamacloud",
            "password": llamacloud_emulator.api_key,
            "host": llamacloud_emulator.url,
        }
        monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", json.dumps({**connection, **values}))
        return LlamaCloudHook()

    return make
