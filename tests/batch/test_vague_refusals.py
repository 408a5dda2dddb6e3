"""A refusal that a proxy may have sent is no proof that a session, and the answer in it, are gone."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import ClientConfig, LlamaCloudClient
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.batch.conftest import Runner, kill_when, outcomes, prompts, running
from tests.emulator.conftest import eventually

PAGE = Fault("html", endpoint="get", status=403)
"""What a proxy answers."""


def interrupted(runner: Runner, emulator: LlamaCloudEmulator) -> str:
    """Stop a batch during its first turn, let the turn end, and return the session that has its answer."""
    emulator.settings.turn_latency = 0.5
    with pytest.raises(errors.ChatBatchError, match="The task was stopped"):
        runner.run(lambda batch: kill_when(batch, lambda: running(emulator)), max_concurrency=1)
    eventually(lambda: emulator.completed() == 1)
    emulator.settings.turn_latency = 0.0
    return emulator.turns[0].session_id


def vague(endpoint: str, *, status: int = 404, **more: Any) -> Fault:
    return Fault("status", endpoint=endpoint, status=status, detail="Not Found", **more)


def test_one_vague_404_is_no_proof_that_a_session_is_gone_with_its_answer(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    session_id = interrupted(runner, llamacloud_emulator)
    before = len(llamacloud_emulator.requests)
    llamacloud_emulator.inject(vague("get", session_id=session_id))
    assert runner.run(max_concurrency=1).settled == 1
    assert outcomes(runner) == ["answered"] * 6
    assert llamacloud_emulator.posts() == 6
    assert [request.endpoint for request in llamacloud_emulator.requests[before:]][:3] == ["get", "list", "get"]


@pytest.mark.parametrize(("detail", "lists"), [("Not Found", 1), ("There is no such session.", 0)])
def test_a_session_that_is_still_missing_while_the_api_answers_is_gone(
    detail: str, lists: int, runner: Runner, llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = interrupted(runner, llamacloud_emulator)
    fault = Fault("status", endpoint="get", session_id=session_id, status=404, detail=detail, times=None)
    llamacloud_emulator.inject(fault)
    runner.run()
    assert outcomes(runner) == ["answered"] * 6
    assert f"so its answer is lost. Asking again. Session: {session_id}" in caplog.text
    assert sum(request.endpoint == "list" for request in llamacloud_emulator.requests) == lists


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_prompt_waits_for_a_retry_while_nothing_shows_that_its_session_is_gone(
    status: int, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = prompts(1)
    interrupted(runner, llamacloud_emulator)
    llamacloud_emulator.inject(vague("get", times=None), vague("list", status=status, times=None))
    with pytest.raises(errors.ChatBatchError) as caught:
        runner.run(delete_sessions=True)
    assert caught.value.retryable
    assert (llamacloud_emulator.posts(), llamacloud_emulator.deleted) == (1, [])
    llamacloud_emulator.clear_faults()
    assert runner.run(delete_sessions=True).settled == 1
    assert llamacloud_emulator.posts() == 1


@pytest.mark.parametrize(
    "fault",
    [
        vague("list", times=None),
        vague("list", status=503, times=None),
        Fault("html", endpoint="list", status=200, times=None),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status}",
)
def test_a_batch_with_enough_answers_keeps_a_session_that_could_not_be_read(
    fault: Fault, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    session_id = interrupted(runner, llamacloud_emulator)
    llamacloud_emulator.inject(vague("get", session_id=session_id, times=None), fault)
    assert runner.run(delete_sessions=True).deleted == 5
    assert sorted(outcomes(runner)) == ["answered"] * 5 + ["interrupted"]
    assert list(llamacloud_emulator.sessions) == [session_id]
    assert llamacloud_emulator.posts() == 6
    assert session_id in {line["session_id"] for line in runner.lines if line["outcome"] == "interrupted"}


@pytest.mark.parametrize(
    "refusal",
    [Fault("html", status=404), Fault("html", status=403), Fault("status", status=403), Fault("status", status=400)],
    ids=lambda fault: f"{fault.kind} {fault.status}",
)
def test_a_refusal_to_read_a_session_is_no_proof_that_it_has_no_answer(
    refusal: Fault, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    session_id = interrupted(runner, llamacloud_emulator)
    llamacloud_emulator.inject(replace(refusal, endpoint="get", session_id=session_id, times=None))
    assert runner.run(delete_sessions=True).deleted == 5
    assert sorted(outcomes(runner)) == ["answered"] * 5 + ["interrupted"]
    assert list(llamacloud_emulator.sessions) == [session_id]
    assert llamacloud_emulator.posts() == 6


@pytest.mark.parametrize(
    "refusal", [vague("get"), Fault("html", endpoint="get", status=403)], ids=lambda fault: fault.kind
)
def test_one_refusal_of_a_gateway_after_a_lost_post_costs_no_answer(
    refusal: Fault, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("reset_after", endpoint="stream"), refusal)
    assert runner.run(delete_sessions=True, max_concurrency=1).deleted == 6
    assert outcomes(runner) == ["answered"] * 6
    assert llamacloud_emulator.posts() == 6


@pytest.mark.parametrize(
    "refusal",
    [
        Fault("status", endpoint="get", status=400, times=None),
        Fault("status", endpoint="get", status=403, times=None),
        Fault("redirect", endpoint="get", location="https://login.invalid/", times=None),
    ],
    ids=["invalid", "not allowed", "redirected"],
)
def test_a_session_whose_history_is_refused_after_a_lost_post_is_kept(
    refusal: Fault, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("reset_after", endpoint="stream"), refusal)
    assert runner.run(delete_sessions=True, max_concurrency=1).deleted == 5
    assert outcomes(runner) == ["interrupted"] + ["answered"] * 5
    assert list(llamacloud_emulator.sessions) == [llamacloud_emulator.turns[0].session_id]
    assert (llamacloud_emulator.posts(), llamacloud_emulator.completed()) == (6, 6)


@pytest.mark.parametrize("is_right", [True, False])
def test_one_vague_404_does_not_replace_the_shared_session(
    is_right: bool, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = ["First", "Second", "Third"]
    with pytest.raises(errors.ChatBatchError):
        runner.run(session_mode="shared", max_turns=1, min_answered=3)
    llamacloud_emulator.inject(vague("get"), *([] if is_right else [vague("list")]))
    if not is_right:
        with pytest.raises(errors.LlamaCloudError) as caught:
            runner.run(session_mode="shared", delete_sessions=True)
        assert caught.value.retryable
        assert llamacloud_emulator.deleted == []
    runner.run(session_mode="shared")
    assert outcomes(runner) == ["answered"] * 3
    assert len(llamacloud_emulator.sessions) == 1


def test_two_refusals_of_different_proxies_prove_nothing(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    interrupted(runner, llamacloud_emulator)
    llamacloud_emulator.inject(PAGE, vague("get"))
    runner.run(max_concurrency=1)
    assert outcomes(runner) == ["answered"] * 6
    assert llamacloud_emulator.posts() == 6


@pytest.mark.parametrize("page", [replace(PAGE, status=200), replace(PAGE, times=2)], ids=["as a success", "twice"])
def test_a_page_instead_of_a_session_is_looked_at_again_in_the_same_attempt(
    page: Fault, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    interrupted(runner, llamacloud_emulator)
    llamacloud_emulator.inject(page)
    runner.run(max_concurrency=1)
    assert outcomes(runner) == ["answered"] * 6


def test_a_session_is_kept_if_another_prompt_ends_the_batch(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = prompts(2)
    llamacloud_emulator.inject(
        Fault("reset_after", endpoint="stream"),
        Fault("status", endpoint="get", status=422),
        Fault("status", endpoint="stream", prompt="Question 1", status=402),
    )
    with pytest.raises(errors.LlamaCloudError):
        runner.run(delete_sessions=True, max_concurrency=1)
    assert llamacloud_emulator.turns[0].session_id in llamacloud_emulator.sessions


def test_a_wrong_base_url_ends_a_first_attempt_in_given_sessions_for_good(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator, config: ClientConfig
) -> None:
    with LlamaCloudClient(config) as client:
        ids = [client.create_session([INDEX_FILINGS]).session_id for _ in range(2)]
    runner.prompts = [{"prompt": "What was the revenue?", "session_id": session_id} for session_id in ids]
    llamacloud_emulator.inject(replace(PAGE, endpoint=None, status=404, times=None))
    with pytest.raises(errors.ChatBatchError) as caught:
        runner.run()
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "refusal",
    [replace(PAGE, times=2), replace(PAGE, status=200), Fault("status", endpoint="get", status=403)],
    ids=["pages", "a page as a success", "a refusal"],
)
@pytest.mark.parametrize("fault", ["hang", "reset_before"])
def test_no_prompt_takes_the_place_of_one_whose_history_was_refused(
    fault: str, refusal: Fault, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = ["First: what was the revenue?", "Second: and the margin?", "Third: the outlook?"]
    llamacloud_emulator.inject(Fault(fault, endpoint="stream"))
    if fault == "hang":
        with pytest.raises(errors.ChatBatchError, match="stopped"):
            runner.run(
                lambda batch: kill_when(batch, lambda: llamacloud_emulator.posts() == 1),
                session_mode="shared",
                min_answered=3,
            )
    llamacloud_emulator.inject(refusal)
    for _ in range(3):
        with contextlib.suppress(errors.ChatBatchError):
            runner.run(session_mode="shared", min_answered=3)
            break
    assert outcomes(runner) == ["answered"] * 3
    assert [turn.prompt for turn in llamacloud_emulator.turns] == runner.prompts


def test_a_session_that_is_missing_after_a_lost_post_has_no_answer(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    gone = Fault("status", endpoint="get", status=404, detail="There is no such session.", times=None)
    llamacloud_emulator.inject(Fault("reset_after", endpoint="stream"), gone)
    runner.run(max_concurrency=1)
    assert outcomes(runner) == ["failed"] + ["answered"] * 5


def test_an_invalid_key_stops_a_batch_that_reads_a_session_in_doubt(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    session_id = interrupted(runner, llamacloud_emulator)
    llamacloud_emulator.inject(Fault("status", endpoint="get", status=401))
    with pytest.raises(errors.AuthenticationError):
        runner.run(max_concurrency=1, delete_sessions=True)
    assert session_id in llamacloud_emulator.sessions


def test_a_session_whose_turn_ended_but_could_not_be_read_is_kept(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    runner.prompts = prompts(2)
    refusal = Fault("status", endpoint="get", status=403, times=None)
    llamacloud_emulator.settings.malformed_text = "null"
    llamacloud_emulator.inject(refusal)
    with pytest.raises(errors.ChatBatchError):
        runner.run(max_concurrency=1, min_answered=2, max_turns=1)
    llamacloud_emulator.settings.malformed_text = "none"
    runner.run(max_concurrency=1, min_answered=1, delete_sessions=True)
    assert outcomes(runner) == ["interrupted", "answered"]
    assert list(llamacloud_emulator.sessions) == [llamacloud_emulator.turns[0].session_id]
