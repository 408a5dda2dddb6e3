"""Decides whether indexes are ready, and whether one was synced again. Sensor, triggers and operators share it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from airflow_provider_llamachat.exceptions import IndexFailedError, IndexNotReadyError
from airflow_provider_llamachat.models import Index
from airflow_provider_llamachat.redaction import excerpt

log = logging.getLogger(__name__)


class Readiness:
    """Checks the states of indexes repeatedly.

    The API documents only ``ready`` and ``failed``. Every other state means waiting, and is logged once for each index.

    :param wait_for_sync: an index is also pending while a sync of it is running.
    """

    def __init__(self, *, wait_for_sync: bool = False) -> None:
        self._wait_for_sync = wait_for_sync
        self._said: set[tuple[str, str]] = set()

    def pending(self, indexes: Iterable[Index]) -> dict[str, str]:
        """Return the state of each index that is not ready, by id; empty when all are.

        :raises IndexFailedError: an index's build failed. The message includes the index's own error message.
        """
        states = pending(indexes, wait_for_sync=self._wait_for_sync)
        for index_id, state in states.items():
            if (index_id, state) not in self._said:
                self._said.add((index_id, state))
                log.info("Index %s is not ready yet: %s.", index_id, state)
        return states


def pending(indexes: Iterable[Index], *, wait_for_sync: bool = False) -> dict[str, str]:
    """Return the state of each index that is not ready, by id; see :class:`Readiness`.

    :raises IndexFailedError: an index's build failed.
    """
    states: dict[str, str] = {}
    for index in indexes:
        status = index.metadata.status
        if status == Index.FAILED:
            reason = index.metadata.error_message
            name = f" ({excerpt(index.name, limit=100)})" if index.name else ""
            raise IndexFailedError(
                f"Index {index.id}{name} failed: {excerpt(reason).rstrip('. ') if reason else 'it gave no reason'}. "
                "Correct its documents or configuration in LlamaCloud and sync it.",
                index_id=index.id,
            )
        if status != Index.READY:
            states[index.id] = "no status" if status is None else f"status {excerpt(status, limit=60)}"
        elif wait_for_sync and index.sync_in_progress:
            states[index.id] = "a sync is running"
    return states


FIRST_LOOK = 1.0
LAST_LOOK = 15.0
"""Seconds between the first two checks of :func:`wait_until_ready`, and the longest interval."""


def wait_until_ready(
    look: Callable[[], Iterable[Index]],
    deadline: float,
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Block until all indexes are ready.

    :param look: reads the indexes.
    :param deadline: epoch seconds.
    :raises IndexFailedError: an index's build failed.
    :raises IndexNotReadyError: the deadline passed.
    """
    readiness, pause = Readiness(), FIRST_LOOK
    while states := readiness.pending(look()):
        left = deadline - now()
        if left <= 0:
            raise IndexNotReadyError(not_ready(states), index_id=next(iter(states)))
        sleep(min(pause, left))
        pause = min(1.5 * pause, LAST_LOOK)


def describe(states: dict[str, str]) -> str:
    """Return the states as part of a sentence of bounded length."""
    shown = [f"{index_id} ({state})" for index_id, state in list(states.items())[:10]]
    return ", ".join(shown) + (f" and {len(states) - 10} more" if len(states) > 10 else "")


def is_newer(moment: str | None, than: str | None) -> bool:
    """Whether one ``last_synced_at`` is later than another. A missing one is earlier than any.

    ISO times are compared as times, because time zone and precision may be written in several ways. A value that is not an ISO
    time counts as newer if it differs.
    """
    if not moment or not than:
        return bool(moment)
    one, other = _time(moment), _time(than)
    return moment != than if one is None or other is None else one > other


def _time(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def not_ready(states: dict[str, str]) -> str:
    """The message for indexes that were not ready in time."""
    return f"The deadline passed before all indexes were ready. Still waiting for: {describe(states) or 'unknown'}."
