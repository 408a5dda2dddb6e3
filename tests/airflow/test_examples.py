"""Every example Dag runs to its end on a real Airflow, answers what it asks, and leaves no session over."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.airflow.runner import EXAMPLES, load, run

pytestmark = pytest.mark.usefixtures("airflow_database", "llamacloud_connection")

CHATS = {
    "llamachat_create_and_use": 1,
    "llamachat_question_and_answer": 2,
    "llamachat_mapped": 2,
    "llamachat_deferrable": 1,
    "llamachat_taskflow": 1,
    "llamachat_evidence": 2,
}
"""Dag id (and file name) of each example about sessions and turns: how many turns it asks."""


@pytest.mark.airflow
@pytest.mark.parametrize("name", CHATS)
def test_an_example_works_as_it_stands(name: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    result = run(EXAMPLES / f"{name}.py", name, {"output": f"file://{tmp_path}"})
    assert result.state == "success", result.tasks
    assert llamacloud_emulator.posts() == llamacloud_emulator.completed() == CHATS[name]
    assert llamacloud_emulator.sessions == {}
    assert llamacloud_emulator.deleted


@pytest.mark.airflow
@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("llamachat_create_and_use", "Q3"),
        ("llamachat_question_and_answer", "And in Q2?"),
        ("llamachat_mapped", "vacation"),
        ("llamachat_deferrable", "Compare"),
        ("llamachat_taskflow", "vacation"),
        ("llamachat_evidence", "risk factors"),
    ],
)
def test_an_example_leaves_no_session_when_a_question_fails(
    name: str, prompt: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt=prompt, status=422, times=None))
    result = run(EXAMPLES / f"{name}.py", name, {"output": f"file://{tmp_path}"})
    assert result.state == "failed", result.tasks
    states = [state for states in result.tasks.values() for state in states]
    assert states.count("failed") == 1
    deleting = [task_id for task_id in result.tasks if task_id.endswith("delete_session")]
    assert [result.tasks[task_id] for task_id in deleting] == [["success"] * (2 if name == "llamachat_mapped" else 1)]
    assert llamacloud_emulator.sessions == {}
    assert llamacloud_emulator.deleted
    assert llamacloud_emulator.completed() == CHATS[name] - 1


def test_a_downstream_task_receives_session_id_and_index_ids(llamacloud_emulator: LlamaCloudEmulator) -> None:
    result = run(EXAMPLES / "llamachat_create_and_use.py", "llamachat_create_and_use")
    received = result.xcom("report")
    assert received["session_id"] == llamacloud_emulator.deleted[0]
    assert received["index_ids"] == ["idx-filings"]
    assert received["answer"] == result.xcom("ask")


@pytest.mark.airflow
def test_the_evidence_example_leaves_a_report_with_footnotes_and_a_transcript(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    result = run(EXAMPLES / "llamachat_evidence.py", "llamachat_evidence", {"output": f"file://{tmp_path}"})
    page = Path(result.xcom("report").removeprefix("file://"))
    text = page.read_text()
    assert "47.5 million euros" in text
    assert "[^1]: Halden Instruments, report Q3 2025, page 2\n" in text
    assert text.count("[^2]") == 2
    (kept,) = page.parent.glob(
        "ses-*.html"
    )  # not the run's id, which a cleared run keeps although its session is another
    transcript = kept.read_text()
    assert transcript.count("<section>") == 2
    assert "Which risk factors does the Q3 report name?" in transcript
    assert result.xcom("ask_revenue", "sources")[0]["pages"] == [2, 2]


def test_the_evidence_example_takes_sources_of_any_form(tmp_path: Path) -> None:
    report = load(EXAMPLES / "llamachat_evidence.py")["llamachat_evidence"].get_task("report").python_callable
    found = [{"tool": "t", "raw": {"a": 1}}, {"tool": "t", "file_id": "f", "pages": [1, 2]}, {"note": "1 is left out."}]
    report(f"file://{tmp_path}", ["A"], [found])
    assert (tmp_path / "report.md").read_text().endswith("\n\n[^1]: t\n[^2]: f, pages 1-2\n[^3]: 1 is left out.\n")


@pytest.mark.airflow
def test_the_evidence_example_fails_without_sources_and_keeps_the_conversation(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.add_index(INDEX_FILINGS, documents=["Nothing of interest."])
    result = run(EXAMPLES / "llamachat_evidence.py", "llamachat_evidence", {"output": f"file://{tmp_path}"})
    assert result.state == "failed"
    assert (result.tasks["check"], result.tries["check"]) == (["failed"], 1)
    assert result.tasks["delete_session"] == ["success"]
    (transcript,) = tmp_path.glob("*/ses-*.html")
    assert "say nothing about that" in transcript.read_text()


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_an_example_says_what_it_shows(file: object) -> None:
    assert isinstance(file, Path)
    for dag in load(file).values():
        assert dag.doc_md
        assert "llamachat" in dag.tags
