"""The end of a batch: what it deletes and says, what being stopped does then, and the event of its outlet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Asset

from airflow_provider_llamachat.airflow_support.lineage import describe_outlets
from airflow_provider_llamachat.batch import cleanup
from airflow_provider_llamachat.batch.engine import Batch
from airflow_provider_llamachat.batch.journal import PartsJournal
from airflow_provider_llamachat.exceptions import ChatBatchError
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.airflow.tries import a_try
from tests.batch.conftest import Runner, kill_when, outcomes, prompts
from tests.batch.test_operator import go


def test_many_sessions_are_deleted_some_at_a_time_and_the_log_says_how_far_it_is(
    runner: Runner,
    llamacloud_emulator: LlamaCloudEmulator,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(cleanup, "EVERY", 0.01)
    llamacloud_emulator.inject(Fault("delay", endpoint="delete", delay=0.1, times=None))
    runner.prompts = prompts(12)
    assert runner.run(delete_sessions=True, max_concurrency=3).deleted == 12
    assert "Deleting 12 sessions, 3 at a time." in caplog.messages
    assert any(text.startswith("Deleted ") and text.endswith(" of 12 sessions.") for text in caplog.messages)


def test_stopped_while_it_deletes_it_ends_and_the_next_attempt_deletes_the_rest(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.inject(Fault("hang", endpoint="delete", skip=2, times=None))
    with pytest.raises(ChatBatchError, match="The task was stopped"):
        runner.run(
            lambda batch: kill_when(batch, lambda: len(emulator.deleted) == 2), delete_sessions=True, max_concurrency=1
        )
    emulator.clear_faults()
    report = runner.run(delete_sessions=True)
    assert (report.kept, report.deleted) == (6, 4)
    assert outcomes(runner) == ["answered"] * 6
    assert emulator.sessions == {}
    assert emulator.posts() == 6
    assert not runner.parts


@pytest.mark.parametrize("is_right", [True, False])
def test_a_404_that_an_unknown_path_gets_too_shows_no_deletion_unless_the_base_url_is_right(
    is_right: bool, runner: Runner, llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    for endpoint in ("delete",) if is_right else ("delete", "list"):
        llamacloud_emulator.inject(Fault("status", endpoint=endpoint, status=404, detail="Not Found", times=None))
    assert runner.run(delete_sessions=True).deleted == 0
    assert sum(request.endpoint == "list" for request in llamacloud_emulator.requests) == 1
    assert ("Check the connection's Base URL" in caplog.text) is not is_right
    assert ("Sessions that were not deleted (6)" in caplog.text) is not is_right


def test_a_session_that_was_deleted_shows_that_the_base_url_is_right(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="delete", status=404, detail="Not Found", skip=1, times=None))
    assert runner.run(delete_sessions=True, max_concurrency=1).deleted == 1
    assert all(request.endpoint != "list" for request in llamacloud_emulator.requests)


def test_stopped_while_it_writes_its_results_it_deletes_nothing(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping: list[Callable[[], object]] = []
    write = PartsJournal.hand_over

    def stopped(journal: PartsJournal, *given: Any) -> Any:
        stopping.pop()()
        return write(journal, *given)

    def during(batch: Batch) -> None:
        stopping.append(partial(asyncio.get_running_loop().call_soon_threadsafe, batch.kill))

    with monkeypatch.context() as patch:
        patch.setattr(PartsJournal, "hand_over", stopped)
        with pytest.raises(ChatBatchError, match="The task was stopped"):
            runner.run(during, delete_sessions=True)
    assert llamacloud_emulator.deleted == []
    assert runner.run(delete_sessions=True).deleted == 6
    assert llamacloud_emulator.posts() == 6


class Heard(ChatBatchOperator):
    """Logs to where a test can read it; Airflow keeps the logs of tasks to itself."""

    log = logging.getLogger("tests.batch.ending")  # type: ignore[assignment]  # a property in Airflow


@pytest.mark.usefixtures("llamacloud_connection")
def test_sessions_that_are_left_are_told_with_the_way_to_delete_them(
    llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    task = Heard(task_id="batch", prompts=["Why?", "How?"], index_ids=[INDEX_FILINGS])
    task.execute(a_try(task, 1))
    (said,) = [text for text in caplog.messages if "leaves" in text]
    assert said.startswith("The batch leaves the 2 sessions that it opened.")
    assert "set delete_sessions, or use DeleteChatSessionOperator" in said


def test_an_event_that_takes_no_counts_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    describe_outlets({}, [Asset("file:///tmp/answers")], {"total": 1})
    assert "The asset event has no counts (KeyError" in caplog.text


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_the_event_of_the_outlet_has_the_counts(tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    from airflow.utils.session import create_session

    try:
        events: Any = import_module("airflow.models.asset").AssetEvent
    except ImportError:
        events = import_module("airflow.models.dataset").DatasetEvent  # where Airflow 2 has it
    output = str(tmp_path / "results.jsonl")
    assert go("outlet", output_path=output).state == "success"
    with create_session() as session:
        (extra,) = [event.extra for event in session.query(events) if event.source_dag_id == "outlet"]
    assert {name: extra[name] for name in ("total", "answered", "unasked")} == {"total": 1, "answered": 1, "unasked": 0}
    assert extra["output_path"] == output
