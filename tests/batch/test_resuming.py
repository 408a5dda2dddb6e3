"""What later looks and later tries make of what an earlier one left: outages, kills, sessions that are gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.batch import records
from airflow_provider_llamachat.batch.engine import Batch
from airflow_provider_llamachat.batch.items import parse
from airflow_provider_llamachat.batch.journal import MemoryJournal, PartsJournal
from airflow_provider_llamachat.client import LlamaCloudClient, calls
from airflow_provider_llamachat.conversation.question import Trace
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.batch.conftest import Runner, kill_when, once_each, outcomes, prompts, running


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", endpoint="stream", status=503, times=3),
        Fault("status", endpoint="create", status=503, times=3),
        Fault("reset_before", endpoint="stream", times=3),
        Fault("status", endpoint="stream", status=429, retry_after="0", times=3),
    ],
    ids=lambda fault: f"{fault.endpoint} {fault.kind} {fault.status}",
)
def test_prompts_that_failed_in_an_outage_are_retried_at_the_end(
    fault: Fault, runner: Runner, llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    runner.config = replace(runner.config, max_retries=0)
    llamacloud_emulator.inject(fault)
    report = runner.run(max_concurrency=2)
    assert outcomes(runner) == ["answered"] * 6
    assert "Retrying 3 prompts that failed with transient errors" in caplog.text
    assert "Batch: 6 of 6 done (100 %), 0 failed" in caplog.text
    assert llamacloud_emulator.completed() == 6
    assert once_each(llamacloud_emulator)
    assert report.settled == 0


@pytest.mark.long
def test_a_turn_that_finished_late_is_found_at_the_end(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    emulator = llamacloud_emulator
    emulator.settings.turn_latency = 2.0
    runner.prompts = prompts(2)
    report = runner.run(turn_timeout=1.5, max_concurrency=1)
    assert outcomes(runner) == ["answered"] * 2
    assert emulator.posts() == emulator.completed() == 2
    assert report.results.counts["interrupted"] == 0


@pytest.mark.long
@pytest.mark.parametrize("is_resumed", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_prompt_stands_after_those_that_were_answered_although_a_late_history_does_not_show_them(
    is_resumed: bool, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    # Recorded like this, the turns are told apart by their positions alone.
    llamacloud_emulator.settings.update(recorded_as="empty", history_lag=1.0)
    runner.config = replace(runner.config, history_lag=3.0)
    runner.prompts = prompts(2)
    if is_resumed:
        llamacloud_emulator.inject(Fault("status", endpoint="stream", skip=1, status=403))
        with pytest.raises(errors.ChatBatchError):
            runner.run(session_mode="shared", fail_fast=True)
        llamacloud_emulator.inject(Fault("reset_before", endpoint="stream"))
    else:
        llamacloud_emulator.inject(Fault("reset_before", endpoint="stream", skip=1))
    runner.run(session_mode="shared")
    assert outcomes(runner) == ["answered"] * 2
    assert [turn.prompt for turn in llamacloud_emulator.turns] == [item["prompt"] for item in prompts(2)]


@pytest.mark.parametrize("recorded_as", ["empty", "cut", "verbatim"])
def test_a_retry_of_failed_turns_tells_them_apart_although_they_are_recorded_alike(
    recorded_as: str, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.update(recorded_as=recorded_as)
    runner.prompts = [f"Tell me all about the revenue of company {number}." for number in range(3)]
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", times=3))
    with pytest.raises(errors.ChatBatchError):
        runner.run(session_mode="shared")
    runner.run(session_mode="shared")
    assert outcomes(runner) == ["answered"] * 3
    assert [turn.prompt for turn in llamacloud_emulator.turns] == runner.prompts * 2


def test_prompts_in_doubt_are_all_looked_for_before_one_of_them_is_asked(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.update(recorded_as="empty")
    runner.prompts = ["First", "Second", "Third"]
    with LlamaCloudClient(runner.config) as client:
        session_id = client.create_session([INDEX_FILINGS]).session_id
    # Each was asked while the service accepted nothing, so all were meant to be the first turn.
    runner.journal = lambda: in_flight(runner, session_id, Trace(0, intended_at=1.0))
    runner.run(session_mode="shared", max_turns=3)
    assert [turn.prompt for turn in llamacloud_emulator.turns] == runner.prompts


@pytest.mark.parametrize("recorded_as", ["empty", "cut"])
def test_a_prompt_does_not_get_the_answer_of_one_that_took_its_place(
    recorded_as: str, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.update(recorded_as=recorded_as)
    runner.prompts = [f"Tell me all about the revenue of company {number}." for number in range(2)]
    with LlamaCloudClient(runner.config) as client:
        session_id = client.create_session([INDEX_FILINGS]).session_id
        client.send_message(session_id, runner.prompts[0])
    # The server has accepted both, says the journal, at the place where the history shows one turn.
    trace = Trace(0, accepted=True)
    runner.journal = lambda: in_flight(runner, session_id, trace)
    lines = runner.run(session_mode="shared").results.lines or []
    assert [line["outcome"] for line in lines] == ["answered", "interrupted"]
    assert [turn.prompt for turn in emulator.turns] == runner.prompts[:1]


def test_the_retry_at_the_end_does_not_repeat_what_may_have_been_billed(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamacloud_emulator.settings.survives_disconnect = False
    monkeypatch.setattr(calls, "STALL", 0.01)
    llamacloud_emulator.inject(Fault("stream_reset", endpoint="stream", prompt="Question 2:", after_events=2))
    runner.run(ask_again=True)
    assert outcomes(runner).count("interrupted") == 1
    assert llamacloud_emulator.posts() == 6


def test_a_killed_batch_stops_at_once_and_the_next_attempt_adopts_the_answers(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.turn_latency = 600.0
    runner.prompts = prompts(8)

    def during(batch: Batch) -> None:
        kill_when(batch, lambda: running(emulator) == 4)

    with pytest.raises(errors.ChatBatchError, match="The task was stopped"):
        runner.run(during, max_concurrency=4, delete_sessions=True)
    assert emulator.deleted == []
    assert 0 < emulator.posts() <= 4
    emulator.settings.turn_latency = 0.0
    report = runner.run(max_concurrency=4)
    assert outcomes(runner) == ["answered"] * 8
    assert emulator.posts() == emulator.completed() == 8
    assert report.settled == 4


def test_an_earlier_prompt_is_not_repeated_while_its_session_is_unavailable(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    llamacloud_emulator.settings.turn_latency = 600.0

    def kill_soon(batch: Batch) -> None:
        kill_when(batch, lambda: running(llamacloud_emulator) == 6)

    with pytest.raises(errors.ChatBatchError, match="The task was stopped"):
        runner.run(kill_soon)
    assert llamacloud_emulator.posts() == 6
    llamacloud_emulator.settings.turn_latency = 0.0
    runner.config = replace(runner.config, max_retries=0)
    llamacloud_emulator.inject(Fault("reset_before", endpoint="get", times=3))
    report = runner.run()
    assert "Retrying 3 prompts that failed with transient errors" in caplog.text
    assert (outcomes(runner), report.settled) == (["answered"] * 6, 6)
    assert llamacloud_emulator.posts() == llamacloud_emulator.completed() == 6


def test_a_batch_that_is_killed_before_it_begins_asks_nothing(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with pytest.raises(errors.ChatBatchError, match="The task was stopped"):
        runner.run(Batch.kill)
    assert llamacloud_emulator.requests == []


def test_an_interrupted_turn_of_an_earlier_attempt_is_asked_again_if_the_dag_allows_it(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.survives_disconnect = False
    monkeypatch.setattr(calls, "STALL", 0.01)
    emulator.inject(Fault("stream_reset", endpoint="stream", prompt="Question 2:", after_events=2))
    with pytest.raises(errors.ChatBatchError):
        runner.run(fail_fast=True, max_concurrency=1)
    with pytest.raises(errors.ChatBatchError):
        runner.run(fail_fast=True, max_concurrency=1)
    assert emulator.posts(prompt=runner.prompts[2]["prompt"]) == 1
    runner.run(fail_fast=True, max_concurrency=1, ask_again=True)
    assert outcomes(runner) == ["answered"] * 6
    assert emulator.posts(prompt=runner.prompts[2]["prompt"]) == 2


def test_a_deleted_session_of_an_earlier_attempt_is_replaced(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Question 2:"))
    with pytest.raises(errors.ChatBatchError):
        runner.run(fail_fast=True)
    gone = next(turn.session_id for turn in llamacloud_emulator.turns if turn.state == "failed")
    with LlamaCloudClient(runner.config) as client:
        client.delete_session(gone)
    runner.run()
    assert outcomes(runner) == ["answered"] * 6
    assert f"no longer exists, so its answer is lost. Asking again. Session: {gone}" in caplog.text
    assert once_each(llamacloud_emulator)


def test_a_deleted_shared_session_is_replaced(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    runner.prompts = ["First", "Second", "Third"]
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Second"))
    with pytest.raises(errors.ChatBatchError):
        runner.run(fail_fast=True, session_mode="shared")
    with LlamaCloudClient(runner.config) as client:
        client.delete_session(next(iter(llamacloud_emulator.sessions)))
    runner.run(session_mode="shared")
    assert outcomes(runner) == ["answered"] * 3
    assert "Continuing in a new session" in caplog.text


def test_on_a_retry_a_deleted_session_of_an_item_fails_that_item(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with LlamaCloudClient(runner.config) as client:
        mine = client.create_session([INDEX_FILINGS]).session_id
        runner.prompts = ["Other", {"prompt": "Mine", "session_id": mine}]
        llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Mine"))
        with pytest.raises(errors.ChatBatchError):
            runner.run(fail_fast=True)
        client.delete_session(mine)
    runner.run()
    assert outcomes(runner) == ["answered", "failed"]
    assert runner.lines[1]["error"]["type"] == "NotFoundError"


def test_an_intent_after_a_missing_turn_is_asked_at_the_end_of_the_session(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    runner.prompts = ["First", "Second", "Third"]
    emulator.settings.turn_latency = 0.5
    emulator.inject(Fault("hang", endpoint="stream", prompt="Second"))

    def during(batch: Batch) -> None:
        kill_when(batch, lambda: emulator.posts(prompt="Second"))

    with pytest.raises(errors.ChatBatchError):
        runner.run(during, session_mode="shared")
    emulator.settings.turn_latency = 0.0
    runner.run(session_mode="shared")
    assert outcomes(runner) == ["answered"] * 3
    assert [turn.prompt for turn in emulator.turns] == ["First", "Second", "Third"]


def asked_ahead(runner: Runner, session_id: str) -> MemoryJournal:
    """A journal as a kill leaves it: two prompts in flight in a shared session, a third meant to follow."""
    journal = MemoryJournal()
    keys = [item.key(runner.scope) for item in parse(runner.prompts, index_ids=[INDEX_FILINGS])]
    for position, key in enumerate(keys):
        trace = Trace(position, intended_at=1.0)
        journal.write([records.intent(key, session_id, trace, opened=False, ahead=position > 0)])
    journal.write([records.session(session_id)])
    return journal


def in_flight(runner: Runner, session_id: str, trace: Trace) -> MemoryJournal:
    """A journal in which all prompts are in doubt at the same place of a shared session."""
    journal = MemoryJournal()
    for item in parse(runner.prompts, index_ids=[INDEX_FILINGS]):
        journal.write([records.intent(item.key(runner.scope), session_id, trace, opened=False)])
    journal.write([records.session(session_id)])
    return journal


def test_a_prompt_after_a_turn_that_never_came_is_asked_at_the_end_of_the_session(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = ["First", "Second", "Third"]
    with LlamaCloudClient(runner.config) as client:
        session_id = client.create_session([INDEX_FILINGS]).session_id
    # The first two are refused, so the third finds an empty session where it was meant to be the third turn.
    llamacloud_emulator.inject(Fault("status", endpoint="stream", status=422, times=2))
    runner.journal = lambda: asked_ahead(runner, session_id)
    report = runner.run(session_mode="shared")
    assert [(turn.prompt, turn.position) for turn in llamacloud_emulator.turns] == [("Third", 0)]
    assert report.results.counts["answered"] == 1


def test_a_prompt_after_a_repeated_turn_is_asked_after_it(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = ["First", "Second", "Third"]
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Second"))
    with LlamaCloudClient(runner.config) as client:
        session_id = client.create_session([INDEX_FILINGS]).session_id
        client.send_message(session_id, "First")
        with pytest.raises(errors.ChatTurnFailedError):
            client.send_message(session_id, "Second")
    runner.journal = lambda: asked_ahead(runner, session_id)
    report = runner.run(session_mode="shared")
    assert [turn.prompt for turn in llamacloud_emulator.turns] == ["First", "Second", "Second", "Third"]
    assert report.results.counts["answered"] == 3
    assert report.settled == 1


@pytest.mark.parametrize("which", ["First", "Second"])
def test_a_shared_session_keeps_its_order_during_an_outage(
    which: str, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = ["First", "Second", "Third"]
    runner.config = replace(runner.config, max_retries=1)
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt=which, status=503, times=2))
    report = runner.run(session_mode="shared")
    assert [turn.prompt for turn in llamacloud_emulator.turns] == ["First", "Second", "Third"]
    assert report.results.counts["answered"] == 3


def test_a_retry_asks_a_prompt_that_was_never_accepted_after_later_ones(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.prompts = ["First", "Second", "Third"]
    runner.config = replace(runner.config, max_retries=0)
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt="First", status=503, times=2))
    hand_over = PartsJournal.hand_over

    def lose(*_: Any, **__: Any) -> Any:
        raise errors.ChatBatchError("the worker is lost here")

    monkeypatch.setattr(PartsJournal, "hand_over", lose)
    with pytest.raises(errors.ChatBatchError, match="lost here"):
        runner.run(session_mode="shared")
    monkeypatch.setattr(PartsJournal, "hand_over", hand_over)
    report = runner.run(session_mode="shared")
    assert report.results.counts["answered"] == 3
    assert once_each(llamacloud_emulator)


def test_sessions_are_deleted_after_the_results_unless_an_answer_may_still_arrive(
    runner: Runner,
    llamacloud_emulator: LlamaCloudEmulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    llamacloud_emulator.settings.survives_disconnect = False
    monkeypatch.setattr(calls, "STALL", 0.01)
    llamacloud_emulator.inject(Fault("cut", endpoint="stream", prompt="Question 0:", after_events=2))
    hand_over = PartsJournal.hand_over

    def lose(*_: Any, **__: Any) -> Any:
        raise errors.ChatBatchError("the worker is lost here")

    monkeypatch.setattr(PartsJournal, "hand_over", lose)
    with pytest.raises(errors.ChatBatchError, match="lost here"):
        runner.run(delete_sessions=True)
    assert llamacloud_emulator.deleted == []
    monkeypatch.setattr(PartsJournal, "hand_over", hand_over)
    report = runner.run(delete_sessions=True)
    assert outcomes(runner) == ["interrupted"] + ["answered"] * 5
    assert llamacloud_emulator.posts() == 6
    assert report.deleted == 5
    (left,) = llamacloud_emulator.sessions
    assert left == runner.lines[0]["session_id"]
    assert left in caplog.text


def test_without_a_store_no_session_is_kept_for_a_retry(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.journal = MemoryJournal
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Question 2:"))
    with pytest.raises(errors.ChatBatchError):
        runner.run(fail_fast=True, delete_sessions=True)
    assert llamacloud_emulator.sessions == {}
