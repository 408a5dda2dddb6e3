"""A history becomes a verdict: position first, then our own evidence, text as a hint only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_llamachat.conversation.history import (
    State,
    anchor,
    begin,
    count_turns,
    indexes_to_ask,
    is_running,
    judge,
    turns,
)
from airflow_provider_llamachat.conversation.question import Question, Trace, fingerprint
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.models import Event, Session, parse_event

STOP = {
    "type": "stop",
    "usage": {"total_input_tokens": 7, "total_output_tokens": 3, "turns": 1, "duration_ms": 12.5},
    "is_error": False,
    "error": None,
}
Q = Question("ses-1", "ours")


def asked(prompt: str) -> dict[str, Any]:
    return {"type": "user_input", "content": prompt}


def turn(prompt: str, answer: str = "42", **stop: Any) -> list[dict[str, Any]]:
    return [
        asked(prompt),
        {"type": "thinking", "content": "hm"},
        {"type": "tool_call", "name": "retrieve", "call_id": "c1", "arguments": {"query": prompt}},
        {"type": "tool_result", "name": "retrieve", "call_id": "c1", "result": ["passage"]},
        {"type": "text", "content": answer},
        {**STOP, **stop},
    ]


def events(*parts: list[dict[str, Any]]) -> list[Event]:
    parsed = [parse_event(item) for part in parts for item in part]
    assert None not in parsed
    return [event for event in parsed if event is not None]


def session(*parts: list[Any], **fields: Any) -> Session:
    return Session.model_validate({"session_id": "ses-1", "events": [i for p in parts for i in p], **fields})


@settings(deadline=None)
@given(cut=st.integers(0, 6), before=st.integers(0, 3), is_error=st.booleans())
def test_any_truncation_of_the_history_gives_the_documented_verdict(cut: int, before: int, is_error: bool) -> None:
    earlier = [turn(f"earlier {number}") for number in range(before)]
    ours = turn("ours", is_error=is_error, error="no" if is_error else None)[:cut]
    verdict = judge(events(*earlier, ours), Q, Trace(before))
    assert verdict.state is (State.ABSENT if cut == 0 else State.FINISHED if cut == 6 else State.RUNNING)
    assert (verdict.turn is None, verdict.recorded is None) == (cut == 0, cut == 0)
    assert (verdict.size, verdict.asked, verdict.overtaken, verdict.is_sure) == (
        cut,
        int(cut > 0),
        False,
        True,
    ) or not cut
    if verdict.turn is not None:
        assert verdict.turn.finished == (cut == 6)
        assert verdict.turn.is_error == (cut == 6 and is_error)
        assert verdict.turn.position == before
        assert (verdict.turn.prompt, verdict.turn.session_id) == ("ours", "ses-1")


def test_another_prompt_in_our_place_is_foreign_and_ours_is_found_after_it() -> None:
    alone = judge(events(turn("theirs")), Q, Trace(0))
    assert (alone.state, alone.recorded, alone.asked) == (State.FOREIGN, None, 0)
    assert alone.turn is not None
    assert (alone.turn.answer, alone.turn.position) == ("42", 0)
    two = judge(events(turn("theirs"), turn("others")), Q, Trace(0))
    assert (two.state, two.turn) == (State.FOREIGN, None)
    behind = judge(events(turn("theirs"), turn("ours", "right")), Q, Trace(0))
    assert behind.turn is not None
    assert (behind.turn.answer, behind.turn.position) == ("right", 1)


def test_our_prompt_before_the_baseline_belongs_to_another_task() -> None:
    assert judge(events(turn("ours")), Q, Trace(1)).state is State.ABSENT
    assert judge(events(turn("ours")), Q, Trace(-1)).state is State.FINISHED


def test_a_prompt_in_the_recorded_form_is_ours_at_any_position() -> None:
    known = Trace(0, accepted=True, recorded=fingerprint("#1: 0u4s"))
    verdict = judge(events(turn("theirs"), turn("#1: 0u4s", "right")), Q, known)
    assert (verdict.state, verdict.is_sure, verdict.recorded) == (State.FINISHED, True, known.recorded)
    assert judge(events(turn("#1: 0u4s")), Q, Trace(0)).state is State.FOREIGN


@pytest.mark.parametrize("recorded", ["", "ours, and", "User: ours, and no other"])
def test_a_similar_prompt_may_be_ours_only_at_our_position(recorded: str) -> None:
    question = replace(Q, prompt="ours, and no other")
    verdict = judge(events(turn(recorded)), question, Trace(0))
    assert (verdict.state, verdict.is_sure, verdict.asked) == (State.FINISHED, False, 1)
    assert judge(events(turn("theirs"), turn(recorded)), question, Trace(0)).state is State.FOREIGN
    sure = judge(events(turn(recorded), turn("ours, and no other", "right")), question, Trace(0))
    assert sure.turn is not None
    assert (sure.turn.answer, sure.is_sure) == ("right", True)


def test_a_turn_that_another_one_overtook_counts_as_running_and_overtaken() -> None:
    verdict = judge(events(turn("ours")[:2], turn("theirs")), Q, Trace(0))
    assert (verdict.state, verdict.overtaken, verdict.size) == (State.RUNNING, True, 2)
    assert not judge(events(turn("ours"), turn("theirs")), Q, Trace(0)).overtaken


def test_of_two_equal_prompts_the_first_answered_one_counts_or_else_the_last() -> None:
    cut, failed, good = turn("ours")[:3], turn("ours", is_error=True, error="x"), turn("ours", "good")
    for history in ((cut, good), (failed, good), (good, turn("ours", "late"))):
        verdict = judge(events(*history), Q, Trace(0))
        assert verdict.turn is not None
        assert (verdict.turn.answer, verdict.asked) == ("good", 2)
    last = judge(events(failed, good[:2]), Q, Trace(0))
    assert (last.state, last.asked) == (State.RUNNING, 2)


def test_a_history_with_fewer_turns_than_known_proves_nothing() -> None:
    assert judge(events(turn("a")), Q, Trace(2)).state is State.TRUNCATED
    assert judge([], Q, Trace(1, accepted=True)).state is State.TRUNCATED
    assert judge(events(turn("ours")), Q, Trace(2, intended_at=0.0)).state is State.TRUNCATED
    assert judge([], Q, Trace(0)).state is State.ABSENT


@pytest.mark.parametrize("known", [{"accepted": True}, {"answered": True}])
def test_an_accepted_prompt_is_the_last_turn_of_a_truncated_history(known: dict[str, Any]) -> None:
    verdict = judge(events(turn("b"), turn("ours")), Q, Trace(5, **known))
    assert verdict.turn is not None
    assert (verdict.state, verdict.asked, verdict.turn.position, verdict.is_sure) == (State.FINISHED, 1, 1, True)
    assert judge(events(turn("ours"), turn("b")), Q, Trace(5, **known)).state is State.TRUNCATED
    recorded = Trace(5, recorded=fingerprint("0"), **known)
    assert judge(events(turn("b"), turn("0")), Q, recorded).state is State.FINISHED


def test_a_truncated_history_is_recognized_by_its_first_turn() -> None:
    before = events(turn("a"), turn("b"))
    known = Trace(2, intended_at=0.0, anchor=anchor(before, 2))
    assert judge(before, Q, known).state is State.ABSENT
    assert judge(events(turn("a"), turn("b"), turn("ours")), Q, known).state is State.FINISHED
    assert judge(events(turn("b"), turn("c")), Q, known).state is State.TRUNCATED
    assert judge(events(turn("a")[1:], turn("b"), turn("c")), Q, known).state is State.TRUNCATED


def test_an_anchor_is_the_first_turn_with_all_that_its_events_hold() -> None:
    first = anchor(events(turn("a")), 1)
    assert first == anchor(events(turn("a"), turn("b")), 2) == anchor(events(turn("a"), turn("b")[:1]), 1)
    assert len(first) == 24
    assert len({first, *(anchor(events(other), 1) for other in (turn("b"), turn("a", "43"), turn("a", usage={})))}) == 4
    assert anchor(events([{"type": "note"}], turn("a")), 1) != first


def test_the_anchor_of_an_empty_session_equals_the_anchor_before_the_first_turn() -> None:
    empty = anchor([], 0)
    assert anchor(events(turn("a"), turn("b")), 0) == empty
    assert anchor(events([STOP]), 0) != empty, "the end of a turn whose beginning is gone"
    assert judge(events(turn("ours")[2:]), Q, Trace(0, intended_at=0.0, anchor=empty)).state is State.TRUNCATED


def test_the_anchor_matches_when_a_running_first_turn_ends() -> None:
    running = Trace(1, intended_at=0.0, anchor=anchor(events(turn("a")[:3]), 1))
    assert running.anchor == anchor(events(turn("a")[:1]), 1)
    for history in (turn("a")[:1], turn("a")[:4], turn("a")):
        assert judge(events(history), Q, running).state is State.ABSENT
    assert judge(events(turn("ours")[:1]), Q, running).state is State.TRUNCATED


def test_a_first_attempt_asks_after_what_is_there_even_when_the_prompt_was_asked_before() -> None:
    history = session(turn("ours"))
    assert begin(history, Q, now=9.0) == Trace(1, anchor=anchor(history.events, 1))
    assert begin(session(), Q, is_retry=False, now=9.0) == Trace(0, anchor=anchor([], 0))


@pytest.mark.parametrize(
    ("history", "baseline"),
    [
        ([], 0),
        ([turn("ours")], 0),
        ([turn("OURS ")[:2]], 0),
        ([turn("a"), turn("ours")], 1),
        ([turn("other")], 1),
        ([turn("ours"), turn("other")], 2),
        ([turn("ours", is_error=True, error="x")], 1),  # another attempt may have asked after it
    ],
)
def test_a_retry_without_a_store_knows_its_turn_by_the_last_prompt(
    history: list[list[dict[str, Any]]], baseline: int
) -> None:
    begun = begin(session(*history), Q, is_retry=True, now=9.0)
    assert begun == Trace(baseline, intended_at=9.0, anchor=anchor(events(*history), baseline))


def test_an_attempt_with_a_store_uses_its_trace() -> None:
    history = session(turn("ours"), turn("ours"))
    for memory in (Trace(1, 5.0), Trace(1, accepted=True), Trace(1, answered=True)):
        assert begin(history, Q, memory=memory, now=9.0) is memory
        assert begin(history, Q, memory=memory, is_retry=True, now=9.0) is memory
        assert begin(session(turn("a")), Q, memory=memory, now=9.0) is memory
        assert begin(session(turn("a"), turn("theirs")), Q, memory=memory, now=9.0) is memory


def test_what_is_not_in_doubt_is_asked_after_what_is_there() -> None:
    fresh = begin(session(turn("a"), turn("theirs")), Q, memory=Trace(1), is_retry=True, now=9.0)
    assert (fresh.baseline, fresh.is_open) == (2, False)


@pytest.mark.parametrize("shown", [turn("ours"), turn("OURS ")[:2]])
def test_a_turn_that_a_history_showed_too_late_is_taken_by_the_next_attempt(shown: list[dict[str, Any]]) -> None:
    for before in ([], [turn("theirs")]):
        late = begin(session(turn("a"), *before, shown), Q, memory=Trace(1, anchor="x"), now=9.0)
        assert (late.baseline, late.is_open) == (2 + len(before), False), "the history lost its beginning"
        late = begin(session(turn("a"), *before, shown), Q, memory=Trace(1), now=9.0)
        assert late == Trace(1, intended_at=9.0)
    unsure = begin(session(turn("a"), turn("ours and more")), Q, memory=Trace(1), now=9.0)
    assert (unsure.baseline, unsure.is_open) == (2, False)
    failed = begin(session(turn("a"), turn("ours", is_error=True)), Q, memory=Trace(1), now=9.0)
    assert (failed.baseline, failed.is_open) == (2, False)


def test_a_turn_that_the_server_ended_with_an_error_is_asked_after() -> None:
    failed = turn("ours", is_error=True, error="x")
    again = begin(session(turn("a"), failed), Q, memory=Trace(1, 5.0, accepted=True), now=9.0)
    assert (again.baseline, again.is_open) == (2, False)
    unsure = Trace(1, 5.0)
    theirs = turn("ou", is_error=True, error="x")
    assert begin(session(turn("a"), theirs), Q, memory=unsure, now=9.0) is unsure, "it need not be ours that failed"


def test_indexes_come_from_the_arguments_or_from_the_session() -> None:
    bound = session(index_ids=["a", "b"])
    assert indexes_to_ask(bound, None) == ["a", "b"]
    assert indexes_to_ask(bound, []) == ["a", "b"]
    assert indexes_to_ask(bound, ["c"]) == ["c"]  # not locked before the first message
    locked = session(index_ids=["a", "b"], job_metadata={"turns": 1})
    assert indexes_to_ask(locked, ["b", "a"]) == ["b", "a"]
    assert indexes_to_ask(session(job_metadata={"turns": 1}), ["c"]) == ["c"]
    with pytest.raises(InvalidArgumentError, match=r"ses-1 was locked.*\['a', 'b'\].*index_ids=\['c'\]") as caught:
        indexes_to_ask(locked, ["c"])
    assert caught.value.session_id == "ses-1"
    with pytest.raises(InvalidArgumentError, match="ses-1 is not bound to any index") as caught:
        indexes_to_ask(session(), None)
    assert caught.value.session_id == "ses-1"


def test_a_message_shows_a_bounded_number_of_indexes() -> None:
    many = session(index_ids=[f"index-{n:03}" for n in range(300)], job_metadata={"turns": 1})
    with pytest.raises(InvalidArgumentError) as caught:
        indexes_to_ask(many, ["x"])
    assert "index-019" in str(caught.value)
    assert "index-020" not in str(caught.value)


def test_a_history_with_malformed_events_keeps_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    loaded = session([asked("q"), {"type": "text"}, "nonsense", {"no": "type"}, {"type": "new", "x": 1}, STOP])
    lost = ["malformed"] * 3
    assert [item.type for item in loaded.events] == ["user_input", *lost, "new", "stop"]
    assert count_turns(loaded.events) == 1
    assert "3 of 6 events" in caplog.text


def test_a_turn_between_others_is_its_own_events_only() -> None:
    question = Question("ses-1", "ours", ["i"])
    verdict = judge(events(turn("theirs"), turn("ours", "right"), turn("others")), question, Trace(0))
    assert verdict.turn is not None
    assert (verdict.turn.answer, verdict.size, verdict.turn.index_ids) == ("right", 6, ["i"])


def test_an_anchor_ends_with_the_first_turn_even_if_that_was_cut_off() -> None:
    cut = turn("a")[:2]
    assert anchor(events(cut, turn("b")), 2) == anchor(events(cut, turn("c")), 2)
    assert len(anchor([], 0)) == 24


@pytest.mark.parametrize(
    ("kinds", "is_it"),
    [
        ([], False),
        (["user_input"], True),
        (["user_input", "text"], True),
        (["user_input", "stop"], False),
        (["user_input", "stop", "user_input"], True),
        (["user_input", "user_input", "stop"], False),
    ],
)
def test_a_history_that_ends_without_a_stop_has_a_running_turn(kinds: list[str], is_it: bool) -> None:
    events = [event for kind in kinds if (event := parse_event({"type": kind, "content": "x"}))]
    assert is_running(events) is is_it


def test_all_turns_of_a_session_are_in_their_order_and_keep_what_belongs_to_them() -> None:
    first = [{"type": "user_input", "content": "One?"}, {"type": "text", "content": "1"}, {"type": "stop"}]
    second = [{"type": "user_input", "content": "Two?"}, {"type": "text", "content": "2"}]
    session = Session.model_validate(
        {"session_id": "ses-1", "events": [{"type": "text", "content": "0"}, *first, *second]}
    )
    found = [(turn.session_id, turn.position, turn.prompt, turn.answer, turn.finished) for turn in turns(session)]
    assert found == [("ses-1", 0, "One?", "1", True), ("ses-1", 1, "Two?", "2", False)]


ALIKE = Trace(1, accepted=True, recorded=fingerprint("?"))
THEIRS = {2, fingerprint("?")}


@pytest.mark.parametrize("known", [THEIRS, {fingerprint("?")}, {2}], ids=["both", "recorded", "position"])
def test_a_later_turn_whose_prompt_is_recorded_like_ours_is_not_ours(known: set[Any]) -> None:
    question = replace(Q, others=known)
    shown = events(turn("first"), turn("?", is_error=True), turn("?", "theirs"))
    verdict = judge(shown, question, ALIKE)
    assert verdict.turn is not None
    assert (verdict.turn.position, verdict.is_sure) == (1, True)
    # If its text is ours, it is ours whatever is known about others.
    verdict = judge(events(turn("first"), turn("theirs"), turn("ours", "mine")), question, ALIKE)
    assert verdict.turn is not None
    assert (verdict.turn.answer, verdict.is_sure) == ("mine", True)


@pytest.mark.parametrize("trace", [Trace(0, intended_at=1.0), Trace(0, answered=True)], ids=["in doubt", "answered"])
def test_a_turn_that_is_known_to_be_anothers_is_not_ours_although_it_has_our_place(trace: Trace) -> None:
    verdict = judge(events(turn("", "theirs")), replace(Q, others={0}), trace)
    assert (verdict.state, verdict.turn) == (State.FOREIGN, None)


def test_a_history_that_lost_turns_does_not_tell_ours_by_a_form_that_others_have_too() -> None:
    question = replace(Q, others={fingerprint("?")})
    assert judge(events(turn("?", "theirs")), question, replace(ALIKE, baseline=5)).state is State.TRUNCATED


def test_a_turn_that_failed_in_its_place_is_not_looked_for_after_it() -> None:
    # Another task's prompt is recorded like ours.
    shown = session(turn("first"), turn("?", is_error=True), turn("?", "theirs"))
    assert begin(shown, Q, memory=replace(ALIKE, answered=True), now=2.0) == Trace(3, anchor=anchor(shown.events, 3))
    # This one was asked once more, so the second turn is ours.
    assert begin(shown, Q, memory=ALIKE, now=2.0) == ALIKE


def test_a_prompt_that_was_asked_once_more_is_counted_twice_although_others_are_recorded_like_it() -> None:
    question = replace(Q, others={3, fingerprint("?")})
    shown = events(turn("first"), turn("?")[:2], turn("?"), turn("?"))
    assert judge(shown, question, ALIKE).asked == 2
