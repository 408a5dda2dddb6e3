"""The batch operator on a real Airflow: arguments, XComs and retries. The emulator's log is the judge."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]  # it ships no types
import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_llamachat.exceptions import ChatBatchError, LlamaCloudTaskStateError
from airflow_provider_llamachat.operators.batch import MAX_XCOM_ITEMS, ChatBatchOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, INDEX_HANDBOOK, Fault, LlamaCloudEmulator
from tests.airflow.runner import Result, run
from tests.airflow.tries import Store, a_try
from tests.batch.conftest import prompts

pytestmark = pytest.mark.usefixtures("airflow_database", "llamacloud_connection")

DAGS = Path(__file__).parent / "dags" / "batches.py"
VERSION = tuple(int(part) for part in airflow_version.split(".")[:2])
HAS_STORE = VERSION >= (3, 3)


def go(dag_id: str, **conf: Any) -> Result:
    return run(DAGS, dag_id, conf)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_every_argument_can_be_rendered_and_the_manifest_says_what_happened(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    output = tmp_path / "out" / "results.jsonl"
    result = go(
        "templated",
        prompts=prompts(6),
        index_ids=[INDEX_FILINGS],
        output_path=f"file://{output}",
        requests_per_minute=6000,
        delete_sessions=True,
    )
    assert result.state == "success"
    manifest = result.xcom("batch")
    assert manifest.pop("seconds") > 0
    assert manifest.pop("total_input_tokens") > manifest.pop("total_output_tokens") > 0
    assert manifest == {
        "total": 6,
        "answered": 6,
        "failed": 0,
        "interrupted": 0,
        "unasked": 0,
        "output_path": f"file://{output}",
        "sessions_opened": 6,
        "sessions_deleted": 6,
        "kept": 0,
        "settled": 0,
        "rate_limited": 0,
        "try_number": 1,
        "stopped_by": None,
    }
    assert [line["id"] for line in read(output)] == [f"item-{number}" for number in range(6)]
    assert result.keys("batch") == {"return_value"}
    assert llamacloud_emulator.sessions == {}


def test_lists_as_text_and_a_path_without_a_scheme_work(tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    result = go("text", prompts=["Why?", {"prompt": "How?"}], index_ids=[INDEX_FILINGS], output_path=str(output))
    assert result.xcom("batch")["answered"] == 2
    assert [line["prompt"] for line in read(output)] == ["Why?", "How?"]


def test_a_tilde_in_the_path_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = go("text", prompts=["Why?"], index_ids=[INDEX_FILINGS], output_path="~/results.jsonl")
    assert result.xcom("batch")["answered"] == 1
    assert len(read(tmp_path / "results.jsonl")) == 1


def test_a_path_object_works_too(tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    assert go("path_object", output_path=str(output)).xcom("batch")["output_path"] == f"file://{output}"
    assert len(read(output)) == 1


def test_a_small_batch_takes_a_tasks_prompts_and_hands_its_results_to_the_next() -> None:
    result = go("handed_over")
    assert result.state == "success"
    answers = result.xcom("read")
    assert "43.9" in answers[0]
    assert "47.5" in answers[1]
    assert result.keys("batch") == {"return_value", "results"}


def test_nothing_goes_to_xcom_if_the_task_disables_it(tmp_path: Path) -> None:
    result = go("silent", output_path=str(tmp_path / "results.jsonl"))
    assert result.state == "success"
    assert result.keys("batch") == set()
    assert len(read(tmp_path / "results.jsonl")) == 1


def test_mapped_batches_have_their_own_files(tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    result = go("mapped_batches", folder=str(tmp_path))
    assert result.state == "success"
    assert [len(read(tmp_path / f"{number}.jsonl")) for number in range(2)] == [2, 1]
    assert llamacloud_emulator.posts() == 3


FINE: dict[str, Any] = {"prompts": ["Why?"], "index_ids": [INDEX_FILINGS]}


@pytest.mark.airflow
@pytest.mark.parametrize(
    "wrong",
    [
        {"prompts": ["Why?", ""]},
        {"prompts": []} | {"output_path": "/"},
        {"index_ids": None},
        {"max_concurrency": 0},
        {"max_concurrency": 2.5},
        {"max_concurrency": True},
        {"requests_per_minute": -1},
        {"requests_per_minute": "many"},
        {"session_mode": "both"},
        {"on_item_error": "ignore"},
        {"turn_timeout": 0},
        {"output_path": "file:///tmp/a folder/"},
        {"output_path": "results.jsonl"},
        {"output_path": "./results.jsonl"},
        {"max_concurrency": 10**400},
        {"prompts": prompts(MAX_XCOM_ITEMS + 1)},
    ],
    ids=str,
)
def test_a_wrong_argument_fails_at_once_and_asks_nothing(
    wrong: dict[str, Any], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    result = go("templated", **{**FINE, **wrong})
    assert result.tasks == {"batch": ["failed"]}
    assert result.tries["batch"] == 1
    assert llamacloud_emulator.requests == []


def test_without_a_file_and_without_xcom_the_answers_would_be_lost(llamacloud_emulator: LlamaCloudEmulator) -> None:
    assert go("silent").tasks == {"batch": ["failed"]}
    assert llamacloud_emulator.requests == []


def test_a_retry_asks_only_what_is_missing(tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Question 4:"))
    output = tmp_path / "results.jsonl"
    result = go(
        "templated",
        prompts=prompts(6),
        index_ids=[INDEX_FILINGS],
        output_path=str(output),
        on_item_error="fail_fast",
        max_concurrency=1,
    )
    assert result.state == "success"
    manifest = result.xcom("batch")
    assert (manifest["try_number"], manifest["kept"], manifest["answered"]) == (2, 4, 6)
    assert Counter(turn.prompt for turn in llamacloud_emulator.turns).most_common(1)[0][1] == 2
    assert llamacloud_emulator.completed() == 6
    assert not list(tmp_path.glob("*.parts"))


def test_clearing_a_complete_batch_asks_again(tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    output = tmp_path / "results.jsonl"
    first = go("templated", **FINE, output_path=str(output))
    sessions = [line["session_id"] for line in read(output)]
    second = go("templated", **FINE, output_path=str(output))
    assert first.xcom("batch")["kept"] == second.xcom("batch")["kept"] == 0
    assert sessions != [line["session_id"] for line in read(output)]
    assert llamacloud_emulator.completed() == 2


def test_without_a_file_a_retry_remembers_where_airflow_can(llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Question 4:"))
    result = go(
        "templated",
        prompts=prompts(6),
        index_ids=[INDEX_FILINGS],
        on_item_error="fail_fast",
        max_concurrency=1,
    )
    assert result.state == "success"
    assert [line["outcome"] for line in result.xcom("batch", "results")] == ["answered"] * 6
    assert result.xcom("batch")["kept"] == (4 if HAS_STORE else 0)
    assert llamacloud_emulator.completed() == (6 if HAS_STORE else 10)


def batch(**arguments: Any) -> ChatBatchOperator:
    return ChatBatchOperator(
        **{"task_id": "batch", "prompts": ["a?", "b?"], "index_ids": [INDEX_FILINGS], "retries": 2, **arguments}
    )


@pytest.mark.parametrize("form", [json.dumps, str])
def test_prompts_may_be_a_list_in_text_of_either_language(form: Any) -> None:
    task = batch(prompts=form(["a?", "b?"]))
    assert task.execute(a_try(task, 1))["answered"] == 2


def test_a_batch_with_other_indexes_is_asked_again(tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    output = str(tmp_path / "results.jsonl")
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="b?"))
    task = batch(output_path=output, on_item_error="fail_fast", max_concurrency=1)
    with pytest.raises(ChatBatchError):
        task.execute(a_try(task, 1))
    task = batch(output_path=output, index_ids=[INDEX_HANDBOOK])
    assert task.execute(a_try(task, 2, 3))["kept"] == 0
    assert [line["index_ids"] for line in read(Path(output))] == [[INDEX_HANDBOOK]] * 2


def test_nothing_is_asked_while_the_task_state_store_fails(llamacloud_emulator: LlamaCloudEmulator) -> None:
    store = Store()
    store.broken = True
    task = batch(max_concurrency=1)
    with pytest.raises(LlamaCloudTaskStateError, match="task state store is unavailable"):
        task.execute(a_try(task, 1, store=store))
    assert llamacloud_emulator.posts() == 0


def test_an_error_after_the_results_does_not_repeat_the_batch(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("down")

    monkeypatch.setattr("airflow.providers.common.compat.lineage.hook.get_hook_lineage_collector", fail)
    task = batch(output_path=str(tmp_path / "results.jsonl"))
    assert task.execute(a_try(task, 1))["answered"] == 2


def test_a_batch_completes_where_files_cannot_be_removed(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no deletions here")

    fs = fsspec.filesystem("file")
    monkeypatch.setattr(type(fs), "rm", refuse)
    monkeypatch.setattr(type(fs), "rm_file", refuse)
    output = tmp_path / "results.jsonl"
    task = batch(output_path=str(output), prompts=prompts(3))
    assert task.execute(a_try(task, 1))["answered"] == 3
    assert task.execute(a_try(task, 2))["kept"] == 3
    assert len(read(output)) == llamacloud_emulator.posts() == 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        (Fault("status", endpoint="create", status=403, times=None), 1),
        (Fault("status", endpoint="create", status=404, times=None), 1),
        (Fault("status", endpoint="stream", status=422, times=None), 40),
    ],
    ids=["no permission", "no such index", "no such prompt"],
)
def test_a_refusal_of_all_prompts_fails_at_once_without_a_retry(
    fault: Fault, requests: int, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(fault)
    task = batch(prompts=prompts(20), output_path=str(tmp_path / "results.jsonl"), max_concurrency=1)
    with pytest.raises(AirflowFailException):
        task.execute(a_try(task, 1))
    assert len(llamacloud_emulator.requests) <= requests


class Heard(ChatBatchOperator):
    """Logs to where a test can read it; Airflow keeps the logs of tasks to itself."""

    log = logging.getLogger("tests.batch.operator")  # type: ignore[assignment]  # a property in Airflow


def test_a_batch_works_inside_a_running_event_loop(tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    task = batch(output_path=str(tmp_path / "results.jsonl"))

    async def cell() -> Any:
        return task.execute(a_try(task, 1))

    assert asyncio.run(cell())["answered"] == 2


def test_a_whole_dag_can_be_tested_in_a_notebook(tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    async def cell() -> Result:
        return go("text", **FINE, output_path=str(tmp_path / "results.jsonl"))

    assert asyncio.run(cell()).xcom("batch")["answered"] == 1


def test_the_log_ends_with_where_the_results_are_and_what_is_missing(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="b?"))
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt="c?", status=422))
    task = Heard(
        task_id="batch",
        prompts=["a?", "b?", "c?", "d?"],
        index_ids=[INDEX_FILINGS],
        output_path=f"file://{tmp_path}/results.jsonl",
    )
    task.execute(a_try(task, 1))
    assert caplog.messages[-1] == (
        "2 of 4 prompts are answered; without an answer: 1 ChatTurnFailedError, 1 UnprocessableError. "
        f"Results: file://{tmp_path}/results.jsonl"
    )
    assert len([text for text in caplog.messages if text.startswith("Batch: 4 of 4 done")]) == 1


def test_results_that_were_changed_after_the_end_are_not_read_as_results(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    output, store = tmp_path / "results.jsonl", Store()
    task = batch(output_path=str(output))
    task.execute(a_try(task, 1, store=store))
    output.write_text("{}\n")
    with pytest.raises(ChatBatchError, match="were changed and cannot be read"):
        task.execute(a_try(task, 2, store=store))
    assert llamacloud_emulator.posts() == 2
