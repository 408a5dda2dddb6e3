"""What others write stays harmless in the log of a turn: one line each, without control characters, bounded."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import pytest

from airflow_provider_llamachat.airflow_support.turn_log import LATE, LINE, MAX_CITATIONS, MAX_LINES, TurnLog
from airflow_provider_llamachat.conversation.history import fold
from airflow_provider_llamachat.conversation.question import Question
from airflow_provider_llamachat.evidence import bounded
from airflow_provider_llamachat.models import Event, StopEvent, TextDeltaEvent, parse_event
from tests.unit.test_transcripts import HOSTILE

UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c\ud800-\udfff]")


def events_of(text: str, **usage: Any) -> list[Event]:
    passage = {"content": text, "metadata": {"file_name": text}, "static_fields": {"page_range_start": 3}}
    items: list[dict[str, Any]] = [
        {"type": "tool_call", "name": text, "call_id": "1", "arguments": {text: text}},
        {"type": "tool_result", "name": text, "call_id": "1", "result": [passage, passage, text, {"odd": text}]},
        {"type": "text", "content": text},
        {"type": "stop", "usage": usage},
    ]
    return [event for item in items if (event := parse_event(item))]


def logged(caplog: pytest.LogCaptureFixture, text: str, *, live: bool, shows_texts: bool = True) -> list[str]:
    caplog.set_level(logging.DEBUG)
    log = TurnLog(logging.getLogger("task"), shows_texts=shows_texts)
    events = events_of(text, total_input_tokens=1, total_output_tokens=2, duration_ms=1001.204)
    turn = fold(events, "ses-1", text)
    log.asks(Question("ses-1", text, ["idx-1", text]))
    log.defers(1_800_000_000.0)
    for event in events if live else []:
        log(event)
    log.answered(turn, has_posted=live)
    log.ends(turn, bounded(turn.sources))
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("live", [True, False], ids=["streamed", "adopted"])
@pytest.mark.parametrize(
    "text",
    [*HOSTILE, pytest.param("word " * 2_000_000, marks=pytest.mark.long)],
    ids=[*map(str, range(len(HOSTILE))), "10 MB"],
)
def test_hostile_texts_stay_harmless(text: str, live: bool, caplog: pytest.LogCaptureFixture) -> None:
    begin = time.process_time()
    lines = logged(caplog, text, live=live)
    assert not any(UNSEEN.search(line) for line in lines)
    assert max(map(len, lines)) < 900
    assert max(len(line) for line in lines if line.startswith("| ")) <= LINE + 2
    assert len(lines) < MAX_LINES + 30
    assert "49" not in "".join(lines)
    assert lines[-1].startswith(
        f"Answered with {len(text)} characters from 4 sources, 1 input and 2 output tokens, in 1.0 s."
    )
    assert sum("returned 4 passages" in line for line in lines) == 1
    assert ("it cost nothing" in "".join(lines)) is not live
    assert time.process_time() - begin < 10.0


def test_without_texts_only_figures_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []
    for live in (True, False):
        lines = logged(caplog, "secretive", live=live, shows_texts=False)
        assert [line for line in lines if "secretive" in line] == [
            "Question in session ses-1, indexes idx-1, secretive: 9 characters"
        ] * (2 - live)
    assert "Answered with 9 characters from 4 sources" in lines[-1]


def test_the_list_of_documents_is_short_and_the_end_of_a_long_answer_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = TurnLog(logging.getLogger("task"))
    results = [{"file_id": f"f-{number}", "file_name": f"{number}.pdf"} for number in range(MAX_CITATIONS + 5)]
    items: list[dict[str, Any]] = [
        {"type": "tool_result", "name": "find", "call_id": "1", "result": results},
        {"type": "text", "content": "line\n" * (MAX_LINES + 5)},
        {"type": "stop", "usage": {}},
    ]
    events = [event for item in items if (event := parse_event(item))]
    for event in events:
        log(event)
    turn = fold(events, "ses-1", "q")
    log.ends(turn, turn.sources)
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("| line") == MAX_LINES
    assert f"| … (only the first {MAX_LINES} lines of an answer are logged)" in lines
    assert sum(line.startswith("source: ") for line in lines) == MAX_CITATIONS + 1
    assert f"source: … ({MAX_CITATIONS + 5} documents in all)" in lines
    assert lines[-1] == (
        f"Answered with {len(turn.answer)} characters from 25 sources, None input and None output tokens, in an unknown time. "
        "Session: ses-1."
    )


def test_a_duration_beyond_the_calendar_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    TurnLog(logging.getLogger("task")).defers(1e300)
    assert caplog.messages == ["Waiting for the answer in the triggerer, without a limit."]


@pytest.mark.parametrize("live", [True, False], ids=["streamed", "adopted"])
@pytest.mark.long
def test_endless_tool_calls_do_not_fill_the_log(live: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    items: list[dict[str, Any]] = []
    for number in range(3 * MAX_LINES):
        items.append({"type": "tool_call", "name": "retrieve", "call_id": str(number)})
        items.append({"type": "tool_result", "name": "retrieve", "call_id": str(number), "result": "x"})
    items += [{"type": "text", "content": "The answer."}, {"type": "stop"}]
    events = [event for item in items if (event := parse_event(item))]
    log = TurnLog(logging.getLogger("task"))
    for event in events if live else []:
        log(event)
    log.answered(fold(events, "ses-1", "q"), has_posted=live)
    assert sum(line.lower().startswith("tool") for line in caplog.messages) == MAX_LINES + 1
    assert f"tool … (only the first {MAX_LINES} lines about tools are logged)" in caplog.messages
    assert caplog.messages[-1] == "| The answer."


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_signature_of_a_long_url_is_not_cut_into_two_lines(size: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for length in range(0, 160, 3):
        log = TurnLog(logging.getLogger("task"))
        url = f"https://files.invalid/{'p' * length}?X-Amz-Date=20260101T000000Z&X-Amz-Expires=3600&X-Amz-Signature={'ab12' * 16}"
        for begin in range(0, len(url), size):
            log(TextDeltaEvent(type="text_delta", content=url[begin : begin + size]))
        log(StopEvent(type="stop"))
    assert "ab12" not in "".join(line.removeprefix("| ") for line in caplog.messages)


def test_an_answer_of_an_earlier_attempt_is_not_called_a_lost_stream(caplog: pytest.LogCaptureFixture) -> None:
    """The post of this attempt was refused, because the turn of the earlier one was still running."""
    caplog.set_level(logging.INFO)
    turn = fold(events_of("fine")[2:], "ses-1", "q")
    TurnLog(logging.getLogger("task")).answered(turn, has_posted=True)
    assert caplog.messages == [
        "The post returned no stream. The answer was read from the session's history. It was paid for once.",
        "| fine",
    ]


def test_a_line_is_logged_before_it_is_complete_only_if_its_own_words_are_late(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = TurnLog(logging.getLogger("task"))
    for seconds, text in ((60.0, "The revenue "), (1.0, "was "), (LATE, "47.5 "), (1.0, "million.\n")):
        now[0] += seconds
        log(TextDeltaEvent(type="text_delta", content=text))
    assert [record.getMessage() for record in caplog.records] == ["| The revenue was 47.5", "| million."]
