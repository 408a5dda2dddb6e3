"""The judge of many conversations: what is right passes, and each promise that is broken on purpose is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_llamachat.testing import TurnRecord
from tests.celery.judging import Conversation, Evidence, judge
from tests.chaos.plans import INDEX, code, prompt

LEFT = {"events": [{"type": "user_input"}]}
EMPTY: dict[str, Any] = {"events": []}


def conversation(vault: int, **changes: Any) -> Conversation:
    good = Conversation(
        vault,
        {"create": "success", "ask": "success", "delete": "success"},
        {"create": 1, "ask": 1, "delete": 1},
        f"ses-{vault}",
        f"{code(vault)} opens vault{vault}x.",
        {"total_output_tokens": 10 + vault},
    )
    return replace(good, **changes)


def turn(vault: int, **changes: Any) -> TurnRecord:
    good = TurnRecord(f"ses-{vault}", prompt(vault), 0, [INDEX], [], "completed", 1.0, 2.0, 100, 10 + vault)
    return replace(good, **changes)


def verdict(
    *conversations: Conversation, turns: tuple[TurnRecord, ...], left: dict[str, Any] | None = None
) -> list[str]:
    return list(judge(conversations, Evidence(turns, left or {})))


def test_a_correct_result_passes() -> None:
    assert verdict(conversation(0), conversation(1), turns=(turn(0), turn(1))) == []


def test_a_failed_turn_before_the_completed_one_is_not_a_second_payment() -> None:
    assert verdict(conversation(0), turns=(turn(0, state="failed"), turn(0))) == []


def test_sessions_left_by_a_killed_creation_are_accepted() -> None:
    again = conversation(0, tries={"create": 2, "ask": 1, "delete": 1})
    assert verdict(again, turns=(turn(0),), left={"ses-lost": EMPTY}) == []


@pytest.mark.parametrize(
    ("changes", "turns", "complaint"),
    [
        ({}, (turn(0), turn(0, position=1)), "completed 2 times"),
        ({}, (), "completed 0 times"),
        ({}, (turn(0), turn(7)), "nobody asks"),
        ({}, (turn(0, session_id="ses-other"),), "another conversation's session"),
        ({"answer": f"{code(1)} opens vault1x."}, (turn(0),), "is no answer"),
        ({"answer": f"{code(0)} and {code(1)}"}, (turn(0),), "answers more than"),
        ({"answer": None}, (turn(0),), "is no answer"),
        ({"usage": {"total_output_tokens": 11}}, (turn(0),), "the server counted"),
        ({"usage": None}, (turn(0),), "the server counted"),
        ({"states": {"create": "success", "ask": "failed", "delete": "success"}}, (turn(0),), "'ask': 'failed'"),
        ({"session_id": "ses-1"}, (turn(0, session_id="ses-1"),), "have one session"),
    ],
)
def test_an_incorrect_result_is_found(changes: dict[str, Any], turns: tuple[TurnRecord, ...], complaint: str) -> None:
    found = verdict(conversation(0, **changes), conversation(1), turns=(*turns, turn(1)))
    assert any(complaint in problem for problem in found), found


@pytest.mark.parametrize(
    ("left", "complaint"),
    [
        ({"ses-0": LEFT}, "although its deletion succeeded"),
        ({"ses-lost": LEFT}, "with a history"),
        ({"ses-lost": EMPTY}, "only 0 creations were tried again"),
    ],
)
def test_a_session_left_over_is_found(left: dict[str, Any], complaint: str) -> None:
    (problem,) = verdict(conversation(0), turns=(turn(0),), left=left)
    assert complaint in problem
