"""The events of a stream fold into a turn, however the network cut them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_llamachat.conversation.history import TurnFolder, fold
from tests.unit.streams import read_events
from tests.unit.test_history import STOP, asked, events, turn


def deltas(kind: str, *parts: str) -> list[dict[str, Any]]:
    return [{"type": kind, "content": part} for part in parts]


def test_a_whole_turn_folds_into_answer_tools_and_usage() -> None:
    folded = fold(events(turn("why?", skipped_index_ids=["idx-b"])), "ses-1", "why?", index_ids=["i"], position=4)
    assert (folded.answer, folded.thinking, folded.finished, folded.is_error) == ("42", "hm", True, False)
    assert (folded.session_id, folded.prompt, folded.index_ids, folded.position) == ("ses-1", "why?", ["i"], 4)
    assert folded.usage_as_dict() == {
        "total_input_tokens": 7,
        "total_output_tokens": 3,
        "turns": 1,
        "duration_ms": 12.5,
    }
    assert folded.skipped_index_ids == ["idx-b"]
    assert [(tool.name, tool.call_id, tool.arguments, tool.result, tool.finished) for tool in folded.tools] == [
        ("retrieve", "c1", {"query": "why?"}, ["passage"], True)
    ]


def test_a_turn_without_its_end_has_no_figures_and_its_tools_may_still_run() -> None:
    folded = fold(events(turn("why?")[:3]), "ses-1", "why?")
    assert (folded.finished, folded.is_error, folded.error, folded.skipped_index_ids) == (False, False, None, [])
    assert folded.usage.turns is None
    assert [(tool.name, tool.call_id, tool.arguments, tool.result, tool.finished) for tool in folded.tools] == [
        ("retrieve", "c1", {"query": "why?"}, None, False)
    ]
    failed = fold(events(turn("q", is_error=True, error="down")), "s", "q")
    assert (failed.finished, failed.is_error, failed.error) == (True, True, "down")


@pytest.mark.parametrize("kind", ["text", "thinking"])
def test_deltas_are_used_only_until_the_complete_event_arrives(kind: str) -> None:
    def folded(*parts: list[dict[str, Any]]) -> str:
        made = fold(events(*parts, [STOP]), "s", "p")
        return made.answer if kind == "text" else made.thinking

    some, whole = deltas(f"{kind}_delta", "4", "\r\n2"), deltas(kind, "42")
    assert folded(some) == "4\r\n2"
    assert folded(some, whole) == "42"
    assert folded(whole, whole) == "42\n\n42"
    assert folded(whole, some) == "42\n\n4\r\n2", "what follows a whole piece is another one, cut off"


def test_events_after_stop_are_ignored_and_a_result_without_its_call_is_kept() -> None:
    picture = {"source_id": "dfl-1", "attachment_name": "page_2.jpg"}
    result = [{"type": "tool_result", "name": "x", "call_id": "c9", "result": 1, "image_attachment": picture}]
    folded = fold(events(result, [STOP], deltas("text", "late")), "s", "p")
    assert folded.answer == ""
    (tool,) = folded.tools
    assert (tool.call_id, tool.arguments, tool.finished, tool.image_attachment) == ("c9", {}, True, picture)


def test_a_folder_reports_its_end_and_lost_events() -> None:
    folder = TurnFolder("s", "p")
    assert (folder.finished, folder.is_damaged) == (False, False)
    folder.lose()
    folder.add(events([STOP])[0])
    assert (folder.finished, folder.is_damaged) == (True, True)


_TEXT = st.text(min_size=1, max_size=12)


_EVENT = st.one_of(
    st.builds(asked, _TEXT),
    st.builds(lambda t: {"type": "text", "content": t}, _TEXT),
    st.builds(lambda t: {"type": "text_delta", "content": t}, _TEXT),
    st.just(STOP),
    st.just({**STOP, "is_error": True, "error": "x"}),
    st.builds(lambda t: {"type": "brand_new", "anything": t}, _TEXT),
)


@settings(max_examples=100, deadline=None)
@given(items=st.lists(_EVENT, max_size=12), data=st.data(), newline=st.sampled_from(["\n", "\r\n", "\r"]))
def test_folding_does_not_depend_on_chunk_boundaries(
    items: list[dict[str, Any]], data: st.DataObject, newline: str
) -> None:
    lines = (f"event: message{newline}data: {json.dumps(item)}{newline}{newline}" for item in items)
    stream = "".join(lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = list(read_events([stream], "s"))
    assert list(read_events(pieces, "s")) == whole == events(items)
