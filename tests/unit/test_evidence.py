"""A tool's result of whatever form becomes sources of bounded size, and never costs the answer."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_llamachat.batch.items import Item
from airflow_provider_llamachat.batch.records import line
from airflow_provider_llamachat.conversation.history import fold
from airflow_provider_llamachat.evidence import (
    LINE_BYTES,
    MAX_BYTES,
    MAX_COUNT,
    MAX_TEXT,
    bounded,
    cited,
    note,
    passages,
    sources,
)
from airflow_provider_llamachat.models import parse_event
from airflow_provider_llamachat.testing.corpus import Snippet, retrieved

PASSAGE = {
    "content": "Revenue in Q3 was 47.5 million euros.",
    "score": 0.81,
    "rerank_score": 0.5,
    "metadata": {"file_name": "q3.pdf", "year": 2025, "tags": ["a", "b"]},
    "static_fields": {
        "page_range_start": 2,
        "page_range_end": 3,
        "chunk_index": 4,
        "parsed_directory_file_id": "dfl-1",
        "attachments": [
            {"attachment_name": "items/2.json", "source_id": "dfl-1", "type": "items"},
            {"attachment_name": "screenshots/page_2.jpg", "source_id": "dfl-1", "type": "screenshot"},
        ],
    },
}
SOURCE = {
    "tool": "retrieve",
    "file_id": "dfl-1",
    "file_name": "q3.pdf",
    "pages": [2, 3],
    "score": 0.81,
    "text": "Revenue in Q3 was 47.5 million euros.",
    "metadata": {"file_name": "q3.pdf", "year": 2025, "tags": ["a", "b"]},
    "attachment": {"source_id": "dfl-1", "attachment_name": "screenshots/page_2.jpg"},
}
PICTURE = {"source_id": "dfl-9", "attachment_name": "screenshots/page_7.jpg"}


@pytest.mark.parametrize("result", [PASSAGE, [PASSAGE], {"results": [PASSAGE]}])
def test_a_retrieved_passage_is_understood(result: Any) -> None:
    assert sources("retrieve", result) == [SOURCE]


@pytest.mark.parametrize(
    ("result", "source"),
    [
        ({"content": "all of it"}, {"text": "all of it"}),
        ("plain words", {"text": "plain words"}),
        ([{"file_id": "f-1", "file_name": "a.pdf"}], {"file_id": "f-1", "file_name": "a.pdf"}),
        ([{"content": "match", "start_char": 3, "end_char": 8}], {"text": "match"}),
        ({"content": "x", "score": None, "rerank_score": 0.25}, {"text": "x", "score": 0.25}),
        ({"content": "x", "static_fields": {"page_range_end": 7}}, {"text": "x", "pages": [7, 7]}),
        ({"content": "x", "static_fields": {"page_range_start": True, "page_range_end": "9"}}, {"text": "x"}),
        ({"content": 7, "score": 1}, {"raw": {"content": 7, "score": 1}}),
        ({"answer": {"of": ["another", None]}}, {"raw": {"answer": {"of": ["another", None]}}}),
        (41, {"raw": 41}),
        ({"__classname__": "os.system"}, {"raw": '{"__classname__": "os.system"}'}),
    ],
)
def test_other_known_and_unknown_result_forms_are_read(result: Any, source: dict[str, Any]) -> None:
    assert sources("t", result) == [{"tool": "t", **source}]


@pytest.mark.parametrize("result", [None, "", [], {}, {"results": []}, [None, {}, ""]])
def test_an_empty_result_gives_no_source(result: Any) -> None:
    assert sources("t", result) == []


def test_the_call_names_the_index_and_file_that_the_result_leaves_out() -> None:
    (read,) = sources("read", {"content": "text"}, {"index_id": "idx-1", "file_id": "f-1"})
    assert (read["index_id"], read["file_id"]) == ("idx-1", "f-1")
    (found,) = sources("retrieve", PASSAGE, {"index_ids": ["idx-1"]})
    assert (found["index_id"], found["file_id"]) == ("idx-1", "dfl-1")
    assert "index_id" not in sources("retrieve", PASSAGE, {"index_ids": ["idx-1", "idx-2"]})[0]


def test_a_picture_belongs_to_the_only_source_or_stands_for_itself() -> None:
    assert sources("see", "text", None, PICTURE) == [{"tool": "see", "text": "text", "attachment": PICTURE}]
    assert sources("see", None, None, PICTURE) == [{"tool": "see", "attachment": PICTURE}]
    assert sources("see", [PASSAGE], None, PICTURE)[1:] == [{"tool": "see", "attachment": PICTURE}]
    assert sources("see", PASSAGE, None, SOURCE["attachment"]) == [{**SOURCE, "tool": "see"}]


def test_a_turn_keeps_the_picture_and_names_its_sources() -> None:
    events = [
        {"type": "tool_call", "name": "retrieve", "call_id": "1", "arguments": {"index_ids": ["idx-1"]}},
        {"type": "tool_call", "name": "retrieve", "call_id": "2", "arguments": {}},
        {"type": "tool_result", "name": "retrieve", "call_id": "1", "result": [PASSAGE], "image_attachment": PICTURE},
    ]
    turn = fold([event for item in events if (event := parse_event(item))], "s", "p")
    assert [tool.image_attachment for tool in turn.tools] == [PICTURE, None]
    assert turn.sources == [{**SOURCE, "index_id": "idx-1"}, {"tool": "retrieve", "attachment": PICTURE}]


def test_citations_name_each_document_once_with_its_pages() -> None:
    found = sources("retrieve", [PASSAGE, {**PASSAGE, "static_fields": {"page_range_start": 9}}, PASSAGE, "words"])
    found[1]["file_id"] = "dfl-1"
    assert cited(found) == ["q3.pdf, pages 2-3, 9", "result of retrieve"]
    assert cited(sources("retrieve", retrieved("i", Snippet("a.pdf", 4, "x")))) == ["a.pdf, page 4"]
    assert cited([{"note": "cut"}]) == []


def test_texts_are_cut_before_sources_are_left_out() -> None:
    few = sources("t", ["x" * 10_000] * 3)
    assert bounded(few) == few
    assert {len(source["text"]) for source in few} == {MAX_TEXT}
    some = bounded(sources("t", ["ü" * 1_000] * 40))
    assert len(some) == 41
    assert {len(source["text"]) for source in some[:-1]} == {100}
    assert note(some) == ("Texts of sources are cut to 100 characters. At most 100 sources and 49152 bytes are kept.")
    many = bounded(sources("t", ["x"] * 1_000))
    assert len(many) == MAX_COUNT + 1
    assert "900 of 1000" in str(note(many))
    assert note(few) is None
    assert note([]) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.just("\ud800\x00\x1b[2J"),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=20), inner, max_size=6),
    max_leaves=30,
)
names = st.sampled_from(
    ["content", "score", "rerank_score", "metadata", "static_fields", "file_id", "file_name", "index_id", "results"]
)
known_names = st.recursive(
    json_values,
    lambda inner: (
        st.dictionaries(names, inner, max_size=9)
        | st.lists(inner, max_size=5)
        | st.fixed_dictionaries({"static_fields": st.dictionaries(st.sampled_from([*PASSAGE["static_fields"]]), inner)})  # type: ignore[misc]  # it is a dict
    ),
    max_leaves=20,
)


def check(result: Any, arguments: Any, picture: Any, times: int, size: int) -> None:
    found = sources("t", result, arguments, picture) * times
    for source in found:
        assert source["tool"] == "t"
        assert len(source.get("text", "")) <= MAX_TEXT
        assert len(json.dumps(source.get("raw"), ensure_ascii=False)) <= 2 * MAX_TEXT + 2
    kept = bounded(found, size)
    text = json.dumps(kept, allow_nan=False)
    assert len(text) <= size  # ASCII
    # PostgreSQL refuses it; behind another backslash it is text.
    assert not re.search(r"(?<!\\)(?:\\\\)*\\u0000", text)
    assert json.dumps(kept, ensure_ascii=False).encode()  # no halves of surrogate pairs
    assert len(kept) <= MAX_COUNT + 1
    assert (len(kept) < len(found) or kept != found) is (note(kept) is not None)
    assert all(isinstance(one, str) for one in cited(kept))


@given(known_names, json_values, json_values, st.integers(1, 400), st.sampled_from([400, LINE_BYTES, MAX_BYTES]))
def test_any_form_of_result_fits_into_an_xcom_of_the_stated_size(
    result: Any, arguments: Any, picture: Any, times: int, size: int
) -> None:
    check(result, arguments, picture, times, size)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "result",
    [
        nested(60),
        {"deep": nested(10_000)},
        {"content": "x" * 10_000_000},
        [{"content": "\U0001f600" * 3_000, "metadata": {"k" * 9_000: "v" * 9_000}}],
        {"x" * 3_000_000: ["y"]},
        [{"file_name": "\U0001f600" * 9_000, "file_id": "\U0001f600" * 9_000}],
    ],
    ids=["flat", "deep", "long", "emoji", "key", "names"],
)
def test_a_huge_or_deep_result_fits_into_an_xcom(result: Any) -> None:
    begin = time.process_time()
    for size in (400, LINE_BYTES, MAX_BYTES):
        check(result, {"index_ids": ["i" * 9_000]}, PICTURE, 100, size)
    assert time.process_time() - begin < 5.0


@given(known_names, json_values, json_values)
def test_no_form_of_a_result_loses_the_answer(result: Any, picture: Any, odd: Any) -> None:
    items = [
        {"type": "tool_call", "name": "t", "call_id": "1", "arguments": {"odd": odd}},
        {"type": "tool_result", "name": "t", "call_id": "1", "result": result, "image_attachment": picture},
        {"type": "tool_result", "result": result, "odd": odd},
        {"type": "text", "content": "The answer."},
        {"type": "stop", "usage": {}, "is_error": False},
    ]
    turn = fold([event for item in items if (event := parse_event(item))], "s", "p")
    assert (turn.answer, turn.finished, turn.is_error) == ("The answer.", True, False)
    assert repr(turn.tools[0].result) == repr(result)
    assert len(turn.sources) >= len(passages(result))


def test_a_result_with_many_parts_does_not_delay_a_batch() -> None:
    many = [{"odd": number} for number in range(300_000)]
    events = [
        parse_event({"type": "tool_result", "name": "t", "call_id": str(call), "result": result})
        for call, result in enumerate([[PASSAGE], many])
    ]
    turn = fold([event for event in events if event], "ses-1", "q")
    begin = time.process_time()
    found = line(Item(0, "q"), None, turn)["sources"]
    assert time.process_time() - begin < 1.0
    assert [source.get("raw") for source in found[1:MAX_COUNT]] == many[: MAX_COUNT - 1]
    assert (
        note(found)
        == f"299901 of 300001 sources are left out. At most {MAX_COUNT} sources and {LINE_BYTES} bytes are kept."
    )
