"""Operators, decorator and trigger on a real Airflow, against the emulator: what ends up in XCom, and what was paid for."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from airflow_provider_llamachat.testing import (
    INDEX_FILINGS,
    INDEX_HANDBOOK,
    OTHER_PROJECT_ID,
    Fault,
    LlamaCloudEmulator,
)
from tests.airflow.runner import AIRFLOW, DAGS, RETRY_GETS_THE_OLD_EVENT, Result, run

pytestmark = pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
FILE = DAGS / "conversations.py"
HAS_TASK_STATE = AIRFLOW >= (3, 3)
RETRIES_THAT_LOOK = ("direct",) if RETRY_GETS_THE_OLD_EVENT else ("direct", "deferred")
"""The tasks of the Dag ``retried`` whose second try comes as far as asking."""
RETRIED = {
    "create": ["success"],
    **{name: ["success" if name in RETRIES_THAT_LOOK else "failed"] for name in ("direct", "deferred")},
}


def go(dag_id: str, **conf: Any) -> Result:
    return run(FILE, dag_id, conf)


def test_the_whole_life_of_a_conversation(llamacloud_emulator: LlamaCloudEmulator) -> None:
    result = go("whole_life")
    assert result.state == "success", result.tasks
    session_id = result.xcom("create", "session_id")
    assert result.xcom("create", "index_ids") == [INDEX_FILINGS, INDEX_HANDBOOK]
    whole = result.xcom("create")
    assert (whole["session_id"], whole["index_ids"], whole["job_metadata"]) == (
        session_id,
        [INDEX_FILINGS, INDEX_HANDBOOK],
        None,
    )
    told = result.xcom("report")
    assert told["session"] == session_id
    assert told["answers"] == [result.xcom("ask"), result.xcom("later")]
    assert all(told["answers"])
    for task_id in ("ask", "later", "decorated"):
        assert result.keys(task_id) >= {"return_value", "usage", "skipped_index_ids"}
        usage = result.xcom(task_id, "usage")
        assert set(usage) >= {"total_input_tokens", "total_output_tokens", "turns", "duration_ms", "try_number"}
        assert usage["total_output_tokens"] > 0
        assert usage["try_number"] == 1
        assert (usage["outcome"], usage["adopted"]) == ("answered", False)
    prompts = [turn.prompt for turn in llamacloud_emulator.turns]
    assert prompts[0] == "What was the revenue in Q3?"
    assert prompts[1].startswith("And in Q2, 20")
    assert prompts[2].startswith("What is said of vacation in 20")
    assert "{{" not in prompts[2]
    assert [turn.state for turn in llamacloud_emulator.turns] == ["completed"] * 3
    assert llamacloud_emulator.deleted == [session_id]


@pytest.mark.airflow
def test_mapped_sessions_and_prompts(llamacloud_emulator: LlamaCloudEmulator) -> None:
    result = go("mapped")
    assert result.state == "success", result.tasks
    ids = [result.xcom("create", "session_id", index) for index in (0, 1)]
    assert len(set(ids)) == 2
    assert [result.xcom("create", "index_ids", index) for index in (0, 1)] == [[INDEX_FILINGS], [INDEX_HANDBOOK]]
    assert all(result.xcom("ask", map_index=index) for index in (0, 1))
    assert result.xcom("decorated_mapped", map_index=0)
    assert sorted(llamacloud_emulator.deleted) == sorted(ids)
    assert llamacloud_emulator.posts() == 3


@pytest.mark.airflow
def test_a_retry_adopts_the_answer_that_the_first_attempt_did_not_wait_for(
    llamacloud_emulator: LlamaCloudEmulator,
) -> None:
    llamacloud_emulator.settings.turn_latency = 4.0
    result = go("retried", turn_timeout=3)
    assert result.tasks == RETRIED
    assert result.tries == {"create": 1, "direct": 2, "deferred": 2}
    for task_id in RETRIES_THAT_LOOK:
        assert result.xcom(task_id)
        assert result.xcom(task_id, "usage")["try_number"] == 2
    assert llamacloud_emulator.posts() == llamacloud_emulator.completed() == 2


@pytest.mark.airflow
def test_a_retry_asks_again_when_the_server_ended_the_turn_with_an_error(
    llamacloud_emulator: LlamaCloudEmulator,
) -> None:
    for prompt in ("direct", "deferred"):
        llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt=prompt, detail="model overloaded"))
    result = go("retried")
    assert result.tasks == RETRIED
    assert result.tries == {"create": 1, "direct": 2, "deferred": 2}
    assert llamacloud_emulator.completed() == len(RETRIES_THAT_LOOK)
    assert llamacloud_emulator.posts() == 2 + len(RETRIES_THAT_LOOK)


@pytest.mark.airflow
@pytest.mark.parametrize(("prompt", "kind"), [("direct", "sync"), ("deferred", "async")])
def test_usage_is_pushed_on_failure_too(prompt: str, kind: str, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(
        Fault("error_stop", endpoint="stream", prompt=prompt, times=None, detail="model overloaded")
    )
    result = go("retried")
    assert result.state == "failed"
    usage = result.xcom(prompt, "usage")
    assert usage["try_number"] == 2
    assert usage["turns"] is not None
    assert (usage["outcome"], usage["adopted"]) == ("failed", None)
    assert "return_value" not in result.keys(prompt)


@pytest.mark.airflow
def test_a_retried_create_reuses_its_unused_session_where_airflow_has_a_store(
    llamacloud_emulator: LlamaCloudEmulator,
) -> None:
    result = go("create_retried")
    assert result.state == "success"
    assert result.tries == {"create": 2}
    assert len(llamacloud_emulator.sessions) == (1 if HAS_TASK_STATE else 2)
    assert result.xcom("create", "session_id") in llamacloud_emulator.sessions


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "index ids that are no list": ("create", {"index_ids": 7}),
    "an index id that is no string": ("create", {"index_ids": [INDEX_FILINGS, 7]}),
    "an empty index id": ("create", {"index_ids": [""]}),
    "too many index ids": ("create", {"index_ids": [f"idx-{n}" for n in range(11)]}),
    "a project that is no UUID": ("create", {"index_ids": [INDEX_FILINGS], "project_id": "mine"}),
    "a blank prompt": ("ask", {"index_ids": [INDEX_FILINGS], "prompt": "  "}),
    "a choice that does not exist": ("ask", {"index_ids": [INDEX_FILINGS], "prompt": "q", "on_interrupted": "shrug"}),
    "no index at all": ("ask", {"index_ids": None, "prompt": "q"}),
    "an index that does not exist": ("create", {"index_ids": ["idx-nowhere"]}),
    "a session that does not exist": (
        "ask",
        {"index_ids": [INDEX_FILINGS], "prompt": "q", "session_id": "ses-nowhere"},
    ),
    "a project of somebody else": ("create", {"index_ids": [INDEX_FILINGS], "project_id": OTHER_PROJECT_ID}),
    "a prompt that is too long": ("ask", {"index_ids": [INDEX_FILINGS], "prompt": "x" * 1001}),
}


@pytest.mark.airflow
@pytest.mark.parametrize("name", BAD)
def test_bad_input_fails_at_once_without_a_retry_and_asks_nothing(
    name: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    task_id, conf = BAD[name]
    result = go("any_arguments", **conf)
    assert result.state == "failed"
    assert result.tasks[task_id] == ["failed"]
    assert result.tries[task_id] == 1
    assert llamacloud_emulator.completed() == 0
    if task_id == "ask" and "session_id" not in conf:
        assert llamacloud_emulator.sessions == {}, "the teardown deletes the session although the task before it failed"
        assert result.tasks["delete"] == ["success"]
    sent_without_need = [r for r in llamacloud_emulator.requests if r.method == "POST" and r.status == 201]
    assert len(sent_without_need) == (1 if task_id == "ask" else 0)


def test_nothing_is_pushed_to_xcom_if_the_task_disables_it(llamacloud_emulator: LlamaCloudEmulator) -> None:
    result = go("quiet")
    assert result.state == "success", result.tasks
    assert result.keys("create") == set()
    assert result.keys("ask") == set()
    assert llamacloud_emulator.completed() == 1


def test_deleting_a_session_that_was_never_created_succeeds(llamacloud_emulator: LlamaCloudEmulator) -> None:
    result = go("never_created")
    assert result.tasks == {"create": ["failed"], "tolerant": ["success"], "strict": ["failed"]}
    assert llamacloud_emulator.requests == []


def test_a_function_without_a_prompt_is_named(
    llamacloud_emulator: LlamaCloudEmulator, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    result = go("returns_nothing")
    assert result.tries == {"forgets_to_return": 1}
    out, err = capfd.readouterr()
    assert "The function forgets_to_return must return the prompt" in out + err + caplog.text
    assert llamacloud_emulator.requests == []


@pytest.mark.airflow
@pytest.mark.parametrize("records", ["start", "end"])
def test_a_lost_worker_costs_no_second_turn_when_the_history_shows_turns_at_their_end(
    records: Literal["start", "end"], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    if records == "end" and not HAS_TASK_STATE:
        pytest.skip("only Airflow 3.3's task state store remembers that the server took the prompt")
    llamacloud_emulator.settings.records = records
    llamacloud_emulator.settings.turn_latency = 3.0
    result = go("worker_lost")
    assert result.state == "success", result.tasks
    assert result.tries["ask"] == 2
    assert "Q3" in result.xcom("ask")
    assert llamacloud_emulator.posts() == llamacloud_emulator.completed() == 1


@pytest.mark.airflow
def test_a_task_that_ran_out_of_time_before_it_could_ask_asks_in_its_retry(
    llamacloud_emulator: LlamaCloudEmulator,
) -> None:
    for name in ("direct", "deferred"):
        llamacloud_emulator.inject(Fault("status", endpoint="stream", prompt=name, status=429, retry_after="60"))
    result = go("retried", turn_timeout=3)
    assert result.tasks == RETRIED
    assert result.tries == {"create": 1, "direct": 2, "deferred": 2}
    looked = len(RETRIES_THAT_LOOK)
    assert (llamacloud_emulator.posts(), llamacloud_emulator.completed()) == (2 + looked, looked)


@pytest.mark.airflow
def test_a_retry_does_not_repeat_a_prompt_that_was_accepted_before_the_connection_stalled(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not HAS_TASK_STATE:
        pytest.skip("only Airflow 3.3's task state store remembers that the server took the prompt")
    connection = json.loads(llamacloud_emulator.airflow_connection_json) | {"extra": '{"timeout": 1.0}'}
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", json.dumps(connection))
    llamacloud_emulator.settings.records = "end"
    llamacloud_emulator.settings.turn_latency = 5.0
    llamacloud_emulator.inject(Fault("stall", endpoint="stream", times=None))
    go("retried")
    asked = [request.prompt for request in llamacloud_emulator.requests if request.endpoint == "stream"]
    assert len(asked) == len(set(asked)) > 0
