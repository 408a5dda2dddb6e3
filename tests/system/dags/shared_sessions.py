"""Many questions at once in few sessions; the prompts, a list for each session, come with the run."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator

for mode in ("direct", "deferred"):
    with DAG(dag_id=f"shared_sessions_{mode}", schedule=None, catchup=False):

        @task
        def questions(**context: Any) -> list[dict[str, str]]:
            asked = []
            for prompts in context["dag_run"].conf["prompts"]:
                session_id = LlamaCloudHook().create_session(["idx-vaults"]).session_id
                asked += [{"session_id": session_id, "prompt": prompt} for prompt in prompts]
            return asked

        SendChatMessageOperator.partial(
            task_id="ask", deferrable=mode == "deferred", turn_timeout=600, retries=0
        ).expand_kwargs(questions())
