"""One question, asked in each way that leads to an answer; each in a session of its own."""

from __future__ import annotations

import datetime as dt
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator, SendChatMessageOperator

PROMPT = "What was the revenue in Q3?"


def fail_once(context: Any, result: Any = None) -> None:
    """Let the first attempt fail after its answer, so that the retry finds it in the session's history."""
    if context["ti"].try_number == 1:
        raise RuntimeError("the first attempt fails after its answer")


with DAG(dag_id="sources", schedule=None, start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)):
    for task_id in ("worker", "deferred", "adopted", "deferred_adopted"):
        create = CreateChatSessionOperator(task_id=f"create_{task_id}", index_ids=["idx-filings"])
        SendChatMessageOperator(
            task_id=task_id,
            session_id=create.output["session_id"],
            prompt=PROMPT,
            deferrable=task_id.startswith("deferred"),
            retries=1,
            retry_delay=dt.timedelta(seconds=0.1),
            post_execute=fail_once if task_id.endswith("adopted") else None,
        )
    ChatBatchOperator(task_id="batch", prompts=[PROMPT], index_ids=["idx-filings"])
