"""Dags with index tasks that the tests beside this folder run on a real Airflow."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator
from airflow_provider_llamachat.operators.index import SyncIndexOperator
from airflow_provider_llamachat.sensors.index import IndexReadySensor

NATIVE: dict[str, Any] = {"schedule": None, "catchup": False, "render_template_as_native_obj": True}
CONF = "{{ dag_run.conf.get('%s') }}"


def given(*names: str) -> dict[str, Any]:
    """Arguments that the run's conf gives, rendered by templates."""
    return {name: CONF % name for name in names}


def wait_in_both_modes(seconds: float) -> None:
    """One sensor after the other."""
    poking, deferred = (
        IndexReadySensor(
            task_id="deferred" if mode else "poking",
            deferrable=mode,
            poke_interval=0.1,
            timeout=seconds,
            soft_fail=False,
            **given("index_ids"),
            wait_for_sync="{{ dag_run.conf.get('wait_for_sync', False) }}",
            trigger_rule="all_done",
        )
        for mode in (False, True)
    )
    poking >> deferred


with DAG(dag_id="waiting", **NATIVE) as waiting:
    wait_in_both_modes(120)

with DAG(dag_id="waiting_in_vain", **NATIVE) as waiting_in_vain:
    wait_in_both_modes(2)

with DAG(dag_id="soft", **NATIVE) as soft:
    for mode in (False, True):
        IndexReadySensor(
            task_id="deferred" if mode else "poking",
            deferrable=mode,
            poke_interval=0.1,
            timeout=0.5,
            soft_fail=True,
            index_ids=CONF % "index_ids",
        )

with DAG(dag_id="create_when_ready", **NATIVE) as create_when_ready:
    CreateChatSessionOperator(
        task_id="create",
        index_ids=CONF % "index_ids",
        wait_for_indexes=True,
        index_timeout="{{ dag_run.conf.get('index_timeout', 30) }}",
    )

with DAG(dag_id="sync", **NATIVE) as sync:
    started = SyncIndexOperator(task_id="start", index_id=CONF % "index_id")
    adopted = SyncIndexOperator(task_id="adopt", index_id=CONF % "index_id")
    synced = IndexReadySensor(task_id="wait", index_ids=CONF % "index_id", wait_for_sync=True, poke_interval=0.1)
    started >> adopted >> synced

with DAG(dag_id="sync_and_wait", **NATIVE) as sync_and_wait:
    synced_on_worker, synced_deferred = (
        SyncIndexOperator(
            task_id="deferred" if mode else "waiting",
            index_id=CONF % "index_id",
            wait="{{ True }}",
            deferrable=mode,
            poke_interval=0.1,
        )
        for mode in (False, True)
    )
    synced_on_worker >> synced_deferred

with DAG(dag_id="create_when_ready_deferred", **NATIVE) as create_when_ready_deferred:
    CreateChatSessionOperator(
        task_id="create",
        index_ids=CONF % "index_ids",
        wait_for_indexes=True,
        deferrable=True,
        index_timeout="{{ dag_run.conf.get('index_timeout', 120) }}",
        poke_interval=0.1,
    )
