"""A real Airflow (scheduler, API server, Dag processor, triggerer) whose worker and triggerer are killed in the middle of a turn.

The emulator is a process of its own, and its log is the judge: one turn for one question, whatever was killed.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

import pytest

from airflow_provider_llamachat.testing import EmulatorProcess, Fault
from tests.system.stack import AirflowStack
from tests.system.waiting import until

pytestmark = pytest.mark.system
LATENCY = 12.0


@pytest.fixture
def server(emulator: EmulatorProcess) -> EmulatorProcess:
    emulator.reset()
    emulator.settings.turn_latency = LATENCY
    return emulator


def one_turn_right_answer(stack: AirflowStack, run: str, server: EmulatorProcess, *, posts: int = 1) -> None:
    answer = stack.xcom(run, "ask")
    assert "Q3" in answer
    (turn,) = server.turns
    assert (turn.state, server.posts(), server.completed()) == ("completed", posts, 1)
    usage = stack.xcom(run, "ask", "usage")
    assert usage["total_output_tokens"] == turn.output_tokens


def test_a_worker_killed_in_the_middle_of_a_turn(stack: AirflowStack, server: EmulatorProcess) -> None:
    run = stack.trigger("survival_direct")
    until(lambda: server.posts() == 1, "the prompt")
    time.sleep(1.0)
    assert stack.kill_worker(run, "ask")
    assert stack.wait(run, timeout=120) == "success"
    one_turn_right_answer(stack, run, server)
    assert stack.task(run, "ask")["try_number"] == 2
    assert stack.xcom(run, "ask", "usage")["try_number"] == 2
    print(f"| worker killed mid-turn | tries 2 | POSTs {server.posts()} | turns completed {server.completed()} |")


def test_a_triggerer_killed_in_the_middle_of_a_turn(stack: AirflowStack, server: EmulatorProcess) -> None:
    run = stack.trigger("survival_deferred")
    until(lambda: server.posts() == 1, "the prompt")
    time.sleep(1.0)
    stack.kill("triggerer")
    stack.restart("triggerer")
    assert stack.wait(run, timeout=120) == "success"
    one_turn_right_answer(stack, run, server)
    assert stack.task(run, "ask")["try_number"] == 1
    print(f"| triggerer killed mid-turn | tries 1 | POSTs {server.posts()} | turns completed {server.completed()} |")


def test_clearing_a_finished_task_asks_again(stack: AirflowStack, server: EmulatorProcess) -> None:
    server.settings.turn_latency = 0.2
    run = stack.trigger("survival_direct")
    assert stack.wait(run, timeout=120) == "success"
    assert server.completed() == 1
    stack.clear(run, "ask")
    stack.wait_for_task(run, "ask", "success", try_number=2)
    assert stack.wait(run, timeout=120) == "success"
    assert (server.posts(), server.completed()) == (2, 2)
    print(f"| finished task cleared | tries 2 | POSTs {server.posts()} | turns completed {server.completed()} |")


@pytest.mark.parametrize("action", ["clear", "failed", "success"])
def test_nothing_is_sent_after_a_user_acted_on_a_task_whose_first_request_is_under_way(
    action: str, stack: AirflowStack, server: EmulatorProcess
) -> None:
    server.settings.turn_latency = 0.2
    server.inject(Fault("delay", endpoint="get", delay=6.0))
    run = stack.trigger("survival_direct")
    until(lambda: any(request.endpoint == "get" for request in server.requests), "the first request")
    if action == "clear":
        stack.clear(run, "ask")
        assert stack.wait(run, timeout=120) == "success"
        assert (server.posts(), server.completed()) == (1, 1)
    else:
        stack.mark_task(run, "ask", action)
        time.sleep(10.0)
        assert server.posts() == 0
    print(f"| {action} during the first request | POSTs {server.posts()} | turns completed {server.completed()} |")


def test_clearing_a_task_that_failed_after_its_answer_adopts_that_answer(
    stack: AirflowStack, server: EmulatorProcess
) -> None:
    server.settings.turn_latency = 0.2
    run = stack.trigger("survival_hand_over")
    assert stack.wait(run, timeout=120) == "failed"
    assert server.completed() == 1
    stack.clear(run, "ask")
    assert stack.wait(run, timeout=120) == "success"
    one_turn_right_answer(stack, run, server)
    stack.clear(run, "ask")
    stack.wait_for_task(run, "ask", "success", try_number=3)
    assert server.completed() == 2
    print(f"| failed after its answer, cleared twice | POSTs {server.posts()} | turns completed {server.completed()} |")


@pytest.mark.parametrize("form", ["prefix", "empty", "html"])
def test_a_deferred_task_pays_once_when_the_server_records_prompts_late_and_in_another_form(
    form: Any, stack: AirflowStack, server: EmulatorProcess
) -> None:
    server.settings.update(turn_latency=0.2, recorded_as=form, history_lag=2.0)
    run = stack.trigger("survival_deferred")
    assert stack.wait(run, timeout=120) == "success"
    one_turn_right_answer(stack, run, server)
    requests = {request.endpoint: request for request in server.requests}
    print(
        f"| deferred, recorded as {form}, 2 s late | POSTs {server.posts()} | turns completed {server.completed()} | {requests['stream']}"
    )


def test_the_answer_grows_in_the_task_log_in_lines(stack: AirflowStack, server: EmulatorProcess) -> None:
    server.settings.turn_latency = 0.2
    run = stack.trigger("survival_direct")
    assert stack.wait(run, timeout=120) == "success"
    log = stack.task_log(run, "ask")
    shown = [line for line in log.splitlines() if "| " in line and "revenue" in line.lower()]
    assert shown, log
    assert "tool call retrieve" in log
    assert "output tokens" in log


def test_without_a_triggerer_a_deferred_task_fails_with_an_explanation(
    stack: AirflowStack, server: EmulatorProcess
) -> None:
    stack.kill("triggerer")
    try:
        run = stack.trigger("survival_hurried")
        assert stack.wait(run, timeout=180) == "failed"
        assert "Check that a triggerer is running" in stack.task_log(run, "ask")
        assert server.posts() == 0
    finally:
        stack.restart("triggerer")


def test_the_key_is_in_no_table_and_no_log(stack: AirflowStack, emulator: EmulatorProcess) -> None:
    database, logs = stack.metadata_dump(), stack.logs()
    assert "survival_deferred" in database
    assert "survival_direct" in logs
    for name, text in (("database", database), ("logs", logs)):
        at = text.find(emulator.api_key)
        assert at < 0, f"the key is in the {name}: {text[max(0, at - 300) : at]}"


@pytest.mark.parametrize("mode", ["direct", "deferred"])
def test_the_server_decides_when_a_task_that_it_refused_is_retried(
    stack: AirflowStack, server: EmulatorProcess, mode: str
) -> None:
    server.settings.turn_latency = 0.0
    server.inject(Fault("status", endpoint="stream", status=503, retry_after="8"))
    dag_id = f"survival_refused_{mode}"
    run = stack.trigger(dag_id)
    assert stack.wait(run, timeout=180) == "success"
    one_turn_right_answer(stack, run, server, posts=2)
    refused, answered = stack.api.call("GET", f"/dags/{dag_id}/dagRuns/{run}/taskInstances/ask/tries")["task_instances"]
    waited = datetime.fromisoformat(answered["start_date"]) - datetime.fromisoformat(refused["end_date"])
    # The Dag's own retry_delay is a day.
    assert timedelta(seconds=8) <= waited < timedelta(minutes=2)
    print(
        f"| {mode}, refused with Retry-After: 8 | retried after {waited.total_seconds():.1f} s | POSTs {server.posts()} |"
    )
