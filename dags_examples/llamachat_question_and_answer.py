"""A conversation: create a session, ask a question, ask a follow-up question, and delete the session.

The session is deleted in a teardown, so it is also deleted if a question fails, and the run is still marked as failed.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SendChatMessageOperator,
)

with DAG(
    dag_id="llamachat_question_and_answer",
    schedule=None,
    catchup=False,
    tags=["llamachat", "example"],
    doc_md=__doc__,
    default_args={"retries": 2, "retry_delay": 10},
) as dag:
    create = CreateChatSessionOperator(task_id="create_session", index_ids=["idx-filings"])
    session_id = create.output["session_id"]

    revenue = SendChatMessageOperator(
        task_id="ask_revenue", session_id=session_id, prompt="What was the revenue in Q3?"
    )
    follow_up = SendChatMessageOperator(task_id="ask_follow_up", session_id=session_id, prompt="And in Q2?")

    @task
    def compare(first: str, second: str, usage: dict[str, object]) -> str:
        """Compare both answers. ``usage`` is the usage of the second one."""
        summary = f"Q3: {first}\nQ2: {second}\nThe second answer took {usage['total_output_tokens']} output tokens."
        print(summary)
        return summary

    delete = DeleteChatSessionOperator(task_id="delete_session", session_id=session_id)

    # A session answers one turn at a time, so the second question waits for the first.
    revenue >> follow_up
    compare(revenue.output, follow_up.output, follow_up.output["usage"]) >> delete.as_teardown(setups=create)
