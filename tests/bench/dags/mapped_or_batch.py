"""The same questions asked by one task each, and by one task for all; for the benchmark beside this folder."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_llamachat.operators.batch import ChatBatchOperator

with DAG(dag_id="bench_mapped", schedule=None, catchup=False):

    @task
    def questions(params: dict[str, int] | None = None) -> list[str]:
        """As many as the run says."""
        return [f"Question {number}?" for number in range(int((params or {}).get("count", 4)))]

    @task
    def ask(prompt: str) -> str:
        """Open a session and ask: the least that a task for each prompt can do."""
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

        hook = LlamaCloudHook()
        session = hook.create_session(["idx-filings"])
        return hook.send_message(session.session_id, prompt, index_ids=["idx-filings"], baseline=0).answer

    ask.expand(prompt=questions())

with DAG(dag_id="bench_batch", schedule=None, catchup=False, render_template_as_native_obj=True):
    ChatBatchOperator(
        task_id="ask",
        prompts="{{ params.prompts }}",
        index_ids="idx-filings",
        max_concurrency=32,
        output_path="{{ params.output }}",
    )
