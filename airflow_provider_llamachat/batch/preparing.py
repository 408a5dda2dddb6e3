"""Where an item is asked: in a session of an earlier try, one that exists, one that all share, or one of its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_llamachat.exceptions import LlamaCloudError, NotFoundError, PermissionDeniedError
from airflow_provider_llamachat.turns import (
    Memory,
    Opening,
    State,
    count_turns,
    fingerprint,
    indexes_to_ask,
    judge,
    opening,
)

if TYPE_CHECKING:
    from airflow_provider_llamachat.batch.items import Item
    from airflow_provider_llamachat.batch.records import Intent, Past
    from airflow_provider_llamachat.client import AsyncLlamaCloudClient
    from airflow_provider_llamachat.models import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """How a batch asks; see :class:`~..operators.batch.ChatBatchOperator` for what each one means."""

    index_ids: list[str] | None = None
    max_concurrency: int = 8
    session_mode: str = "per_prompt"
    fail_fast: bool = False
    ask_again: bool = False
    delete_sessions: bool = False
    require_all_indexes: bool = False
    turn_timeout: float = 600.0
    project_id: str | None = None
    organization_id: str | None = None

    @property
    def scope(self) -> dict[str, str | None]:
        """Project and organization of every call."""
        return {"project_id": self.project_id, "organization_id": self.organization_id}


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item that can be asked.

    :ivar baseline: turns the session has before it.
    :ivar resume: a turn of it stands in the history already.
    :ivar accepted: the server was seen to take it, whatever the history says.
    :ivar earlier: it was an earlier try that asked it.
    :ivar opened: the batch opened the session, for this item alone.
    :ivar recorded: its intent is durable already.
    """

    item: Item
    session_id: str
    index_ids: list[str]
    baseline: int
    resume: bool = False
    accepted: bool = False
    earlier: bool = False
    opened: bool = False
    recorded: bool = False


class NothingToAskInError(Exception):
    """The session that all prompts share, or any session of the batch's own, is not to be had: no prompt can be asked."""

    def __init__(self, problem: LlamaCloudError) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Preparer:
    """Finds or opens the session of each item.

    :ivar opened: sessions opened so far in this try.
    :ivar shared_session: the session that all prompts share, once it is known.
    """

    def __init__(self, client: AsyncLlamaCloudClient, options: Options, past: Past) -> None:
        self._client = client
        self._options = options
        self._intents = past.intents
        self._own: set[int] = set()
        self.opened = 0
        self.shared_session = past.shared_session

    def was_intended(self, item: Item) -> bool:
        """Whether an earlier try was about to ask the item."""
        return item.position in self._intents

    def expect(self, item: Item, intent: Intent) -> None:
        """Let the item, when it is prepared again, be taken up where it was asked."""
        self._intents[item.position] = intent
        self._own.add(item.position)

    async def prepare(self, item: Item) -> Prepared:
        """Return where and after how many turns the item is asked.

        :raises NothingToAskInError: the session that all prompts share is not to be had, or the API refuses to open any.
        :raises LlamaCloudError: the item's own session is not to be had.
        """
        intent = self._intents.get(item.position)
        if intent is not None:
            prepared = await self._take_up(item, intent)
            # Not before: when the session can not be read, the second look has to know where the item was asked.
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
            created = await self._client.create_session(index_ids, **self._options.scope)
        except (PermissionDeniedError, NotFoundError) as problem:
            if item.index_ids is None:
                raise NothingToAskInError(problem) from problem  # every other item asks for the same session
            raise
        self.opened += 1
        return Prepared(item, created.session_id, index_ids, 0, opened=True)

    async def _take_up(self, item: Item, intent: Intent) -> Prepared | None:
        try:
            session = await self._client.get_session(intent.session_id, **self._options.scope)
        except NotFoundError:
            if item.session_id is not None:
                raise
            log.warning(
                "%s: the session %s, in which an earlier try asked, does not exist any more, nor does its answer: asking again.",
                item,
                intent.session_id,
            )
            return None
        memory = Memory(session.session_id, intent.baseline, fingerprint(item.prompt), intent.accepted)
        begin = opening(session, item.prompt, memory=memory)
        turns = count_turns(session.events)
        if begin.baseline > turns or (intent.ahead and self._overrun(session, item, intent)):
            # The turn before it, which the earlier try counted on, never came about, or was asked again in its place.
            begin = Opening(turns, resume=False)
        return Prepared(
            item,
            session.session_id,
            indexes_to_ask(session, item.index_ids or (None if session.index_ids else self._options.index_ids)),
            begin.baseline,
            resume=begin.resume,
            accepted=begin.accepted,
            earlier=item.position not in self._own,
            opened=intent.opened,
            recorded=begin.baseline == intent.baseline,
        )

    @staticmethod
    def _overrun(session: Session, item: Item, intent: Intent) -> bool:
        return judge(session.events, intent.baseline, item.prompt).state is State.FOREIGN

    async def _existing(self, item: Item, session_id: str) -> Prepared:
        session = await self._client.get_session(session_id, **self._options.scope)
        index_ids = indexes_to_ask(session, item.index_ids or (None if session.index_ids else self._options.index_ids))
        return Prepared(item, session_id, index_ids, count_turns(session.events))

    async def _shared(self, item: Item) -> Prepared:
        if self.shared_session is not None:
            try:
                return await self._existing(item, self.shared_session)
            except NotFoundError:
                log.warning(
                    "The shared session %s does not exist any more: going on in a new one, which knows nothing of the earlier "
                    "turns.",
                    self.shared_session,
                )
        index_ids = self._options.index_ids or []
        created = await self._client.create_session(index_ids, **self._options.scope)
        self.opened += 1
        self.shared_session = created.session_id
        return Prepared(item, created.session_id, index_ids, 0)
