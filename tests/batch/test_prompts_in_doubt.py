"""What a resumed batch makes of prompts in doubt, behind which others of their shared session wait."""

from __future__ import annotations

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.batch.engine import Batch
from airflow_provider_llamachat.testing import Fault, LlamaCloudEmulator
from tests.batch.conftest import Runner, kill_when, outcomes


def a_failed_prompt_before_one_in_doubt(runner: Runner, emulator: LlamaCloudEmulator, *, fault: str) -> None:
    """A batch with a shared session: the first prompt has failed, and the process was lost while it posted the second one."""
    runner.prompts = [f"Tell me all about the revenue of company {number}." for number in range(2)]
    emulator.inject(Fault("error_stop", endpoint="stream"))
    emulator.inject(Fault(fault, endpoint="stream", prompt=runner.prompts[1]))

    def during(batch: Batch) -> None:
        kill_when(batch, lambda: emulator.posts(prompt=runner.prompts[1]))

    with pytest.raises(errors.ChatBatchError):
        runner.run(during, session_mode="shared")


@pytest.mark.parametrize("ask_again", [False, True])
@pytest.mark.parametrize("recorded_as", ["empty", "cut", "verbatim"])
def test_a_prompt_in_doubt_that_never_arrived_is_asked_in_its_order(
    recorded_as: str, ask_again: bool, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.update(recorded_as=recorded_as)
    a_failed_prompt_before_one_in_doubt(runner, llamacloud_emulator, fault="hang")
    runner.told.clear()
    runner.run(session_mode="shared", ask_again=ask_again)
    assert outcomes(runner) == [outcome for outcome, _ in runner.told] == ["answered"] * 2
    first, second = runner.prompts
    assert [turn.prompt for turn in llamacloud_emulator.turns] == [first, first, second]


@pytest.mark.parametrize("recorded_as", ["empty", "cut", "verbatim"])
def test_the_answer_of_a_prompt_in_doubt_is_taken_before_an_earlier_one_is_asked_again(
    recorded_as: str, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.update(recorded_as=recorded_as)
    a_failed_prompt_before_one_in_doubt(runner, llamacloud_emulator, fault="hang_after")
    report = runner.run(session_mode="shared")
    assert outcomes(runner) == ["answered"] * 2
    assert report.settled == 1
    first, second = runner.prompts
    assert [turn.prompt for turn in llamacloud_emulator.turns] == [first, second, first]


def test_a_prompt_in_doubt_that_never_arrived_is_unasked_if_the_budget_is_used_up_before_its_order_comes(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    a_failed_prompt_before_one_in_doubt(runner, llamacloud_emulator, fault="hang")
    report = runner.run(session_mode="shared", max_turns=2)
    assert outcomes(runner) == ["answered", "unasked"]
    assert report.stopped_by == "max_turns"
    assert [turn.prompt for turn in llamacloud_emulator.turns] == [runner.prompts[0]] * 2
