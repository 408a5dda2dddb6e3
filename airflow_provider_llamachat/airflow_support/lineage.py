"""Reports lineage to Airflow: the indexes that a turn could read, and the file that a batch wrote.

Indexes are assets with the URI ``llamacloud://HOST/indexes/INDEX_ID``. They are reported to Airflow's hook lineage collector. The
OpenLineage provider (extra ``openlineage``) reads them from there and converts them to datasets.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
    """Return the asset URI of an index."""
    return f"{SCHEME}://{urlsplit(base_url).netloc}/indexes/{quote(index_id, safe='')}"


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Validate an asset URI. Airflow calls this when an asset is created (provider info, ``asset-uris``).

    :raises ValueError: the URI does not have the form ``llamacloud://HOST/indexes/INDEX_ID``.
    """
    kind, _, index_id = uri.path.strip("/").partition("/")
    if not uri.netloc or kind != "indexes" or not index_id or "/" in index_id:
        raise ValueError(f"{SCHEME} asset URIs must have the form {SCHEME}://HOST/indexes/INDEX_ID")
    return uri._replace(scheme=SCHEME, path=f"/indexes/{index_id}", query="", fragment="")


def create_asset(*, index_id: str, host: str = "api.cloud.llamaindex.ai", extra: dict[str, Any] | None = None) -> Asset:
    """Create the asset of an index. Airflow calls this for ``create_asset(scheme="llamacloud", ...)``."""
    from airflow.providers.common.compat.sdk import Asset

    return Asset(uri=index_uri(index_id, f"https://{host}"), extra=extra)


def convert_to_openlineage(asset: Asset, lineage_context: Any) -> Dataset:  # noqa: ARG001  # Airflow passes it by name
    """Convert the asset of an index to an OpenLineage dataset. The OpenLineage provider calls this."""
    from airflow.providers.common.compat.openlineage.facet import Dataset

    parts = urlsplit(asset.uri)
    return Dataset(namespace=f"{SCHEME}://{parts.netloc}", name=unquote(parts.path.lstrip("/")))


def record(hook: Any, index_ids: list[str], base_url: str, output: str | None = None) -> None:
    """Report the indexes that a turn could read, and the output file. Errors are only logged, so that no answer is lost."""
    try:
        from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

        collector: Any = get_hook_lineage_collector()  # type: ignore[no-untyped-call]  # Airflow does not type it
        for index_id in index_ids:
            collector.add_input_asset(context=hook, uri=index_uri(index_id, base_url))
        if output is not None:
            collector.add_output_asset(context=hook, uri=output)
    except Exception as problem:  # noqa: BLE001  # collectors are plugins, which raise exceptions of any class
        log.warning("Lineage was not recorded (%s: %s).", type(problem).__name__, excerpt(str(problem), limit=200))


def describe_outlets(context: Any, outlets: Sequence[Any], extra: dict[str, Any]) -> None:
    """Add ``extra`` to the events of the task's outlet assets. Errors are only logged, so that no answer is lost."""
    from airflow.providers.common.compat.sdk import Asset

    try:
        for outlet in outlets:
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra.update(extra)
    except Exception as problem:  # noqa: BLE001  # an event is not worth an answer
        log.warning("The asset event has no counts (%s: %s).", type(problem).__name__, excerpt(str(problem), limit=200))
