"""The engine against the emulator: what is asked, in which order, at what cost, and what is left behind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.batch.journal import MemoryJournal
from airflow_provider_llamachat.client import LlamaCloudClient, calls
from airflow_provider_llamachat.testing import INDEX_FILINGS, INDEX_HANDBOOK, Fault, LlamaCloudEmulator
from tests.batch.conftest import PROMPT, Runner, kill_when, once_each, outcomes, prompts


def test_each_prompt_is_asked_once_in_its_own_session_and_keeps_its_position(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    report = runner.run()
    assert [line["id"] for line in runner.lines] == [item["id"] for item in runner.prompts]
    assert outcomes(runner) == ["answered"] * 6
    assert all("47.5 million" in line["answer"] for line in runner.lines)
    assert len({line["session_id"] for line in runner.lines}) == 6
    assert llamacloud_emulator.posts() == llamacloud_emulator.completed() == 6
    # Two requests for each prompt: opening and asking. The history need not be read when the session is new.
    assert Counter(request.endpoint for request in llamacloud_emulator.requests) == {"create": 6, "stream": 6}
    assert report.results.counts["answered"] == 6
    assert report.results.output_tokens == sum(line["usage"]["total_output_tokens"] for line in runner.lines) > 0
    assert (report.opened, report.deleted, report.kept, report.settled) == (6, 0, 0, 0)
    assert not runner.parts


def test_no_more_turns_run_at_once_than_allowed(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.settings.turn_latency = 0.15
    runner.prompts = prompts(12)
    runner.run(max_concurrency=3)
    turns = llamacloud_emulator.turns
    moments = sorted([(turn.started, 1) for turn in turns] + [(turn.ended or 0.0, -1) for turn in turns])
    running = most = 0
    for _, change in moments:
        running += change
        most = max(most, running)
    assert most == 3


def test_only_a_few_sessions_are_created_ahead(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.settings.turn_latency = 0.1
    runner.prompts = prompts(20)
    runner.run(max_concurrency=2)
    opened = asked = 0
    for request in llamacloud_emulator.requests:
        opened += request.endpoint == "create"
        asked += request.endpoint == "stream"
        assert opened - asked <= 2 * 2  # two running or being started, two ahead
    assert opened == asked == 20


def test_the_sessions_it_opened_are_deleted_if_asked(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    with LlamaCloudClient(runner.config) as client:
        mine = client.create_session([INDEX_FILINGS]).session_id
    runner.prompts = [*runner.prompts, {"prompt": PROMPT, "session_id": mine}]
    report = runner.run(delete_sessions=True)
    assert (report.opened, report.deleted) == (6, 6)
    assert list(llamacloud_emulator.sessions) == [mine]


def test_a_session_that_cannot_be_deleted_is_logged_and_does_not_fail_the_batch(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="delete", status=500))
    llamacloud_emulator.inject(Fault("status", endpoint="delete", status=404, skip=1))
    report = runner.run(delete_sessions=True, max_concurrency=1)
    assert outcomes(runner) == ["answered"] * 6
    assert report.deleted == 4
    left = set(llamacloud_emulator.sessions)
    assert len(left) == 2
    assert "Sessions that were not deleted (1):" in caplog.text
    assert any(session_id in caplog.text for session_id in left)


def test_a_shared_session_is_asked_in_order_and_keeps_its_context(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = ["What was the revenue in Q2?", "and in Q3?", "and in Q1?", "and in Q1?"]
    report = runner.run(session_mode="shared")
    assert [
        "43.9" in runner.lines[0]["answer"],
        "47.5" in runner.lines[1]["answer"],
        "41.2" in runner.lines[2]["answer"],
    ] == [True] * 3
    assert [turn.position for turn in llamacloud_emulator.turns] == [0, 1, 2, 3]
    assert [turn.prompt for turn in llamacloud_emulator.turns] == runner.prompts
    assert len(llamacloud_emulator.sessions) == report.opened == 1
    assert outcomes(runner) == ["answered"] * 4


def test_prompts_of_one_session_follow_each_other_while_others_run(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.concurrent_turns = "refuse"
    llamacloud_emulator.settings.turn_latency = 0.05
    with LlamaCloudClient(runner.config) as client:
        mine = client.create_session([INDEX_FILINGS]).session_id
        client.send_message(mine, "What was the revenue in Q1?")
        bare = client.create_session().session_id
    runner.prompts = [
        {"prompt": "First here", "session_id": mine},
        "Beside it",
        {"prompt": "Second here", "session_id": mine},
        {"prompt": "Third here", "session_id": mine, "index_ids": [INDEX_FILINGS]},
        {"prompt": "Of the batch's indexes", "session_id": bare},
        {"prompt": "Of another index", "index_ids": [INDEX_HANDBOOK]},
    ]
    report = runner.run()
    assert outcomes(runner) == ["answered"] * 6
    in_mine = [turn for turn in llamacloud_emulator.turns if turn.session_id == mine]
    assert [turn.prompt for turn in in_mine][1:] == ["First here", "Second here", "Third here"]
    assert [turn.position for turn in in_mine] == [0, 1, 2, 3]
    assert report.opened == 2
    assert runner.lines[5]["index_ids"] == [INDEX_HANDBOOK]
    assert runner.lines[4]["index_ids"] == [INDEX_FILINGS]


def test_a_failed_item_is_recorded_with_its_reason_and_the_others_continue(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(
        Fault("error_stop", endpoint="stream", prompt="Question 2:", detail="the model is tired")
    )
    runner.prompts[4]["session_id"] = "ses-that-is-not-there"
    report = runner.run()
    assert outcomes(runner) == ["answered", "answered", "failed", "answered", "failed", "answered"]
    assert runner.lines[2]["error"]["type"] == "ChatTurnFailedError"
    assert "the model is tired" in runner.lines[2]["error"]["message"]
    assert runner.lines[2]["answer"] is None
    assert runner.lines[4]["error"]["type"] == "NotFoundError"
    assert report.results.counts == {"answered": 4, "failed": 2, "interrupted": 0, "unasked": 0}


@pytest.mark.parametrize(
    ("kind", "survives"),
    [
        ("stream_reset", True),
        pytest.param("stall", False, marks=pytest.mark.long),
        pytest.param("cut", False, marks=pytest.mark.long),
        pytest.param("hang_after", True, marks=pytest.mark.long),
        ("reset_after", False),
        pytest.param("stall", True, marks=pytest.mark.long),
        pytest.param("stream_reset", False, marks=pytest.mark.long),
        pytest.param("cut", True, marks=pytest.mark.long),
        pytest.param("hang_after", False, marks=pytest.mark.long),
        pytest.param("reset_after", True, marks=pytest.mark.long),
    ],
)
def test_no_fault_of_a_stream_makes_anything_be_paid_for_twice(
    kind: str,
    survives: bool,
    runner: Runner,
    llamacloud_emulator: LlamaCloudEmulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.survives_disconnect = survives
    emulator.settings.turn_latency = 0.1
    runner.config = replace(runner.config, timeout=3.0)
    if not survives:
        monkeypatch.setattr(calls, "STALL", 0.1)
    emulator.inject(Fault(kind, endpoint="stream", times=3, after_events=2))
    report = runner.run()
    if survives:
        assert outcomes(runner) == ["answered"] * 6
    assert report.results.counts["answered"] >= 3
    assert {"answered", "interrupted"} >= set(outcomes(runner))
    assert emulator.posts() == 6
    assert once_each(emulator)


def test_an_interrupted_turn_blocks_later_prompts_of_its_session(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamacloud_emulator.settings.survives_disconnect = False
    monkeypatch.setattr(calls, "STALL", 0.01)
    runner.prompts = ["First", "Second", "Third"]
    llamacloud_emulator.inject(Fault("stream_reset", endpoint="stream", prompt="Second", after_events=2))
    report = runner.run(session_mode="shared")
    assert outcomes(runner) == ["answered", "interrupted", "unasked"]
    assert "an earlier prompt of the same session has no answer" in runner.lines[2]["error"]["message"]
    assert runner.lines[2]["prompt"] == "Third"
    assert llamacloud_emulator.posts(prompt="Third") == 0
    assert report.results.counts == {"answered": 1, "failed": 0, "interrupted": 1, "unasked": 1}


def test_a_failed_turn_does_not_block_its_session(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    runner.prompts = ["First", "Second", "Third"]
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Second"))
    runner.run(session_mode="shared")
    assert outcomes(runner) == ["answered", "failed", "answered"]
    assert [turn.position for turn in llamacloud_emulator.turns] == [0, 1, 2]


def test_fail_fast_finishes_running_turns_asks_no_more_and_names_the_item(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.turn_latency = 0.3
    runner.prompts = prompts(30)
    emulator.inject(Fault("error_stop", endpoint="stream", prompt="Question 1:", detail="no"))
    with pytest.raises(errors.ChatBatchError, match=r"prompts\[1\] \(id 'item-1'\)") as caught:
        runner.run(fail_fast=True, max_concurrency=3)
    assert "retry asks only the missing prompts" in str(caught.value)
    assert emulator.posts() < 10
    assert not [turn for turn in emulator.turns if turn.state in {"running", "abandoned"}]
    assert not runner.output.exists()
    assert runner.parts
    completed = emulator.completed()
    report = runner.run(fail_fast=True, max_concurrency=3)
    assert outcomes(runner) == ["answered"] * 30
    assert report.kept == completed
    assert once_each(emulator)
    assert emulator.posts() == 31
    assert not runner.parts


def test_after_a_failure_the_sessions_that_a_retry_needs_stay(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.turn_latency = 0.1
    runner.prompts = prompts(12)
    emulator.inject(Fault("error_stop", endpoint="stream", prompt="Question 3:", detail="no"))
    with pytest.raises(errors.ChatBatchError):
        runner.run(fail_fast=True, max_concurrency=2, delete_sessions=True)
    failed = [turn.session_id for turn in emulator.turns if turn.state == "failed"]
    assert list(emulator.sessions) == failed
    report = runner.run(fail_fast=True, max_concurrency=2, delete_sessions=True)
    assert outcomes(runner) == ["answered"] * 12
    assert emulator.sessions == {}
    assert once_each(emulator)
    assert report.results.counts["answered"] == 12


def test_a_shared_session_stays_for_the_retry(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    runner.prompts = ["First", "Second", "Third"]
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Second"))
    with pytest.raises(errors.ChatBatchError):
        runner.run(fail_fast=True, session_mode="shared", delete_sessions=True)
    assert len(llamacloud_emulator.sessions) == 1
    runner.run(fail_fast=True, session_mode="shared", delete_sessions=True)
    assert outcomes(runner) == ["answered"] * 3
    assert len({line["session_id"] for line in runner.lines}) == 1
    assert [turn.prompt for turn in llamacloud_emulator.turns] == ["First", "Second", "Second", "Third"]
    assert llamacloud_emulator.sessions == {}


@pytest.mark.parametrize("endpoint", ["create", "stream"])
@pytest.mark.parametrize(("status", "kind"), [(401, errors.AuthenticationError), (402, errors.PaymentRequiredError)])
def test_a_refusal_that_concerns_all_items_ends_the_batch(
    endpoint: str, status: int, kind: type[Exception], runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = prompts(40)
    llamacloud_emulator.inject(Fault("status", endpoint=endpoint, status=status, times=None))
    with pytest.raises(kind):
        runner.run(max_concurrency=2)
    assert len(llamacloud_emulator.requests) < 12
    assert not runner.output.exists()


def test_a_batch_without_any_answer_fails(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", times=None, detail="down for repair"))
    with pytest.raises(errors.ChatBatchError, match=r"None of the 6 prompts was answered.*down for repair"):
        runner.run()
    llamacloud_emulator.clear_faults()
    runner.run()
    assert outcomes(runner) == ["answered"] * 6


def test_a_shared_session_that_cannot_be_created_fails_the_batch_with_the_reason(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="create", status=500, times=None))
    with pytest.raises(errors.ServerError):
        runner.run(session_mode="shared")
    assert len(llamacloud_emulator.requests) == 1


def test_no_prompts_make_an_empty_file(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    runner.prompts = []
    report = runner.run()
    assert runner.output.read_bytes() == b""
    assert sum(report.results.counts.values()) == 0
    assert llamacloud_emulator.requests == []


def test_without_a_file_the_results_come_back_and_a_retry_without_a_store_asks_again(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.journal = MemoryJournal
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Question 2:"))
    with pytest.raises(errors.ChatBatchError, match="a retry asks all prompts again"):
        runner.run(fail_fast=True, max_concurrency=1)
    report = runner.run(delete_sessions=True)
    assert report.results.lines is not None
    assert [line["outcome"] for line in report.results.lines] == ["answered"] * 6
    assert report.deleted == 6
    assert not runner.output.exists()


def test_progress_and_failures_are_in_the_log(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Question 2:", detail="tired"))
    runner.run()
    assert "No answer for prompts[2] (id 'item-2')" in caplog.text
    assert "Batch: 6 of 6 done (100 %), 1 failed" in caplog.text
    assert llamacloud_emulator.api_key not in caplog.text


def test_each_prompt_counts_once_by_how_it_ended(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt="Question 1:", status=503, times=4))
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt="Question 2:", status=503, times=None))
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Question 3:"))
    runner.run()
    assert outcomes(runner) == ["answered", "answered", "failed", "failed", "answered", "answered"]
    assert Counter(outcome for outcome, _ in runner.told) == {"answered": 4, "failed": 2}


def test_prompts_that_were_not_retried_are_counted_too(runner: Runner, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt="Question 0:", status=503, times=None))
    with pytest.raises(errors.ChatBatchError):
        runner.run(fail_fast=True, max_concurrency=1)
    assert [outcome for outcome, _ in runner.told] == ["failed"]


def test_a_batch_that_is_refused_for_good_leaves_no_session(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", endpoint="stream", status=422, times=None))
    with pytest.raises(errors.ChatBatchRefusedError):
        runner.run(delete_sessions=True)
    assert llamacloud_emulator.sessions == {}
    assert len(llamacloud_emulator.deleted) == 6
    llamacloud_emulator.clear_faults()
    runner.run(delete_sessions=True)
    assert outcomes(runner) == ["answered"] * 6


@pytest.mark.long
def test_a_refusal_keeps_sessions_in_which_an_answer_may_still_arrive(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.turn_latency = 2.0
    runner.prompts = runner.prompts[:1]
    with pytest.raises(errors.ChatBatchError):
        runner.run(lambda batch: kill_when(batch, emulator.posts))
    emulator.inject(Fault("status", endpoint="get", status=403, times=None))
    with pytest.raises(errors.ChatBatchRefusedError):
        runner.run(delete_sessions=True)
    assert len(emulator.sessions) == 1
    emulator.clear_faults()
    runner.run(delete_sessions=True)
    assert outcomes(runner) == ["answered"]
    assert emulator.posts() == 1
