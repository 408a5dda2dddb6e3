"""Prompts of asynchronous functions, and a connection that only the metadata database knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator, SendChatMessageOperator

COMMON: dict[str, Any] = {"schedule": None, "catchup": False}
Q3 = "What was the revenue in Q3?"

with DAG(dag_id="asynchronous", **COMMON):
    created = CreateChatSessionOperator(task_id="create", index_ids="idx-filings")

    @task.llamachat(session_id=created.output["session_id"])
    async def awaited(topic: str) -> str:
        """Return a prompt after a while."""
        await asyncio.sleep(0.01)
        return f"What about {topic}?"

    awaited("revenue")

with DAG(dag_id="generating", **COMMON):

    @task.llamachat(session_id="ses-1", retries=2)
    async def yields() -> AsyncIterator[str]:
        """Yield a prompt, which no task waits for."""
        yield "What?"

    yields()

with DAG(dag_id="stored_connection", **COMMON):
    opened = CreateChatSessionOperator(task_id="create", index_ids="idx-filings", llamacloud_conn_id="stored")
    SendChatMessageOperator(
        task_id="ask",
        session_id=opened.output["session_id"],
        prompt=Q3,
        llamacloud_conn_id="stored",
        deferrable=True,
    )
