"""Deletes the sessions that a batch opened, and logs those that remain."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.batch import records
from airflow_provider_llamachat.batch.progress import EVERY
from airflow_provider_llamachat.exceptions import (
    ChatTurnFailedError,
    LlamaCloudError,
    NotFoundError,
    UnprocessableError,
)

if TYPE_CHECKING:
    from airflow_provider_llamachat.batch.journal import Journal
    from airflow_provider_llamachat.batch.sessions import Options
    from airflow_provider_llamachat.client import AsyncLlamaCloudClient

NAMED = 20
"""Maximum number of ids in one log line."""
ENDED = {kind.__name__ for kind in (ChatTurnFailedError, NotFoundError, UnprocessableError)}
"""Errors that are certain to end a turn. Others may mean that a turn of an earlier attempt could not be read."""


@dataclass(frozen=True, slots=True, repr=False)
class Tidier:
    """Finds in the journal which sessions the batch opened, in earlier attempts too, and which of them are still needed."""

    client: AsyncLlamaCloudClient
    journal: Journal
    options: Options
    logger: Any

    async def tidy(self, failure: LlamaCloudError | None, positions: dict[str, int]) -> int:
        """Delete the sessions that are no longer needed, and return their number.

        Sessions in which an answer may still arrive are kept, and after a failure those that a retry needs.

        :param failure: why the batch failed. Errors are then logged, so that they do not hide it.
        """
        if not self.options.delete_sessions:
            return 0
        if failure is None:
            return await self._delete(await asyncio.to_thread(self._interrupted))
        try:
            return await self._delete(await asyncio.to_thread(self._wanted, positions, is_final=not failure.retryable))
        except LlamaCloudError as problem:
            self.logger.warning("Sessions were not deleted. %s", problem)
            return 0

    def _wanted(self, positions: dict[str, int], *, is_final: bool) -> set[str]:
        if not self.journal.remembers:
            return set()
        past = self.journal.past(positions)
        over = self._over(positions) if is_final else set()
        wanted = {intent.session_id for position, intent in past.intents.items() if position not in over}
        return wanted if is_final or past.shared_session is None else wanted | {past.shared_session}

    def _over(self, positions: dict[str, int]) -> set[int]:
        """Items whose session will never contain an answer: their last turn ended without one or was never started."""
        over: set[int] = set()
        for record in self.journal.records():
            if record is None or (position := positions.get(record.get("key", ""))) is None:
                continue
            if record["kind"] == "result":
                error = record["line"].get("error") or {}
                (over.add if error.get("type") in ENDED else over.discard)(position)
            elif record["kind"] == "intent":
                over.discard(position)
        return over

    def _interrupted(self) -> set[str]:
        found: dict[str, str] = {}
        for record in self.journal.records():
            if record is not None and record["kind"] == "result":
                found.pop(record["key"], None)
                if record["line"]["outcome"] == records.INTERRUPTED:
                    found[record["key"]] = str(record["line"]["session_id"])
        return set(found.values())

    async def _delete(self, wanted: set[str]) -> int:
        opened = await asyncio.to_thread(lambda: set(self.journal.opened_sessions()))
        doomed = sorted(opened - wanted)
        pending, left = iter(doomed), list(opened & wanted)
        deleted, told = 0, False
        proof: asyncio.Future[None] | None = None

        async def delete_some() -> None:
            nonlocal deleted, told, proof
            for session_id in pending:
                try:
                    try:
                        await self.client.delete_session(session_id, **self.options.scope)
                    except NotFoundError as problem:
                        if problem.is_vague and not deleted:  # a deletion shows that the Base URL is right
                            proof = proof or asyncio.ensure_future(self.client.confirm(problem, **self.options.scope))
                            await proof
                        continue  # an earlier attempt, or somebody else, deleted it
                except LlamaCloudError as problem:
                    left.append(session_id)
                    if not told:
                        told = True
                        self.logger.warning("A session could not be deleted. %s", problem)
                else:
                    deleted += 1

        async def tick() -> None:
            while True:
                await asyncio.sleep(EVERY)
                self.logger.info("Deleted %d of %d sessions.", deleted, len(doomed))

        if doomed:
            self.logger.info("Deleting %d sessions, %d at a time.", len(doomed), self.options.max_concurrency)
        async with asyncio.TaskGroup() as group:
            ticker = group.create_task(tick())
            await asyncio.gather(*(delete_some() for _ in range(min(self.options.max_concurrency, len(doomed)))))
            ticker.cancel()
        self._name_left(left)
        return deleted

    def _name_left(self, left: list[str]) -> None:
        if left:
            more = " … The field session_id of the results names all of them." if len(left) > NAMED else ""
            self.logger.warning(
                "Sessions that were not deleted (%d): %s%s. To delete them, use DeleteChatSessionOperator.",
                len(left),
                ", ".join(sorted(left)[:NAMED]),
                more,
            )
