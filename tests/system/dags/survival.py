"""Conversations for tests that kill what runs them."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator, SendChatMessageOperator
from airflow_provider_llamachat.retry_policy import ServerRetryPolicy

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


class FailsAfterItsAnswer(SendChatMessageOperator):
    """Has its answer, and fails in its first try before Airflow has it."""

    def post_execute(self, context: Any, result: Any = None) -> None:
        """Airflow calls this before it keeps what ``execute`` returned."""
        if context["ti"].try_number == 1:
            raise RuntimeError("failed after the answer")


with DAG(dag_id="survival_hand_over", schedule=None, catchup=False):
    created = CreateChatSessionOperator(task_id="create", index_ids=["idx-filings"])
    FailsAfterItsAnswer(task_id="ask", session_id=created.output["session_id"], **{**ASK, "retries": 0})

for mode in ("direct", "deferred"):
    with DAG(dag_id=f"survival_refused_{mode}", schedule=None, catchup=False):
        for_refused = CreateChatSessionOperator(task_id="create", index_ids=["idx-filings"])
        SendChatMessageOperator(
            task_id="ask",
            session_id=for_refused.output["session_id"],
            llamacloud_conn_id="llamacloud_once",
            deferrable=mode == "deferred",
            retry_policy=ServerRetryPolicy(),
            **{**ASK, "retry_delay": 86_400},
        )
