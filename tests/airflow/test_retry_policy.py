"""The server's ``Retry-After`` decides when a task is retried, where Airflow has retry policies."""

from __future__ import annotations

import importlib
import json
from datetime import timedelta
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import no_backoff
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator
from airflow_provider_llamachat.testing import Fault, LlamaCloudEmulator
from tests.airflow.tries import a_try

HAS_POLICIES = tuple(int(part) for part in airflow_version.split(".")[:2]) >= (3, 3)
with_policies = pytest.mark.skipif(not HAS_POLICIES, reason="Airflow 3.3 introduced retry policies")


@pytest.mark.skipif(HAS_POLICIES, reason="this Airflow has retry policies")
def test_an_older_airflow_says_that_it_has_no_retry_policies() -> None:
    with pytest.raises(ImportError, match=r"requires Airflow 3\.3"):
        importlib.import_module("airflow_provider_llamachat.retry_policy")


def policy(**arguments: Any) -> Any:
    from airflow_provider_llamachat.retry_policy import ServerRetryPolicy

    return ServerRetryPolicy(**arguments)


@with_policies
@pytest.mark.usefixtures("llamacloud_connection")
@pytest.mark.parametrize("status", [409, 429, 503])
def test_the_server_decides_when_a_task_that_it_refused_is_retried(
    status: int, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(llamacloud_emulator.airflow_connection_json)
    connection["extra"] = {**json.loads(connection.get("extra") or "{}"), "max_retries": 0}
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", json.dumps(connection))
    llamacloud_emulator.inject(Fault("status", endpoint="get", status=status, retry_after="240", times=None))
    made = policy()
    ask = SendChatMessageOperator(
        task_id="ask", session_id="ses-1", prompt="Hello?", retries=2, retry_policy=made, deferrable=False
    )
    with no_backoff(), pytest.raises(errors.LlamaCloudStatusError) as caught:
        ask.execute(a_try(ask, 1))
    decision = made.evaluate(caught.value, 1, 2)
    assert (decision.action.value, decision.retry_delay) == ("retry", timedelta(seconds=240))
    assert decision.reason == "LlamaCloud asked to retry after 240 s."


@with_policies
@pytest.mark.parametrize(
    "problem",
    [errors.RateLimitError("no word of when"), errors.ChatTurnInterruptedError("cut"), ValueError("not ours")],
    ids=lambda problem: type(problem).__name__,
)
def test_every_other_failure_is_retried_as_the_task_says(problem: Exception) -> None:
    decision = policy().evaluate(problem, 1, 2)
    assert (decision.action.value, decision.retry_delay) == ("default", None)


@with_policies
def test_a_delay_has_a_maximum() -> None:
    problem = errors.RateLimitError("slow down", retry_after=86400.0)
    assert policy(max_delay=timedelta(minutes=5)).evaluate(problem, 1, 2).retry_delay == timedelta(minutes=5)
    with pytest.raises(errors.InvalidArgumentError, match="max_delay"):
        policy(max_delay=0)


@with_policies
def test_a_dag_with_a_policy_can_be_stored() -> None:
    made = policy(max_delay=60.0)
    assert type(made).deserialize(made.serialize()).max_delay == 60.0
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG(dag_id="with_policy", schedule=None) as dag:
        SendChatMessageOperator(task_id="ask", session_id="ses-1", prompt="Hello?", retries=2, retry_policy=made)
    stored = DagSerialization.to_dict(dag)
    assert stored["dag"]["tasks"][0]["__var"]["has_retry_policy"] is True
