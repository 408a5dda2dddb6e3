"""A Dag that an index update starts, on Airflow 3; for the test beside this folder."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task
from airflow.sdk import Asset, AssetWatcher

from airflow_provider_llamachat.triggers.index import IndexUpdatedTrigger

watcher = AssetWatcher(name="synced", trigger=IndexUpdatedTrigger(index_id="idx-filings", poke_interval=0.5))
asset = Asset(name="filings", uri="llamacloud://api.cloud.llamaindex.ai/indexes/idx-filings", watchers=[watcher])

with DAG(dag_id="on_update", schedule=[asset], catchup=False):

    @task
    def tell(triggering_asset_events: Any = None) -> list[dict[str, Any]]:
        """What started this run."""
        return [dict(event.extra) for events in triggering_asset_events.values() for event in events]

    tell()
