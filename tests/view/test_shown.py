"""What the page is sent of values whose form nobody warrants."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_llamachat.view import shown
from tests.view.rows import MANIFEST, NOW, line

if TYPE_CHECKING:
    from airflow_provider_llamachat.view.queries import Task

ODD: list[Any] = [
    None,
    "text",
    7,
    True,
    [],
    {},
    [[]],
    [None, 7, "x", {}],
    {"a": {"b": []}},
    float("nan"),
    "\ud800\x00",
    10**400,
]


def task_with(operator: str = "SendChatMessageOperator", rendered: Any = None, **xcoms: Any) -> Task:
    """A task instance that pushed this."""
    from airflow_provider_llamachat.view.queries import Task

    return Task(1, "ask", -1, "success", operator, 1, NOW, 1.0, xcoms, rendered or {})


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_values_of_any_form_are_shown_as_valid_json(value: Any) -> None:
    names = ("usage", "return_value", "sources", "skipped_index_ids", "results")
    fields = dict.fromkeys(("prompt", "session_id", "index_ids"), value)
    inner = {
        "usage": {"total_input_tokens": value, "adopted": value},
        "results": [{"sources": value, "usage": value, "id": value}],
    }
    deeper: dict[str, Any] = {
        **inner,
        "sources": [{"pages": value, "score": value, "text": value, "file_name": value, "tool": value}],
    }
    manifest = dict.fromkeys(MANIFEST, value)
    for found in (
        task_with(rendered=fields, **dict.fromkeys(names, value)),
        task_with(**deeper),
        task_with("ChatBatchOperator", return_value=manifest),
    ):
        sent = json.dumps([shown.task(found), shown.totals([found])], allow_nan=False, ensure_ascii=False)
        sent.encode()
        assert len(sent) < 10_000


def test_what_is_sent_is_bounded() -> None:
    long = "x" * 1_000_000
    source = {"tool": long, "file_name": long, "text": long, "pages": [1] * 1000}
    lines = [line(number, "answered", prompt=long, answer=long, sources=[]) for number in range(1000)]
    sent = shown.task(task_with(rendered={"prompt": long}, return_value=long, sources=[source] * 1000, results=lines))
    assert len(sent["question"]) == len(sent["answer"]) == shown.MAX_TEXT
    assert (len(sent["sources"]), len(sent["results"])) == (100, 100)
    assert len(json.dumps(sent)) < 1_500_000


def test_nesting_beyond_what_python_follows_is_unreadable_and_no_error() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert shown.task(task_with(return_value=nested))["answer"] == "(unreadable)"


def test_a_mapped_question_shows_the_id_of_its_session() -> None:
    assert (
        shown.task(task_with(rendered={"session_id": {"session_id": "ses-9", "title": "x"}}))["session_id"] == "ses-9"
    )
    assert shown.task(task_with(rendered={"session_id": "ses-8"}))["session_id"] == "ses-8"


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 2.0**60])
def test_sums_of_huge_numbers_stay_numbers(value: float) -> None:
    batch = task_with("ChatBatchOperator", return_value=dict.fromkeys(MANIFEST, value))
    ask = task_with(usage={"total_input_tokens": value, "total_output_tokens": 3})
    found = shown.totals([ask, batch, ask, batch])
    assert found == dict.fromkeys(found, 0) | {"answered": 2, "output_tokens": 6}
    json.dumps(found, allow_nan=False)
