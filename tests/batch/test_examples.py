"""The batch examples run to their end on a real Airflow, and what they leave is what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.airflow.runner import EXAMPLES, run

pytestmark = pytest.mark.usefixtures("airflow_database", "llamacloud_connection")


@pytest.mark.airflow
def test_the_nightly_batch_waits_asks_checks_and_reports(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.index_schedule(INDEX_FILINGS, ["parsing", "ready"])
    name = "llamachat_nightly_batch"
    result = run(EXAMPLES / f"{name}.py", name, {"output": f"file://{tmp_path}/results"})
    assert result.state == "success", result.tasks
    manifest = result.xcom("ask_all")
    assert (manifest["total"], manifest["answered"], manifest["sessions_deleted"]) == (4, 4, 4)
    lines = [
        json.loads(line) for line in Path(manifest["output_path"].removeprefix("file://")).read_text().splitlines()
    ]
    assert [line["id"] for line in lines] == ["revenue-q2", "revenue-q3", "risks", "capex"]
    assert "43.9 million" in lines[0]["answer"]
    page = Path(result.xcom("report").removeprefix("file://")).read_text()
    assert "## What was the revenue in Q3?" in page
    assert "47.5 million" in page
    assert llamacloud_emulator.posts() == llamacloud_emulator.completed() == 4
    assert llamacloud_emulator.sessions == {}
    assert sorted(path.suffix for path in (tmp_path / "results").iterdir()) == [".jsonl", ".md"]


@pytest.mark.airflow
def test_the_update_example_asks_in_one_session_and_passes_the_results_on(
    llamacloud_emulator: LlamaCloudEmulator,
) -> None:
    name = "llamachat_on_index_update"
    result = run(EXAMPLES / f"{name}.py", name)
    assert result.state == "success", result.tasks
    assert result.xcom("tell") == 2
    results = result.xcom("ask", "results")
    assert [line["outcome"] for line in results] == ["answered", "answered"]
    assert len({line["session_id"] for line in results}) == 1
    assert result.xcom("ask")["output_path"] is None
    assert llamacloud_emulator.sessions == {}


@pytest.mark.airflow
@pytest.mark.parametrize("name", ["llamachat_nightly_batch", "llamachat_on_index_update"])
@pytest.mark.parametrize("prompt", ["revenue in Q3", None], ids=["one question fails", "all questions fail"])
def test_a_batch_example_leaves_no_session_when_questions_fail(
    name: str, prompt: str | None, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt=prompt, status=422, times=None))
    conf = {"output": f"file://{tmp_path}/results", "answered_at_least": 0.5}
    result = run(EXAMPLES / f"{name}.py", name, conf if name == "llamachat_nightly_batch" else None)
    assert result.state == ("success" if prompt else "failed"), result.tasks
    assert max(result.tries.values()) == 1
    assert llamacloud_emulator.deleted
    assert llamacloud_emulator.sessions == {}
