"""A question, what is known of its turn, and when two texts are the same prompt."""

from __future__ import annotations

import html
import json
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_llamachat.conversation.question import (
    Question,
    Trace,
    fingerprint,
    is_same_text,
    may_be_same_text,
)
from airflow_provider_llamachat.models import Event, StopEvent, UserInputEvent
from tests.unit.services import RECORDS, SURE

FULL = Trace(3, intended_at=12.5, accepted=True, recorded="r" * 24, answered=True, anchor="a" * 24)


def test_a_question_is_read_from_its_serialized_form_among_other_values() -> None:
    full = Question("ses-1", "q", ["i"], require_all_indexes=True, project_id="p", organization_id="o")
    for question in (full, Question("ses-1", "q")):
        assert Question.read({**json.loads(json.dumps(question.as_dict())), "state": "answered"}) == question
    assert full.scope == {"project_id": "p", "organization_id": "o"}
    assert Question("s", "q").scope == {"project_id": None, "organization_id": None}


def test_missing_fields_of_a_question_have_defaults() -> None:
    told = {"session_id": "s", "prompt": "q", "index_ids": None, "require_all_indexes": None}
    assert Question.read(told) == Question("s", "q", [], require_all_indexes=False)


@pytest.mark.parametrize("values", [{}, {"session_id": "s"}, {"prompt": "q"}, {"session_id": 1, "prompt": "q"}])
def test_a_value_without_a_question_is_none(values: dict[str, Any]) -> None:
    assert Question.read(values) is None
    assert Question.read({"session_id": "s", "prompt": ["q"]}) is None


_TRACES = st.builds(
    Trace,
    st.integers(0, 9),
    intended_at=st.none() | st.floats(0, 1e10),
    accepted=st.booleans(),
    recorded=st.none() | st.text(max_size=24),
    answered=st.booleans(),
    anchor=st.none() | st.text(max_size=24),
)


@given(_TRACES)
def test_a_trace_is_unchanged_after_storing_and_reading(trace: Trace) -> None:
    assert Trace.read({**json.loads(json.dumps(trace.as_dict())), "session_id": "s", "prompt": "p"}) == trace


def test_a_trace_keeps_the_names_that_it_has_in_stores_and_events() -> None:
    assert FULL.as_dict() == {
        "baseline": 3,
        "intended_at": 12.5,
        "accepted": True,
        "recorded": "r" * 24,
        "done": True,
        "anchor": "a" * 24,
    }


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        # Task state of 1.0.0: a post is in doubt, nobody knows since when.
        (
            {"session_id": "s", "baseline": 2, "prompt": "f", "accepted": False, "done": False},
            Trace(2, intended_at=0.0),
        ),
        ({"session_id": "s", "baseline": 2, "prompt": "f", "accepted": True, "done": False}, Trace(2, 0.0, True)),
        (
            {"session_id": "s", "baseline": 2, "prompt": "f", "accepted": True, "done": True},
            Trace(2, 0.0, accepted=True, answered=True),
        ),
        # Its trigger's arguments, and its events.
        ({"session_id": "s", "prompt": "q", "index_ids": ["i"], "baseline": 1, "deadline": 9.0}, Trace(1, 0.0)),
        ({"state": "failed", "session_id": "s", "baseline": 1, "error": "ServerError"}, Trace(1, 0.0)),
        # The new form says that no post is in doubt.
        ({"baseline": 1, "intended_at": None}, Trace(1)),
        ({"baseline": 1, "intended_at": 7}, Trace(1, 7.0)),
    ],
)
def test_traces_of_earlier_attempts_and_releases_are_read(left: dict[str, Any], expected: Trace) -> None:
    assert Trace.read(left) == expected
    assert isinstance(expected.intended_at, float | None)


@pytest.mark.parametrize("left", [{}, {"baseline": None}, {"baseline": "1"}, {"baseline": 1.0}, {"accepted": True}])
def test_a_value_without_a_trace_is_none(left: dict[str, Any]) -> None:
    assert Trace.read(left) is None


def test_trace_values_of_invalid_types_are_ignored() -> None:
    left = {"baseline": 1, "intended_at": "soon", "accepted": "yes", "done": 1, "recorded": 5, "anchor": ["x"]}
    assert Trace.read(left) == Trace(1)


@pytest.mark.parametrize(
    ("trace", "is_open"),
    [
        (Trace(0), False),
        (Trace(0, recorded="r", anchor="a"), False),
        (Trace(0, intended_at=0.0), True),
        (Trace(0, accepted=True), True),
        (Trace(0, answered=True), True),
    ],
)
def test_a_trace_is_open_while_a_post_may_have_become_a_turn(trace: Trace, is_open: bool) -> None:
    assert trace.is_open is is_open
    assert not trace.withdrawn().is_open


def test_a_withdrawn_trace_keeps_only_the_position() -> None:
    assert FULL.withdrawn() == Trace(3, anchor="a" * 24)


def test_the_first_event_of_our_stream_shows_acceptance_and_the_first_prompt_in_it_what_is_recorded() -> None:
    began = Trace(1, intended_at=5.0, anchor="a")
    taken = began.after(Event(type="session"))
    assert taken == Trace(1, intended_at=5.0, accepted=True, anchor="a")
    assert taken.after(StopEvent(type="stop")) is taken
    learned = taken.after(UserInputEvent(type="user_input", content="Q"))
    assert learned == Trace(1, intended_at=5.0, accepted=True, recorded=fingerprint("Q"), anchor="a")
    assert learned.after(UserInputEvent(type="user_input", content="other")) is learned
    assert began.after(UserInputEvent(type="user_input", content="Q")) == learned


