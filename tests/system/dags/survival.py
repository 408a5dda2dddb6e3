"""Conversations for tests that kill what runs them."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator, SendChatMessageOperator

ASK: dict[str, Any] = {
    "prompt": "What was the revenue in Q3?",
    "retries": 2,
    "retry_delay": 1,
    "turn_timeout": 120,
}

for mode in ("direct", "deferred"):
    with DAG(dag_id=f"survival_{mode}", schedule=None, catchup=False):
        create = CreateChatSessionOperator(task_id="create", index_ids=["idx-filings"])
        SendChatMessageOperator(
            task_id="ask", session_id=create.output["session_id"], deferrable=mode == "deferred", **ASK
        )
