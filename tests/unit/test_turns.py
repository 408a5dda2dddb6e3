"""The pure core: folding, judging, opening. What the rule says is written here a second time, in another form."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_llamachat.client.streaming import read_events
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.models import Event, Session, parse_event
from airflow_provider_llamachat.turns import (
    Memory,
    Opening,
    State,
    count_turns,
    fingerprint,
    fold,
    indexes_to_ask,
    judge,
    opening,
)

STOP = {
    "type": "stop",
    "usage": {"total_input_tokens": 7, "total_output_tokens": 3, "turns": 1, "duration_ms": 12.5},
    "is_error": False,
    "error": None,
}


def event(data: dict[str, Any]) -> Event:
    parsed = parse_event(data)
    assert parsed is not None
    return parsed


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
    return [event(item) for part in parts for item in part]


def session(*parts: list[dict[str, Any]], **fields: Any) -> Session:
    return Session.model_validate(
        {
            "session_id": "ses-1",
            "last_updated_at": "2026-01-01T00:00:00",
            "events": [i for p in parts for i in p],
            **fields,
        }
    )


def test_a_whole_turn_folds_into_answer_tools_and_usage() -> None:
    folded = fold(events(turn("why?", skipped_index_ids=["idx-b"])), "ses-1", "why?")
    assert (folded.answer, folded.thinking, folded.finished, folded.is_error) == ("42", "hm", True, False)
    assert folded.usage_as_dict() == {
        "total_input_tokens": 7,
        "total_output_tokens": 3,
        "turns": 1,
        "duration_ms": 12.5,
    }
    assert folded.skipped_index_ids == ["idx-b"]
    assert [(tool.name, tool.arguments, tool.result, tool.finished) for tool in folded.tools] == [
        ("retrieve", {"query": "why?"}, ["passage"], True)
    ]


def test_text_events_are_the_answer_and_deltas_only_stand_in_for_them() -> None:
    deltas = [{"type": "text_delta", "content": part} for part in ("4", "2")]
    whole = [{"type": "text", "content": "42"}]
    assert fold(events(deltas, whole, [STOP]), "s", "p").answer == "42"
    assert fold(events(deltas, [STOP]), "s", "p").answer == "42"
    assert fold(events(whole, whole, [STOP]), "s", "p").answer == "42\n\n42"
    thinking = [{"type": "thinking_delta", "content": "h"}, {"type": "thinking_delta", "content": "m"}]
    assert fold(events(thinking, [STOP]), "s", "p").thinking == "hm"


def test_nothing_counts_after_stop_and_a_result_without_its_call_is_kept() -> None:
    late = [{"type": "text", "content": "late"}]
    result = [{"type": "tool_result", "name": "x", "call_id": "c9", "result": 1}]
    folded = fold(events(result, [STOP], late), "s", "p")
    assert folded.answer == ""
    assert [(tool.call_id, tool.arguments, tool.finished) for tool in folded.tools] == [("c9", {}, True)]


@given(cut=st.integers(0, 6), before=st.integers(0, 3), is_error=st.booleans())
def test_any_cut_of_the_history_gives_the_verdict_of_the_rule(cut: int, before: int, is_error: bool) -> None:
    earlier = [turn(f"earlier {number}") for number in range(before)]
    ours = turn("ours", is_error=is_error, error="no" if is_error else None)[:cut]
    verdict = judge(events(*earlier, ours), before, "ours")
    expected = State.ABSENT if cut == 0 else State.FINISHED if cut == 6 else State.RUNNING
    assert verdict.state is expected
    assert (verdict.turn is None) == (cut == 0)
    if verdict.turn is not None:
        assert verdict.size == cut
        assert verdict.turn.finished == (cut == 6)
        assert verdict.turn.is_error == (cut == 6 and is_error)
        assert verdict.turn.position == before


_TEXT = st.text(min_size=1, max_size=12)
_EVENT = st.one_of(
    st.builds(asked, _TEXT),
    st.builds(lambda t: {"type": "text", "content": t}, _TEXT),
    st.builds(lambda t: {"type": "text_delta", "content": t}, _TEXT),
    st.just(STOP),
    st.just({**STOP, "is_error": True, "error": "x"}),
    st.builds(lambda t: {"type": "brand_new", "anything": t}, _TEXT),
)


def encoded(items: list[dict[str, Any]], newline: str) -> bytes:
    import json

    return "".join(f"event: message{newline}data: {json.dumps(item)}{newline}{newline}" for item in items).encode()


@settings(max_examples=150)
@given(items=st.lists(_EVENT, max_size=12), data=st.data(), newline=st.sampled_from(["\n", "\r\n", "\r"]))
def test_folding_does_not_depend_on_how_the_bytes_are_cut(
    items: list[dict[str, Any]], data: st.DataObject, newline: str
) -> None:
    stream = encoded(items, newline)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = list(read_events([stream], "s"))
    assert list(read_events(pieces, "s")) == whole == events(items)


@settings(max_examples=150)
@given(items=st.lists(_EVENT, max_size=10), data=st.data(), baseline=st.integers(0, 3))
def test_a_stream_cut_at_any_byte_gives_a_verdict_on_whole_events_only(
    items: list[dict[str, Any]], data: st.DataObject, baseline: int
) -> None:
    prompt = data.draw(_TEXT)
    items = [*items, asked(prompt), {"type": "text", "content": "a"}, STOP]
    stream = encoded(items, "\n")
    cut = data.draw(st.integers(0, len(stream)))
    arrived = list(read_events([stream[:cut]], "s"))
    assert arrived == events(items)[: len(arrived)]
    verdict = judge(arrived, baseline, prompt)
    mine = [i for i, item in enumerate(arrived) if getattr(item, "type", "") == "user_input"][baseline:]
    matching = [i for i in mine if " ".join(arrived[i].content.split()) == " ".join(prompt.split())]  # type: ignore[attr-defined]  # user_input has content
    if not mine:
        assert verdict.state is State.ABSENT
    elif not matching:
        assert verdict.state is State.FOREIGN
    else:
        stops = [any(getattr(e, "type", "") == "stop" for e in _until_next(arrived, i)) for i in matching]
        assert verdict.state is (
            State.FINISHED if any(stops) and (stops[-1] or (verdict.turn and verdict.turn.finished)) else State.RUNNING
        )
        assert verdict.asked == len(matching)


def _until_next(items: list[Event], start: int) -> list[Event]:
    following = [i for i in range(start + 1, len(items)) if items[i].type == "user_input"]
    return items[start + 1 : following[0] if following else len(items)]


def test_a_prompt_is_recognized_whatever_a_server_does_to_its_white_space_and_unicode_form() -> None:
    assert judge(events(turn("a  b\n")), 0, " a b").state is State.FINISHED
    assert judge(events(turn("caf\u00e9")), 0, "cafe\u0301").state is State.FINISHED
    assert fingerprint("caf\u00e9") == fingerprint("cafe\u0301")


def test_another_prompt_in_our_place_is_foreign_and_ours_is_found_after_it() -> None:
    assert judge(events(turn("theirs")), 0, "ours").state is State.FOREIGN
    assert judge(events(turn("theirs"), turn("ours", "right")), 0, "ours").turn.answer == "right"  # type: ignore[union-attr]  # present by the state


def test_a_turn_that_another_one_overtook_is_running_and_said_to_be_overtaken() -> None:
    verdict = judge(events(turn("ours")[:2], turn("theirs")), 0, "ours")
    assert (verdict.state, verdict.overtaken, verdict.size) == (State.RUNNING, True, 2)


def test_asked_twice_the_first_that_was_answered_counts() -> None:
    cut, failed, good = turn("q")[:3], turn("q", is_error=True, error="x"), turn("q", "good")
    assert judge(events(cut, good), 0, "q").turn.answer == "good"  # type: ignore[union-attr]  # present by the state
    verdict = judge(events(failed, good[:2]), 0, "q")
    assert (verdict.state, verdict.asked) == (State.RUNNING, 2)


def test_a_first_try_asks_after_what_is_there_even_when_the_prompt_was_asked_before() -> None:
    assert (opening(session(turn("q")), "q").baseline, opening(session(turn("q")), "q").resume) == (1, False)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], (0, False)),
        ([turn("q")], (0, True)),
        ([turn("q")[:2]], (0, True)),
        ([turn("other")], (1, False)),
        ([turn("q"), turn("other")], (2, False)),
        ([turn("q", is_error=True, error="x")], (1, False)),
    ],
)
def test_a_retry_without_a_store_knows_its_turn_by_the_last_prompt(
    history: list[list[dict[str, Any]]], expected: tuple[int, bool]
) -> None:
    begin = opening(session(*history), "q", retry=True)
    assert (begin.baseline, begin.resume) == expected


def test_a_retry_with_a_store_goes_by_its_memory() -> None:
    memory = Memory("ses-1", 1, fingerprint("q"))
    begin = opening(session(turn("q"), turn("q")), "q", retry=True, memory=memory)
    assert (begin.baseline, begin.resume) == (1, True)
    absent = opening(session(turn("q")), "q", retry=True, memory=memory)
    assert (absent.baseline, absent.resume) == (1, False)
    never_asked = opening(session(turn("q")), "q")
    assert (never_asked.baseline, never_asked.resume) == (1, False)
    assert opening(session(turn("q"), turn("q")), "q", memory=memory) == begin, "a memory proves that there was a try"
    failed = opening(session(turn("a"), turn("q", is_error=True)), "q", retry=True, memory=memory)
    assert (failed.baseline, failed.resume) == (2, False)


def test_a_prompt_that_was_seen_to_be_accepted_is_looked_for_even_when_the_history_does_not_show_it() -> None:
    memory = Memory("ses-1", 1, fingerprint("q"), accepted=True)
    begin = opening(session(turn("a")), "q", retry=True, memory=memory)
    assert (begin.baseline, begin.resume, begin.accepted) == (1, True, True)


def test_only_other_prompts_after_the_baseline_are_no_reason_not_to_ask_unless_ours_was_seen_to_be_taken() -> None:
    history = session(turn("a"), turn("theirs"))
    assert opening(history, "q", memory=Memory("ses-1", 1, fingerprint("q"))) == Opening(2, resume=False)
    taken = Memory("ses-1", 1, fingerprint("q"), accepted=True)
    assert opening(history, "q", memory=taken) == Opening(1, resume=True, accepted=True)


@pytest.mark.parametrize("memory", [Memory("ses-2", 0, fingerprint("q")), Memory("ses-1", 0, fingerprint("edited"))])
def test_a_memory_of_another_question_is_not_followed(memory: Memory) -> None:
    begin = opening(session(turn("q")), "q", retry=True, memory=memory)
    assert (begin.baseline, begin.resume) == (1, False)


@pytest.mark.parametrize("value", [None, 3, {}, {"session_id": "s", "baseline": "1", "prompt": "p"}])
def test_a_memory_in_another_form_is_none(value: Any) -> None:
    assert Memory.from_value(value) is None


def test_a_memory_survives_its_store() -> None:
    for memory in (
        Memory("ses-1", 4, fingerprint("q")),
        Memory("ses-1", 4, fingerprint("q"), accepted=True),
        Memory("ses-1", 4, fingerprint("q"), accepted=True, done=True),
    ):
        assert Memory.from_value(memory.as_dict()) == memory
    assert Memory.from_value({"session_id": "s", "baseline": 0, "prompt": "p"}) == Memory("s", 0, "p")
    assert "q?" not in str(Memory("ses-1", 4, fingerprint("q?")).as_dict())


def test_indexes_come_from_the_arguments_or_from_the_session() -> None:
    bound = session(index_ids=["a", "b"])
    assert indexes_to_ask(bound, None) == ["a", "b"]
    assert indexes_to_ask(bound, ["c"]) == ["c"]  # not locked before the first message
    locked = session(index_ids=["a", "b"], job_metadata={"turns": 1})
    assert indexes_to_ask(locked, ["b", "a"]) == ["b", "a"]
    with pytest.raises(InvalidArgumentError, match=r"\['a', 'b'\].*index_ids=\['c'\]") as caught:
        indexes_to_ask(locked, ["c"])
    assert caught.value.session_id == "ses-1"
    with pytest.raises(InvalidArgumentError, match="not bound to any index"):
        indexes_to_ask(session(), None)


def test_a_history_with_malformed_events_keeps_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    loaded = session([asked("q"), {"type": "text"}, "nonsense", {"no": "type"}, {"type": "new", "x": 1}, STOP])  # type: ignore[list-item]  # hostile on purpose
    assert [item.type for item in loaded.events] == ["user_input", "new", "stop"]
    assert count_turns(loaded.events) == 1
    assert "3 of 6 events" in caplog.text
