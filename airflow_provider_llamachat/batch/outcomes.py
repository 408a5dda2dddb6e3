"""What became of the items of a batch so far, and which of them are retried at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.batch import records
from airflow_provider_llamachat.batch.progress import Meter
from airflow_provider_llamachat.exceptions import (
    AuthenticationError,
    BudgetReachedError,
    ChatTurnInterruptedError,
    ConflictError,
    LlamaCloudConnectionError,
    LlamaCloudError,
    PaymentRequiredError,
    RateLimitError,
    ServerError,
)
from airflow_provider_llamachat.redaction import excerpt

if TYPE_CHECKING:
    from airflow_provider_llamachat.batch.items import Item
    from airflow_provider_llamachat.models import ChatTurn

PASSING = (ChatTurnInterruptedError, ConflictError, LlamaCloudConnectionError, RateLimitError, ServerError)
"""Transient errors. These prompts are retried at the end of the batch, which is safe because the session's history is read first."""
FATAL = (AuthenticationError, PaymentRequiredError)
"""Refusals that every other prompt would receive too."""
REASONS = 3
"""Maximum number of kinds of errors of which the first one is quoted."""


@dataclass(frozen=True, slots=True)
class _End:
    outcome: str
    usage: dict[str, Any] | None
    kind: str | None = None
    reason: str = ""
    may_help: bool = False


class Outcomes:
    """Counts each item once, by its final outcome.

    :param on_result: see :class:`~.engine.Batch`.
    :ivar answered: number of items that have an answer, those of earlier attempts included.
    :ivar again: positions of the items that are retried.
    :ivar is_last_look: whether the retries have begun.
    :ivar retry_may_help: whether an item failed with an error after which a retry may succeed.
    :ivar may_settle: whether a retry may find an answer to an item that was asked.
    """

    def __init__(
        self, meter: Meter, answered: int, on_result: Callable[[str, dict[str, Any] | None], None] | None
    ) -> None:
        self._meter = meter
        self._on_result = on_result
        self._held: dict[int, _End] = {}
        self._reasons: dict[str, str] = {}
        self.answered = answered
        self.again: list[int] = []
        self.is_last_look = False
        self.retry_may_help = False
        self.may_settle = False

    @property
    def reasons(self) -> str:
        """The first error of each of the first kinds."""
        return " ".join(f"First {kind}: {reason}" for kind, reason in self._reasons.items())

    def add(self, item: Item, result: ChatTurn | LlamaCloudError, entry: dict[str, Any]) -> None:
        """Count the result of an item. ``entry`` is its line of the output."""
        end = _End(entry["outcome"], entry["usage"])
        if isinstance(result, LlamaCloudError):
            reason = excerpt(f"{item}: {entry['error']['message']}", limit=400)
            # A budget does not prevent a retry from finding an answer.
            may_help = result.retryable or isinstance(result, BudgetReachedError)
            end = _End(end.outcome, end.usage, entry["error"]["type"], reason, may_help)
        self.answered += end.outcome == records.ANSWERED
        self._meter.add(answered=end.outcome == records.ANSWERED, usage=end.usage)
        if isinstance(result, PASSING):
            self.again.append(item.position)
        if isinstance(result, PASSING) and not self.is_last_look:
            self._held[item.position] = end
        else:
            self._held.pop(item.position, None)
            self._tell(end)

    def withdraw(self, position: int) -> None:
        """Forget the outcome of a retried item, because its prompt was never accepted."""
        self._held.pop(position, None)

    def wait(self, position: int) -> None:
        """Leave an item for the retries, because an earlier prompt of its session has no answer yet."""
        self.again.append(position)
        self._meter.add(answered=False, usage=None)

    def reopen(self) -> list[int]:
        """Begin the retries. Return the positions of the items that failed with transient errors."""
        again, self.again = sorted(self.again), []
        self._meter.reopen(len(again), [end.usage for end in self._held.values()])
        self.is_last_look = True
        return again

    def close(self) -> None:
        """Tell the outcomes of items that were not retried."""
        for end in self._held.values():
            self._tell(end)
        self._held.clear()

    def _tell(self, end: _End) -> None:
        self.retry_may_help |= end.may_help
        self.may_settle |= end.may_help and end.outcome == records.INTERRUPTED
        if end.kind is not None and len(self._reasons) < REASONS:
            self._reasons.setdefault(end.kind, end.reason)
        if self._on_result is not None:
            self._on_result(end.outcome, end.usage)
