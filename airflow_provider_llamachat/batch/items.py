"""Turns the prompts of a batch into validated items with a stable identity. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.client.endpoints import MAX_SESSION_INDEXES
from airflow_provider_llamachat.conversation.question import fingerprint
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.redaction import excerpt

_FIELDS = ("id", "prompt", "index_ids", "session_id")


@dataclass(frozen=True, slots=True)
class Scope:
    """The task instance that a batch belongs to. The same prompt in another run is another item."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: int = -1

    @property
    def digest(self) -> str:
        """Identifies the batch in its files and records."""
        return _digest(self.dag_id, self.task_id, self.run_id, str(self.map_index))


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a batch.

    :ivar position: its place in ``prompts``, from 0.
    :ivar id: the id given in the Dag, or None.
    :ivar index_ids: its own indexes; None means those of the batch or of its session.
    :ivar session_id: an existing session; None means one that the batch creates.
    :ivar asked_of: its own indexes or those of the batch, sorted; empty if the session decides.
    """

    position: int
    prompt: str
    id: str | None = None
    index_ids: list[str] | None = None
    session_id: str | None = None
    asked_of: tuple[str, ...] = ()

    def key(self, scope: Scope) -> str:
        """Identify the item across attempts: by batch, id (or position), prompt, session and indexes."""
        name = f"position {self.position}" if self.id is None else f"id {self.id}"
        return _digest(scope.digest, name, fingerprint(self.prompt), self.session_id or "", *self.asked_of)

    def __str__(self) -> str:
        return f"prompts[{self.position}]" + ("" if self.id is None else f" (id {excerpt(self.id, limit=60)!r})")


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def parse(prompts: Any, *, index_ids: list[str] | None = None, session_mode: str = "per_prompt") -> list[Item]:
    """Validate the prompts of a batch, and return them as items.

    :param prompts: a list (or other iterable, or JSON list in a string) of prompts, or of objects with ``prompt`` and, each
        optional, ``id``, ``index_ids``, ``session_id``.
    :param index_ids: the indexes of the batch.
    :raises InvalidArgumentError: an item is invalid; the message names its position.
    """
    items = [_item(position, value) for position, value in enumerate(_sequence(prompts))]
    seen: dict[str, int] = {}
    for item in items:
        if item.id is not None and seen.setdefault(item.id, item.position) != item.position:
            raise InvalidArgumentError(
                f"{item} has the same id as prompts[{seen[item.id]}]. A retry identifies prompts by id, so make the ids unique or "
                "omit them."
            )
        _check_indexes(item, index_ids, session_mode)
    return [replace(item, asked_of=tuple(sorted(item.index_ids or index_ids or ()))) for item in items]


def _sequence(prompts: Any) -> Sequence[Any]:
    value = prompts
    if isinstance(value, str):
        value = arguments.parsed_list(value, "prompts")
    if isinstance(value, Mapping | bytes | bytearray) or not isinstance(value, Iterable):
        raise InvalidArgumentError(
            f"prompts must be a list of prompts or of objects with a prompt, got {type(value).__name__} {_shown(value)}."
        )
    return value if isinstance(value, list | tuple) else list(value)


def _item(position: int, value: Any) -> Item:
    where = f"prompts[{position}]"
    if isinstance(value, Mapping):
        unknown = [name for name in value if name not in _FIELDS]
        if unknown:
            raise InvalidArgumentError(
                f"{where} has the unknown field {_shown(unknown[0])}. Valid fields: {', '.join(_FIELDS)}."
            )
        if "prompt" not in value:
            raise InvalidArgumentError(f"{where} has no prompt. Add the field 'prompt'.")
    elif not isinstance(value, str):
        raise InvalidArgumentError(
            f"{where} must be a prompt or an object with one, got {type(value).__name__} {_shown(value)}."
        )
    fields: Mapping[str, Any] = value if isinstance(value, Mapping) else {"prompt": value}
    try:
        given = fields.get("id")
        if given is not None and (
            isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip()
        ):
            raise InvalidArgumentError(f"id must be text or a whole number, got {_shown(given)}.")
        own_session = fields.get("session_id")
        return Item(
            position=position,
            prompt=arguments.prompt(fields["prompt"]),
            id=None if given is None else str(given),
            index_ids=arguments.id_list(fields.get("index_ids")) or None,
            session_id=None if own_session is None else arguments.session_id(own_session),
        )
    except InvalidArgumentError as problem:
        raise InvalidArgumentError(f"{where}: {problem}") from None


def _check_indexes(item: Item, index_ids: list[str] | None, session_mode: str) -> None:
    if item.session_id is not None:
        return  # its session may be bound, which is known only when it is read
    ids = item.index_ids or index_ids
    if not ids:
        raise InvalidArgumentError(
            f"{item} has no indexes. Set index_ids for the batch or the prompt, or a session_id that is bound to indexes."
        )
    if session_mode == "shared" and item.index_ids and set(item.index_ids) != set(index_ids or []):
        raise InvalidArgumentError(
            f"{item} has its own index_ids, but with session_mode='shared' all prompts use one session, which is locked to the "
            "batch's index_ids. Use session_mode='per_prompt', or omit them."
        )
    if len(ids) > MAX_SESSION_INDEXES:
        raise InvalidArgumentError(
            f"{item} has {len(ids)} indexes, but a session can be bound to at most {MAX_SESSION_INDEXES}."
        )


def _shown(value: Any) -> str:
    return excerpt(repr(value), limit=80)
