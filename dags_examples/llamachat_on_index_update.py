"""Ask the same questions whenever an index was synced.

On Airflow 3, an asset watcher starts a run each time the index's ``last_synced_at`` is newer. Airflow 2 has no asset watchers, so the
Dag runs every hour.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.triggers.index import IndexUpdatedTrigger

INDEX_ID = "idx-filings"

schedule: Any
try:
    from airflow.sdk import Asset, AssetWatcher
except ImportError:
    schedule = "@hourly"
else:
    watcher = AssetWatcher(name="index_synced", trigger=IndexUpdatedTrigger(index_id=INDEX_ID, poke_interval=60))
    schedule = [
        Asset(
            name=f"llamacloud_{INDEX_ID}",
            uri=f"llamacloud://api.cloud.llamaindex.ai/indexes/{INDEX_ID}",
            watchers=[watcher],
        )
    ]

with DAG(
    dag_id="llamachat_on_index_update",
    schedule=schedule,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["llamachat", "example"],
    doc_md=__doc__,
) as dag:
    # The results of a few questions fit into XCom, so no file is needed.
    ask = ChatBatchOperator(
        task_id="ask",
        prompts=["What was the revenue in Q3?", "Which risk factors does the Q3 report name?"],
        index_ids=[INDEX_ID],
        # The second question may refer to the first.
        session_mode="shared",
        delete_sessions=True,
    )

    @task
    def tell(results: list[dict[str, Any]], **context: Any) -> int:
        """Print the answers, and the event that started this run."""
        for events in (context.get("triggering_asset_events") or {}).values():
            for event in events:
                print(f"Synced: {event.extra}")
        for result in results:
            print(f"{result['prompt']}\n  {result['answer']}")
        return len(results)

    tell(ask.output["results"])
