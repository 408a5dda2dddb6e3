"""Asks the items of a batch, one turn each, and records what becomes of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.batch import records
from airflow_provider_llamachat.batch.outcomes import FATAL
from airflow_provider_llamachat.conversation.interruption import unread
from airflow_provider_llamachat.exceptions import (
    BudgetReachedError,
    ChatBatchError,
    LlamaCloudError,
)

if TYPE_CHECKING:
    from airflow_provider_llamachat.batch.budget import Budget
    from airflow_provider_llamachat.batch.committer import Committer
    from airflow_provider_llamachat.batch.items import BatchScope, Item
    from airflow_provider_llamachat.batch.outcomes import Outcomes
    from airflow_provider_llamachat.batch.sessions import Options, Prepared, Preparer
    from airflow_provider_llamachat.client import AsyncLlamaCloudClient
    from airflow_provider_llamachat.conversation.question import Trace
    from airflow_provider_llamachat.models import ChatTurn


class EarlyError(ChatBatchError):
    """A prompt that was in doubt was not accepted, and others of its session come first."""


@dataclass(slots=True, eq=False)
class Turns:
    """The turns of one attempt of a batch.

    :ivar stop: called with a problem after which nothing more is asked.
    :ivar later: what a retry does, for messages.
    :ivar asked: indexes that were asked.
    :ivar settled: number of items that an earlier attempt asked and whose answer was found in the history.
    """

    client: AsyncLlamaCloudClient
    scope: BatchScope
    options: Options
    preparer: Preparer
    budget: Budget
    outcomes: Outcomes
    committer: Committer
    logger: Any
    stop: Callable[[LlamaCloudError], None]
    later: str
    asked: set[str] = field(default_factory=set)
    settled: int = 0

    def may_ask(self, item: Item) -> bool:
        """Give an item its place in the budget. Return False if it must not be asked."""
        was_stopped = self.budget.stopped_by
        may = self.budget.reserve(item.key(self.scope))
        if not may and was_stopped != self.budget.stopped_by:
            self.logger.warning("%s", self.budget.reason)
        return may

    def note(self, record: dict[str, Any]) -> None:
        """Add a record to the journal without waiting for it."""
        self.budget.take([record])
        self.committer.note(record)

    def intend(self, prepared: Prepared, *, ahead: bool = False) -> None:
        """Note that an item is about to be asked."""
        key, trace = prepared.item.key(self.scope), replace(prepared.trace, intended_at=time.time())
        self.note(records.intent(key, prepared.question.session_id, trace, opened=prepared.opened, ahead=ahead))

    def release(self, item: Item) -> None:
        """Note that an item is not asked after all."""
        self.note(records.release(item.key(self.scope)))

    async def ask(self, prepared: Prepared, is_early: Callable[[], bool]) -> ChatTurn | LlamaCloudError:
        """Ask, and record the turn. Return it, or why there is no answer.

        :param is_early: whether other items come first. Then the item is only looked for. If it is not there, an :class:`EarlyError`
            is returned, and it has to be asked later.
        """
        item, trace = prepared.item, prepared.trace
        may_again = trace.is_open and prepared.earlier and self.options.ask_again
        streamed: deque[object] = deque(maxlen=1)

        async def keep(known: Trace, is_intent: bool) -> None:
            nonlocal trace
            if is_intent and not self.may_ask(item):
                raise BudgetReachedError(f"Not asked. {self.budget.reason}")
            if is_intent and not known.accepted and is_early():
                raise EarlyError("Not asked yet, because other prompts of the same session come first.")
            if known.accepted and not trace.accepted:
                self.note(records.acceptance(item.key(self.scope), known))
            trace = known

        throttle = self.client.throttle
        try:
            turn = await self.client.answer(
                prepared.question,
                prepared.trace,
                # Waiting for the rate limit does not count as part of the turn.
                deadline=time.time() + self.options.turn_timeout + (throttle.expected_wait() if throttle else 0.0),
                ask_again=may_again,
                keep=keep,
                on_event=streamed.append,
            )
        except LlamaCloudError as problem:
            known = replace(prepared, trace=trace)
            if isinstance(problem, FATAL):
                self.stop(problem)
            elif isinstance(problem, BudgetReachedError) and may_again and trace.is_open:
                # The turn that would have been asked once more may still end.
                self.record(item, known, problem, outcome=records.INTERRUPTED)
            elif isinstance(problem, BudgetReachedError | EarlyError):
                self._withdraw(prepared)
            else:
                problem = unread(prepared.question, trace, problem)
                self.record(item, known, problem)
            return problem
        self.settled += prepared.trace.is_open and prepared.earlier and not streamed
        self.record(item, replace(prepared, trace=trace), turn)
        return turn

    def _withdraw(self, prepared: Prepared) -> None:
        if prepared.trace.is_open:  # otherwise, the results would show what an earlier look made of it
            key = prepared.item.key(self.scope)
            self.note(records.result(key, self.missing(prepared.item), trace=None))
        self.outcomes.withdraw(prepared.item.position)
        self.release(prepared.item)

    def record(
        self, item: Item, prepared: Prepared | None, result: ChatTurn | LlamaCloudError, *, outcome: str | None = None
    ) -> None:
        """Note the result of an item. ``outcome`` overrides the outcome of the result."""
        entry = records.line(item, prepared, result, outcome=outcome)
        # Without it, the end of the batch would delete the session that may have the answer.
        entry["session_id"] = entry["session_id"] or self.preparer.session_of(item.position)
        if prepared is not None and not isinstance(result, LlamaCloudError) and result.position is not None:
            # A prompt that was asked again has another place.
            prepared = replace(prepared, trace=replace(prepared.trace, baseline=result.position))
        self.note(records.result(item.key(self.scope), entry, trace=prepared.trace if prepared else None))
        self.outcomes.add(item, result, entry)
        if prepared is not None:
            self.preparer.saw(prepared, result)
            self.asked.update(prepared.question.index_ids)
        if isinstance(result, LlamaCloudError) and not isinstance(result, BudgetReachedError):
            reason = f"{item}: {entry['error']['message']} "
            self.logger.warning("No answer for %s", reason)
            if self.options.fail_fast:
                text = f"Stopped at the first error, because on_item_error is 'fail_fast'. {reason}{self.later}"
                self.stop(ChatBatchError(text, session_id=entry["session_id"]))

    def missing(self, item: Item) -> dict[str, Any]:
        """Return the line of an item that was not asked."""
        problem: LlamaCloudError = ChatBatchError(
            "Not asked, because an earlier prompt of the same session has no answer."
        )
        if self.budget.stopped_by is not None:
            problem = BudgetReachedError(f"Not asked. {self.budget.reason}")
        return records.line(item, None, problem, outcome=records.UNASKED)
