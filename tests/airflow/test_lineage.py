"""Indexes as assets, and counters for turns and tokens, on a real Airflow."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Asset

from airflow_provider_llamachat.airflow_support import lineage
from airflow_provider_llamachat.testing import Fault, LlamaCloudEmulator
from tests.airflow.runner import DAGS, run

BASE = "https://api.cloud.llamaindex.ai"


def test_an_index_is_an_asset_that_airflow_accepts() -> None:
    uri = lineage.index_uri("idx/1 ü", BASE)
    assert uri == "llamacloud://api.cloud.llamaindex.ai/indexes/idx%2F1%20%C3%BC"
    assert Asset(uri).uri == uri
    assert lineage.create_asset(index_id="idx-1", extra={"a": 1}).uri == f"llamacloud://{BASE[8:]}/indexes/idx-1"


@pytest.mark.parametrize(
    "uri", ["llamacloud://host", "llamacloud://host/other/x", "llamacloud:///indexes/x", "llamacloud://h/indexes/a/b"]
)
def test_an_asset_that_names_no_index_is_refused(uri: str) -> None:
    from urllib.parse import urlsplit

    with pytest.raises(ValueError, match="HOST/indexes/INDEX_ID"):
        lineage.sanitize_uri(urlsplit(uri))


def test_an_openlineage_dataset_has_the_host_as_namespace() -> None:
    pytest.importorskip("airflow.providers.openlineage", reason="datasets need the extra openlineage")
    dataset = lineage.convert_to_openlineage(Asset(lineage.index_uri("idx-1", BASE)), None)
    assert (dataset.namespace, dataset.name) == ("llamacloud://api.cloud.llamaindex.ai", "indexes/idx-1")


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_a_run_reports_its_indexes_and_counts_its_turns(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.providers.common.compat import sdk as compat
    from airflow.providers.common.compat.sdk import HookLineageCollector, Stats

    collector = HookLineageCollector()  # type: ignore[no-untyped-call]  # Airflow does not type it
    # Airflow makes a collector that does nothing unless a plugin reads it; this is the one it makes then. It goes in below the
    # compatibility layer, which gives Airflow 2's collector the methods of Airflow 3's.
    monkeypatch.setattr(compat, "get_hook_lineage_collector", lambda: collector)
    counted: list[tuple[str, int, Any]] = []
    monkeypatch.setattr(Stats, "incr", lambda name, count=1, *_, tags=None, **__: counted.append((name, count, tags)))
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="direct"))
    assert run(DAGS / "conversations.py", "retried").state == "success"
    host = llamacloud_emulator.url.removeprefix("http://")
    inputs = [item.asset.uri for item in collector.collected_assets.inputs]
    assert inputs == [f"llamacloud://{host}/indexes/idx-filings"] * 2, "once for each of the two answers"
    turns = [tags for name, _, tags in counted if name == "llamachat.turns"]
    assert turns == [{"outcome": "failed"}, {"outcome": "answered"}, {"outcome": "answered"}]
    tokens = {tags["direction"]: count for name, count, tags in counted if name == "llamachat.tokens"}
    assert set(tokens) == {"input", "output"}
    assert all(count > 0 for count in tokens.values())
