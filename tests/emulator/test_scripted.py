"""Answers that a test prescribes, in the emulator's own process and through the control API."""

from __future__ import annotations

import re
from typing import Any

import pytest

from airflow_provider_llamachat.evidence import sources
from airflow_provider_llamachat.testing import INDEX_FILINGS, EmulatorControl, Fault, LlamaCloudEmulator
from tests.emulator.conftest import WHOLE, Api, events

NOTHING = "The documents of idx-filings say nothing about that."


@pytest.fixture(params=["here", "remote"])
def control(request: pytest.FixtureRequest, emulator: LlamaCloudEmulator) -> Any:
    return emulator if request.param == "here" else EmulatorControl(emulator.url)


def said(api: Api, prompt: str) -> str:
    history = {event["type"]: event for event in api.history(asked(api, prompt))}
    text: str = history["text"]["content"]
    return text


def asked(api: Api, prompt: str) -> str:
    session_id = api.bound()
    assert api.ask(session_id, prompt).status_code == 200
    return session_id


def test_the_latest_answer_that_matches_is_given(api: Api, control: Any) -> None:
    control.answer("revenue (Q3", "A text is no regular expression.")
    control.answer(re.compile(r"^what.*margin", re.IGNORECASE), "An expression is searched.")
    assert said(api, "How much revenue (Q3)?") == "A text is no regular expression."
    assert said(api, "What was the margin?") == "An expression is searched."
    assert said(api, "Bicycles?") == NOTHING
    control.answer("was the margin", "The latest.")
    assert said(api, "What was the margin?") == "The latest."
    assert control.prompts == [
        "How much revenue (Q3)?",
        *["What was the margin?", "Bicycles?", "What was the margin?"],
    ]
    control.reset()
    assert said(api, "Bicycles?") == NOTHING
    assert control.prompts == ["Bicycles?"]


def test_a_scripted_answer_is_streamed_like_any_other(api: Api, emulator: LlamaCloudEmulator) -> None:
    text = "Ünïcode, " * 30
    emulator.answer("margin", text)
    session_id = api.bound()
    stream = events(api.ask(session_id, "What was the margin?").text)
    assert "".join(data["content"] for _, data in stream if data["type"] == "text_delta") == text
    assert api.types(session_id) == WHOLE


def test_its_sources_are_what_the_search_finds(api: Api, control: Any) -> None:
    mine = {"file_name": "report.pdf", "pages": [3, 4], "score": 0.5, "text": "Five.", "index_id": INDEX_FILINGS}
    own = {"content": "As the API has it.", "metadata": {"file_name": "own.pdf"}, "rerank_score": 0.25}
    control.answer("sources", "Five.", sources=[mine, {"file_name": "bare.pdf"}, own])
    (result,) = [event for event in api.history(asked(api, "your sources?")) if event["type"] == "tool_result"]
    first, bare, last = sources(result["name"], result["result"])
    assert {name: first[name] for name in mine} == mine
    assert "attachment" not in first
    assert (bare["file_name"], bare["text"], bare.get("score")) == ("bare.pdf", "", None)
    assert (last["file_name"], last["score"], last["text"]) == ("own.pdf", 0.25, "As the API has it.")


WRONG: list[Any] = [
    {"text": "no name"},
    {"file_name": "a", "page": 1},
    "report.pdf",
    "a text with content",
    7,
    {"file_name": "a", "pages": 3},
    {"file_name": "a", "pages": []},
    {"file_name": "a", "text": 5},
    {"file_name": None},
]


@pytest.mark.parametrize("source", WRONG)
def test_a_source_of_another_form_is_refused(source: Any, control: Any) -> None:
    with pytest.raises(ValueError, match="A source has file_name, text, pages, score and index_id"):
        control.answer("any", "text", sources=[source])


def test_prompts_that_were_refused_or_failed_are_among_the_prompts(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault("status", endpoint="stream"), Fault("error_stop", skip=1))
    session_id = api.bound()
    for prompt in ("one", "two", "three"):
        api.ask(session_id, prompt)
    assert emulator.prompts == ["one", "two", "three"]
    assert [turn.prompt for turn in emulator.turns] == ["two", "three"]
