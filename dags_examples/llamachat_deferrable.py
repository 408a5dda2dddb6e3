"""Wait for long answers in the triggerer, without occupying a worker.

If the triggerer is restarted during an answer, it reads the session's history and resumes. It does not ask again.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SendChatMessageOperator,
)

with DAG(
    dag_id="llamachat_deferrable", schedule=None, catchup=False, tags=["llamachat", "example"], doc_md=__doc__
) as dag:
    create = CreateChatSessionOperator(task_id="create_session", index_ids=["idx-filings", "idx-handbook"])

    ask = SendChatMessageOperator(
        task_id="ask",
        session_id=create.output["session_id"],
        prompt="Compare the revenue of Q2 and Q3.",
        deferrable=True,
        turn_timeout=timedelta(minutes=20),
        # A retry looks for the answer first. If the answer stopped partway, it asks once more, although the first turn may have
        # been billed.
        retries=3,
        retry_delay=timedelta(seconds=30),
        on_interrupted="ask_again",
    )

    delete = DeleteChatSessionOperator(task_id="delete_session", session_id=create.output["session_id"])

    ask >> delete.as_teardown(setups=create)
