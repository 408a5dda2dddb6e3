"""What random schedules found once, each as a test of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airflow_provider_llamachat.testing import Fault
from tests.chaos.handmade import ASK, BATCH, SETTINGS, make
from tests.chaos.lanes import Verdict
from tests.chaos.plans import INDEX, Kill, Schedule, Task

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "trigger"])
def test_a_cleared_task_whose_first_attempt_is_lost_asks_in_the_next(
    deferrable: bool, run: Callable[[Schedule], Verdict]
) -> None:
    first_of_second_round = ("ask", 3 if deferrable else 1)
    verdict = run(
        make(
            Task("create", "create", 1, {"index_ids": [INDEX]}),
            Task("ask", "ask", 2, {**ASK, "deferrable": deferrable}, (3,), again=True),
            kills={first_of_second_round: Kill("KILL", point="send", number=1, before=True)},
        )
    )
    assert verdict.violations == []
    assert (verdict.counts["kills"], verdict.counts["answered"], verdict.counts["turns"]) == (1, 2, 2)


def test_the_retry_of_a_complete_batch_whose_process_was_lost_asks_nothing(
    run: Callable[[Schedule], Verdict],
) -> None:
    verdict = run(
        make(
            Task("batch", "batch", 2, BATCH, (5, 6, 7)),
            shape="batch",
            kills={("batch", number): Kill("KILL", point="xcom", number=1, before=True) for number in (0, 1)},
        )
    )
    assert verdict.violations == []
    assert (verdict.counts["kills"], verdict.counts["answered"], verdict.counts["turns"]) == (2, 3, 3)


def test_a_cleared_complete_batch_is_asked_again_even_if_its_first_attempt_is_lost(
    run: Callable[[Schedule], Verdict],
) -> None:
    verdict = run(
        make(
            Task("batch", "batch", 2, BATCH, (5, 6, 7), again=True),
            shape="batch",
            kills={("batch", 1): Kill("KILL", point="send", number=1, before=True)},
        )
    )
    assert verdict.violations == []
    assert (verdict.counts["kills"], verdict.counts["answered"], verdict.counts["turns"]) == (1, 6, 6)


def test_a_short_turn_timeout_does_not_lose_text_that_only_the_history_has(
    run: Callable[[Schedule], Verdict],
) -> None:
    verdict = run(
        make(
            Task("create", "create", 1, {"index_ids": [INDEX]}),
            Task("ask", "ask", 0, {**ASK, "turn_timeout": 3.0}, (3,)),
            settings={**SETTINGS, "turn_latency": 0.1, "text_in": "history", "history_lag": 4.0},
            connection={"timeout": 1.0, "max_retries": 2, "history_lag": 8.0},
        )
    )
    assert verdict.violations == []
    assert (verdict.counts["answered"], verdict.counts["turns"]) == (1, 1)


def test_text_that_is_not_utf8_in_the_stream_is_read_from_the_history(run: Callable[[Schedule], Verdict]) -> None:
    verdict = run(
        make(
            Task("create", "create", 1, {"index_ids": [INDEX]}),
            Task("ask", "ask", 0, ASK, (3,)),
            settings={**SETTINGS, "turn_latency": 0.1, "text_in": "history"},
            faults=(Fault("invalid_utf8", endpoint="stream", after_events=2),),
        )
    )
    assert verdict.violations == []
    assert (verdict.counts["answered"], verdict.counts["turns"]) == (1, 1)


def test_an_answer_without_text_waits_for_a_history_that_can_be_read(run: Callable[[Schedule], Verdict]) -> None:
    verdict = run(
        make(
            Task("create", "create", 1, {"index_ids": [INDEX]}),
            Task("ask", "ask", 1, ASK, (3,)),
            settings={**SETTINGS, "turn_latency": 0.1, "malformed_text": "broken_json"},
            faults=(Fault("redirect", endpoint="get", skip=1, location="http://127.0.0.1:9/elsewhere"),),
        )
    )
    assert verdict.violations == []
    assert (verdict.counts["tries"], verdict.counts["answered"], verdict.counts["turns"]) == (3, 1, 1)
