"""Create a chat session, pass its ids to downstream tasks, ask a question, and always delete the session.

Requires the connection ``llamacloud_default``, and the ids of your indexes as a Dag parameter.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SendChatMessageOperator,
)

with DAG(
    dag_id="llamachat_create_and_use",
    schedule=None,
    catchup=False,
    tags=["llamachat", "example"],
    doc_md=__doc__,
    render_template_as_native_obj=True,
    params={
        "index_ids": Param(["idx-filings"], type="array", items={"type": "string"}, title="Index ids"),
        "prompt": Param("What was the revenue in Q3?", type="string", title="Question"),
    },
) as dag:
    create = CreateChatSessionOperator(task_id="create_session", index_ids="{{ params.index_ids }}")

    ask = SendChatMessageOperator(
        task_id="ask",
        session_id=create.output["session_id"],
        prompt="{{ params.prompt }}",
    )

    @task
    def report(session_id: str, index_ids: list[str], answer: str) -> dict[str, object]:
        """Read both XComs and the answer."""
        print(f"Session {session_id} over {index_ids} says: {answer}")
        return {"session_id": session_id, "index_ids": index_ids, "answer": answer}

    delete = DeleteChatSessionOperator(task_id="delete_session", session_id=create.output["session_id"])

    reported = report(create.output["session_id"], create.output["index_ids"], ask.output)
    create >> ask >> reported >> delete.as_teardown(setups=create)
