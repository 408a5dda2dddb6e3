"""How many answers are enough, what an empty batch is, and whether a retry is worth it. The emulator's log is the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_provider_llamachat.client import calls
from airflow_provider_llamachat.exceptions import (
    ChatBatchError,
    ChatBatchRefusedError,
    InvalidArgumentError,
)
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.airflow.tries import Store, a_try
from tests.batch.conftest import prompts

pytestmark = pytest.mark.usefixtures("llamacloud_connection")


def batch(folder: Path, **arguments: Any) -> ChatBatchOperator:
    given = {"prompts": prompts(10), "index_ids": [INDEX_FILINGS], "output_path": str(folder / "results.jsonl")}
    return ChatBatchOperator(**{"task_id": "batch", "retries": 2, **given, **arguments})


def outcomes(folder: Path) -> list[str]:
    return [json.loads(line)["outcome"] for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("enough", [9, "9", 0.9, "0.9", ".9", 0.85])
def test_enough_answers_are_a_success(enough: Any, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt="Question 3:", status=422, times=None))
    task = batch(tmp_path, min_answered=enough)
    assert task.execute(a_try(task, 1))["answered"] == 9


@pytest.mark.parametrize("enough", [10, "10", 1.0, "1.0", 0.91])
def test_too_few_answers_fail_the_task_after_all_results_were_written(
    enough: Any, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt="Question 3:", status=422, times=None))
    task, store = batch(tmp_path, min_answered=enough), Store()
    context = a_try(task, 1, store=store)
    with pytest.raises(ChatBatchRefusedError) as caught:
        task.execute(context)
    said = str(caught.value)
    assert said.startswith(
        "Only 9 of the 10 prompts were answered, but min_answered requires 10. The others: 1 failed. A retry would answer no more of "
        "them. First UnprocessableError: prompts[3] (id 'item-3'): "
    )
    assert said.endswith(f"Results: {tmp_path}/results.jsonl.")
    assert isinstance(caught.value, AirflowFailException)
    assert outcomes(tmp_path).count("answered") == 9
    assert context["ti"].pushes["return_value"]["answered"] == 9


def test_a_retry_after_too_few_answers_asks_only_the_others(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Question 3:", detail="tired"))
    task = batch(tmp_path, min_answered=10, delete_sessions=True)
    with pytest.raises(
        ChatBatchError, match=r"a retry asks only the missing prompts\. First ChatTurnFailedError: .*tired"
    ):
        task.execute(a_try(task, 1))
    assert len(llamacloud_emulator.sessions) == 1  # the one that the retry continues in
    manifest = task.execute(a_try(task, 2))
    assert (manifest["answered"], manifest["kept"]) == (10, 9)
    assert outcomes(tmp_path) == ["answered"] * 10
    assert len(llamacloud_emulator.turns) == 11
    assert llamacloud_emulator.sessions == {}
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_errors_that_were_overcome_are_no_reason_to_retry(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt="Question 3:", status=422, times=None))
    llamacloud_emulator.inject(Fault("status", endpoint="create", status=503, times=3))
    task = batch(tmp_path, min_answered=10, max_concurrency=1)
    with pytest.raises(ChatBatchRefusedError, match="A retry would answer no more") as caught:
        task.execute(a_try(task, 1))
    assert "ServerError" not in str(caught.value)


def test_small_batches_hand_over_their_results_before_they_fail(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", status=422, times=None))
    task, store = batch(tmp_path, output_path=None), Store()
    context = a_try(task, 1, store=store)
    with pytest.raises(ChatBatchRefusedError, match=r"None of the 10 prompts was answered\. The others: 10 failed"):
        task.execute(context)
    assert [line["outcome"] for line in context["ti"].pushes["results"]] == ["failed"] * 10


def test_an_xcom_that_fails_does_not_hide_why_the_batch_failed(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", status=422, times=None))
    task = batch(tmp_path)
    context = a_try(task, 1)
    context["ti"].refuses = True
    with pytest.raises(ChatBatchRefusedError):
        task.execute(context)


@pytest.mark.parametrize("enough", [0, -1, 1.1, "1.1", 0.0, "many", "90%", True, "nan", "1/2", "1.2.3", "0e-5"])
def test_what_is_neither_a_count_nor_a_share_is_refused(
    enough: Any, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    task = batch(tmp_path, min_answered=enough)
    with pytest.raises(InvalidArgumentError, match="min_answered must be a whole number of at least 1, or a share"):
        task.execute(a_try(task, 1))
    assert llamacloud_emulator.requests == []


def test_more_answers_than_prompts_are_not_waited_for(tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    task = batch(tmp_path, min_answered=11)
    with pytest.raises(InvalidArgumentError, match="min_answered is 11, but the batch has only 10 prompts"):
        task.execute(a_try(task, 1))
    assert llamacloud_emulator.requests == []


@pytest.mark.parametrize(("on_empty", "kind"), [("skip", AirflowSkipException), ("fail", InvalidArgumentError)])
def test_an_empty_batch_ends_as_the_dag_says(
    on_empty: str, kind: type[Exception], tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    task = batch(tmp_path, prompts=[], on_empty=on_empty, min_answered=3)
    with pytest.raises(kind, match=f"The batch has no prompts, and on_empty is '{on_empty}'"):
        task.execute(a_try(task, 1))
    assert llamacloud_emulator.requests == []
    assert list(tmp_path.iterdir()) == []


def test_an_empty_batch_may_succeed_with_an_empty_file(tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    task = batch(tmp_path, prompts="[]", on_empty="succeed", min_answered=0.9)
    assert task.execute(a_try(task, 1))["total"] == 0
    assert outcomes(tmp_path) == []
    assert llamacloud_emulator.requests == []


def test_an_attempt_after_a_complete_batch_with_failures_takes_its_results(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt="Question 3:", status=422, times=None))
    task, store = batch(tmp_path, min_answered=0.9), Store()
    task.execute(a_try(task, 1, store=store))
    manifest = task.execute(a_try(task, 2, store=store))  # Airflow did not store the success of the first one
    assert (manifest["answered"], manifest["failed"], manifest["kept"]) == (9, 1, 9)
    assert len(llamacloud_emulator.turns) == 9


def test_an_attempt_after_a_complete_batch_knows_the_limit_that_stopped_it(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    task, store = batch(tmp_path, max_turns=4), Store()
    assert task.execute(a_try(task, 1, store=store))["stopped_by"] == "max_turns"
    manifest = task.execute(a_try(task, 2, store=store))  # Airflow did not store the success of the first one
    assert (manifest["answered"], manifest["unasked"], manifest["stopped_by"]) == (4, 6, "max_turns")
    assert len(llamacloud_emulator.turns) == 4


def test_more_answers_than_a_complete_batch_has_are_not_retried(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "STALL", 0.01)
    llamacloud_emulator.settings.survives_disconnect = False
    llamacloud_emulator.inject(Fault("stream_reset", endpoint="stream", prompt="Question 3:", after_events=2))
    task, store = batch(tmp_path), Store()
    assert task.execute(a_try(task, 1, store=store))["interrupted"] == 1
    task = batch(tmp_path, min_answered=10)
    with pytest.raises(ChatBatchRefusedError, match="A retry would answer no more"):
        task.execute(a_try(task, 2, store=store))
