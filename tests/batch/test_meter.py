"""Progress in the task log: how often, and what it says."""

from __future__ import annotations

import logging

import pytest

from airflow_provider_llamachat.batch.meter import Meter


def test_the_meter_speaks_at_tenths_and_quarters_of_a_minute(caplog: pytest.LogCaptureFixture) -> None:
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
