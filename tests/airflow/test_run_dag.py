"""The fixture that runs a user's Dag: what it returns, what it does not wait for, and what it leaves as it was."""

from __future__ import annotations

import io
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_llamachat.testing import Fault, LlamaCloudEmulator
from airflow_provider_llamachat.testing.dagruns import DagRunner, logged
from tests.airflow.runner import AIRFLOW

DAG = """
from datetime import timedelta
from airflow.providers.common.compat.sdk import DAG, task
from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator, SendChatMessageOperator
from wording import QUESTION

with DAG(dag_id="asks", schedule=None, catchup=False, params={"quarter": "Q3"}):
    create = CreateChatSessionOperator(task_id="create", index_ids=["idx-filings"])
    ask = SendChatMessageOperator(
        task_id="ask",
        session_id=create.output["session_id"],
        prompt=QUESTION,
        retries=2,
        retry_delay=timedelta(minutes=5),
        retry_exponential_backoff=True,
    )

    @task(retries=1, retry_delay=timedelta(minutes=5))
    def shout(word: str) -> str:
        from airflow.providers.common.compat.sdk import get_current_context

        if word == "two" and get_current_context()["ti"].try_number == 1:
            raise RuntimeError("not at once")
        print("heard", word)
        return word.upper()

    ask >> shout.expand(word=["one", "two"])
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "wording.py").write_text('QUESTION = "What was the revenue in {{ params.quarter }}?"\n')
    (tmp_path / "asks.py").write_text(DAG)
    return tmp_path / "asks.py"


def test_a_run_returns_states_xcoms_logs_and_what_was_asked(
    file: Path, llamacloud_run_dag: DagRunner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    source = {"file_name": "report.pdf", "pages": [3, 4], "score": 0.5, "text": "Five euros."}
    llamacloud_emulator.answer("revenue in Q1", "It was 5 euros.", sources=[source])
    run = llamacloud_run_dag(file, conf={"quarter": "Q1"})
    assert run.state == "success", run.logs
    assert run.tasks == dict.fromkeys(["ask", "create", "shout[0]", "shout[1]"], "success")
    assert run.tries == {"ask": 1, "create": 1, "shout[0]": 1, "shout[1]": 2}
    assert run.xcom("ask") == "It was 5 euros."
    (found,) = run.xcom("ask", "sources")
    assert {name: found[name] for name in source} == source
    assert [run.xcom("shout", map_index=index) for index in (0, 1)] == ["ONE", "TWO"]
    assert run.prompts == ["What was the revenue in Q1?"]
    assert [turn.state for turn in run.turns] == ["completed"]
    for line in ("Question in session", "It was 5 euros." if "| It" in run.logs else "source: report.pdf", "heard two"):
        # Before 3.1, Airflow may also write what its own handlers show.
        assert run.logs.count(line) == 1 or (AIRFLOW < (3, 1) and line in run.logs), run.logs
    with pytest.raises(KeyError, match="'ask', 'usage', -1"):
        run.xcom("ask", "no such key")


@pytest.mark.airflow
def test_a_failure_is_a_result_and_its_retries_do_not_wait(
    file: Path, llamacloud_run_dag: DagRunner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("error_stop", times=None, detail="model overloaded"))
    run = llamacloud_run_dag(str(file))
    assert (run.state, run.tasks["ask"], run.tries["ask"]) == ("failed", "failed", 3)
    assert run.tasks["create"] == "success"
    assert run.prompts == ["What was the revenue in Q3?"] * 3
    assert [turn.state for turn in run.turns] == ["failed"] * 3
    assert "model overloaded" in run.logs


def test_it_runs_a_dag_that_a_test_makes_and_leaves_it_as_it_was(llamacloud_run_dag: DagRunner) -> None:
    from airflow.providers.common.compat.sdk import DAG

    from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator

    with DAG(dag_id="made_here", schedule=None, catchup=False) as dag:
        task = CreateChatSessionOperator(
            task_id="create", index_ids=["no-such-index"], retries=1, retry_delay=timedelta(hours=1)
        )
    for _ in range(2):
        run = llamacloud_run_dag(dag)
        assert (run.state, run.prompts) == ("failed", [])
    assert task.retry_delay == timedelta(hours=1)


@pytest.mark.airflow
def test_a_dag_gets_the_modules_of_its_own_folder(
    tmp_path: Path, llamacloud_run_dag: DagRunner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    before = set(sys.modules)
    for quarter in ("Q1", "Q2"):
        folder = tmp_path / quarter
        (folder / "shared").mkdir(parents=True)
        (folder / "shared" / "words.py").write_text(f'QUESTION = "What was the revenue in {quarter}?"\n')
        (folder / "wording.py").write_text("from shared.words import QUESTION\n")
        (folder / "asks.py").write_text(DAG)
        assert llamacloud_run_dag(folder / "asks.py").state == "success"
    assert llamacloud_emulator.prompts == ["What was the revenue in Q1?", "What was the revenue in Q2?"]
    assert {"wording", "shared", "shared.words"}.isdisjoint(set(sys.modules) - before)


@pytest.mark.airflow
def test_modules_that_are_not_the_dag_folders_own_stay_imported(
    tmp_path: Path, llamacloud_run_dag: DagRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A virtual environment often lies in the folder of the project.
    packages = tmp_path / ".venv" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "installed_package.py").touch()
    monkeypatch.syspath_prepend(str(packages))
    (tmp_path / "wording.py").write_text("import installed_package\nQUESTION = 'What was the revenue?'\n")
    (tmp_path / "asks.py").write_text(DAG)
    assert llamacloud_run_dag(tmp_path / "asks.py").state == "success"
    assert "installed_package" in sys.modules
    monkeypatch.delitem(sys.modules, "installed_package")


def test_airflow_is_as_before_after_the_test(
    request: pytest.FixtureRequest, airflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow import settings

    monkeypatch.setenv("AIRFLOW__LOGGING__REMOTE_LOGGING", "True")
    before: tuple[dict[str, str], Any, Any] = (dict(os.environ), settings.SQL_ALCHEMY_CONN, settings.Session)
    fixture = request.getfixturevalue("_llamacloud_database")
    from airflow_provider_llamachat.testing.dagruns import own_airflow

    with own_airflow(fixture.parent / "home", fixture):
        assert str(airflow_database) not in str(settings.SQL_ALCHEMY_CONN)
        assert os.environ["AIRFLOW__LOGGING__REMOTE_LOGGING"] == "False"
    assert before == (dict(os.environ), settings.SQL_ALCHEMY_CONN, settings.Session)


def test_a_file_that_cannot_be_imported_and_a_dag_that_is_not_there_are_said(
    tmp_path: Path, file: Path, llamacloud_run_dag: DagRunner
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import DAG_of_nobody\nfrom airflow.sdk import dag")
    with pytest.raises(ValueError, match="No module named 'DAG_of_nobody'"):
        llamacloud_run_dag(broken)
    with pytest.raises(ValueError, match=r"has no Dag 'other'. Name one of its Dags: \['asks'\]"):
        llamacloud_run_dag(file, "other")
    file.write_text(file.read_text() + '\nanother = DAG(dag_id="another", schedule=None)')
    with pytest.raises(ValueError, match=r"defines 2 Dags. Name one of its Dags: \['another', 'asks'\]"):
        llamacloud_run_dag(file)


def test_a_logger_that_keeps_the_output_of_a_run_outlives_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    # Airflow's loggers keep the stream that they found; pytest closes its own when the test ends.
    captured = io.StringIO()
    monkeypatch.setattr(sys, "stdout", captured)
    with logged() as logs:
        kept = sys.stdout
        print("during the run")
    captured.close()
    kept.write("after the run")
    kept.close()
    assert "during the run" in logs()
