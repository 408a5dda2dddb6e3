"""Ask the same questions every night: wait for the index, ask all questions in one task, and write a report.

The answers are written to a JSON Lines file for each run, and only a manifest is pushed to XCom. ``ask_all`` fails if too few questions
were answered, and a retry asks only the missing ones. ``output`` may be any path of Airflow's object storage, for example ``s3://my_aws_connection@bucket/llamachat``.
"""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, Param, task

from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.sensors.index import IndexReadySensor

QUESTIONS = [
    {"id": "revenue-q2", "prompt": "What was the revenue in Q2?"},
    {"id": "revenue-q3", "prompt": "What was the revenue in Q3?"},
    {"id": "risks", "prompt": "Which risk factors does the Q3 report name?"},
    {"id": "capex", "prompt": "What was spent on capital expenditure in Q2?"},
]

with DAG(
    dag_id="llamachat_nightly_batch",
    schedule="0 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["llamachat", "example"],
    doc_md=__doc__,
    render_template_as_native_obj=True,
    params={
        "index_ids": Param(["idx-filings"], type="array", items={"type": "string"}, title="Index ids"),
        "questions": Param(QUESTIONS, type="array", title="Questions"),
        "output": Param(f"file://{tempfile.gettempdir()}/llamachat", type="string", title="Folder of the results"),
        "answered_at_least": Param(
            0.9, type="number", exclusiveMinimum=0, maximum=1, title="Minimum share of answered questions"
        ),
    },
) as dag:
    ready = IndexReadySensor(
        task_id="index_ready",
        index_ids="{{ params.index_ids }}",
        wait_for_sync=True,
        deferrable=True,
        poke_interval=30,
        timeout=timedelta(hours=2).total_seconds(),
    )

    ask_all = ChatBatchOperator(
        task_id="ask_all",
        prompts="{{ params.questions }}",
        index_ids="{{ params.index_ids }}",
        max_concurrency=8,
        # Each run has its own file. Colons are removed, because not all stores allow them in names.
        output_path="{{ params.output }}/{{ run_id | replace(':', '') }}.jsonl",
        # As a decimal number, because 1 means one question, and 1.0 all of them.
        min_answered="{{ params.answered_at_least | float }}",
        delete_sessions=True,
        retries=2,
        retry_delay=timedelta(minutes=5),
    )

    @task
    def report(manifest: dict[str, Any]) -> str:
        """Write the results to a Markdown file next to them."""
        results = ObjectStoragePath(manifest["output_path"])
        lines = ["# Answers", ""]
        for line in results.read_text().strip().split("\n"):
            item = json.loads(line)
            lines += [f"## {item['prompt']}", "", item["answer"] or f"No answer: {item['error']['message']}", ""]
        page = results.parent / f"{results.name.removesuffix('.jsonl')}.md"
        page.write_text("\n".join(lines))
        return str(page)

    ready >> ask_all
    report(ask_all.output)
