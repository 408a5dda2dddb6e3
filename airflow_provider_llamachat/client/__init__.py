"""Clients of LlamaCloud's chat API, synchronous and asynchronous, based on httpx. They use only the exception
classes of Airflow.

Layers, top first: :mod:`.sync` and :mod:`.aio` (the clients), :mod:`.sender` (how calls travel), :mod:`.calls` (what both share),
:mod:`.sse` (bytes to events), :mod:`.retry`, :mod:`.responses` (models and errors), :mod:`.endpoints`, :mod:`.config`.
"""

from __future__ import annotations

from airflow_provider_llamachat.client.aio import AsyncLlamaCloudClient
from airflow_provider_llamachat.client.config import ClientConfig
from airflow_provider_llamachat.client.retry import no_backoff
from airflow_provider_llamachat.client.sync import LlamaCloudClient

__all__ = ["AsyncLlamaCloudClient", "ClientConfig", "LlamaCloudClient", "no_backoff"]
