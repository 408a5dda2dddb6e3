"""In a session that several prompts share, each prompt keeps its own place: it is asked once, and gets its own answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import calls
from airflow_provider_llamachat.testing import Fault, LlamaCloudEmulator
from tests.batch.conftest import Runner, kill_when, outcomes, running

COMPANIES = [f"Tell me all about the revenue of company {number}." for number in range(3)]


@pytest.fixture
def emulator(llamacloud_emulator: LlamaCloudEmulator) -> LlamaCloudEmulator:
    for number in range(len(COMPANIES)):
        llamacloud_emulator.answer(f"company {number}", f"Answer {number}")
    return llamacloud_emulator


@pytest.fixture
def attempt(runner: Runner, emulator: LlamaCloudEmulator) -> Callable[..., bool]:
    """One attempt in a shared session. It is killed when a condition holds. The result says whether it succeeded."""

    def once(killed_when: Callable[[], Any] | None = None, **options: Any) -> bool:
        during = None if killed_when is None else lambda batch: kill_when(batch, killed_when)
        try:
            runner.run(during, **{"session_mode": "shared", "min_answered": len(runner.prompts), **options})
        except errors.ChatBatchError:
            return False
        return True

    runner.prompts = COMPANIES
    return once


def refuse(emulator: LlamaCloudEmulator, prompt: str, kind: str = "status", **values: Any) -> None:
    emulator.inject(Fault(kind, endpoint="stream", prompt=prompt, **values))


def asked(emulator: LlamaCloudEmulator) -> list[str]:
    return [turn.prompt for turn in emulator.turns]


def answers(runner: Runner) -> list[str | None]:
    return [line["answer"] for line in runner.lines]


@pytest.mark.long
def test_a_prompt_after_a_failed_turn_does_not_get_the_answer_of_another_one(
    runner: Runner, emulator: LlamaCloudEmulator, attempt: Callable[..., bool]
) -> None:
    emulator.settings.update(recorded_as="empty", history_lag=0.8, turn_latency=0.5)
    runner.config = replace(runner.config, history_lag=3.0)
    refuse(emulator, COMPANIES[0], "error_stop")
    refuse(emulator, COMPANIES[2], "reset_before")
    attempt(min_answered=2)
    assert answers(runner) == [None, "Answer 1", "Answer 2"]
    assert asked(emulator) == COMPANIES


def test_no_prompt_takes_the_place_of_one_whose_session_cannot_be_read(
    runner: Runner, emulator: LlamaCloudEmulator, attempt: Callable[..., bool]
) -> None:
    refuse(emulator, COMPANIES[0], "hang")
    attempt(lambda: emulator.posts(prompt=COMPANIES[0]))
    emulator.clear_faults()
    runner.config = replace(runner.config, max_retries=0)
    emulator.inject(Fault("status", endpoint="get", status=503))
    emulator.settings.turn_latency = 3.0
    attempt(lambda: running(emulator))
    emulator.settings.turn_latency = 0.0
    emulator.clear_faults()
    attempt()
    assert answers(runner) == ["Answer 0", "Answer 1", "Answer 2"]
    assert asked(emulator) == COMPANIES


@pytest.mark.long
def test_an_answer_is_found_although_its_session_could_not_be_read_at_first(
    runner: Runner, emulator: LlamaCloudEmulator, attempt: Callable[..., bool]
) -> None:
    emulator.settings.update(recorded_as="empty", history_lag=0.8)
    runner.config = replace(runner.config, history_lag=3.0, max_retries=0)
    refuse(emulator, COMPANIES[0], "hang_after")
    attempt(lambda: emulator.posts(prompt=COMPANIES[0]))
    emulator.inject(Fault("status", endpoint="get", status=503))
    attempt()
    assert answers(runner) == ["Answer 0", "Answer 1", "Answer 2"]
    assert asked(emulator) == COMPANIES


def test_a_prompt_that_follows_one_in_a_session_of_its_own_is_asked_once(
    runner: Runner, emulator: LlamaCloudEmulator, attempt: Callable[..., bool]
) -> None:
    refuse(emulator, COMPANIES[0], "error_stop")
    attempt(session_mode="per_prompt", max_concurrency=1, fail_fast=True)
    emulator.settings.turn_latency = 2.0
    attempt(lambda: any(turn.prompt == COMPANIES[1] and turn.state == "running" for turn in emulator.turns))
    emulator.settings.turn_latency = 0.0
    attempt()
    assert outcomes(runner) == ["answered"] * 3
    assert asked(emulator) == [COMPANIES[0], *COMPANIES]


def test_a_refused_prompt_is_taken_up_after_the_turns_that_a_late_history_does_not_show_yet(
    runner: Runner, emulator: LlamaCloudEmulator, attempt: Callable[..., bool]
) -> None:
    runner.prompts = COMPANIES[:2]
    emulator.settings.history_lag = 0.8
    runner.config = replace(runner.config, history_lag=3.0, max_retries=0)
    refuse(emulator, COMPANIES[0], status=422)
    attempt()
    refuse(emulator, COMPANIES[0], "reset_after")
    attempt()
    assert answers(runner) == ["Answer 0", "Answer 1"]
    assert asked(emulator) == [COMPANIES[1], COMPANIES[0]]


@pytest.mark.long
def test_a_prompts_own_failed_turn_is_not_taken_for_its_next_one(
    runner: Runner, emulator: LlamaCloudEmulator, attempt: Callable[..., bool]
) -> None:
    runner.prompts = COMPANIES[:2]
    emulator.settings.history_lag = 0.8
    runner.config = replace(runner.config, history_lag=3.0, max_retries=0)
    refuse(emulator, COMPANIES[0], status=422)
    refuse(emulator, COMPANIES[1], "error_stop")
    attempt()
    time.sleep(1.0)  # until the history shows the failed turn
    refuse(emulator, COMPANIES[1], "stream_reset", after_events=2)
    assert any(attempt() for _ in range(2))
    assert answers(runner) == ["Answer 0", "Answer 1"]
    assert asked(emulator) == [COMPANIES[1], *COMPANIES[:2]]


@pytest.mark.long
def test_a_prompt_that_was_asked_again_keeps_its_new_place(
    runner: Runner, emulator: LlamaCloudEmulator, attempt: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.prompts = COMPANIES[:2]
    emulator.settings.update(recorded_as="empty", survives_disconnect=False)
    monkeypatch.setattr(calls, "STALL", 0.01)
    refuse(emulator, COMPANIES[0], "stream_reset", after_events=2)
    attempt()
    emulator.settings.history_lag = 0.8
    runner.config = replace(runner.config, history_lag=3.0)
    attempt(ask_again=True, max_turns=2)
    refuse(emulator, COMPANIES[1], "reset_before")
    attempt()
    assert answers(runner) == ["Answer 0", "Answer 1"]
    assert asked(emulator) == [COMPANIES[0], *COMPANIES[:2]]
