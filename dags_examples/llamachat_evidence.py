"""Answers with evidence: ask, check that each answer has sources, write a report with footnotes, and keep the conversation.

The session is deleted in a teardown, after its transcript was saved as an HTML page. If saving fails, the session is kept.
``output`` may be any path of Airflow's object storage, for example ``s3://my_aws_connection@bucket/llamachat``.
"""

from __future__ import annotations

import tempfile
from typing import Any

from airflow.providers.common.compat.sdk import DAG, AirflowFailException, ObjectStoragePath, Param, task

from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SendChatMessageOperator,
)

FOLDER = "{{ params.output }}/{{ run_id | replace(':', '') }}"

with DAG(
    dag_id="llamachat_evidence",
    schedule=None,
    catchup=False,
    tags=["llamachat", "example"],
    doc_md=__doc__,
    default_args={"retries": 2, "retry_delay": 10},
    params={
        "output": Param(f"file://{tempfile.gettempdir()}/llamachat", type="string", title="Folder of the report"),
    },
) as dag:
    create = CreateChatSessionOperator(task_id="create_session", index_ids=["idx-filings"])
    session_id = create.output["session_id"]

    revenue = SendChatMessageOperator(
        task_id="ask_revenue", session_id=session_id, prompt="What was the revenue in Q3?"
    )
    risks = SendChatMessageOperator(
        task_id="ask_risks", session_id=session_id, prompt="Which risk factors does the Q3 report name?"
    )

    @task
    def check(*found: list[dict[str, Any]]) -> None:
        """Fail the run if an answer has no source. A retry would adopt the same answer, so it would not help."""
        for number, sources in enumerate(found, start=1):
            if not any("text" in source for source in sources):
                raise AirflowFailException(f"Answer {number} is not based on any passage of a document.")

    @task
    def report(folder: str, answers: list[str], found: list[list[dict[str, Any]]]) -> str:
        """Write the answers to a Markdown file, with a footnote for each source."""
        lines = ["# Halden Instruments, Q3", ""]
        notes: list[str] = []
        for answer, sources in zip(answers, found, strict=True):
            marks = ""
            for source in sources:
                # Each field may be missing, and the last entry of a list that was cut is a note.
                name = source.get("note") or source.get("file_name") or source.get("file_id") or source["tool"]
                first, last = source.get("pages", [None, None])
                pages = "" if first is None else f", page {first}" if first == last else f", pages {first}-{last}"
                notes.append(f"[^{len(notes) + 1}]: {name}{pages}")
                marks += f"[^{len(notes)}]"
            lines += [f"{answer}{marks}", ""]
        page = ObjectStoragePath(folder) / "report.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("\n".join([*lines, *notes, ""]))
        return str(page)

    delete = DeleteChatSessionOperator(
        task_id="delete_session",
        session_id=session_id,
        transcript_path=FOLDER + "/{{ ti.xcom_pull(task_ids='create_session', key='session_id') }}.html",
        transcript_format="html",
    )

    revenue >> risks  # a session answers one turn at a time
    sources = [revenue.output["sources"], risks.output["sources"]]
    checked = check(*sources)
    written = report(FOLDER, [revenue.output, risks.output], sources)
    checked >> written >> delete.as_teardown(setups=create)
