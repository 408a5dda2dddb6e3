"""A journal that cannot be written or read: nothing is asked without it, and no answer is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.batch import records
from airflow_provider_llamachat.batch.journal import PartsJournal
from airflow_provider_llamachat.testing import Fault, LlamaCloudEmulator
from tests.batch.conftest import Runner, once_each, outcomes, prompts


class FullDisk(PartsJournal):
    """A journal whose disk gets full, and then cannot be read either."""

    room = 3
    readable = True

    def write(self, batch: list[dict[str, Any]]) -> None:
        self.room -= 1
        if self.room < 0:
            self.readable = False
            raise errors.ChatBatchError("the disk is full")
        super().write(batch)

    def records(self) -> Iterator[dict[str, Any] | None]:
        if not self.readable:
            raise errors.ChatBatchError("the disk is broken")
        return super().records()


def test_a_batch_asks_nothing_that_its_journal_cannot_record(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = prompts(40)
    llamacloud_emulator.settings.turn_latency = 0.1
    runner.journal = lambda: FullDisk(runner.output, runner.scope)
    with pytest.raises(errors.ChatBatchError, match="disk is full"):
        runner.run(max_concurrency=2)
    posts = llamacloud_emulator.posts()
    assert posts < 10
    runner.journal = None
    runner.run(max_concurrency=2)
    assert outcomes(runner) == ["answered"] * 40
    assert once_each(llamacloud_emulator)


def test_cleanup_never_hides_why_the_batch_failed(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    def journal() -> FullDisk:
        made = FullDisk(runner.output, runner.scope)
        made.room = 1000
        load = made.load

        def load_and_break(positions: dict[str, int]) -> records.Past:
            past = load(positions)
            made.readable = False
            return past

        made.load = load_and_break  # type: ignore[method-assign]  # breaks after it was read once
        return made

    runner.journal = journal
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Question 2:", detail="tired"))
    with pytest.raises(errors.ChatBatchError, match="tired"):
        runner.run(fail_fast=True, delete_sessions=True)
    assert "Sessions were not deleted. the disk is broken" in caplog.text


def test_answers_that_cannot_be_read_back_are_not_lost(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PartsJournal, "records", lambda _: iter(()))
    with pytest.raises(errors.ChatBatchError, match="6 prompts were answered, but only 0 of their answers"):
        runner.run()
    monkeypatch.undo()
    assert runner.run().kept == 6
    assert llamacloud_emulator.posts() == 6
