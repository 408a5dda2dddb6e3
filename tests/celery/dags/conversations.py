"""Many conversations at once, each created, asked and deleted by itself; the questions come with the run."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task, task_group

from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SendChatMessageOperator,
)

COMMON: dict[str, Any] = {"retries": 3, "retry_delay": 1}

for mode in ("worker", "trigger"):
    with DAG(dag_id=f"celery_{mode}", schedule=None, catchup=False, max_active_tasks=64):

        @task(retries=3, retry_delay=1)
        def questions(**context: Any) -> list[str]:
            return list(context["dag_run"].conf["questions"])

        @task_group
        def conversation(question: str, deferrable: bool) -> None:
            create = CreateChatSessionOperator(task_id="create", index_ids=["idx-vaults"], **COMMON)
            session_id = create.output["session_id"]
            ask = SendChatMessageOperator(
                task_id="ask",
                session_id=session_id,
                prompt=question,
                deferrable=deferrable,
                turn_timeout=120,
                **COMMON,
            )
            delete = DeleteChatSessionOperator(task_id="delete", session_id=session_id, **COMMON)
            ask >> delete.as_teardown(setups=create)

        conversation.partial(deferrable=mode == "trigger").expand(question=questions())
