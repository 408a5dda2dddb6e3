"""A Dag for the page of conversations: its runs are rows that a test writes, so it never runs."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator

with DAG("quarterly_reports", schedule=None):
    for name in ("ask_revenue", "ask_outlook", "ask_risks"):
        SendChatMessageOperator(task_id=name, session_id="ses-1", prompt="never asked")
    SendChatMessageOperator.partial(task_id="ask_region", session_id="ses-1").expand(prompt=["one", "two"])
    ChatBatchOperator(task_id="nightly_batch", prompts=["never asked"])
