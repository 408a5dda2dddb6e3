"""A rate limit, announced or met, slows the whole batch and loses nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from airflow_provider_llamachat.client.throttle import Throttle
from airflow_provider_llamachat.testing import Fault, LlamaCloudEmulator
from tests.batch.conftest import Runner, once_each, outcomes, prompts


@pytest.mark.long
def test_many_429s_slow_the_whole_batch_and_lose_no_answer(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    emulator.settings.update(requests_per_minute=10, rate_window=0.5)
    runner.prompts = prompts(15)
    runner.config = replace(runner.config, max_retries=6)
    report = runner.run(max_concurrency=8)
    assert outcomes(runner) == ["answered"] * 15
    assert once_each(emulator)
    assert emulator.completed() == 15
    refused = [request for request in emulator.requests if request.status == 429]
    assert report.refused == len(refused) > 0
    # Whatever was on its way when the first refusal came may be refused as well, but it does not go on like that.
    assert len(refused) < 30


@pytest.mark.long
@pytest.mark.parametrize("style", ["seconds", "date", "none"])
def test_every_form_of_retry_after_is_obeyed(
    style: str, runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    later = {
        "seconds": "1",
        "date": format_datetime(datetime.now(UTC) + timedelta(seconds=6), usegmt=True),
        "none": None,
    }
    llamacloud_emulator.inject(Fault("status", status=429, retry_after=later[style], times=6))
    report = runner.run()
    assert outcomes(runner) == ["answered"] * 6
    assert report.refused == 6
    accepted = [request.time for request in llamacloud_emulator.requests if request.status != 429]
    refused = max(request.time for request in llamacloud_emulator.requests if request.status == 429)
    assert accepted[0] - refused > 0.9
    # Nothing is known of the server's pace, so the requests after the pause come one by one.
    assert accepted[5] - accepted[0] > 0.8
    assert report.seconds < 60


@pytest.mark.long
def test_requests_per_minute_against_a_server_that_enforces_it_meets_no_429(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    emulator = llamacloud_emulator
    # The server's window is half of ours: on a busy machine what left at its time may arrive together.
    emulator.settings.update(requests_per_minute=60, rate_window=1.5)
    runner.prompts = prompts(60)
    runner.throttle = lambda: Throttle(60, window=3.0)
    report = runner.run(max_concurrency=16)
    assert report.results.counts["answered"] == 60
    assert report.refused == 0
    assert {request.status for request in emulator.requests} == {200, 201}
    # 120 requests at 60 for each 3 seconds: the first minute's share is not sent as a burst, and the limit is used.
    assert 5.5 < report.seconds < 60
