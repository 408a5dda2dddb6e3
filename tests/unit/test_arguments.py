"""Arguments as Dags really give them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        (" ", None),
        ("idx-1", ["idx-1"]),
        (' ["idx-1", "idx-2"] ', ["idx-1", "idx-2"]),
        ("['idx-1', 'idx-2']", ["idx-1", "idx-2"]),
        ("('idx-1',)", ["idx-1"]),
        (["idx-1", " idx-2 ", "idx-1"], ["idx-1", "idx-2"]),
        (("idx-1",), ["idx-1"]),
        ((item for item in ["idx-1"]), ["idx-1"]),
        ([], []),
    ],
)
def test_many_forms_of_id_lists_are_accepted(value: Any, expected: list[str] | None) -> None:
    assert arguments.id_list(value) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (7, "must be a list of index ids, got int 7"),
        ({"a": 1}, "got dict"),
        (b"idx", "got bytes"),
        (["idx-1", 7], r"index_ids\[1\] must be an index id .*got int 7"),
        (["idx-1", ""], r"index_ids\[1\]"),
        (["idx-1", None], r"index_ids\[1\].*NoneType"),
        ("None", r"^index_ids rendered to 'None'\. Check the template.* To leave index_ids out"),
        (" null ", r"^index_ids rendered to ' null '\. Check the template"),
        ("[None]", r"index_ids\[0\].*Check the template"),
        ("[idx-1", r"must be a JSON or Python list"),
        ('{"a": 1}', r"must be a JSON or Python list"),
        ("[" * 10_000, r"must be a JSON or Python list"),
        ("idx-a, idx-b", r'contains several ids in one string.*\["idx-a", "idx-b"\]'),
        ("idx-a idx-b\nidx-c", r'contains several ids in one string.*\["idx-a", "idx-b", "idx-c"\]'),
        (["idx-1", "idx-a;idx-b"], r"index_ids\[1\] contains several ids in one string"),
        (["None"], r"index_ids\[0\].*Check the template"),
        (["idx-1", " null "], r"index_ids\[1\].*Check the template"),
        (7.5, r"render_template_as_native_obj=False on the Dag\.$"),
        ([2024], r"render_template_as_native_obj=False on the Dag\.$"),
    ],
)
def test_a_value_that_is_not_a_list_of_ids_is_refused_and_named(value: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        arguments.id_list(value)
    assert len(str(caught.value)) < 400


@given(st.lists(st.text(st.characters(blacklist_categories=["Z", "Cc", "Cs"], blacklist_characters=",;"), min_size=2)))
def test_a_json_list_gives_what_the_list_gives(ids: list[str]) -> None:
    import json

    ids = [one for one in ids if not arguments.is_nothing(one)]
    assert arguments.id_list(json.dumps(ids)) == arguments.id_list(ids)
    assert arguments.id_list(repr(ids)) == arguments.id_list(ids)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        "None",
        3,
        ["ses-1"],
        "['ses-1']",
        {},
        {"session_id": None},
        "{'session_id': None}",
        "{'ses-1'",
        "{}",
    ],
)
def test_a_missing_session_id_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r'create\.output\["session_id"\]'):
        arguments.session_id(value)


@pytest.mark.parametrize("value", [None, "", " \n", 3, "\ud800"])
def test_a_prompt_that_cannot_be_sent_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^prompt"):
        arguments.prompt(value)


def test_an_output_that_is_not_an_id_is_not_explained_by_native_rendering() -> None:
    for check in (arguments.id_list, arguments.session_id):
        with pytest.raises(InvalidArgumentError) as caught:
            check({"index_id": "idx-1", "started": True} if check is arguments.id_list else ["ses-1"])
        assert "native" not in str(caught.value)


@pytest.mark.parametrize("value", ["ses-a, ses-b", "ses-a,ses-b", "ses-a ses-b", {"session_id": "ses-a;ses-b"}])
def test_several_session_ids_in_one_text_are_refused(value: Any) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"^session_id contains several ids in one string\. Pass the id of one"
    ):
        arguments.session_id(value)


@pytest.mark.parametrize("value", ["idx-a, idx-b", ["idx-a, idx-b"], '["idx-a", "idx-b"]', [], "", None])
def test_where_one_index_is_meant_no_list_is_proposed(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^index_id.* Map the task\.$") as caught:
        arguments.index_id(value, "Map the task.")
    assert "Pass a list" not in str(caught.value)
    assert arguments.index_id("idx-a", "") == arguments.index_id(["idx-a"], "") == "idx-a"


@pytest.mark.parametrize(
    "value", ["None", " None\n", "null", None, "[]", "[None]", "[None, None]", "()", "(None,)", "{}", "[[], null]"]
)
def test_a_prompt_that_renders_to_nothing_is_refused_like_a_blank_one(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^prompt must be text.*Check the template"):
        arguments.prompt(value)


@pytest.mark.parametrize("value", [2024, [1, 2], 1.5, True, {"a": 1}, (1,), b"why", ..., 2j, {1}])
def test_the_error_explains_a_prompt_that_native_rendering_changed(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"render_template_as_native_obj=True.*Add some words") as caught:
        arguments.prompt(value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", ["None", "", None, 7])
def test_a_connection_id_that_renders_to_nothing_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^llamacloud_conn_id must be the id of an Airflow connection"):
        arguments.connection_id(value)
    assert arguments.connection_id("llamacloud_default") == "llamacloud_default"


def test_valid_text_is_unchanged() -> None:
    for text in (" why? \n", "[None] of them?", "none", "Nonesuch", "[nothing]"):
        assert arguments.prompt(text) == text
    assert arguments.session_id(" ses-1 ") == "ses-1"
    assert arguments.session_id({"session_id": "ses-1", "index_ids": None}) == "ses-1"


@pytest.mark.parametrize(
    "text",
    [
        "{'session_id': 'ses-1', 'index_ids': None, 'generated_title': \"what's new\"}",
        ' {"session_id": "ses-1", "index_ids": null, "last": true}\n',
    ],
    ids=["Python", "JSON"],
)
def test_a_whole_session_may_come_as_rendered_text(text: str) -> None:
    assert arguments.session_id(text) == "ses-1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        ("True", True),
        (" yes", True),
        (1, True),
        ("false", False),
        ("0", False),
        ("", False),
        (None, False),
    ],
)
def test_flags_come_as_rendered_text_too(value: Any, expected: bool) -> None:
    assert arguments.flag(value, "x") is expected


def test_other_wrong_values_are_named() -> None:
    with pytest.raises(InvalidArgumentError, match="ignore_missing must be true or false, got 'maybe'"):
        arguments.flag("maybe", "ignore_missing")
    with pytest.raises(InvalidArgumentError, match="on_interrupted must be one of 'fail', 'ask_again', got 'retry'"):
        arguments.choice("retry", "on_interrupted", arguments.OnInterrupted)
    assert arguments.optional_choice("", "shared_access", arguments.SharedAccess) is None
    assert arguments.optional_choice("query", "shared_access", arguments.SharedAccess) == "query"


@pytest.mark.parametrize("value", [0, -1, "soon", None, True, float("nan"), float("inf"), timedelta(0)])
def test_durations_have_to_be_above_zero(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="turn_timeout must be a number of seconds"):
        arguments.seconds(value, "turn_timeout")


def test_durations_come_in_several_forms() -> None:
    assert [arguments.seconds(v, "t") for v in (3, "2.5", timedelta(minutes=1))] == [3.0, 2.5, 60.0]
