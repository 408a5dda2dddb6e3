"""A turn that has five seconds, for the test without a triggerer."""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_llamachat.airflow_support import task_state
from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator, SendChatMessageOperator

# A task process imports this file too. What is tested is that the time ends, not how long it is.
task_state.GRACE = timedelta(seconds=5)

with DAG(dag_id="survival_hurried", schedule=None, catchup=False):
    created = CreateChatSessionOperator(task_id="create", index_ids=["idx-filings"])
    SendChatMessageOperator(
        task_id="ask",
        session_id=created.output["session_id"],
        prompt="What was the revenue in Q3?",
        deferrable=True,
        turn_timeout=5,
    )
