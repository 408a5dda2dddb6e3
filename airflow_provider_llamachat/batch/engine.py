"""Runs a batch in one event loop with bounded concurrency. An intent is durable before its prompt is posted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.batch import records
from airflow_provider_llamachat.batch.budget import Budget
from airflow_provider_llamachat.batch.cleanup import Tidier
from airflow_provider_llamachat.batch.committer import INTERVAL, Committer
from airflow_provider_llamachat.batch.lanes import Lane, Lanes
from airflow_provider_llamachat.batch.outcomes import FATAL, PASSING, Outcomes
from airflow_provider_llamachat.batch.progress import Meter
from airflow_provider_llamachat.batch.report import Report, shortfall
from airflow_provider_llamachat.batch.sessions import NothingToAskInError, Options, Prepared, Preparer
from airflow_provider_llamachat.batch.turns import EarlyError, Turns
from airflow_provider_llamachat.conversation.question import Trace
from airflow_provider_llamachat.exceptions import ChatBatchError, ChatTurnInterruptedError, LlamaCloudError

if TYPE_CHECKING:
    from airflow_provider_llamachat.batch.items import BatchScope, Item
    from airflow_provider_llamachat.batch.journal import Journal
    from airflow_provider_llamachat.client import AsyncLlamaCloudClient

Ready = asyncio.Queue["tuple[Prepared, Lane] | None"]


@dataclass(eq=False, repr=False)
class Batch:
    """One attempt of a batch. Make one per event loop, and :meth:`run` it once.

    :param items: the prompts; each position is the index in this list.
    :param scope: the task instance; part of each item's identity.
    :param journal: where earlier attempts left their records, and this one leaves its own.
    :param on_result: called once with the outcome and the usage of each item; for a retried item, after the retry.
    :param commit_interval: seconds within which intents become durable together.
    :ivar in_flight: number of turns in flight.
    """

    client: AsyncLlamaCloudClient
    items: Sequence[Item]
    scope: BatchScope
    options: Options
    journal: Journal
    logger: Any
    _: KW_ONLY
    on_result: Callable[[str, dict[str, Any] | None], None] | None = None
    commit_interval: float = INTERVAL
    in_flight: int = field(default=0, init=False)
    _problem: LlamaCloudError | None = field(default=None, init=False)
    _killed: bool = field(default=False, init=False)
    _working: asyncio.Task[Any] | None = field(default=None, init=False)
    _unposted: list[Prepared] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._budget = Budget(self.options.max_total_tokens, self.options.max_turns)
        self._tidier = Tidier(self.client, self.journal, self.options, self.logger)

    def kill(self) -> None:
        """Stop immediately. Turns in flight may continue at the server. Call this on the event loop."""
        self._killed = True
        self._stop(ChatBatchError(f"The task was stopped. {self._later()}"))
        if self._working is not None:
            self._working.cancel()

    async def run(self) -> Report:
        """Ask the prompts that no earlier attempt has answered, hand over the results, and clean up.

        :raises ChatBatchError: an item failed with ``fail_fast``, or the batch was stopped, or the journal could not be written.
        :raises LlamaCloudError: a refusal that concerns all prompts, such as an invalid API key.
        """
        shared = self.options.session_mode == "shared"
        self._lanes = await asyncio.to_thread(Lanes, self.items, self.scope, shared=shared)
        positions = self._lanes.positions
        await self._resume(positions)
        async with Committer(self.journal.write, self.commit_interval) as self._committer:
            self._turns = Turns(
                self.client,
                self.scope,
                self.options,
                self._preparer,
                self._budget,
                self._outcomes,
                self._committer,
                self.logger,
                self._stop,
                self._later(),
            )
            await self._unless_killed(self._work_twice())
            self._release()
        self._meter.finish()
        if self._problem is not None:
            await self._unless_killed(self._tidier.tidy(self._problem, positions))
            raise self._problem
        return await self._hand_over(positions)

    async def _resume(self, positions: dict[str, int]) -> None:
        self._past = past = await asyncio.to_thread(self.journal.load, positions)
        if past.answered or past.intents:
            self.logger.info(
                "Resuming from a previous attempt: %d of %d prompts have an answer, %d were in flight.",
                len(past.answered),
                len(self.items),
                len(past.intents),
            )
        if self._budget.is_limited and not past.is_complete:
            await asyncio.to_thread(lambda: self._budget.take(self.journal.records()))
        self._meter = Meter(self.logger, len(self.items), len(past.answered))
        self._outcomes = Outcomes(self._meter, len(past.answered), self.on_result)
        self._preparer = Preparer(self.client, self.options, past)

    async def _unless_killed(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return the result of ``work``, or None if the batch was stopped before or meanwhile."""
        if self._killed:
            work.close()
            return None
        self._working = asyncio.create_task(work)
        try:
            return await self._working
        except asyncio.CancelledError:
            if not self._killed:
                raise
            return None  # type: ignore[unreachable]  # kill() may have been called meanwhile

    async def _hand_over(self, positions: dict[str, int]) -> Report:
        results = await asyncio.to_thread(
            self.journal.hand_over, positions, lambda n: self._turns.missing(self.items[n])
        )
        handed = results.counts[records.ANSWERED]
        if handed < self._outcomes.answered and not self._past.is_complete:
            raise ChatBatchError(
                f"{self._outcomes.answered} prompts were answered, but only {handed} of their answers could be read back. Nothing was "
                f"removed. {self._later()}"
            )
        failure = shortfall(
            results,
            self.options.needed(len(self.items)),
            self._outcomes,
            self._budget,
            is_final=self._past.is_complete,
            then=self._later(),
            output=self.journal.output,
        )
        deleted = await self._unless_killed(self._tidier.tidy(failure, positions))
        if self._problem is not None:  # it was stopped
            raise self._problem
        if failure is None:
            await asyncio.to_thread(self.journal.forget, self._budget.stopped_by)
        throttle = self.client.throttle
        return Report(
            results,
            opened=self._preparer.opened,
            deleted=deleted,
            kept=len(self._past.answered) if not self._past.is_complete else handed,
            settled=self._turns.settled,
            refused=throttle.refused if throttle else 0,
            seconds=self._meter.seconds,
            index_ids=sorted(self._turns.asked),
            stopped_by=self._budget.stopped_by or self._past.stopped_by,
            failure=failure,
        )

    # Work -------------------------------------------------------------------------------------------------------------

    async def _work_twice(self) -> None:
        """Ask all prompts, and at the end retry those that failed with transient errors."""
        try:
            await self._work(range(len(self.items)))
            if self._outcomes.again and self._problem is None and not self.options.fail_fast:
                again = self._outcomes.reopen()
                self.logger.info("Retrying %d prompts that failed with transient errors.", len(again))
                await self._work(again)
        finally:
            self._outcomes.close()

    async def _work(self, positions: Iterable[int]) -> None:
        self._lanes.begin(
            (position for position in positions if position not in self._past.answered),
            self._preparer.was_intended,
            self._preparer.is_in_doubt,
        )
        while True:
            await self._round()
            if not self._lanes.parked or self._problem is not None or not self._budget.reopen():
                break
            self._lanes.unpark()

    async def _round(self) -> None:
        count = min(self.options.max_concurrency, max(1, len(self.items)))
        ready: Ready = asyncio.Queue()
        ahead = asyncio.Semaphore(count)
        try:
            async with asyncio.TaskGroup() as group:
                ticker = group.create_task(self._tick())
                group.create_task(self._prepare_all(ready, ahead, count))
                await asyncio.wait([group.create_task(self._ask_all(ready, ahead)) for _ in range(count)])
                ticker.cancel()
        except BaseExceptionGroup as several:
            # The other exceptions follow from the first one.
            raise _first(several) from None

    async def _prepare_all(self, ready: Ready, ahead: asyncio.Semaphore, count: int) -> None:
        async def prepare_some() -> None:
            for lane in self._lanes:
                await ahead.acquire()
                prepared = await self._prepare_next(lane)
                if prepared is not None:
                    ready.put_nowait((prepared, lane))
                else:
                    ahead.release()
                if self._problem is not None:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(prepare_some())
        for _ in range(count):
            ready.put_nowait(None)

    async def _prepare_next(self, lane: Lane) -> Prepared | None:
        """Prepare the first item of the lane that can be asked, and make its intent durable."""
        while lane and self._problem is None:
            if (position := self._take_next(lane)) is None:
                self._lanes.parked.append(lane)
                return None
            item, was_intended = self.items[position], self._preparer.was_intended(position)
            try:
                prepared = await self._preparer.prepare(item)
            except FATAL as problem:
                self._stop(problem)
            except NothingToAskInError as problem:
                self._stop(problem.problem)
            except LlamaCloudError as problem:
                may_answer = isinstance(problem, PASSING) and self._preparer.may_have_answer(position)
                self._turns.record(item, None, problem, outcome=records.INTERRUPTED if may_answer else None)
                if may_answer:
                    # Another prompt could take its place in the session.
                    self._let_wait(lane, item)
            else:
                session_id = prepared.question.session_id
                if session_id == self._preparer.shared_session and prepared.trace.baseline == 0:
                    self._turns.note(records.session(session_id))
                if prepared.trace.is_open:
                    return prepared  # its intent is already durable
                if not was_intended or self._turns.may_ask(item):
                    self._turns.intend(prepared)
                    await self._committer.durable()
                    return prepared
        return None

    def _take_next(self, lane: Lane) -> int | None:
        """Take the next item out of the lane. Return None if none may be asked now."""
        if self._preparer.was_intended(lane[0]) or self._turns.may_ask(self.items[lane[0]]):
            return lane.popleft()
        # What may have been asked before is looked for in any case.
        position = next(filter(self._preparer.was_intended, lane), None)
        if position is not None:
            lane.remove(position)
        return position

    def _let_wait(self, lane: Lane, item: Item) -> None:
        if lane:
            self.logger.warning("%s has no answer yet, so the next %d prompts of its session wait.", item, len(lane))
        for position in lane:
            self._outcomes.wait(position)
        lane.clear()

    async def _ask_all(self, ready: Ready, ahead: asyncio.Semaphore) -> None:
        while (entry := await ready.get()) is not None:
            ahead.release()
            prepared, lane = entry
            following: Prepared | None = prepared
            while following is not None:
                following = await self._ask_in_lane(following, lane)

    def _expect_next(self, prepared: Prepared, lane: Lane) -> Prepared | None:
        """Prepare the next item of the lane, as it will be asked if the turn of ``prepared`` is answered.

        Its intent becomes durable while that turn runs, and is valid only if that turn ends at the expected position. This does not apply
        to a session's first turn: how the history begins (the anchor) is known only after that turn has ended. It does not apply to
        a session that was opened for one item either, because the journal's reader does not keep what was answered there.
        """
        is_clear = prepared.trace.baseline > 0 and not prepared.trace.is_open and not prepared.opened
        if not lane or not is_clear or self._preparer.was_intended(lane[0]):
            return None
        item, asked = self.items[lane[0]], prepared.question
        if not self._turns.may_ask(item):
            return None
        question = self._preparer.question(item, asked.session_id, item.index_ids or asked.index_ids)
        expected = Prepared(item, question, Trace(prepared.trace.baseline + 1, anchor=prepared.trace.anchor))
        self._turns.intend(expected, ahead=True)
        return expected

    async def _ask_in_lane(self, prepared: Prepared, lane: Lane) -> Prepared | None:
        """Ask, and return the next prepared item of the same session."""
        if self._problem is not None:
            self._unposted.append(prepared)
            return None
        expected = self._expect_next(prepared, lane)
        self.in_flight += 1
        try:
            result = await self._turns.ask(prepared, lambda: self._lanes.is_early(prepared.item.position, lane))
        finally:
            self.in_flight -= 1
        position = None if isinstance(result, LlamaCloudError) else result.position
        if expected is not None and (position != prepared.trace.baseline or self._problem is not None):
            self._turns.release(expected.item)
            expected = None
        if isinstance(result, EarlyError):
            self._lanes.put_back(prepared.item.position, lane)
        if not lane or self._problem is not None:
            return None
        # An interrupted turn may still run, and a session answers one turn at a time. After other transient errors the order matters,
        # because later prompts may refer to the missing answer. During the final retry they are asked anyway.
        if isinstance(result, ChatTurnInterruptedError) or (
            isinstance(result, PASSING) and not self._outcomes.is_last_look
        ):
            self._let_wait(lane, prepared.item)
            return None
        if expected is not None:
            lane.popleft()
            await self._committer.durable()
            return expected
        return await self._prepare_next(lane)

    def _later(self) -> str:
        if self.journal.remembers:
            return "Answers are kept, and a retry asks only the missing prompts."
        return "No answers are kept, so a retry asks all prompts again. Set output_path to keep them."

    def _stop(self, problem: LlamaCloudError) -> None:
        # Later problems follow from the first one.
        self._problem = self._problem or problem

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(max(0.1, self._meter.due_in()))
            if self._meter.due_in() <= 0:
                self._meter.say()

    def _release(self) -> None:
        """Release the intents of sessions that will be deleted before their prompt was posted."""
        if self.options.delete_sessions and not self._killed:
            for prepared in self._unposted:
                if prepared.opened and not prepared.trace.is_open:
                    self._turns.release(prepared.item)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    for problem in group.exceptions:
        found = _first(problem) if isinstance(problem, BaseExceptionGroup) else problem
        if not isinstance(found, asyncio.CancelledError):
            return found
    return group.exceptions[0]
