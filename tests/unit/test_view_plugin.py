"""The plugin that adds the page: where it is there, where not, and what it costs to load."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_llamachat.airflow_support import conversation_link
from airflow_provider_llamachat.airflow_support.conversation_link import LlamaCloudConversationLink, has_view
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator

PLUGIN = "airflow_provider_llamachat.view.plugin"
KEY: Any = SimpleNamespace(dag_id="a dag", run_id="manual__2026-01-01T00:00:00+00:00", task_id="group.ask", map_index=3)


class OwnQuestion(SendChatMessageOperator):
    """An operator of a user's own."""


ASKING = OwnQuestion(task_id="ask", session_id="ses-1", prompt="q")


def loaded() -> Any:
    """What Airflow gets from the entry point."""
    return importlib.reload(importlib.import_module(PLUGIN)).plugin


@pytest.fixture
def on_airflow() -> Iterator[Callable[..., None]]:
    """Pretend to be another version of Airflow, with other variables of the environment."""
    with pytest.MonkeyPatch.context() as patch:

        def pretend(version: str, **environment: str) -> None:
            patch.setattr(conversation_link, "airflow_core_version", lambda: version)
            for name, value in environment.items():
                patch.setenv(name, value)
            has_view.cache_clear()

        yield pretend
    has_view.cache_clear()
    # Airflow may load its plugins later in this process.
    loaded()


@pytest.mark.parametrize("version", ["3.1.0", "3.1.8", "3.3.2", "3.10.0", "4.0.0.dev0"])
def test_the_page_is_there_from_airflow_3_1_on(version: str, on_airflow: Callable[..., None]) -> None:
    on_airflow(version)
    assert loaded().__name__ == "LlamaCloudChatsPlugin"
    assert LlamaCloudConversationLink().get_link(None, ti_key=KEY) == (  # type: ignore[arg-type]  # needs no operator
        "/plugin/llamacloud-chats#dag_id=a+dag&run_id=manual__2026-01-01T00%3A00%3A00%2B00%3A00&task_id=group.ask&map_index=3"
    )
    assert [link.name for link in ASKING.operator_extra_links] == ["LlamaCloud conversation"]


@pytest.mark.parametrize("version", ["", "3.0.6"])
def test_older_airflows_have_neither_page_nor_link(version: str, on_airflow: Callable[..., None]) -> None:
    on_airflow(version)
    assert loaded() is None
    assert ASKING.operator_extra_links == ()
    assert LlamaCloudConversationLink().get_link(None, ti_key=KEY) == ""  # type: ignore[arg-type]  # as above


def test_one_setting_switches_it_off(on_airflow: Callable[..., None]) -> None:
    on_airflow("3.3.2", AIRFLOW__LLAMACHAT__VIEW_ENABLED="False")
    assert loaded() is None
    assert ASKING.operator_extra_links == ()


@pytest.mark.parametrize("value", ["", "off", "no", "f", "0", "disabled", "False  # not here"])
def test_a_setting_that_says_no_or_nothing_sensible_switches_it_off_and_breaks_no_dag(
    value: str, on_airflow: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    on_airflow("3.3.2", AIRFLOW__LLAMACHAT__VIEW_ENABLED=value)
    assert loaded() is None
    assert [ASKING.operator_extra_links for _ in range(3)] == [()] * 3
    said = [record.getMessage() for record in caplog.records if "view_enabled" in record.getMessage()]
    assert len(said) == (value == "disabled")


@pytest.mark.parametrize("value", ["on", "yes", "t", "1", "TRUE"])
def test_every_usual_word_for_yes_switches_it_on(value: str, on_airflow: Callable[..., None]) -> None:
    on_airflow("3.3.2", AIRFLOW__LLAMACHAT__VIEW_ENABLED=value)
    assert loaded() is not None


def test_the_setting_is_not_read_for_operators_that_need_no_xcom_of_their_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversation_link, "has_view", lambda: 1 / 0)
    assert ChatBatchOperator(task_id="batch", prompts=["q"]).operator_extra_links == ()


