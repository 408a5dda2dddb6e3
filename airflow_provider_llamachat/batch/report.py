"""The result of a batch, and whether it is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_llamachat.batch import records
from airflow_provider_llamachat.exceptions import ChatBatchError, ChatBatchRefusedError

if TYPE_CHECKING:
    from airflow_provider_llamachat.batch.budget import Budget
    from airflow_provider_llamachat.batch.journal import Results
    from airflow_provider_llamachat.batch.outcomes import Outcomes


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a batch.

    :ivar kept: items that an earlier attempt had answered.
    :ivar settled: items that an earlier attempt asked and whose answer was found in the history.
    :ivar refused: requests that the server answered with 429.
    :ivar index_ids: indexes that this attempt asked.
    :ivar stopped_by: name of the limit because of which prompts were not asked, or None.
    :ivar failure: why the batch failed although its results were handed over, or None.
    """

    results: Results
    opened: int
    deleted: int
    kept: int
    settled: int
    refused: int
    seconds: float
    index_ids: list[str]
    stopped_by: str | None
    failure: ChatBatchError | None


def shortfall(
    results: Results, needed: int, outcomes: Outcomes, budget: Budget, *, is_final: bool, then: str, output: str | None
) -> ChatBatchError | None:
    """Return the error of a batch with too few answers, or None. It is retryable if a retry may answer one of the other prompts.

    :param needed: how many prompts have to be answered.
    :param is_final: an earlier attempt completed the batch, so that a retry asks nothing.
    :param then: what a retry does.
    :param output: the path of the results.
    """
    counts, total = results.counts, sum(results.counts.values())
    if (answered := counts[records.ANSWERED]) >= needed:
        return None
    is_over = budget.stopped_by is not None
    may_help = outcomes.may_settle or (outcomes.retry_may_help and not is_over)
    retryable = may_help and not is_final
    others = ", ".join(f"{count} {name}" for name, count in counts.items() if count and name != records.ANSWERED)
    parts = (
        f"Only {answered} of the {total} prompts were answered"
        if answered
        else f"None of the {total} prompts was answered",
        f", but min_answered requires {needed}. " if needed > 1 else ". ",
        f"The others: {others}. ",
        f"{then} " if retryable else "A retry would answer no more of them. ",
        f"{budget.reason} " if is_over else "",
        f"{outcomes.reasons} " if outcomes.reasons else "",
        f"Results: {output}." if output else "",
    )
    return (ChatBatchError if retryable else ChatBatchRefusedError)("".join(parts).rstrip())
