"""Triggers check their arguments where they are made, but accept what 1.0.0 stored and what operators hand over."""

from __future__ import annotations

import asyncio
import inspect
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models.trigger import Trigger

from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.triggers.chat import ChatTurnTrigger
from airflow_provider_llamachat.triggers.index import IndexSyncedTrigger
from tests.airflow.runner import AIRFLOW

SYNCED = {"llamacloud_conn_id": "c", "index_ids": ["idx"], "deadline": 1.0, "before": "any text", "settled_at": 0.0}
TURN = {
    "llamacloud_conn_id": "c",
    "session_id": "ses-1",
    "prompt": "None",
    "index_ids": ["any, text"],
    "baseline": 0,
    "deadline": 1.0,
    "deferred_at": 0.0,
    "intended_at": 0.0,
}
"""Arguments that a trigger accepts, because 1.0.0 stored them, or because the server returned them to the operator."""
WRONG: dict[type[Any], dict[str, list[Any]]] = {
    IndexSyncedTrigger: {
        "index_ids": [["a", "b"], [], "idx-a, idx-b"],
        "before": [7],
        "settled_at": ["soon", -1, None, True],
        "started": ["perhaps"],
        "deadline": ["soon"],
        "project_id": ["not a uuid"],
    },
    ChatTurnTrigger: {
        "llamacloud_conn_id": ["", "None", None, 7],
        "session_id": ["", "None", None, "ses-a, ses-b"],
        "prompt": ["", " ", None, 7],
        "index_ids": ["idx", None, [7]],
        "baseline": ["0", None, -1, True, 0.5],
        "deadline": ["soon", None, -1, timedelta(minutes=1)],
        "deferred_at": ["now", -1],
        "intended_at": ["now", -1],
        "require_all_indexes": ["perhaps"],
        "accepted": ["perhaps"],
        "ask_again": ["perhaps"],
        "log_answer": ["perhaps"],
        "project_id": ["not a uuid", "None"],
        "organization_id": [7],
    },
}


def test_every_argument_of_the_turns_trigger_is_checked() -> None:
    named = inspect.signature(ChatTurnTrigger.__init__).parameters.values()
    keywords = {one.name for one in named if one.kind is one.KEYWORD_ONLY}
    assert keywords == set(WRONG[ChatTurnTrigger]) - {"intended_at"}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(kind, name, value) for kind, cases in WRONG.items() for name, values in cases.items() for value in values],
)
def test_the_other_triggers_refuse_invalid_arguments_too(kind: type[Any], name: str, value: Any) -> None:
    valid = TURN if kind is ChatTurnTrigger else SYNCED
    _, values = kind(**valid).serialize()
    assert valid.items() <= values.items()
    with pytest.raises(InvalidArgumentError, match=f"^{name}"):
        kind(**valid | {name: value})


@pytest.mark.skipif(AIRFLOW < (3, 3), reason="an older Airflow's triggerer makes its triggers in another way")
@pytest.mark.parametrize("kind", WRONG)
def test_a_stored_trigger_that_cannot_be_made_does_not_end_the_triggerer(kind: type[Any]) -> None:
    from airflow.jobs.triggerer_job_runner import TriggerRunner

    stored = {**(TURN if kind is ChatTurnTrigger else SYNCED), "deadline": "soon"}
    row = {
        "id": 1,
        "classpath": f"{kind.__module__}.{kind.__name__}",
        "encrypted_kwargs": Trigger.encrypt_kwargs(stored),
        "ti": None,
        "timeout_after": None,
        "watched_assets": None,
        "dag_data": None,
    }
    runner: Any = TriggerRunner()  # type: ignore[no-untyped-call]  # Airflow does not type it
    runner.to_create.append(SimpleNamespace(**row))
    asyncio.run(runner.create_triggers())
    assert [number for number, _ in runner.failed_triggers] == [1]
