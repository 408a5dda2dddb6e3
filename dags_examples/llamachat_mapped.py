"""The same conversation for each index: a mapped group of tasks that creates a session, asks in it, and deletes it.

Each session has a teardown of its own, so it goes away when its question fails, too; the other conversations go on.
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
        """One conversation; Airflow makes as many as there are entries to map over."""
        create = CreateChatSessionOperator(task_id="create_session", index_ids=index_ids)
        ask = SendChatMessageOperator(
            task_id="ask",
            session_id=create.output["session_id"],
            prompt=question,
            retries=2,
            retry_delay=10,
            # At most this many turns at once, across the whole run.
            max_active_tis_per_dagrun=8,
        )
        delete = DeleteChatSessionOperator(task_id="delete_session", session_id=create.output["session_id"])
        create >> ask >> delete.as_teardown(setups=create)
        return ask.output

    @task
    def collect(answers: list[str]) -> list[str]:
        """Read all answers, in the order of the questions."""
        found = list(answers)
        for answer in found:
            print(answer)
        return found

    collect(conversation.expand_kwargs(CONVERSATIONS))
