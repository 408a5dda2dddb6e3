"""Progress in the task log: how often, and what it says."""

from __future__ import annotations

import logging

import pytest

from airflow_provider_llamachat.batch.progress import Meter


def test_progress_is_logged_at_each_tenth_and_every_15_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now = [0.0]
    meter = Meter(logging.getLogger("tests.meter"), 100, kept=10, clock=lambda: now[0])
    for number in range(40):
        now[0] += 0.5
        meter.add(answered=number != 3, usage={"total_input_tokens": 5, "total_output_tokens": None})
    lines = [record.getMessage() for record in caplog.records]
    assert [text.split(" done")[0] for text in lines] == [f"Batch: {n} of 100" for n in (20, 30, 40, 50)]
    assert lines[-1].endswith("1 failed, 120.0 a minute, 200 input and 0 output tokens, time left 25 s.")
    assert meter.due_in() == 15.0
    now[0] += 20
    assert meter.due_in() == 0.0
    meter.say()
    assert "time left 50 s" in caplog.messages[-1]
    caplog.clear()
    fast = Meter(logging.getLogger("tests.meter"), 10, clock=lambda: 0.0)
    for _ in range(9):
        fast.add(answered=True, usage=None)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("done", "seconds", "text"),
    [
        (0, 5, "unknown"),
        (1, 60, "1 h 39 min"),
        (4, 60, "24 min 00 s"),
        (1, 600, "16 h 30 min"),
        (50, 60, "60 s"),
        (100, 60, "0 s"),
    ],
)
def test_time_left_is_readable(done: int, seconds: float, text: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now = [0.0]
    meter = Meter(logging.getLogger("tests.meter"), 100, clock=lambda: now[0])
    meter.done = done
    now[0] = seconds
    meter.say()
    assert caplog.messages[-1].endswith(f"time left {text}.")


def test_the_last_progress_line_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now = [0.0]
    meter = Meter(logging.getLogger("tests.meter"), 2, clock=lambda: now[0])
    for _ in range(2):
        now[0] += 5
        meter.add(answered=True, usage=None)
    meter.finish()
    assert [text.split(" done")[0] for text in caplog.messages] == ["Batch: 1 of 2", "Batch: 2 of 2"]
    meter.reopen(1, [None])
    meter.finish()
    assert caplog.messages[-1].startswith("Batch: 1 of 2 done")
    empty = Meter(logging.getLogger("tests.meter"), 0, clock=lambda: 0.0)
    empty.finish()
    assert caplog.messages[-1].startswith("Batch: 0 of 0 done")


def test_usage_of_a_retried_prompt_is_counted_once() -> None:
    meter = Meter(logging.getLogger("tests.meter"), 1, clock=lambda: 0.0)
    usage = {"total_input_tokens": 5, "total_output_tokens": 3}
    meter.add(answered=False, usage=usage)
    meter.reopen(1, [usage])
    meter.add(answered=True, usage=usage)
    assert (meter.done, meter.failed, meter.input_tokens, meter.output_tokens) == (1, 0, 5, 3)
