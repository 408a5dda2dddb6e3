"""What a turn tells Airflow's lineage and metrics: the indexes it read, and counters for turns and tokens.

Indexes are assets with the URI ``llamacloud://HOST/indexes/INDEX_ID``. They go to Airflow's hook lineage collector, which costs
nothing without a reader; the OpenLineage provider is one (extra ``openlineage``), and turns them into datasets.
Metrics: https://airflow.apache.org/docs/apache-airflow/stable/administration-and-deployment/logging-monitoring/metrics.html
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from airflow_provider_llamachat.redaction import excerpt

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.common.compat.sdk import Asset

log = logging.getLogger(__name__)

SCHEME = "llamacloud"


def index_uri(index_id: str, base_url: str) -> str:
    """The asset URI of an index at a base URL."""
    return f"{SCHEME}://{urlsplit(base_url).netloc}/indexes/{quote(index_id, safe='')}"


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Check an asset URI with our scheme; Airflow calls this when an asset is made (provider info, ``asset-uris``).

    :raises ValueError: it is not of the form ``llamacloud://HOST/indexes/INDEX_ID``.
    """
    kind, _, index_id = uri.path.strip("/").partition("/")
    if not uri.netloc or kind != "indexes" or not index_id or "/" in index_id:
        raise ValueError(f"{SCHEME} assets have URIs of the form {SCHEME}://HOST/indexes/INDEX_ID")
    return uri._replace(scheme=SCHEME, path=f"/indexes/{index_id}", query="", fragment="")


def create_asset(*, index_id: str, host: str = "api.cloud.llamaindex.ai", extra: dict[str, Any] | None = None) -> Asset:
    """Make the asset of an index; Airflow calls this for ``create_asset(scheme="llamacloud", ...)``."""
    from airflow.providers.common.compat.sdk import Asset

    return Asset(uri=index_uri(index_id, f"https://{host}"), extra=extra)


def convert_to_openlineage(asset: Asset, lineage_context: Any) -> Dataset:  # noqa: ARG001  # Airflow passes it by name
    """Turn an index' asset into an OpenLineage dataset; the OpenLineage provider calls this."""
    from airflow.providers.common.compat.openlineage.facet import Dataset

    parts = urlsplit(asset.uri)
    return Dataset(namespace=f"{SCHEME}://{parts.netloc}", name=unquote(parts.path.lstrip("/")))


def record(hook: Any, index_ids: list[str], base_url: str, output: str | None = None) -> None:
    """Report the indexes that a turn could read, and where results were written. An answer never gets lost over this."""
    try:
        from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

        collector: Any = get_hook_lineage_collector()  # type: ignore[no-untyped-call]  # Airflow does not type it
        for index_id in index_ids:
            collector.add_input_asset(context=hook, uri=index_uri(index_id, base_url))
        if output is not None:
            collector.add_output_asset(context=hook, uri=output)
    except Exception as problem:  # noqa: BLE001  # collectors are plugins, which raise whatever they like
        log.warning("Lineage was not recorded (%s: %s).", type(problem).__name__, excerpt(str(problem), limit=200))


def count_turn(outcome: str, usage: dict[str, Any] | None = None) -> None:
    """Count a turn: ``llamachat.turns`` (tag ``outcome``: answered, failed or interrupted) and ``llamachat.tokens`` (tag ``direction``)."""
    try:
        from airflow.providers.common.compat.sdk import Stats

        Stats.incr("llamachat.turns", tags={"outcome": outcome})
        for direction in ("input", "output"):
            if tokens := (usage or {}).get(f"total_{direction}_tokens"):
                Stats.incr("llamachat.tokens", int(tokens), tags={"direction": direction})
    except Exception as problem:  # noqa: BLE001  # metrics back ends raise whatever they like
        log.warning("A turn was not counted (%s: %s).", type(problem).__name__, excerpt(str(problem), limit=200))
