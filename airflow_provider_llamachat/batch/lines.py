"""An item's line of the output. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.batch import records
from airflow_provider_llamachat.exceptions import ChatTurnInterruptedError, LlamaCloudError
from airflow_provider_llamachat.redaction import excerpt

if TYPE_CHECKING:
    from airflow_provider_llamachat.batch.items import Item
    from airflow_provider_llamachat.batch.preparing import Prepared
    from airflow_provider_llamachat.models import ChatTurn


def line(
    item: Item, prepared: Prepared | None, result: ChatTurn | LlamaCloudError, *, outcome: str | None = None
) -> dict[str, Any]:
    """What came of an item, as JSON values; ``outcome`` overrides what the result says."""
    line: dict[str, Any] = {
        "position": item.position,
        "id": item.id,
        "outcome": outcome,
        "prompt": item.prompt,
        "answer": None,
        "session_id": prepared.question.session_id if prepared else item.session_id,
        "index_ids": prepared.question.index_ids if prepared else item.index_ids,
        "skipped_index_ids": [],
        "usage": None,
        "error": None,
    }
    if isinstance(result, LlamaCloudError):
        interrupted = isinstance(result, ChatTurnInterruptedError)
        line["outcome"] = outcome or (records.INTERRUPTED if interrupted else records.FAILED)
        line["usage"] = getattr(result, "usage", None)
        line["error"] = {"type": type(result).__name__, "message": excerpt(str(result), limit=1000)}
    else:
        line |= {"outcome": records.ANSWERED, "answer": result.answer}
        line |= {"skipped_index_ids": result.skipped_index_ids, "usage": result.usage_as_dict()}
    return line
