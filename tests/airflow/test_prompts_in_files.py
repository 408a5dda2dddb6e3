"""Prompts that are written in files beside the Dag, and names of files that nobody means to ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG
from jinja2 import TemplateNotFound

from airflow_provider_llamachat.decorators.chat import llamachat_task
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, LlamaCloudEmulator
from tests.airflow.tries import a_try

pytestmark = pytest.mark.usefixtures("llamacloud_connection")


def rendered(folder: Path, **arguments: Any) -> tuple[SendChatMessageOperator, Any]:
    with DAG(dag_id="files", schedule=None, template_searchpath=[str(folder)]):
        task = SendChatMessageOperator(task_id="ask", **arguments)
    context = a_try(task, 1)
    task.render_template_fields(context | {"quarter": "Q3"})
    return task, context


@pytest.mark.parametrize("name", ["question.prompt", "question.prompt.md"])
def test_the_content_of_a_prompt_file_is_rendered_and_asked(
    name: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    (tmp_path / name).write_text("What was the revenue\nin {{ quarter }}?\n")
    session_id = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id
    task, context = rendered(tmp_path, session_id=session_id, prompt=name)
    assert "47.5 million" in task.execute(context)
    assert [turn.prompt.strip() for turn in llamacloud_emulator.turns] == ["What was the revenue\nin Q3?"]


def test_a_prompt_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TemplateNotFound, match=r"missing\.prompt"):
        rendered(tmp_path, session_id="ses-1", prompt="missing.prompt")


@pytest.mark.parametrize("prompt", ["question.txt", "prompts/question.md", "C:\\q.txt", "q3.SQL", " question.prompt "])
def test_the_name_of_a_file_is_not_asked(prompt: str, llamacloud_emulator: LlamaCloudEmulator) -> None:
    task = SendChatMessageOperator(task_id="ask", session_id="ses-1", prompt=prompt)
    with pytest.raises(InvalidArgumentError, match=r"prompt looks like the name of a file.*\.prompt or \.prompt\.md"):
        task.execute(a_try(task, 1))
    assert llamacloud_emulator.requests == []


@pytest.mark.parametrize(
    "prompt",
    [
        "What is in report.pdf",
        "report.pdf?",
        "Node.js",
        "Revenue in Q3, in Mio.",
        "3.5",
        "\u8bf7\u603b\u7ed32023\u5e74\u5e74\u62a5.pdf",  # Please summarize the annual report of 2023.pdf
        "https://example.com/a.html",
        "a@b.html",
    ],
)
def test_a_question_that_names_a_file_is_asked(prompt: str, llamacloud_emulator: LlamaCloudEmulator) -> None:
    session_id = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id
    task = SendChatMessageOperator(task_id="ask", session_id=session_id, prompt=prompt)
    assert task.execute(a_try(task, 1))
    assert llamacloud_emulator.posts(prompt=prompt) == 1


def test_the_arguments_of_a_decorated_function_are_no_files() -> None:
    with DAG(dag_id="decorated_files", schedule=None):

        @llamachat_task(session_id="ses-1")
        def ask(name: str) -> str:
            return name

        asked: Any = ask("summary.prompt")
    task = asked.operator
    context = a_try(task, 1)
    task.render_template_fields(context)
    assert task.op_args == ("summary.prompt",)
    with pytest.raises(InvalidArgumentError, match="looks like the name of a file"):
        task.execute(context)
