"""What mypy says of users' Dags: nothing, but for what Airflow's own types lack."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # mypy reads all of Airflow's types

GIVEN = """
from datetime import timedelta
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SaveTranscriptOperator,
    SendChatMessageOperator,
)
from airflow_provider_llamachat.operators.index import SyncIndexOperator
from airflow_provider_llamachat.sensors.index import IndexReadySensor
from airflow_provider_llamachat.triggers.index import IndexUpdatedTrigger

with DAG(dag_id="given"):
    sync = SyncIndexOperator(task_id="sync", index_id="{{ params.index_id }}")
    out = sync.output
    SyncIndexOperator(task_id="again", index_id=out, project_id=out, organization_id=out)
    IndexReadySensor(task_id="ready", index_ids=out, wait_for_sync=out, project_id=out, organization_id=out)
    IndexReadySensor(task_id="other", index_ids=["idx"], wait_for_sync="{{ params.sync }}", timeout=timedelta(hours=1))
    create = CreateChatSessionOperator(
        task_id="create", index_ids=out, shared_access=out, wait_for_indexes=out, index_timeout=out
    )
    ChatBatchOperator(task_id="from_another", prompts=out, llamacloud_conn_id=out)
    IndexReadySensor(task_id="sensor", index_ids=["idx"], llamacloud_conn_id=out)
    SendChatMessageOperator(task_id="send", session_id=out, prompt="Why?", llamacloud_conn_id=out)
    SaveTranscriptOperator(task_id="copy", session_id=out, output_path="/data/copy.md", llamacloud_conn_id=out)
    DeleteChatSessionOperator(task_id="remove", session_id=out, llamacloud_conn_id=out)
    SyncIndexOperator(task_id="once_more", index_id="idx", llamacloud_conn_id=out)
    CreateChatSessionOperator(task_id="elsewhere", llamacloud_conn_id=out)
    CreateChatSessionOperator(task_id="plain", index_ids=["idx"], index_timeout=timedelta(minutes=5))
    SendChatMessageOperator(
        task_id="ask", session_id=create.output, prompt=out, index_ids=out, turn_timeout=out, on_interrupted=out
    )
    SaveTranscriptOperator(task_id="save", session_id=create.output, output_path=Path("/data") / "{{ ds }}", format=out)
    DeleteChatSessionOperator(
        task_id="delete", session_id=create.output, ignore_missing=out, transcript_path=out, transcript_format="html"
    )
    ChatBatchOperator(
        task_id="batch",
        prompts=out,
        index_ids=out,
        max_concurrency=out,
        requests_per_minute=out,
        session_mode=out,
        output_path=Path("/data") / "{{ run_id }}.jsonl",
        on_item_error=out,
        on_interrupted=out,
        min_answered=out,
        on_empty=out,
        max_total_tokens=out,
        max_turns=out,
        delete_sessions=out,
        require_all_indexes=out,
        turn_timeout=out,
    )
    ChatBatchOperator(task_id="numbers", prompts=["Why?"], max_concurrency=3, requests_per_minute=2.5, turn_timeout=60)
    ChatBatchOperator(task_id="file", prompts_path=Path("/data") / "{{ ds }}.csv", min_answered=0.9, max_turns=5, on_empty="fail")
    IndexUpdatedTrigger(index_id="idx", poke_interval=timedelta(minutes=1))
"""
AIRFLOW_LACKS = re.compile(
    r'error: (Value of type "XComArg" is not indexable  \[index\]|Argument \d+ has incompatible type "XComArg"; expected .*\[arg-type\])$'
)
"""An output can be indexed at run time, and a function under @task takes outputs for its arguments."""


def test_operators_accept_the_outputs_of_tasks(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    readme = (repository / "README.md").read_text()
    (dag,) = re.findall(r"^## A Dag to paste\n+```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    for name, text in {"readme": dag, "given": GIVEN, "wrong": GIVEN.replace("index_id=out", "index_id=3")}.items():
        (tmp_path / f"users_{name}.py").write_text(text)
    files = [str(path) for path in sorted(tmp_path.glob("*.py"))]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", "--hide-error-context"]
    command.append(f"--cache-dir={repository / '.mypy_cache' / 'users'}")
    ran = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert not ran.stderr, ran.stderr
    errors = [line for line in ran.stdout.splitlines() if not AIRFLOW_LACKS.search(line)]
    assert len(errors) == 1, ran.stdout
    assert "users_wrong.py" in errors[0]
    assert 'Argument "index_id" to "SyncIndexOperator" has incompatible type "int"' in errors[0]
