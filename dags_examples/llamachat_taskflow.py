"""Use TaskFlow: a function returns the prompt, and ``@task.llamachat`` asks it."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import dag, task

from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator, DeleteChatSessionOperator


@dag(dag_id="llamachat_taskflow", schedule=None, catchup=False, tags=["llamachat", "example"], doc_md=__doc__)
def llamachat_taskflow() -> None:
    """Pick a topic, ask about it, and use the answer."""
    create = CreateChatSessionOperator(task_id="create_session", index_ids=["idx-handbook"])

    @task
    def pick_topic() -> str:
        """Choose a topic. In practice, this could be a query, a file or a message."""
        return "vacation"

    @task.llamachat(session_id=create.output["session_id"], retries=2, retry_delay=10)
    def ask_about(topic: str) -> str:
        """Return the prompt. The return value of the task is the answer."""
        return f"What does the handbook say about {topic}?"

    @task
    def publish(answer: str) -> int:
        """Use the answer."""
        print(answer)
        return len(answer)

    delete = DeleteChatSessionOperator(task_id="delete_session", session_id=create.output["session_id"])
    publish(ask_about(pick_topic())) >> delete.as_teardown(setups=create)


llamachat_taskflow()