def test_only_subclasses_that_push_have_an_xcom_for_their_link(on_airflow: Callable[..., None]) -> None:
    on_airflow("3.3.2")
    own: dict[str, Any] = {"task_id": "ask", "session_id": "ses-1", "prompt": "q"}
    assert len(OwnQuestion(**own).operator_extra_links) == 1
    assert OwnQuestion(**own, do_xcom_push=False).operator_extra_links == ()
    assert SendChatMessageOperator(**own).operator_extra_links == ()
    assert ChatBatchOperator(task_id="batch", prompts=["q"]).operator_extra_links == ()


@pytest.mark.skipif(not has_view(), reason="this Airflow has no page")
def test_airflow_shows_the_link_of_mapped_tasks_and_of_subclasses() -> None:
    from airflow.providers.common.compat.sdk import DAG
    from airflow.serialization import serialized_objects

    with DAG("linked") as dag:
        SendChatMessageOperator.partial(task_id="mapped", session_id="ses-1").expand(prompt=["q"])
        OwnQuestion(task_id="own", session_id="ses-1", prompt="q")
        OwnQuestion.partial(task_id="own_mapped", session_id="ses-1").expand(prompt=["q"])
        ChatBatchOperator(task_id="batch", prompts=["q"])
    names = ("DagSerialization", "SerializedDAG")  # the latter up to Airflow 3.1
    form: Any = next(filter(None, (getattr(serialized_objects, name, None) for name in names)))
    shown: dict[str, Any] = {task.task_id: list(task.extra_links) for task in form.from_dict(form.to_dict(dag)).tasks}
    assert shown == {name: ["LlamaCloud conversation"] for name in ("mapped", "own", "own_mapped", "batch")}


def test_the_setting_is_one_that_airflow_knows() -> None:
    from airflow.configuration import conf
    from airflow.providers_manager import ProvidersManager

    ProvidersManager().initialize_providers_configuration()  # type: ignore[no-untyped-call]  # Airflow does not type it
    assert conf.getboolean("llamachat", "view_enabled") is True


def test_the_link_starts_with_the_address_of_airflow(
    on_airflow: Callable[..., None],
) -> None:
    on_airflow("3.3.2", AIRFLOW__API__BASE_URL="https://airflow.example/team/")
    link = LlamaCloudConversationLink().get_link(None, ti_key=KEY)  # type: ignore[arg-type]  # as above
    assert link.startswith("https://airflow.example/team/plugin/llamacloud-chats#dag_id=")
    assert loaded()().external_views[0]["href"] == "/team/llamacloud-chats/"


def test_airflow_finds_it_by_its_entry_point_and_no_second_time() -> None:
    from airflow_provider_llamachat.provider_info import get_provider_info

    found = [point for point in metadata.entry_points(group="airflow.plugins") if PLUGIN in point.value]
    assert [point.name for point in found] == ["llamacloud_chats"]
    assert "plugins" not in get_provider_info()
    has_view.cache_clear()
    assert (loaded() is not None) is has_view()
    assert found[0].load() is importlib.import_module(PLUGIN).plugin


@pytest.mark.long
def test_loading_it_imports_neither_web_framework_nor_operators() -> None:
    code = (
        "import sys; from airflow.plugins_manager import AirflowPlugin;"
        "from airflow.providers.common.compat.sdk import BaseOperatorLink, conf; BaseOperatorLink; before = set(sys.modules);"
        f"import {PLUGIN};"
        "new = {m for m in set(sys.modules) - before};"
        "print(sorted(m for m in new if m.split('.')[0] in {'fastapi', 'starlette', 'sqlalchemy', 'pydantic', 'httpx'} or"
        " m.startswith(('airflow_provider_llamachat.operators', 'airflow_provider_llamachat.view.app'))))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
