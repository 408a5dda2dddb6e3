"""docs/walkthrough.md shows what a run really logs and pushes, but for ids, times and paths."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_llamachat.testing.dagruns import DagRunner
from tests.airflow.runner import AIRFLOW, own_warnings_only

DOCS = Path(__file__).resolve().parents[2] / "docs"
VARIES = re.compile(r"ses-[0-9a-f]{16}|\d{4}-\d\d-\d\d[ T][0-9:.]+(\+00:00)?|in \d+\.\d s")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / "walkthrough.md").read_text(), re.MULTILINE | re.DOTALL)


def alike(text: str) -> str:
    return VARIES.sub("*", text)


@pytest.mark.airflow
def test_the_lines_and_xcoms_of_the_walkthrough_are_those_of_a_run(
    tmp_path: Path, llamacloud_run_dag: DagRunner
) -> None:
    (dag,) = re.findall(
        r"^```python\n# dags/quarterly.py\n(.*?)^```", (DOCS / "testing.md").read_text(), re.MULTILINE | re.DOTALL
    )
    file = tmp_path / "quarterly.py"
    file.write_text(dag)
    with own_warnings_only():
        run = llamacloud_run_dag(file)
    assert run.state == "success", run.logs
    # On Airflow 2, dag.test() does not show what a trigger logs.
    shown = [block for block in blocks("text") if AIRFLOW >= (3, 0) or not block.startswith("thinking")]
    lines = [line for block in shown for line in block.splitlines()]
    assert len(lines) >= 7
    logs = alike(run.logs)
    assert [line for line in lines if alike(line) not in logs] == []
    for task_id, block in zip(("create", "ask"), blocks("json"), strict=True):
        pushed = {key: found for (task, key, _), found in run.xcoms.items() if task == task_id}
        assert normal(pushed) == normal(json.loads(block))


def normal(value: Any) -> Any:
    """The value without what differs in each run."""
    if isinstance(value, dict):
        return {key: None if key == "duration_ms" else normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    return alike(value) if isinstance(value, str) else value
