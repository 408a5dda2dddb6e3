"""The only I/O of this provider: LlamaCloud's chat API over httpx, synchronous and asynchronous. Of Airflow it
needs the exception classes only.

Layers, top first: :mod:`.sync` and :mod:`.aio` (thin senders), :mod:`.calls` (what both say alike), :mod:`.streaming`
(bytes to events), :mod:`.replies` (answers and errors), :mod:`.replaying` (what is sent again, and when), :mod:`.config`.
"""

from __future__ import annotations

from airflow_provider_llamachat.client.aio import AsyncLlamaCloudClient
from airflow_provider_llamachat.client.config import ClientConfig
from airflow_provider_llamachat.client.replaying import no_backoff
from airflow_provider_llamachat.client.sync import LlamaCloudClient

__all__ = ["AsyncLlamaCloudClient", "ClientConfig", "LlamaCloudClient", "no_backoff"]
