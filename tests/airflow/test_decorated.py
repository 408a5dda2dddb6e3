"""Asynchronous functions under ``@task.llamachat``, and deferred tasks whose connection is stored in the database."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_llamachat.decorators.chat import LlamaChatDecoratedOperator
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.testing import LlamaCloudEmulator
from tests.airflow.runner import AIRFLOW, DAGS, run
from tests.airflow.tries import TimedOut, on_alarm, time_out

DECORATED = DAGS / "decorated.py"


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_an_asynchronous_function_is_awaited(llamacloud_emulator: LlamaCloudEmulator) -> None:
    result = run(DECORATED, "asynchronous")
    assert result.state == "success", result.tasks
    assert [turn.prompt for turn in llamacloud_emulator.turns] == ["What about revenue?"]


@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_an_asynchronous_function_is_awaited_where_a_loop_already_runs(
    llamacloud_emulator: LlamaCloudEmulator,
) -> None:
    async def notebook() -> str:
        return run(DECORATED, "asynchronous").state

    assert asyncio.run(notebook()) == "success"
    assert len(llamacloud_emulator.turns) == 1


def test_a_timeout_ends_an_asynchronous_function_whatever_it_interrupts() -> None:
    ended = []

    async def slow() -> str:
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGALRM)
        try:
            await asyncio.sleep(600)
        finally:
            ended.append(True)
        return "Why?"

    with on_alarm(time_out), pytest.raises(TimedOut):
        LlamaChatDecoratedOperator(task_id="t", python_callable=slow, session_id="ses-1").execute({})
    assert ended == [True]


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_a_generator_is_refused_with_an_explanation(llamacloud_emulator: LlamaCloudEmulator) -> None:
    result = run(DECORATED, "generating")
    assert result.tasks == {"yields": ["failed"]}
    assert result.tries == {"yields": 1}
    assert llamacloud_emulator.requests == []


def _refusal_of(function: Any) -> str:
    operator = LlamaChatDecoratedOperator(task_id="t", python_callable=function, session_id="ses-1")
    with pytest.raises(InvalidArgumentError) as caught:
        operator.execute({})
    return str(caught.value)


def test_the_error_shows_what_a_function_returned_in_place_of_a_prompt() -> None:
    async def nothing() -> None:
        return None

    assert "function <lambda> must return the prompt" in _refusal_of(lambda: 7)
    assert "returned int 7" in _refusal_of(lambda: 7)
    assert "function nothing must return the prompt" in _refusal_of(nothing)
    assert "returned NoneType None" in _refusal_of(nothing)
    assert "returned str 'None'" in _refusal_of(lambda: "None")
    assert "returned str ' '" in _refusal_of(lambda: " ")


@pytest.fixture
def _stored(llamacloud_emulator: LlamaCloudEmulator, airflow_database: object) -> Iterator[None]:
    from airflow.models import Connection
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(
            Connection(
                conn_id="stored",
                conn_type="llamacloud",
                password=llamacloud_emulator.api_key,
                host=llamacloud_emulator.url,
            )
        )
    yield
    with create_session() as session:
        session.query(Connection).filter(Connection.conn_id == "stored").delete()


@pytest.mark.airflow
@pytest.mark.skipif(AIRFLOW == (3, 0), reason="its dag.test() gives a trigger no way to the database")
@pytest.mark.usefixtures("_stored")
def test_a_deferred_task_finds_a_stored_connection_in_a_test_of_its_dag(
    llamacloud_emulator: LlamaCloudEmulator,
) -> None:
    result = run(DECORATED, "stored_connection")
    assert result.state == "success", result.tasks
    assert len(llamacloud_emulator.turns) == 1
    assert result.xcom("ask")
