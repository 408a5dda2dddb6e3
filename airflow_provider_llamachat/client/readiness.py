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
        states = self._states(list(indexes))
        for index_id, state in states.items():
            if (index_id, state) not in self._said:
                self._said.add((index_id, state))
                log.info("Index %s is not ready yet: %s.", index_id, state)
        return states

    def _states(self, indexes: list[Index]) -> dict[str, str]:
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
            elif self._wait_for_sync and index.sync_in_progress:
                states[index.id] = "a sync is running"
        return states


SETTLED = 30.0
"""Seconds after which a sync that has left no trace in its index counts as finished."""


class SyncProgress(Readiness):
    """Checks whether a sync of an index has ended and the index is ready.

    What an index shows right after the start of its sync may be from before. The sync has ended when the index showed it running and
    no longer does, when ``last_synced_at`` is newer, or at ``settled_at``. Only then does the status count.

    :param before: ``last_synced_at`` before the sync was started.
    :param settled_at: epoch seconds.
    """

    def __init__(self, before: str | None, settled_at: float) -> None:
        super().__init__(wait_for_sync=True)
        self._before = before
        self._settled_at = settled_at
        self._has_run = False

    def _states(self, indexes: list[Index]) -> dict[str, str]:
        states = {}
        for index in indexes:
            if index.sync_in_progress:
                self._has_run = True
                states[index.id] = "a sync is running"
            elif not (self._has_run or is_newer(index.last_synced_at, self._before) or time.time() >= self._settled_at):
                states[index.id] = "the sync has not begun"
        return states or super()._states(indexes)


FIRST_LOOK = 1.0
LAST_LOOK = 15.0
"""Seconds between the first two checks of :func:`wait_until_ready`, and the default of its longest interval."""


def wait_until_ready(
    look: Callable[[], Iterable[Index]],
    deadline: float,
    readiness: Readiness | None = None,
    longest: float = LAST_LOOK,
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Index]:
    """Block until all indexes are ready, and return them.

    :param look: reads the indexes.
    :param deadline: epoch seconds.
    :param readiness: decides whether they are ready.
    :param longest: maximum number of seconds between two checks.
    :raises IndexFailedError: an index's build failed.
    :raises IndexNotReadyError: the deadline passed.
    """
    readiness, pause = readiness or Readiness(), min(FIRST_LOOK, longest)
    while states := readiness.pending(indexes := list(look())):
        left = deadline - now()
        if left <= 0:
            raise IndexNotReadyError(not_ready(states), index_id=next(iter(states)))
        sleep(min(pause, left))
        pause = min(1.5 * pause, longest)
    return indexes


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
    """The message for indexes that were not ready in time. It names at most ten of them."""
    shown = ", ".join(f"{index_id} ({state})" for index_id, state in list(states.items())[:10]) or "unknown"
    more = f" and {len(states) - 10} more" if len(states) > 10 else ""
    return f"The deadline passed before all indexes were ready. Still waiting for: {shown}{more}."
