"""The built wheel on each supported Airflow, beside no source tree: what it adds, its whole test suite, and a real conversation."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from airflow_provider_llamachat.testing import EmulatorProcess
from tests.matrix.cells import Cell
from tests.matrix.conftest import Row
from tests.matrix.environments import Environment
from tests.matrix.suite import LIMIT, SuiteRun
from tests.system.processes import clean_environment
from tests.system.stack import AirflowStack

# Building and the suite happen in the first test that asks for them.
pytestmark = [pytest.mark.matrix, pytest.mark.timeout(LIMIT + 900)]


class Whole(NamedTuple):
    """A whole Airflow, and the emulator that its default connection points to."""

    stack: AirflowStack
    emulator: EmulatorProcess


def test_the_wheel_adds_itself_and_changes_no_other_package(environment: Environment) -> None:
    before, after = environment.before, environment.after
    assert before["apache-airflow"] == environment.cell.airflow
    assert set(after) - set(before) == {"airflow-provider-llamachat"}
    assert {name: after.get(name) for name in before} == before


def test_the_package_is_the_installed_one(environment: Environment, cases: Path) -> None:
    code = "import json, airflow_provider_llamachat as a, airflow; print(json.dumps([a.__file__, airflow.__version__]))"
    home = str(cases.parent / "airflow-home")
    done = subprocess.run(
        [environment.python, "-W", "ignore", "-c", code],
        cwd=cases,
        env=clean_environment({"AIRFLOW_HOME": home}),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    file, version = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(environment.site_packages)
    assert version == environment.cell.airflow


def test_the_suite_passes(suite_run: SuiteRun) -> None:
    problems = [name for name, outcome in suite_run.outcomes.items() if outcome == "failed"]
    assert not problems, "\n".join([*problems, suite_run.output[-6000:]])
    assert suite_run.code == 0, suite_run.output[-6000:]
    # Whatever a cell leaves out, it is not the most of it.
    assert suite_run.count("passed") > 20 * max(suite_run.count("skipped"), 1)


def test_airflow_discovers_the_provider(suite_run: SuiteRun) -> None:
    """`airflow providers list`, `get` and `hooks` show it; the test itself lies where the main suite has it too."""
    found = suite_run.of("tests.docs.test_documentation::test_airflow_discovers_the_provider")
    assert list(found.values()) == ["passed"]


def test_every_example_is_imported_without_an_error_or_a_warning(suite_run: SuiteRun, repository: Path) -> None:
    found = suite_run.of("tests.airflow.test_examples::test_an_example_says_what_it_shows")
    examples = {path.stem for path in (repository / "dags_examples").glob("*.py")}
    assert {name.split("[")[1].rstrip("]"): outcome for name, outcome in found.items()} == dict.fromkeys(
        examples, "passed"
    )


@pytest.fixture(scope="session")
def whole(environment: Environment, cell: Cell, repository: Path, row: Row) -> Iterator[Whole]:
    """The cell's Airflow as a whole (scheduler, triggerer and web server) and the emulator that it asks."""
    dags = [
        repository / "dags_examples" / "llamachat_deferrable.py",
        repository / "tests" / "system" / "dags" / "sources.py",
    ]
    began = time.monotonic()
    with EmulatorProcess() as emulator:
        connection = {"AIRFLOW_CONN_LLAMACLOUD_DEFAULT": emulator.airflow_connection_json}
        with AirflowStack(python=environment.python, dags=dags, environment=connection) as stack:
            assert stack.version_text == cell.airflow
            yield Whole(stack, emulator)
    row.life = time.monotonic() - began


def test_a_session_is_created_asked_and_deleted(whole: Whole) -> None:
    """The question waits in the triggerer."""
    stack, emulator = whole
    emulator.reset()
    emulator.update_settings(turn_latency=3.0)
    run = stack.trigger("llamachat_deferrable")
    stack.wait_for_task(run, "ask", "deferred")
    assert stack.wait(run, timeout=180) == "success"
    assert stack.task_states(run) == dict.fromkeys(["create_session", "ask", "delete_session"], "success")
    (turn,) = emulator.turns
    assert (turn.state, emulator.posts(), emulator.completed()) == ("completed", 1, 1)
    assert stack.xcom(run, "create_session", "session_id") == turn.session_id
    assert stack.xcom(run, "create_session", "index_ids") == ["idx-filings", "idx-handbook"]
    answer, usage = stack.xcom(run, "ask"), stack.xcom(run, "ask", "usage")
    assert "47.5 million" in answer
    assert (usage["total_output_tokens"], usage["try_number"]) == (turn.output_tokens, 1)
    assert stack.xcom(run, "ask", "skipped_index_ids") == []
    assert emulator.deleted == [turn.session_id]
    assert emulator.api_key not in stack.metadata_dump()


def test_every_way_to_an_answer_hands_on_the_same_sources(whole: Whole) -> None:
    """On the worker, deferred, in a batch, and for an answer that a retry takes from the history."""
    stack, emulator = whole
    emulator.reset()
    run = stack.trigger("sources")
    assert stack.wait(run, timeout=180) == "success"
    found = {
        task_id: stack.xcom(run, task_id, "sources")
        for task_id in ("worker", "deferred", "adopted", "deferred_adopted")
    }
    (line,) = stack.xcom(run, "batch", "results")
    found["batch"] = line["sources"]
    print(json.dumps(found["worker"]))
    assert [source["file_name"] for source in found["worker"]] == ["Halden Instruments, report Q3 2025"]
    assert found == dict.fromkeys(found, found["worker"])
    assert {stack.task(run, task_id)["try_number"] for task_id in ("adopted", "deferred_adopted")} == {2}
    assert emulator.posts() == emulator.completed() == 5
