"""Redaction, the error tree, events between triggerer and worker, and the turn in the task log."""

from __future__ import annotations

import inspect
import logging
import pickle
from typing import Any
from urllib.parse import quote

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.airflow_support.turn_log import LINE, TurnLog
from airflow_provider_llamachat.client import ClientConfig
from airflow_provider_llamachat.conversation.question import Question, Trace
from airflow_provider_llamachat.models import parse_event
from airflow_provider_llamachat.redaction import MAX_EXCERPT, excerpt
from airflow_provider_llamachat.triggers.events import Failure, TurnEvent

CLASSES = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, errors.LlamaCloudError)]


@given(text=st.text(max_size=3000), at=st.integers(0, 3000), limit=st.integers(1, 400))
def test_an_excerpt_is_bounded_printable_and_never_shows_the_secret(text: str, at: int, limit: int) -> None:
    secret = "s3cr3t-canary"
    shown = excerpt(text[:at] + secret + text[at:], secrets=(secret,), limit=limit)
    assert secret not in shown
    assert len(shown) <= limit + 20
    assert not any(ord(character) < 32 or ord(character) == 127 for character in shown)


@pytest.mark.parametrize(
    "text",
    [
        '{"authorization": "Bearer llx-abc123def456ghi7"}',
        "key llx-abc123def456ghi7 is wrong",
        b"x" * 1990 + b" llx-abc123def456ghi7" + b"y" * 100,
    ],
)
def test_credentials_are_recognized_by_their_form(text: str | bytes) -> None:
    assert "abc123" not in excerpt(text, limit=500)


def test_an_excerpt_says_how_much_there_was() -> None:
    assert excerpt(b"\xff" + b"a" * 10_000).endswith("… (10001 in all)")
    assert len(excerpt("a" * 10_000_000)) < MAX_EXCERPT + 30
    assert excerpt("a\x1b[31mb\nc") == "a [31mb c"
    assert excerpt("short") == "short"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_every_error_keeps_its_attributes_between_processes(kind: type[errors.LlamaCloudError]) -> None:
    problem = kind("what, where, what to do", status=418, request_id="req-1", session_id="ses-1")
    again = pickle.loads(pickle.dumps(problem))  # our own bytes
    assert type(again) is kind
    assert (str(again), again.status, again.request_id, again.session_id) == (str(problem), 418, "req-1", "ses-1")
    assert vars(again) == vars(problem)
    assert isinstance(problem, AirflowException)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    lines = [
        line
        for line in (errors.__doc__ or "").splitlines()
        if "Error" in line and ("─" in line or line.startswith("    Llama"))
    ]
    drawn = {line.replace("│", " ").replace("├──", "").replace("└──", "").split()[0]: "[F]" in line for line in lines}
    assert drawn == {kind.__name__: issubclass(kind, AirflowFailException) for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_a_failure_crosses_from_trigger_to_worker_as_the_same_class(kind: type[errors.LlamaCloudError]) -> None:
    problem = kind("told", status=500, session_id="ses-1", request_id="r")
    if isinstance(problem, errors.ChatTurnInterruptedError):
        problem.reason = "foreign"
    event = TurnEvent.parse(
        TurnEvent("failed", Question("ses-1", "q"), Trace(3), failure=Failure.of(problem)).as_dict()
    )
    with pytest.raises(kind, match="told") as caught:
        event.raise_for_failure()
    assert type(caught.value) is kind
    assert vars(caught.value) == vars(problem)


@pytest.mark.parametrize(
    "payload",
    [
        None,
        "x",
        {},
        {"state": "answered"},
        {"state": "odd", "session_id": "s", "baseline": 1},
        {"state": "failed", "session_id": 1, "baseline": 1},
    ],
)
def test_an_event_of_another_trigger_is_refused(payload: Any) -> None:
    with pytest.raises(errors.LlamaCloudError, match="not about a chat turn"):
        TurnEvent.parse(payload)


@pytest.mark.parametrize("name", ["os", "AirflowException", "Nonsense", None, "Any"])
def test_an_unknown_error_class_in_an_event_becomes_the_base_class(name: str | None) -> None:
    with pytest.raises(errors.LlamaCloudError):
        TurnEvent(
            "failed", Question("s", "q"), Trace(0), failure=Failure(name, "m", {"session_id": "s", "__class__": "x"})
        ).raise_for_failure()


def shown(caplog: pytest.LogCaptureFixture, *items: dict[str, Any]) -> list[str]:
    caplog.set_level(logging.INFO)
    log = TurnLog(logging.getLogger("turn"))
    for item in items:
        event = parse_event(item)
        assert event is not None
        log(event)
    return [record.getMessage() for record in caplog.records]


def delta(text: str) -> dict[str, Any]:
    return {"type": "text_delta", "content": text}


STOP = {"type": "stop", "usage": {}, "is_error": False, "error": None}


def test_deltas_are_logged_as_lines_and_not_one_line_per_token(caplog: pytest.LogCaptureFixture) -> None:
    words = [delta(f"word{n} ") for n in range(60)]
    lines = shown(caplog, *words, delta("end\nnext\n"), {"type": "text", "content": "the whole again"}, STOP)
    assert lines[-1] == "| next"
    assert len(lines) < 8
    assert all(len(line) <= LINE + 2 for line in lines)
    assert " ".join(line[2:].strip() for line in lines).split() == [*(f"word{n}" for n in range(60)), "end", "next"]


def test_a_turn_without_deltas_is_shown_from_its_text(caplog: pytest.LogCaptureFixture) -> None:
    assert shown(caplog, {"type": "text", "content": "one\n\ntwo"}, STOP) == ["| one", "| two"]


def test_tools_and_thinking_are_one_line_each_without_control_characters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = shown(
        caplog,
        {"type": "thinking_delta", "content": "h"},
        {"type": "thinking_delta", "content": "m"},
        {"type": "tool_call", "name": "retrieve", "call_id": "c", "arguments": {"query": "x" * 999}},
        {"type": "tool_result", "name": "retrieve", "call_id": "c", "result": ["y"]},
        delta("a\x1b[2Jb" + "c" * 500),
        STOP,
    )
    assert lines[0] == "thinking …"
    assert lines[1].startswith('tool call retrieve {"query": "xxx')
    assert len(lines[1]) < 300
    assert "\x1b" not in "".join(lines)
    assert sum(line.count("c") for line in lines[2:]) == 500


def test_a_key_that_a_tool_call_or_an_answer_repeats_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = "of/no'special+form=0815"
    ClientConfig(api_key=key)
    shown(
        caplog,
        {"type": "tool_call", "name": f"get {key}", "call_id": "c", "arguments": {"header": f"X-Key: {key}"}},
        {"type": "tool_result", "name": "get", "call_id": "c", "result": [quote(key), key]},
        {"type": "text", "content": f"The key is {key}."},
        STOP,
    )
    assert "special" not in caplog.text
    assert "| The key is ***." in caplog.text


def test_a_slow_answer_is_shown_before_its_line_is_full(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_llamachat.airflow_support.turn_log.LATE", -1.0)
    assert shown(caplog, delta("slow"), delta(" words and ha"), delta("lf")) == ["| slow words and"]
