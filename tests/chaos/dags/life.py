"""Conversations and a batch for a whole Airflow whose workers and triggerer are killed; what is asked comes with the run."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SendChatMessageOperator,
)

COMMON: dict[str, Any] = {"retries": 3, "retry_delay": 1}
INDEX = "idx-vaults"

for mode in ("worker", "trigger"):
    with DAG(dag_id=f"chaos_{mode}", schedule=None, catchup=False):
        create = CreateChatSessionOperator(task_id="create", index_ids=[INDEX], **COMMON)
        session_id = create.output["session_id"]  # type: ignore[index]  # Airflow leaves out that an output can be indexed
        first, second = (
            SendChatMessageOperator(
                task_id=f"ask_{number}",
                session_id=session_id,
                prompt=f"{{{{ dag_run.conf['prompts'][{number}] }}}}",
                deferrable=mode == "trigger",
                turn_timeout=60,
                **COMMON,
            )
            for number in range(2)
        )
        delete = DeleteChatSessionOperator(task_id="delete", session_id=session_id, **COMMON)
        first >> second >> delete.as_teardown(setups=create)

with DAG(dag_id="chaos_batch", schedule=None, catchup=False, render_template_as_native_obj=True):
    ChatBatchOperator(
        task_id="batch",
        prompts="{{ dag_run.conf['prompts'] }}",
        index_ids=[INDEX],
        max_concurrency=2,
        delete_sessions=True,
        output_path="{{ dag_run.conf['output_path'] }}",
        turn_timeout=60,
        **COMMON,
    )
