"""A batch on a real Airflow that is stopped or times out: what it asks, says, and leaves to the next attempt."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_llamachat.airflow_support.paths import resolved_path
from airflow_provider_llamachat.exceptions import ChatBatchError
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.airflow.tries import TimedOut, a_try, on_alarm, time_out
from tests.batch.test_operator import VERSION, Heard, batch, go

pytestmark = pytest.mark.usefixtures("airflow_database", "llamacloud_connection")


def test_a_batch_that_was_stopped_resumes_where_it_was(tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.settings.turn_latency = 600.0
    result = go("stopped", output_path=str(tmp_path / "results.jsonl"), service=llamacloud_emulator.url)
    assert result.state == "success"
    manifest = result.xcom("batch")
    assert (manifest["try_number"], manifest["answered"]) == (2, 6)
    assert llamacloud_emulator.posts() == llamacloud_emulator.completed() == 6
    assert manifest["settled"] > 0


@pytest.mark.skipif(VERSION < (3, 0), reason="in Airflow 2, dag.test() ends with the task's timeout and makes no retry")
def test_a_batch_that_airflow_timed_out_resumes_where_it_was(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.turn_latency = 600.0
    result = go("timed_out", output_path=str(tmp_path / "results.jsonl"), service=llamacloud_emulator.url)
    assert result.state == "success"
    assert (result.xcom("batch")["try_number"], result.xcom("batch")["settled"]) == (2, 6)
    assert llamacloud_emulator.posts() == llamacloud_emulator.completed() == 6


def test_stopping_a_batch_before_or_after_it_runs_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    operator = Heard(task_id="batch", prompts=["Why?"])
    operator.on_kill()
    assert caplog.messages == []


class Stopped(Heard):
    """Is told to stop when two requests of a kind have arrived."""

    emulator: LlamaCloudEmulator
    endpoint = ""

    def execute(self, context: Any) -> dict[str, Any]:
        def stop() -> None:
            while sum(request.endpoint == self.endpoint for request in self.emulator.requests) < 2:
                time.sleep(0.01)
            self.on_kill()

        thread = threading.Thread(target=stop)
        thread.start()
        try:
            return super().execute(context)
        finally:
            thread.join()


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [("create", "No turn is in flight"), ("stream", "may finish, and bill, 2 turns in flight")],
)
def test_the_log_of_a_stopped_batch_is_correct(
    endpoint: str,
    says: str,
    tmp_path: Path,
    llamacloud_emulator: LlamaCloudEmulator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    llamacloud_emulator.settings.turn_latency = 60.0
    if endpoint == "create":
        llamacloud_emulator.inject(Fault("delay", endpoint="create", delay=60.0, times=None))
    task = Stopped(
        task_id="batch", prompts=["a?", "b?"], index_ids=[INDEX_FILINGS], output_path=str(tmp_path / "results.jsonl")
    )
    task.emulator, task.endpoint = llamacloud_emulator, endpoint
    with pytest.raises(ChatBatchError, match="The task was stopped"):
        task.execute(a_try(task, 1))
    (said,) = [text for text in caplog.messages if text.startswith("The task was stopped.")]
    assert re.search(says, said)
    assert ("bill" in said) is (llamacloud_emulator.posts() > 0)


def test_a_batch_that_is_stopped_before_its_loop_runs_asks_nothing(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = batch(output_path=str(tmp_path / "results.jsonl"))
    hook = task.get_hook()

    def get_hook() -> Any:
        task.on_kill()
        return hook

    monkeypatch.setattr(task, "get_hook", get_hook)
    with pytest.raises(ChatBatchError, match="The task was stopped"):
        task.execute(a_try(task, 1))
    assert llamacloud_emulator.posts() == 0


def test_a_batch_that_is_stopped_before_it_reads_its_journal_asks_nothing(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = batch(output_path=str(tmp_path / "results.jsonl"))

    def stopped_path(given: Any, name: str) -> Any:
        task.on_kill()
        return resolved_path(given, name)

    monkeypatch.setattr("airflow_provider_llamachat.airflow_support.paths.resolved_path", stopped_path)
    with pytest.raises(ChatBatchError, match="The task was stopped"):
        task.execute(a_try(task, 1))
    assert llamacloud_emulator.requests == []


@pytest.mark.parametrize("how", ["told", "timed out"])
def test_a_batch_inside_a_running_event_loop_can_be_stopped(
    how: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.turn_latency = 600.0
    task = batch(output_path=str(tmp_path / "results.jsonl"))

    def alarm() -> None:
        while sum(turn.state == "running" for turn in llamacloud_emulator.turns) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGALRM)

    thread = threading.Thread(target=alarm)

    async def cell() -> Any:
        thread.start()
        return task.execute(a_try(task, 1))

    with on_alarm(task.on_kill if how == "told" else time_out):
        try:
            with pytest.raises(ChatBatchError if how == "told" else TimedOut):
                asyncio.run(cell())
        finally:
            thread.join()
    # It does not wait for its turns.
    assert [turn.state for turn in llamacloud_emulator.turns] == ["running", "running"]
    assert llamacloud_emulator.posts() == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("llamachat-loop")]
    llamacloud_emulator.settings.turn_latency = 0.0
    assert task.execute(a_try(task, 2))["settled"] == 2
    assert llamacloud_emulator.posts() == 2


def test_a_timeout_ends_the_batch_whatever_it_interrupts(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event loop logs, and forgets, what is raised within one of its callbacks."""

    def alarm() -> None:
        if sum(turn.state == "running" for turn in llamacloud_emulator.turns) < 2:
            asyncio.get_running_loop().call_later(0.01, alarm)
        else:
            os.kill(os.getpid(), signal.SIGALRM)

    def new_loop(make: Any = asyncio.new_event_loop) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = make()
        loop.call_soon(alarm)
        return loop

    llamacloud_emulator.settings.turn_latency = 600.0
    task = batch(output_path=str(tmp_path / "results.jsonl"))
    with on_alarm(time_out), monkeypatch.context() as patch:
        patch.setattr(asyncio.events, "new_event_loop", new_loop)
        with pytest.raises(TimedOut):
            task.execute(a_try(task, 1))
    assert [turn.state for turn in llamacloud_emulator.turns] == ["running", "running"]
    llamacloud_emulator.settings.turn_latency = 0.0
    assert task.execute(a_try(task, 2))["settled"] == 2
    assert llamacloud_emulator.posts() == 2
