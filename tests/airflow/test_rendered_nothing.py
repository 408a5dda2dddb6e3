"""A template that refers to a missing value renders to the text ``None``. No operator takes that for an argument that was not given."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseOperator, DecoratedOperator, TaskDeferred

from airflow_provider_llamachat.decorators.chat import LlamaChatDecoratedOperator
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SaveTranscriptOperator,
    SendChatMessageOperator,
)
from airflow_provider_llamachat.operators.index import SyncIndexOperator
from airflow_provider_llamachat.provider_info import get_provider_info
from airflow_provider_llamachat.sensors.index import IndexReadySensor
from airflow_provider_llamachat.testing import INDEX_FILINGS, LlamaCloudEmulator
from tests.airflow.tries import a_try

VALID: dict[type[Any], dict[str, Any]] = {
    ChatBatchOperator: {"prompts": ["Why?"], "index_ids": [INDEX_FILINGS]},
    CreateChatSessionOperator: {},
    DeleteChatSessionOperator: {"session_id": "ses-1", "ignore_missing": False},
    IndexReadySensor: {"index_ids": [INDEX_FILINGS]},
    LlamaChatDecoratedOperator: {"session_id": "ses-1", "python_callable": lambda: "Why?"},
    SaveTranscriptOperator: {"session_id": "ses-1", "output_path": "/tmp/never-written.md"},
    SendChatMessageOperator: {"session_id": "ses-1", "prompt": "Why?"},
    SyncIndexOperator: {"index_id": INDEX_FILINGS},
}
"""Arguments of each operator and sensor with which it would send something."""
NOT_OURS = {*DecoratedOperator.template_fields, "prompt"}
"""Fields of the decorator that belong to the function."""


def kinds() -> set[type[Any]]:
    info = get_provider_info()
    modules = [name for part in ("operators", "sensors") for entry in info[part] for name in entry["python-modules"]]
    found = [value for name in modules for value in vars(importlib.import_module(name)).values()]
    ours = {one for one in found if isinstance(one, type) and issubclass(one, BaseOperator)}
    own = {one for one in ours if one.__module__ in modules and one.__name__ != "IndexWaitingOperator"}
    return own | {LlamaChatDecoratedOperator}


def test_every_operator_is_here() -> None:
    assert kinds() == set(VALID)


FIELDS = [
    pytest.param(kind, field, id=f"{kind.__name__}-{field}")
    for kind in VALID
    for field in kind.template_fields
    if kind is not LlamaChatDecoratedOperator or field not in NOT_OURS
]


@pytest.mark.parametrize("text", ["None", pytest.param(" null\n", marks=pytest.mark.long)])
@pytest.mark.parametrize("deferrable", [False, True])
@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_a_field_that_rendered_to_nothing_is_refused(
    kind: type[Any], field: str, deferrable: bool, text: str, llamacloud_connection: LlamaCloudEmulator
) -> None:
    task = kind(task_id="task", **VALID[kind])
    task.deferrable = deferrable
    if field == "transcript_path":  # whether a path was given is noted where the task is made
        task = kind(task_id="task", **VALID[kind], transcript_path=text)
    setattr(task, field, text)
    with pytest.raises(InvalidArgumentError, match=rf"^{field} .*Check the template"):
        task.execute(a_try(task, 1))
    assert llamacloud_connection.requests == []


@pytest.mark.parametrize("text", ["", None])
def test_an_empty_text_leaves_an_optional_argument_out(
    text: str | None, llamacloud_connection: LlamaCloudEmulator, tmp_path: Path
) -> None:
    names = ("max_turns", "max_total_tokens", "min_answered", "requests_per_minute", "output_path", "prompts_path")
    left_out: dict[str, Any] = dict.fromkeys((*names, "project_id", "organization_id"), text)
    batch = ChatBatchOperator(task_id="task", prompts=["Why?"], index_ids=[INDEX_FILINGS], **left_out)
    assert batch.execute(a_try(batch, 1))["answered"] == 1
    create = CreateChatSessionOperator(task_id="task", index_ids=text, shared_access=text, project_id=text)
    assert create.execute(a_try(create, 1))["index_ids"] is None


def test_a_session_that_was_not_created_is_still_not_deleted(llamacloud_connection: LlamaCloudEmulator) -> None:
    task = DeleteChatSessionOperator(task_id="task", session_id="None")
    task.execute(a_try(task, 1))
    assert llamacloud_connection.requests == []


def test_an_answer_is_taken_although_a_template_renders_to_nothing_after_the_deferral(
    llamacloud_connection: LlamaCloudEmulator,
) -> None:
    session_id = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id
    task = SendChatMessageOperator(task_id="task", session_id=session_id, prompt="Why?", deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(a_try(task, 1))

    async def fired() -> list[Any]:
        return [event.payload async for event in deferred.value.trigger.run()]

    (event,) = asyncio.run(fired())
    task.project_id = task.index_ids = task.max_total_tokens = "None"
    assert task.execute_complete(a_try(task, 1), event=event, **(deferred.value.kwargs or {}))
    assert llamacloud_connection.posts() == 1


@pytest.mark.parametrize("deferrable", [False, True])
@pytest.mark.parametrize(
    "kind", [kind for kind, values in VALID.items() if "session_id" in values], ids=lambda kind: kind.__name__
)
def test_several_sessions_in_one_text_are_refused(
    kind: type[Any], deferrable: bool, llamacloud_connection: LlamaCloudEmulator
) -> None:
    task = kind(task_id="task", **VALID[kind])
    task.session_id, task.deferrable = "ses-a, ses-b", deferrable
    with pytest.raises(InvalidArgumentError, match=r"^session_id contains several ids"):
        task.execute(a_try(task, 1))
    assert llamacloud_connection.requests == []


def test_several_sessions_of_one_prompt_are_refused(llamacloud_connection: LlamaCloudEmulator) -> None:
    task = ChatBatchOperator(task_id="task", prompts=[{"prompt": "Why?", "session_id": "ses-a, ses-b"}])
    with pytest.raises(InvalidArgumentError, match=r"^prompts\[0\]: session_id contains several ids"):
        task.execute(a_try(task, 1))
    assert llamacloud_connection.requests == []


def test_several_indexes_for_one_sync_are_refused_with_the_right_hint(
    llamacloud_connection: LlamaCloudEmulator,
) -> None:
    task = SyncIndexOperator(task_id="task", index_id="idx-a, idx-b")
    with pytest.raises(
        InvalidArgumentError, match=r"several ids in one string\. To sync several indexes, map the task\.$"
    ):
        task.execute(a_try(task, 1))
    assert llamacloud_connection.requests == []