def test_a_fingerprint_ignores_white_space_and_unicode_composition() -> None:
    assert fingerprint("caf\u00e9  au\nlait ") == fingerprint("cafe\u0301 au lait")
    assert fingerprint("q") == "8e35c2cd3bf6641bdb0e2050", "tasks in flight carry it: it must not change"
    assert fingerprint("q") != fingerprint("Q")
    assert fingerprint("a b") != fingerprint("ab")
    assert len(fingerprint("\ud800")) == 24, "a lone surrogate is no reason to fail"


_READABLE = st.characters(codec="utf-8", categories=["L", "N", "P", "Sm", "Sc", "Zs", "Cc", "Cf"])
_TROUBLE = "aB\u00df\u0130\u017f&lt;amp;<>\"'\u201c\u2019\u200b\u200d\t\n \u00a0\u00e9\ufb01\uff21\u2126"
_PROMPT = st.text(_READABLE, min_size=1, max_size=40) | st.text(_TROUBLE, min_size=1, max_size=30)


@pytest.mark.parametrize("name", sorted(SURE))
@settings(deadline=None)
@given(prompt=_PROMPT)
def test_a_prompt_is_recognized_in_each_form_that_keeps_its_words(name: str, prompt: str) -> None:
    assert is_same_text(RECORDS[name](prompt), prompt)


@pytest.mark.parametrize("name", sorted(RECORDS))
@settings(deadline=None)
@given(prompt=_PROMPT)
def test_a_truncated_or_extended_prompt_may_be_ours(name: str, prompt: str) -> None:
    # Less than a few characters would be no sign of anything.
    prompt = f"Tell me about {prompt}"
    recorded = RECORDS[name](prompt)
    assert is_same_text(recorded, prompt) or may_be_same_text(recorded, prompt)


@pytest.mark.parametrize(
    ("recorded", "prompt"),
    [
        ("\u00abwhat\u00bb \u201eis\u201c `it`\u00b4", "'what' \"is\" it"),
        ("&lt;b&gt; &amp;amp; &quot;x&quot;", '<b> &amp; "x"'),
        ("&amp;lt;b&amp;gt;", "&lt;b&gt;"),
        ("STRASSE", "stra\u00dfe"),
        ("\ufb01ne \uff21", "fine A"),
        ("a\u200bb\u00adc\ufeff", "abc"),
        ("\u300cx\u300d\uff02\uff07", "x"),
        ("\ue000x", "x"),
    ],
)
def test_changes_that_a_server_may_make_are_ignored(recorded: str, prompt: str) -> None:
    assert is_same_text(recorded, prompt)
    assert is_same_text(prompt, recorded)


@pytest.mark.parametrize(
    ("recorded", "prompt"), [("what is it", "what was it"), ("1.5", "15"), ("a-b", "ab"), ("a", "b"), ("", "a")]
)
def test_other_words_numbers_or_signs_make_another_prompt(recorded: str, prompt: str) -> None:
    assert not is_same_text(recorded, prompt)


LONG = "abcdefghijklmnopqrstuvwxyz0123456789+-*="


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (LONG, True),
        ("", True),
        ("  \n", True),
        # A cut leaves the beginning, and only dots behind it. A few characters are no sign.
        ("abcdefgh", True),
        ("ABCDEFGH...", True),
        ("abcdefgh\u2026", True),
        ("abcdefg", False),
        ("a", False),
        ("...", False),
        ("\u2026", False),
        ("...abcdefghX", False),
        ("abcdefgX", False),
        (f"User: {LONG}", True),
        (f"{LONG} Answer briefly.", True),
        # What stands in the midst of our prompt has to be a quarter of it.
        ("defghijklm", True),
        ("defghijkl", False),
        ("xyz", False),
    ],
)
def test_a_text_may_be_ours_if_one_contains_enough_of_the_other(recorded: str, expected: bool) -> None:
    assert may_be_same_text(recorded, LONG) is expected


@pytest.mark.parametrize(
    ("recorded", "prompt"),
    [
        ("Hi", "Highlight the risks in the annual report."),
        ("S", "Summarize the report."),
        ("\u2026", "Summarize the report."),
        ("What was the revenue in 2023?", "2023"),
        ("Why? Explain the difference to last year.", "Why?"),
    ],
)
def test_a_short_prompt_of_somebody_else_is_not_ours(recorded: str, prompt: str) -> None:
    assert not may_be_same_text(recorded, prompt)


def test_our_prompt_must_be_a_quarter_of_the_recorded_text() -> None:
    assert may_be_same_text("x" * 24 + "abcdefgh", "abcdefgh")
    assert not may_be_same_text("x" * 25 + "abcdefgh", "abcdefgh")
    assert not may_be_same_text("x" + "abcdefg", "abcdefg")


def test_a_prompt_may_be_truncated_between_a_letter_and_its_accent() -> None:
    assert may_be_same_text("a new cafe", "a new cafe\u0301 au lait, and a lot of other things")
    assert unicodedata.normalize("NFC", "e\u0301") == "\u00e9"


def test_a_long_hostile_text_is_compared_quickly() -> None:
    import time

    began = time.process_time()
    hostile = "&" + "amp;" * 200_000
    assert not is_same_text(hostile, "q")
    assert not may_be_same_text(hostile, "q")
    assert time.process_time() - began < 5.0
    assert html.unescape(hostile) != hostile


def test_the_forms_that_servers_record_differ_from_one_another() -> None:
    prompt = '  "R\u00e9sum\u00e9" <of> \uff21 it\u2019s \u200bfine\x07, e\u0301 & a very long tail of words  '
    forms: dict[str, Callable[[str], str]] = RECORDS
    assert len({form(prompt) for form in forms.values()}) == len(forms)
