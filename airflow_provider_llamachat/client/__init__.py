"""Clients of LlamaCloud's chat API, synchronous and asynchronous, based on httpx. They use only the exception
classes of Airflow.

Layers, top first: :mod:`.sync` and :mod:`.aio` (the clients), :mod:`.sender` (how calls travel), :mod:`.calls` (what both share),
:mod:`.sse` (bytes to events), :mod:`.retry`, :mod:`.responses` (models and errors), :mod:`.endpoints`, :mod:`.config`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.client.config import ClientConfig
from airflow_provider_llamachat.client.retry import no_backoff

if TYPE_CHECKING:
    from airflow_provider_llamachat.client.aio import AsyncLlamaCloudClient
    from airflow_provider_llamachat.client.sync import LlamaCloudClient

__all__ = ["AsyncLlamaCloudClient", "ClientConfig", "LlamaCloudClient", "no_backoff"]

_HOMES = {"AsyncLlamaCloudClient": "aio", "LlamaCloudClient": "sync"}
"""Loaded on first use: a process needs one of them."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
