"""Dags that the tests beside this folder run on a real Airflow."""

from __future__ import annotations

import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Asset, ObjectStoragePath, task

from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.testing import EmulatorControl

COMMON: dict[str, Any] = {"schedule": None, "catchup": False}
NATIVE: dict[str, Any] = {**COMMON, "render_template_as_native_obj": True}
CONF = "{{ dag_run.conf.get('%s') }}"


def given(*names: str) -> dict[str, Any]:
    """Arguments that the run's conf gives, rendered by templates."""
    return {name: CONF % name for name in names}


with DAG(dag_id="templated", **NATIVE) as templated:
    ChatBatchOperator(
        task_id="batch",
        **given("prompts", "index_ids", "output_path", "requests_per_minute"),
        max_concurrency="{{ dag_run.conf.get('max_concurrency', 4) }}",
        session_mode="{{ dag_run.conf.get('session_mode', 'per_prompt') }}",
        on_item_error="{{ dag_run.conf.get('on_item_error', 'collect') }}",
        delete_sessions="{{ dag_run.conf.get('delete_sessions', False) }}",
        turn_timeout="{{ dag_run.conf.get('turn_timeout', 30) }}",
        retries=1,
        retry_delay=0.1,
    )

with DAG(dag_id="text", **COMMON) as text:
    ChatBatchOperator(
        task_id="batch",
        prompts="{{ dag_run.conf['prompts'] | tojson }}",
        index_ids="{{ dag_run.conf['index_ids'] | tojson }}",
        output_path="{{ dag_run.conf['output_path'] }}",
        requests_per_minute="{{ '' }}",
        max_concurrency="{{ 2 }}",
    )

with DAG(dag_id="handed_over", **NATIVE) as handed_over:

    @task
    def questions() -> list[dict[str, Any]]:
        """Prompts as a task makes them."""
        return [{"id": quarter, "prompt": f"What was the revenue in {quarter}?"} for quarter in ("Q2", "Q3")]

    batch: Any = ChatBatchOperator(task_id="batch", prompts=questions(), index_ids="idx-filings")

    @task
    def read(manifest: dict[str, Any], results: list[dict[str, Any]]) -> list[str]:
        """Read both XComs as a downstream task does."""
        assert manifest["answered"] == len(results)
        return [str(result["answer"]) for result in results]

    read(batch.output, batch.output["results"])

with DAG(dag_id="silent", **NATIVE) as silent:
    ChatBatchOperator(
        task_id="batch", prompts=["Why?"], index_ids="idx-filings", do_xcom_push=False, **given("output_path")
    )

with DAG(dag_id="outlet", **COMMON) as outlet:
    ChatBatchOperator(
        task_id="batch",
        prompts=["Why?"],
        index_ids="idx-filings",
        outlets=[Asset("file:///tmp/answers")],
        output_path=CONF % "output_path",
    )

with DAG(dag_id="mapped_batches", **NATIVE) as mapped_batches:
    ChatBatchOperator.partial(
        task_id="batch", index_ids="idx-filings", output_path=(CONF % "folder") + "/{{ ti.map_index }}.jsonl"
    ).expand(prompts=[["One?", "Two?"], ["Three?"]])

with DAG(dag_id="path_object", **COMMON) as path_object:

    class Placed(ChatBatchOperator):
        """Gives its path as an object."""

        def execute(self, context: Any) -> dict[str, Any]:
            """Take the path from the run."""
            self.output_path = ObjectStoragePath(f"file://{context['dag_run'].conf['output_path']}")
            return super().execute(context)

    Placed(task_id="batch", prompts=["Why?"], index_ids="idx-filings")


with DAG(dag_id="path_objects", **COMMON) as path_objects:
    FOLDER = Path(CONF % "folder")
    ChatBatchOperator(
        task_id="one",
        prompts=["Why?"],
        index_ids="idx-filings",
        output_path=FOLDER / "{{ task.task_id }}-{{ 'batch' }}.jsonl",
    )
    ChatBatchOperator.partial(
        task_id="mapped", index_ids="idx-filings", output_path=FOLDER / "mapped-{{ ti.map_index }}.jsonl"
    ).expand(prompts=[["One?"], ["Two?"]])

with DAG(dag_id="one_path", **COMMON) as one_path:
    ChatBatchOperator.partial(
        task_id="batch", index_ids="idx-filings", output_path=CONF % "output_path", retries=1, retry_delay=0.1
    ).expand(prompts=[["One?", "Two?"], ["Three?", "Four?"]])


class StoppedOnce(ChatBatchOperator):
    """Is told to stop in the middle of its first try, when so many turns are under way, as by Airflow's signal handler."""

    turns = 1

    def stop(self) -> None:
        """What ends the first try."""
        self.on_kill()

    def execute(self, context: Any) -> dict[str, Any]:
        """Run, and be stopped once."""
        service = EmulatorControl(context["dag_run"].conf["service"])
        if context["ti"].try_number == 1:
            threading.Thread(target=self._watch, args=(service,), daemon=True).start()
        else:
            service.update_settings(turn_latency=0.0)
        return super().execute(context)

    def _watch(self, service: EmulatorControl) -> None:
        while sum(turn.state == "running" for turn in service.turns) < self.turns:
            time.sleep(0.02)
        self.stop()


class TimedOutOnce(StoppedOnce):
    """The time of its first try is over when all its turns are under way: the clock of Airflow's timeout is put forward."""

    turns = 6

    def stop(self) -> None:
        """What ends the first try."""
        signal.setitimer(signal.ITIMER_REAL, 0.01)


with DAG(dag_id="stopped", **NATIVE) as stopped:
    StoppedOnce(
        task_id="batch",
        prompts=[f"Question {number}?" for number in range(6)],
        index_ids="idx-filings",
        retries=1,
        retry_delay=0.1,
        **given("output_path"),
    )

with DAG(dag_id="timed_out", **NATIVE) as timed_out:
    TimedOutOnce(
        task_id="batch",
        prompts=[f"Question {number}?" for number in range(6)],
        index_ids="idx-filings",
        execution_timeout=timedelta(seconds=120),
        retries=1,
        retry_delay=0.1,
        **given("output_path"),
    )
