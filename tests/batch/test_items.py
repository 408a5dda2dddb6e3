"""Prompts as Dags give them: what is taken, what is refused, and with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_llamachat.batch.items import BatchScope, Item, parse
from airflow_provider_llamachat.exceptions import InvalidArgumentError

IDS = ["idx-1"]


def test_every_form_of_prompts_is_accepted() -> None:
    mixed = ["One?", {"id": 7, "prompt": "Two?"}, {"prompt": "Three?", "index_ids": ["a", "b"], "session_id": " s "}]
    for given_as in (mixed, tuple(mixed), json.dumps(mixed), iter(mixed)):
        assert parse(given_as, index_ids=IDS) == [
            Item(0, "One?", asked_of=("idx-1",)),
            Item(1, "Two?", id="7", asked_of=("idx-1",)),
            Item(2, "Three?", index_ids=["a", "b"], session_id="s", asked_of=("a", "b")),
        ]
    assert parse([]) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("What is this?", "prompts must be a JSON or Python list"),
        ('{"prompt": "x"}', "must be a JSON or Python list"),
        ({"prompt": "x"}, "prompts must be a list"),
        (7, "prompts must be a list"),
        (None, "prompts must be a list"),
        (b"x", "prompts must be a list"),
        (["x", 7], r"prompts\[1\] must be a prompt or an object"),
        (["x", "  "], r"prompts\[1\]: prompt must be text"),
        (["x", {"id": "a"}], r"prompts\[1\] has no prompt"),
        (["x", {"prompt": "y", "indexes": []}], r"prompts\[1\] has the unknown field 'indexes'"),
        (["x", {"prompt": "y", "id": 1.5}], r"prompts\[1\]: id must be text or a whole number"),
        (["x", {"prompt": "y", "id": True}], r"prompts\[1\]: id"),
        (["x", {"prompt": "y", "id": " "}], r"prompts\[1\]: id"),
        (["x", {"prompt": "y", "session_id": ""}], r"prompts\[1\]: session_id"),
        (["x", {"prompt": "y", "index_ids": [1]}], r"prompts\[1\]: index_ids\[0\]"),
        (
            [{"prompt": "y", "id": "a"}, "x", {"prompt": "z", "id": "a"}],
            r"prompts\[2\] \(id 'a'\) has the same id as prompts\[0\]",
        ),
        ([{"prompt": "y", "id": 1}, {"prompt": "z", "id": "1"}], "same id"),
        ([{"prompt": "y", "index_ids": [f"i{n}" for n in range(11)]}], r"prompts\[0\] has 11 indexes"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_refused_with_its_position(prompts: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        parse(prompts, index_ids=IDS)


@pytest.mark.parametrize(
    "prompts", [2024, [2024], ["Why?", 1.5], [[1, 2]], [{"prompt": 2024}], '["Why?", 2024]', [...]]
)
def test_the_error_explains_prompts_that_native_rendering_changed(prompts: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^prompts.*render_template_as_native_obj=True.*Add some words"):
        parse(prompts, index_ids=IDS)


@pytest.mark.parametrize("prompts", [{"index_id": "idx-1", "started": True}, [{"prompt": "x", "session_id": ["s"]}]])
def test_outputs_of_other_tasks_are_not_explained_by_native_rendering(prompts: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(prompts, index_ids=IDS)
    assert "native" not in str(caught.value)


@pytest.mark.parametrize("prompts", [[None], "[None]", ["Why?", "None"], ["[None]"], '[{"prompt": "[None, None]"}]'])
def test_a_prompt_that_renders_to_nothing_is_refused(prompts: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^prompts\[[01]\].* Check the template"):
        parse(prompts, index_ids=IDS)


def test_every_item_needs_indexes() -> None:
    with pytest.raises(InvalidArgumentError, match=r"prompts\[1\] has no indexes"):
        parse([{"prompt": "x", "index_ids": "a"}, "y"])
    assert parse([{"prompt": "x", "session_id": "s"}])[0].session_id == "s"


def test_a_shared_session_has_the_batchs_indexes() -> None:
    parse([{"prompt": "x", "index_ids": ["b", "a"]}], index_ids=["a", "b"], session_mode="shared")
    parse([{"prompt": "x", "index_ids": ["c"], "session_id": "s"}], index_ids=["a"], session_mode="shared")
    with pytest.raises(InvalidArgumentError, match=r"prompts\[0\] has its own index_ids"):
        parse([{"prompt": "x", "index_ids": ["c"]}], index_ids=["a"], session_mode="shared")


def test_identity_is_task_instance_id_or_position_and_prompt() -> None:
    scope = BatchScope("dag", "task", "run", 3)
    key = Item(0, "Why?").key(scope)
    others = [
        Item(1, "Why?").key(scope),
        Item(0, "How?").key(scope),
        Item(0, "Why?", id="0").key(scope),
        Item(0, "Why?").key(BatchScope("dag", "task", "run", 4)),
        Item(0, "Why?").key(BatchScope("dag", "task", "other", 3)),
        Item(0, "Why?").key(BatchScope("dagtask", "", "run", 3)),
        Item(0, "Why?", session_id="ses-1").key(scope),
        Item(0, "Why?", asked_of=("idx-1",)).key(scope),
        Item(0, "Why?", asked_of=("idx-1", "idx-2")).key(scope),
    ]
    assert len({key, *others}) == 10
    assert Item(0, "Why?", id="a").key(scope) == Item(5, " Why? ", id="a").key(scope)


@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.text(),
        st.lists(
            st.one_of(st.text(), st.integers(), st.dictionaries(st.sampled_from(["id", "prompt", "x"]), st.text()))
        ),
    )
)
def test_any_other_prompts_are_refused_as_an_invalid_argument(prompts: Any) -> None:
    try:
        items = parse(prompts, index_ids=IDS)
    except InvalidArgumentError:
        return
    assert [item.position for item in items] == list(range(len(items)))
