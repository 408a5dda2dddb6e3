"""A turn: what the stream says, what the history keeps, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_llamachat.testing import (
    INDEX_BUILDING,
    INDEX_FAILED,
    INDEX_FILINGS,
    INDEX_HANDBOOK,
    INDEX_OTHER_PROJECT,
    LlamaCloudEmulator,
)
from tests.emulator.conftest import WHOLE, Api, Clock, events

QUESTION = "What was the revenue in Q3?"


def test_the_order_of_a_turn(api: Api) -> None:
    session_id = api.bound()
    answer = api.ask(session_id, QUESTION)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    stream = events(answer.text)
    kinds = [data["type"] for _, data in stream]
    squeezed = [kind for place, kind in enumerate(kinds) if place == 0 or kinds[place - 1] != kind]
    assert squeezed == ["user_input", "thinking_delta", *WHOLE[1:4], "text_delta", "text", "stop"]
    assert all((kind == "delta") == data["type"].endswith("_delta") for kind, data in stream)
    for part in ("thinking", "text"):
        (whole,) = (data["content"] for _, data in stream if data["type"] == part)
        assert "".join(data["content"] for _, data in stream if data["type"] == f"{part}_delta") == whole
    assert stream[0][1]["content"] == QUESTION
    call, result = stream[kinds.index("tool_call")][1], stream[kinds.index("tool_result")][1]
    assert call["arguments"] == {"query": "q3 revenue", "index_ids": [INDEX_FILINGS]}
    assert (call["name"], result["name"], call["call_id"]) == ("retrieve", "retrieve", result["call_id"])
    assert result["result"][0]["metadata"] == {"file_name": "Halden Instruments, report Q3 2025"}
    assert "47.5 million euros" in stream[kinds.index("text")][1]["content"]
    stop = stream[-1][1]
    assert (stop["is_error"], stop["error"], stop["skipped_index_ids"], stop["usage"]["turns"]) == (False, None, [], 1)
    assert api.history(session_id) == [data for kind, data in stream if kind == "message"]


def test_what_a_turn_leaves_in_the_session(api: Api, emulator: LlamaCloudEmulator) -> None:
    session_id = api.bound()
    before = api.http.get(f"/api/v1/chat/{session_id}/summary").json()
    usage = events(api.ask(session_id, QUESTION).text)[-1][1]["usage"]
    after = api.http.get(f"/api/v1/chat/{session_id}/summary").json()
    assert after["job_metadata"] == {**usage, "is_error": False, "error": None, "export_config_ids": ["export-filings"]}
    assert after["generated_title"] == QUESTION
    assert after["last_updated_at"] > before["last_updated_at"]
    api.ask(session_id, "x" * 80)
    assert api.http.get(f"/api/v1/chat/{session_id}/summary").json()["generated_title"] == QUESTION
    other = api.create()
    api.ask(other, "x" * 80)
    assert api.http.get(f"/api/v1/chat/{other}").json()["generated_title"] == "x" * 60 + "..."
    first, second, _ = emulator.turns
    assert (first.session_id, first.prompt, first.position, first.index_ids) == (
        session_id,
        QUESTION,
        0,
        [INDEX_FILINGS],
    )
    assert (first.state, first.input_tokens, first.output_tokens) == (
        "completed",
        usage["total_input_tokens"],
        usage["total_output_tokens"],
    )
    assert first.ended is not None
    assert 0 <= first.ended - first.started < 1
    assert second.position == 1
    assert emulator.posts() == emulator.completed() == 3
    assert emulator.posts(session_id) == emulator.completed(session_id=session_id) == 2
    assert emulator.posts(prompt=QUESTION) == emulator.completed(session_id, QUESTION) == 1
    # A prompt is compared as a whole.
    assert emulator.posts(prompt=QUESTION[:-1]) == 0


def test_the_same_prompt_gives_the_same_answer_and_tokens(api: Api) -> None:
    def ask() -> list[Any]:
        found = [data for _, data in events(api.ask(api.bound(), QUESTION).text)]
        found[-1]["usage"].pop("duration_ms")
        return found

    assert ask() == ask()


@pytest.mark.parametrize(
    ("prompt", "index_id", "expected"),
    [
        ("How many days of vacation do I have?", INDEX_HANDBOOK, "28 days of paid vacation"),
        ("Which risk factors are named for Q3?", INDEX_FILINGS, "ceramic membranes"),
        ("What dividend is proposed?", INDEX_FILINGS, "1.40 euros a share"),
        ("Who won the cup final?", INDEX_HANDBOOK, "say nothing about that"),
    ],
)
def test_answers_match_the_documents(prompt: str, index_id: str, expected: str, api: Api) -> None:
    stream = events(api.ask(api.create([index_id]), prompt, [index_id]).text)
    assert expected in stream[-2][1]["content"]


def test_a_follow_up_question_takes_its_subject_from_the_one_before(api: Api) -> None:
    session_id = api.bound()
    api.ask(session_id, QUESTION)
    leaning = api.ask(session_id, "And in Q2?").text
    assert "43.9 million" in leaning
    assert "Trondheim" not in leaning
    assert "41.2 million" in api.ask(session_id, "Q1?").text
    # Asked first, it is about all there is of Q2.
    assert "Trondheim" in api.ask(api.bound(), "And in Q2?").text


def test_several_indexes_are_searched_together(api: Api) -> None:
    both = [INDEX_FILINGS, INDEX_HANDBOOK]
    session_id = api.create(both)
    assert "28 days" in api.ask(session_id, "How many days of vacation?", both).text
    assert "47.5 million" in api.ask(session_id, QUESTION, list(reversed(both))).text


def test_an_index_that_is_not_ready_is_skipped_and_named(api: Api, emulator: LlamaCloudEmulator) -> None:
    ids = [INDEX_BUILDING, INDEX_FILINGS, INDEX_FAILED]
    session_id = api.create(ids)
    stream = events(api.ask(session_id, QUESTION, ids).text)
    assert stream[-1][1]["skipped_index_ids"] == [INDEX_BUILDING, INDEX_FAILED]
    assert not stream[-1][1]["is_error"]
    assert "47.5" in stream[-2][1]["content"]
    (turn,) = emulator.turns
    assert (turn.index_ids, turn.skipped_index_ids) == (ids, [INDEX_BUILDING, INDEX_FAILED])


REFUSALS: list[tuple[Any, list[tuple[list[Any], str]]]] = [
    ({"prompt": "x"}, [(["body", "index_ids"], "missing")]),
    ({"index_ids": [INDEX_FILINGS]}, [(["body", "prompt"], "missing")]),
    ({}, [(["body", "index_ids"], "missing"), (["body", "prompt"], "missing")]),
    ({"index_ids": [], "prompt": "x"}, [(["body", "index_ids"], "too_short")]),
    ({"index_ids": None, "prompt": "x"}, [(["body", "index_ids"], "list_type")]),
    ({"index_ids": INDEX_FILINGS, "prompt": "x"}, [(["body", "index_ids"], "list_type")]),
    ({"index_ids": [INDEX_FILINGS, 7], "prompt": "x"}, [(["body", "index_ids", 1], "string_type")]),
    ({"index_ids": [INDEX_FILINGS], "prompt": 7}, [(["body", "prompt"], "string_type")]),
    ({"index_ids": [INDEX_FILINGS], "prompt": "x" * 1001}, [(["body", "prompt"], "string_too_long")]),
    (
        {"index_ids": [INDEX_FILINGS], "prompt": "x", "require_all_indexes": "perhaps"},
        [(["body", "require_all_indexes"], "bool_parsing")],
    ),
    (
        {"index_ids": [INDEX_FILINGS], "prompt": "x", "require_all_indexes": None},
        [(["body", "require_all_indexes"], "bool_type")],
    ),
    (None, [(["body"], "model_attributes_type")]),
]


@pytest.mark.parametrize(("body", "expected"), REFUSALS)
def test_a_prompt_that_is_refused(
    body: Any, expected: list[tuple[list[Any], str]], api: Api, emulator: LlamaCloudEmulator
) -> None:
    session_id = api.bound()
    answer = api.http.post(f"/api/v1/chat/{session_id}/messages/stream", content=_json(body), headers=JSON)
    assert answer.status_code == 422
    assert [(entry["loc"], entry["type"]) for entry in answer.json()["detail"]] == expected
    assert api.history(session_id) == []
    assert emulator.turns == []
    assert emulator.posts(session_id) == 1


JSON = {"content-type": "application/json"}


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


def test_no_body_and_half_a_surrogate(api: Api) -> None:
    session_id = api.bound()
    path = f"/api/v1/chat/{session_id}/messages/stream"
    (entry,) = api.http.post(path).json()["detail"]
    assert (entry["loc"], entry["type"]) == (["body"], "missing")
    broken = b'{"index_ids": ["idx-filings"], "prompt": "\\ud800"}'
    (entry,) = api.http.post(path, content=broken, headers=JSON).json()["detail"]
    assert (entry["loc"], entry["type"]) == (["body", "prompt"], "string_unicode")


@pytest.mark.parametrize(
    "prompt", ["", "x" * 1000, "ü" * 1000, "🦙" * 1000, "line\nbreak\r\n\u2028: data: event", "\x00"]
)
def test_unusual_prompts_come_back_unchanged(prompt: str, api: Api) -> None:
    session_id = api.bound()
    answer = api.ask(session_id, prompt)
    assert answer.status_code == 200
    assert events(answer.text)[0][1]["content"] == prompt
    assert api.history(session_id)[0] == {"type": "user_input", "content": prompt}


def test_a_session_or_an_index_that_is_not_there(api: Api, emulator: LlamaCloudEmulator) -> None:
    assert api.ask("ses-nowhere").json() == {"detail": "Session ses-nowhere not found."}
    session_id = api.create()
    for index_id in ("idx-nowhere", INDEX_OTHER_PROJECT):
        answer = api.ask(session_id, index_ids=[index_id])
        assert (answer.status_code, answer.json()) == (404, {"detail": f"Index {index_id} not found."})
    assert api.ask("ses-nowhere", index_ids=[]).status_code == 422
    assert emulator.turns == []


def test_events_come_one_by_one_while_the_turn_runs(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.settings.turn_latency = 60.0
    session_id = api.bound()
    body = {"index_ids": [INDEX_FILINGS], "prompt": QUESTION}
    with api.http.stream("POST", f"/api/v1/chat/{session_id}/messages/stream", json=body) as answer:
        arriving = answer.iter_bytes()
        begin = next(arriving)
        assert [data["type"] for _, data in events(begin.decode())] == ["user_input"]
        clock.forward(20.0)
        middle = next(arriving)
        assert emulator.turns[0].state == "running"
        assert emulator.turns[0].ended is None
        seen = api.types(session_id)
        assert seen[0] == "user_input"
        assert "stop" not in seen
        clock.forward(40.0)
        end = b"".join(arriving)
    assert b"delta" in middle + end
    assert b'"stop"' not in middle
    assert len(events((begin + middle + end).decode())) > 8
    usage = api.history(session_id)[-1]["usage"]
    assert usage["duration_ms"] >= 60_000
