"""The same conversation for each index: mapped sessions, and one mapped question in each of them.

Airflow maps over return values only, so the questions are mapped over the sessions themselves (``create.output``), which
stand for their ids.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SendChatMessageOperator,
)

QUESTIONS = {"idx-filings": "What was the revenue in Q3?", "idx-handbook": "How many vacation days are there?"}

with DAG(dag_id="llamachat_mapped", schedule=None, catchup=False, tags=["llamachat", "example"], doc_md=__doc__) as dag:
    create = CreateChatSessionOperator.partial(task_id="create_session").expand(
        index_ids=[[name] for name in QUESTIONS]
    )

    @task
    def pair(sessions: list[dict[str, object]]) -> list[dict[str, object]]:
        """Give each session the question for its index."""
        return [
            {"session_id": session["session_id"], "prompt": QUESTIONS[str(index)]}
            for session in sessions
            for index in (session["index_ids"] or [])  # type: ignore[attr-defined]  # a list of ids, as JSON gives it
        ]

    ask = SendChatMessageOperator.partial(
        task_id="ask",
        retries=2,
        retry_delay=10,
        # At most this many turns at once, across the whole run.
        max_active_tis_per_dagrun=8,
    ).expand_kwargs(pair(create.output))

    @task
    def collect(answers: list[str]) -> list[str]:
        """Read all answers, in the order of the questions."""
        found = list(answers)
        for answer in found:
            print(answer)
        return found

    delete = DeleteChatSessionOperator.partial(task_id="delete_session").expand(session_id=create.output)

    collect(ask.output) >> delete
