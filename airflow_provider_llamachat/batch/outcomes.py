"""What became of the items of a batch so far, and which of them are retried at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.batch import records
from airflow_provider_llamachat.batch.progress import Meter
from airflow_provider_llamachat.exceptions import (
    ChatTurnInterruptedError,
    ConflictError,
    LlamaCloudConnectionError,
    LlamaCloudError,
    RateLimitError,
    ServerError,
)

if TYPE_CHECKING:
    from airflow_provider_llamachat.batch.items import Item
    from airflow_provider_llamachat.models import ChatTurn

PASSING = (ChatTurnInterruptedError, ConflictError, LlamaCloudConnectionError, RateLimitError, ServerError)
"""Transient errors. These prompts are retried at the end of the batch, which is safe because the session's history is read first."""


class Outcomes:
    """Counts each item once, by its final outcome.

    :param on_result: called once with the outcome and the usage of each item; for a retried item, after the retry.
    :ivar answered: number of items that have an answer, those of earlier attempts included.
    :ivar again: items that are retried.
    :ivar is_last_look: whether the retries have begun.
    :ivar first_failure: a sentence about the first error, with a space at its end; empty if there is none.
    :ivar refused_only: whether no error was one after which a retry may succeed.
    """

    def __init__(
        self, meter: Meter, answered: int, on_result: Callable[[str, dict[str, Any] | None], None] | None
    ) -> None:
        self._meter = meter
        self._on_result = on_result
        self._held: dict[int, tuple[str, dict[str, Any] | None]] = {}
        self.answered = answered
        self.again: list[Item] = []
        self.is_last_look = False
        self.first_failure = ""
        self.refused_only = True

    def add(self, item: Item, result: ChatTurn | LlamaCloudError, entry: dict[str, Any]) -> None:
        """Count the result of an item. ``entry`` is its line of the output."""
        outcome: str = entry["outcome"]
        self.answered += outcome == records.ANSWERED
        self._meter.add(answered=outcome == records.ANSWERED, usage=entry["usage"])
        if isinstance(result, PASSING) and not self.is_last_look:
            self._held[item.position] = outcome, entry["usage"]
        else:
            self._held.pop(item.position, None)
            self._tell(outcome, entry["usage"])
        if isinstance(result, LlamaCloudError):
            self.first_failure = self.first_failure or f"First error: {item}: {entry['error']['message']} "
            self.refused_only &= not result.retryable
            if isinstance(result, PASSING):
                self.again.append(item)

    def wait(self, item: Item) -> None:
        """Leave an item for the retries, because an earlier prompt of its session has no answer yet."""
        self.again.append(item)
        self._meter.add(answered=False, usage=None)

    def reopen(self) -> list[Item]:
        """Begin the retries. Return the items that failed with transient errors, in their order."""
        again, self.again = sorted(self.again, key=lambda item: item.position), []
        self._meter.reopen(len(again), [usage for _, usage in self._held.values()])
        self.is_last_look = True
        return again

    def close(self) -> None:
        """Tell the outcomes of items that were not retried."""
        while self._held:
            self._tell(*self._held.popitem()[1])

    def _tell(self, outcome: str, usage: dict[str, Any] | None) -> None:
        if self._on_result is not None:
            self._on_result(outcome, usage)
