"""The same conversation for each index, with a mapped task group that creates a session, asks a question, and deletes the session.

Each session has its own teardown, so it is also deleted if its question fails. The other conversations continue.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task, task_group

from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SendChatMessageOperator,
)

CONVERSATIONS = [
    {"index_ids": ["idx-filings"], "question": "What was the revenue in Q3?"},
    {"index_ids": ["idx-handbook"], "question": "How many vacation days are there?"},
]

with DAG(dag_id="llamachat_mapped", schedule=None, catchup=False, tags=["llamachat", "example"], doc_md=__doc__) as dag:

    @task_group
    def conversation(index_ids: list[str], question: str) -> Any:
        """One conversation. Airflow creates one for each mapped entry."""
        create = CreateChatSessionOperator(task_id="create_session", index_ids=index_ids)
        ask = SendChatMessageOperator(
            task_id="ask",
            session_id=create.output["session_id"],
            prompt=question,
            retries=2,
            retry_delay=10,
            # Maximum number of concurrent turns in the Dag run.
            max_active_tis_per_dagrun=8,
        )
        delete = DeleteChatSessionOperator(task_id="delete_session", session_id=create.output["session_id"])
        create >> ask >> delete.as_teardown(setups=create)
        return ask.output

    @task
    def collect(answers: list[str]) -> list[str]:
        """Read all answers in the order of the questions."""
        found = list(answers)
        for answer in found:
            print(answer)
        return found

    collect(conversation.expand_kwargs(CONVERSATIONS))
