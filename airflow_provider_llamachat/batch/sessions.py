"""Finds or opens the session of an item: one of an earlier attempt, an existing one, a shared one, or a new one."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

from airflow_provider_llamachat.batch.outcomes import FATAL, PASSING
from airflow_provider_llamachat.batch.records import Intent
from airflow_provider_llamachat.conversation.history import begin, count_turns, indexes_to_ask
from airflow_provider_llamachat.conversation.interruption import unread
from airflow_provider_llamachat.conversation.question import Question, Scope, Trace
from airflow_provider_llamachat.exceptions import (
    LlamaCloudError,
    NotFoundError,
    RequestRefusedError,
)
from airflow_provider_llamachat.models import Session

if TYPE_CHECKING:
    from airflow_provider_llamachat.batch.items import Item
    from airflow_provider_llamachat.batch.records import Past
    from airflow_provider_llamachat.client import AsyncLlamaCloudClient
    from airflow_provider_llamachat.models import ChatTurn

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a batch. See :class:`~..operators.batch.ChatBatchOperator` for their meaning."""

    index_ids: list[str] | None = None
    max_concurrency: int = 8
    requests_per_minute: float | None = None
    session_mode: str = "per_prompt"
    fail_fast: bool = False
    ask_again: bool = False
    delete_sessions: bool = False
    require_all_indexes: bool = False
    turn_timeout: float = 600.0
    min_answered: int | Fraction = 1
    max_total_tokens: int | None = None
    max_turns: int | None = None
    project_id: str | None = None
    organization_id: str | None = None

    def needed(self, total: int) -> int:
        """Return how many of ``total`` prompts have to be answered."""
        if isinstance(self.min_answered, int):
            return min(self.min_answered, total)
        return ceil(self.min_answered * total)

    @property
    def scope(self) -> Scope:
        """Project and organization of every call."""
        return {"project_id": self.project_id, "organization_id": self.organization_id}


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item that can be asked.

    :ivar question: the question and its session.
    :ivar trace: what is known about its turn.
    :ivar earlier: an earlier attempt asked it.
    :ivar opened: the batch opened the session for this item only.
    """

    item: Item
    question: Question
    trace: Trace
    earlier: bool = False
    opened: bool = False


class NothingToAskInError(Exception):
    """The shared session, or any new session, is unavailable, so that no prompt can be asked."""

    def __init__(self, problem: LlamaCloudError) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Preparer:
    """Finds or opens the session of each item.

    :ivar opened: sessions opened so far in this attempt.
    :ivar shared_session: the shared session, once it is known.
    """

    def __init__(self, client: AsyncLlamaCloudClient, options: Options, past: Past) -> None:
        self._client = client
        self._options = options
        self._intents = past.intents
        self._turns = past.turns
        self._owners = past.owners
        # An earlier attempt may have posted until it was killed.
        self._began = time.time()
        self.opened = 0
        self.shared_session = past.shared_session

    def was_intended(self, position: int) -> bool:
        """Whether an earlier attempt was about to ask the item."""
        return position in self._intents

    def session_of(self, position: int) -> str | None:
        """The session in which an earlier attempt was about to ask the item."""
        intent = self._intents.get(position)
        return intent.session_id if intent else None

    def is_in_doubt(self, position: int) -> bool:
        """Whether a post of the item by an earlier attempt may have become a turn whose end was not seen."""
        intent = self._intents.get(position)
        return intent is not None and intent.trace.is_open and not intent.trace.answered

    def may_have_answer(self, position: int) -> bool:
        """Whether the session of the item may have its answer."""
        intent = self._intents.get(position)
        return intent is not None and intent.trace.is_open

    def saw(self, prepared: Prepared, result: ChatTurn | LlamaCloudError) -> None:
        """Note what became of an item. After a transient error, it resumes in the same session when it is prepared again."""
        session_id, trace, position = prepared.question.session_id, prepared.trace, prepared.item.position
        if isinstance(result, PASSING):
            self._intents[position] = Intent(session_id, trace, prepared.opened, is_own=True)
        if prepared.opened:
            return  # its session has no other item, and thousands of them would take memory
        if trace.answered:  # the next prompt is asked after this turn, also if it failed
            self._turns[session_id] = max(self._turns.get(session_id, 0), trace.baseline + 1)
        self._owners.note(session_id, position, trace)

    async def prepare(self, item: Item) -> Prepared:
        """Return the item with its session and what is known about its turn.

        :raises NothingToAskInError: the shared session is unavailable, or the API refuses to create sessions.
        :raises LlamaCloudError: the item's own session is unavailable.
        """
        intent = self._intents.get(item.position)
        if intent is not None:
            prepared = await self._take_up(item, intent)
            # Only now: if the session cannot be read, the retry must know where the item was asked.
            del self._intents[item.position]
            if prepared is not None:
                return prepared
        if item.session_id is not None:
            return await self._existing(item, item.session_id)
        if self._options.session_mode == "shared":
            try:
                return await self._shared(item)
            except LlamaCloudError as problem:
                raise NothingToAskInError(problem) from problem
        index_ids = item.index_ids or self._options.index_ids or []
        try:
            return await self._new(item, index_ids, opened=True)
        except RequestRefusedError as problem:
            if item.index_ids is None:
                raise NothingToAskInError(problem) from problem  # every other item needs the same kind of session
            raise

    def question(self, item: Item, session_id: str, index_ids: list[str]) -> Question:
        """Return the item as a question."""
        others = self._owners.others(session_id, item.position)
        return Question(
            session_id, item.prompt, index_ids, self._options.require_all_indexes, others=others, **self._options.scope
        )

    async def _new(self, item: Item, index_ids: list[str], *, opened: bool = False) -> Prepared:
        created = await self._client.create_session(index_ids, **self._options.scope)
        self.opened += 1
        session = Session(session_id=created.session_id, events=[])
        question = self.question(item, created.session_id, index_ids)
        return Prepared(item, question, begin(session, question, now=self._began), opened=opened)

    async def _take_up(self, item: Item, intent: Intent) -> Prepared | None:
        try:
            return await self._existing(item, intent.session_id, intent)
        except NotFoundError:
            if item.session_id is not None:
                raise
            log.warning(
                "%s: the session of an earlier attempt no longer exists, so its answer is lost. Asking again. Session: %s.",
                item,
                intent.session_id,
            )
            return None
        except LlamaCloudError as problem:
            if isinstance(problem, FATAL):
                raise
            raise unread(self.question(item, intent.session_id, []), intent.trace, problem) from problem

    async def _read(self, session_id: str, *, is_known: bool) -> Session:
        known = self._turns.get(session_id, 0)
        config = self._client.config
        end = time.time() + config.history_lag
        while True:
            read = self._client.get_known_session if is_known else self._client.get_session
            session = await read(session_id, **self._options.scope)
            # A late history would move the prompt to the position of a turn that has ended.
            if count_turns(session.events) >= known or time.time() >= end:
                return session
            await self._client.pause(min(1.0, config.timeout / 4, end - time.time()))

    async def _existing(self, item: Item, session_id: str, intent: Intent | None = None) -> Prepared:
        session = await self._read(
            session_id, is_known=self.may_have_answer(item.position) or session_id == self.shared_session
        )
        index_ids = item.index_ids or (None if session.index_ids else self._options.index_ids)
        question = self.question(item, session_id, indexes_to_ask(session, index_ids))
        memory = intent.trace if intent else None
        is_earlier = intent is not None and not intent.is_own
        if memory is not None and is_earlier and memory.intended_at is not None:
            memory = replace(memory, intended_at=self._began)
        trace = begin(session, question, memory=memory, now=self._began)
        if not trace.is_open:
            # It is asked after the known turns, also if the history does not show them. Such a history does not begin as the trace
            # says, so a lost prompt cannot be found in it by its position, and is not sent again.
            trace = replace(trace, baseline=max(trace.baseline, self._turns.get(session_id, 0)))
        return Prepared(item, question, trace, is_earlier, opened=intent is not None and intent.opened)

    async def _shared(self, item: Item) -> Prepared:
        if self.shared_session is not None:
            try:
                return await self._existing(item, self.shared_session)
            except NotFoundError:
                log.warning(
                    "The shared session no longer exists. Continuing in a new session, which does not contain the earlier turns. "
                    "Session: %s.",
                    self.shared_session,
                )
        prepared = await self._new(item, self._options.index_ids or [])
        self.shared_session = prepared.question.session_id
        return prepared
