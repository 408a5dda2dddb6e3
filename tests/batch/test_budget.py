"""What a batch may spend: it stops when the budget is used up, over all attempts, and says so."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_llamachat.batch import records
from airflow_provider_llamachat.batch.budget import Budget
from airflow_provider_llamachat.batch.engine import Batch
from airflow_provider_llamachat.batch.items import parse
from airflow_provider_llamachat.batch.journal import PartsJournal
from airflow_provider_llamachat.client import LlamaCloudClient, calls
from airflow_provider_llamachat.conversation.question import Trace
from airflow_provider_llamachat.exceptions import ChatBatchError, ChatBatchRefusedError, InvalidArgumentError
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, INDEX_HANDBOOK, Fault, LlamaCloudEmulator
from tests.airflow.tries import a_try
from tests.batch.conftest import Runner, kill_when, once_each, outcomes, prompts, running


def result(
    key: str, outcome: str = "answered", *, turn: int = 0, tokens: int = 11, error: str = "", accepted: bool = True
) -> dict[str, Any]:
    line = {"outcome": outcome, "session_id": f"ses-{key}", "usage": {"total_input_tokens": tokens}}
    return records.result(
        key, line | ({"error": {"type": error}} if error else {}), trace=Trace(turn, accepted=accepted)
    )


def intent(key: str) -> dict[str, Any]:
    return records.intent(key, f"ses-{key}", Trace(0), opened=True)


def test_tokens_of_each_turn_count_once_whatever_the_journal_repeats() -> None:
    budget = Budget(max_total_tokens=33)
    budget.take(
        [result("a"), None, result("a"), result("b", "interrupted", tokens=0), result("b"), records.session("s")]
    )
    assert budget.reserve("c")
    budget.take([result("c", "failed", error="ChatTurnFailedError")])
    assert not budget.reserve("d")
    assert budget.reason.startswith("max_total_tokens is reached: 33 tokens in 3 turns were spent")


def test_a_prompt_that_may_have_been_asked_keeps_its_place_while_its_session_cannot_be_read() -> None:
    unread = records.result("a", {"outcome": "failed", "error": {"type": "LlamaCloudConnectionError"}}, trace=None)
    budget = Budget(max_turns=1)
    budget.take([intent("a"), unread])
    assert not budget.reserve("b")
    budget.take([result("a", "failed", error="UnprocessableError", tokens=0)])
    assert budget.reserve("b")
    budget.take([unread | {"key": "b"}])
    assert budget.reserve("c")


def test_a_turn_has_its_place_before_it_is_asked_and_what_is_no_turn_gives_it_back() -> None:
    budget = Budget(max_turns=2)
    budget.take([result("a")])
    assert budget.reserve("b")
    assert budget.reserve("b")
    assert not budget.reserve("c")
    assert budget.stopped_by == "max_turns"
    assert not budget.reopen()
    budget.take([result("b", "failed", error="UnprocessableError", tokens=0)])
    assert budget.reopen()
    assert budget.reserve("c")
    budget.take([intent("c"), records.release("c")])
    assert budget.reserve("d")
    budget.take([result("d", "failed", error="ChatTurnFailedError")])
    assert not budget.reserve("d")


def test_what_an_earlier_attempt_may_have_posted_has_a_place() -> None:
    budget = Budget(max_turns=1)
    budget.take([intent("a")])
    assert not budget.reserve("b")
    assert budget.reserve("a")


def test_a_prompt_whose_time_was_over_before_it_was_accepted_is_no_turn() -> None:
    budget = Budget(max_turns=1)
    budget.take([intent("a"), result("a", "interrupted", tokens=0, accepted=False)])
    assert budget.reserve("a")
    budget.take([result("a", "interrupted", tokens=0)])
    assert not budget.reserve("b")


def test_the_reason_names_the_turns_that_are_not_over() -> None:
    budget = Budget(max_turns=2)
    budget.take([result("a"), intent("b")])
    assert not budget.reserve("c")
    assert "11 tokens in 1 turns were spent, over all attempts, and 1 turns are in flight" in budget.reason
    budget.take([result("b")])
    assert "in flight or about" not in budget.reason


def test_without_a_limit_nothing_is_counted() -> None:
    budget = Budget()
    budget.take([result("a")])
    assert budget.reserve("b")
    assert not budget.is_limited


@pytest.mark.parametrize("session_mode", ["per_prompt", "shared"])
def test_no_more_turns_are_asked_than_allowed_and_the_results_say_so(
    session_mode: str, runner: Runner, llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    runner.prompts = prompts(20)
    report = runner.run(max_turns=7, max_concurrency=4, session_mode=session_mode)
    assert llamacloud_emulator.posts() == 7
    assert len(llamacloud_emulator.sessions) == (7 if session_mode == "per_prompt" else 1)
    assert sorted(outcomes(runner)) == ["answered"] * 7 + ["unasked"] * 13
    assert report.stopped_by == "max_turns"
    errors = {line["error"]["type"] for line in runner.lines if line["error"]}
    assert errors == {"BudgetReachedError"}
    assert len([text for text in caplog.messages if text.startswith("max_turns is reached")]) == 1


def test_refused_prompts_give_their_places_to_others(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", status=422, times=5))
    runner.prompts = prompts(20)
    report = runner.run(max_turns=7, max_concurrency=4)
    assert len(llamacloud_emulator.turns) == report.results.counts["answered"] == 7
    assert report.results.counts["failed"] == 5
    assert report.stopped_by == "max_turns"


def test_a_budget_that_is_enough_stops_nothing(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    report = runner.run(max_turns=6, max_total_tokens=10**6)
    assert outcomes(runner) == ["answered"] * 6
    assert report.stopped_by is None


def test_when_the_tokens_are_used_up_turns_in_flight_end_and_nothing_more_is_asked(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = prompts(12)
    one = runner.run(max_turns=1).results
    llamacloud_emulator.reset()
    spent = one.input_tokens + one.output_tokens
    report = runner.run(max_total_tokens=3 * spent, max_concurrency=2)
    assert report.stopped_by == "max_total_tokens"
    answered = report.results.counts["answered"]
    assert answered == llamacloud_emulator.completed() == llamacloud_emulator.posts()
    assert 3 <= answered <= 3 + 2 + 1
    assert report.results.counts["unasked"] == 12 - answered


def test_a_retry_does_not_spend_again(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    runner.prompts = prompts(10)
    with pytest.raises(ChatBatchRefusedError, match=r"requires 10\. The others: 6 unasked.*max_turns is reached"):
        runner.run(max_turns=4, min_answered=10)
    with pytest.raises(ChatBatchRefusedError):
        runner.run(max_turns=4, min_answered=10)
    assert llamacloud_emulator.posts() == 4
    report = runner.run(max_turns=20, min_answered=10)
    assert (report.kept, report.stopped_by) == (4, None)
    assert llamacloud_emulator.posts() == 10
    assert once_each(llamacloud_emulator)


def test_a_retry_takes_up_what_was_in_flight_before_anything_else(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.turn_latency = 1.5
    runner.prompts = prompts(10)

    def during(batch: Batch) -> None:
        kill_when(batch, lambda: running(emulator) == 4)

    with pytest.raises(ChatBatchError, match="The task was stopped"):
        runner.run(during, max_turns=4, max_concurrency=4)
    report = runner.run(max_turns=4, max_concurrency=4)
    assert (report.settled, report.stopped_by) == (4, "max_turns")
    assert report.results.counts == {"answered": 4, "failed": 0, "interrupted": 0, "unasked": 6}
    assert emulator.posts() == 4


def test_a_turn_in_doubt_is_looked_for_but_not_paid_for_again(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamacloud_emulator.settings.survives_disconnect = False
    monkeypatch.setattr(calls, "STALL", 0.01)
    runner.prompts = prompts(4)
    llamacloud_emulator.inject(Fault("stream_reset", endpoint="stream", prompt="Question 1:", after_events=2))
    with pytest.raises(ChatBatchError, match="2 unasked"):
        runner.run(max_turns=2, min_answered=4, max_concurrency=1)
    assert outcomes(runner) == ["answered", "interrupted", "unasked", "unasked"]
    with pytest.raises(ChatBatchError, match="1 interrupted, 2 unasked"):
        runner.run(max_turns=2, min_answered=4, max_concurrency=1, ask_again=True)
    assert llamacloud_emulator.posts() == 2
    assert outcomes(runner) == ["answered", "interrupted", "unasked", "unasked"]
    assert runner.lines[1]["error"]["type"] == "BudgetReachedError"


def test_prompts_of_existing_sessions_keep_within_the_budget_too(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with LlamaCloudClient(runner.config) as client:
        sessions = [client.create_session([INDEX_FILINGS]).session_id for _ in range(2)]
    runner.prompts = [{**item, "session_id": sessions[n % 2]} for n, item in enumerate(prompts(10))]
    runner.run(max_turns=5)
    assert llamacloud_emulator.posts() == 5
    positions = {
        session_id: [t.position for t in llamacloud_emulator.turns if t.session_id == session_id]
        for session_id in sessions
    }
    assert all(found == list(range(len(found))) for found in positions.values())


@pytest.mark.usefixtures("llamacloud_connection")
@pytest.mark.parametrize("name", ["max_total_tokens", "max_turns"])
@pytest.mark.parametrize("value", [0, -5, 1.5, "many", True])
def test_a_limit_has_to_be_a_whole_number_above_zero(
    name: str, value: Any, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    task = ChatBatchOperator(task_id="batch", prompts=["Why?"], index_ids=[INDEX_FILINGS], **{name: value})
    with pytest.raises(InvalidArgumentError, match=f"{name} must be a whole number of at least 1"):
        task.execute(a_try(task, 1))
    assert llamacloud_emulator.requests == []


@pytest.mark.usefixtures("llamacloud_connection")
def test_the_manifest_names_the_limit(llamacloud_emulator: LlamaCloudEmulator) -> None:
    task = ChatBatchOperator(task_id="batch", prompts=["Why?", "How?"], index_ids=[INDEX_FILINGS], max_turns="1")
    manifest = task.execute(a_try(task, 1))
    assert (manifest["answered"], manifest["unasked"], manifest["stopped_by"]) == (1, 1, "max_turns")


def test_answers_in_flight_are_taken_up_behind_prompts_for_which_the_budget_is_used_up(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    with LlamaCloudClient(runner.config) as client:
        sessions = [client.create_session([INDEX_FILINGS]).session_id for _ in range(3)]
        for session_id in sessions:
            client.send_message(session_id, "This binds the session to its index.")
    # The first prompt of each session is refused, so the second one is in flight at the kill.
    runner.prompts = [
        item | {"session_id": sessions[n // 2]} | ({} if n % 2 else {"index_ids": [INDEX_HANDBOOK]})
        for n, item in enumerate(prompts(6))
    ]
    emulator.settings.turn_latency = 1.0

    def during(batch: Batch) -> None:
        kill_when(batch, lambda: running(emulator) == 3)

    with pytest.raises(ChatBatchError, match="The task was stopped"):
        runner.run(during, max_concurrency=3)
    report = runner.run(max_turns=3, max_concurrency=1)
    assert (report.settled, report.stopped_by) == (3, "max_turns")
    assert outcomes(runner) == ["failed", "answered"] * 3
    assert emulator.posts() == 6


@pytest.mark.parametrize("fail_fast", [False, True])
@pytest.mark.parametrize("was_interrupted", [False, True])
def test_a_prompt_in_flight_that_never_arrived_is_unasked_when_the_tokens_are_used_up(
    was_interrupted: bool, fail_fast: bool, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = prompts(3)
    first, lost, _ = parse(runner.prompts, index_ids=[INDEX_FILINGS])
    with LlamaCloudClient(runner.config) as client:
        session_id = client.create_session([INDEX_FILINGS]).session_id
    trace, key = Trace(0, intended_at=1.0), lost.key(runner.scope)
    answered = {"outcome": "answered", "usage": {"total_input_tokens": 11}}
    written = [
        records.result(first.key(runner.scope), answered, trace=Trace(0)),
        records.intent(key, session_id, trace, opened=True),
    ]
    if was_interrupted:
        written.append(records.result(key, {"outcome": "interrupted", "session_id": session_id}, trace=trace))
    PartsJournal(runner.output, runner.scope).write(written)
    with pytest.raises(ChatBatchRefusedError, match="The others: 2 unasked"):
        runner.run(max_total_tokens=10, fail_fast=fail_fast, min_answered=3)
    assert outcomes(runner) == ["answered", "unasked", "unasked"]
    assert llamacloud_emulator.posts() == 0
    runner.run(max_total_tokens=10**6, min_answered=3)
    assert llamacloud_emulator.posts() == 2
