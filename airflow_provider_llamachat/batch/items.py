"""Turns the prompts of a batch into validated items with a stable identity. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.client.endpoints import MAX_SESSION_INDEXES
from airflow_provider_llamachat.conversation.question import fingerprint
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.redaction import excerpt

FIELDS = ("id", "prompt", "index_ids", "session_id")


@dataclass(frozen=True, slots=True)
class BatchScope:
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
    :ivar extra: fields that the batch does not know. They are handed on to the results.
    """

    position: int
    prompt: str
    id: str | None = None
    index_ids: list[str] | None = None
    session_id: str | None = None
    asked_of: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def key(self, scope: BatchScope) -> str:
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
        optional, ``id``, ``index_ids``, ``session_id``. Other fields become ``extra``.
    :param index_ids: the indexes of the batch.
    :raises InvalidArgumentError: an item is invalid; the message names its position.
    """
    rows = enumerate(_sequence(prompts))
    return list(validated(rows, "prompts[{}]".format, index_ids=index_ids, session_mode=session_mode))


def validated(
    rows: Iterable[tuple[int, Any]],
    place: Callable[[int], str],
    *,
    index_ids: list[str] | None = None,
    session_mode: str = "per_prompt",
) -> Iterator[Item]:
    """Yield each row as an item. Rows are prompts or objects, with the number of each.

    :param place: describes the place of a row by its number, for messages.
    :raises InvalidArgumentError: a row is invalid.
    """
    seen: dict[str, int] = {}
    of_batch = tuple(sorted(index_ids or ()))
    for position, (number, value) in enumerate(rows):
        where = place(number)
        try:
            item = _item(position, value)
        except InvalidArgumentError as problem:
            raise InvalidArgumentError(f"{where}{problem}") from None
        if item.id is not None:
            where += f" (id {excerpt(item.id, limit=60)!r})"
            if seen.setdefault(item.id, number) != number:
                raise InvalidArgumentError(
                    f"{where} has the same id as {place(seen[item.id])}. A retry identifies prompts by id, so make the ids unique or "
                    "omit them."
                )
        _check_indexes(where, item, index_ids, session_mode)
        yield replace(item, asked_of=tuple(sorted(item.index_ids)) if item.index_ids else of_batch)


def _sequence(prompts: Any) -> Iterable[Any]:
    value = prompts
    if isinstance(value, str):
        value = arguments.parsed_list(value, "prompts")
    if isinstance(value, Mapping | bytes | bytearray) or not isinstance(value, Iterable):
        # An object comes from another task rather than from native rendering.
        got = arguments.got_type(value) if isinstance(value, Mapping) else arguments.got_prompt(value)
        raise InvalidArgumentError(f"prompts must be a list of prompts or of objects with a prompt, got {got}")
    return value


def _item(position: int, value: Any) -> Item:
    if not isinstance(value, Mapping | str):
        raise InvalidArgumentError(f" must be a prompt or an object with one, got {arguments.got_prompt(value)}")
    fields: Mapping[str, Any] = value if isinstance(value, Mapping) else {"prompt": value}
    extra = {name: value for name, value in fields.items() if name not in FIELDS}
    for name in extra:
        if (meant := _misspelled(str(name))) is not None:
            raise InvalidArgumentError(
                f" has the unknown field {_shown(name)}. If it is {meant}, correct its name. Otherwise rename it, so that it can be "
                "told from that field."
            )
    if "prompt" not in fields:
        found = f" It has: {excerpt(', '.join(map(str, fields)), limit=200)}." if fields else ""
        raise InvalidArgumentError(f" has no prompt. Add the field 'prompt'.{found}")
    _check_extra(extra)
    try:
        given, own_session = fields.get("id"), fields.get("session_id")
        if given is not None and (
            isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip()
        ):
            raise InvalidArgumentError(f"id must be text or a whole number, got {_shown(given)}.")
        return Item(
            position=position,
            prompt=arguments.prompt(fields["prompt"]),
            id=None if given is None else str(given),
            index_ids=arguments.id_list(fields.get("index_ids")) or None,
            session_id=None if own_session is None else arguments.session_id(own_session),
            extra=extra,
        )
    except InvalidArgumentError as problem:
        raise InvalidArgumentError(f": {problem}") from None


@lru_cache(maxsize=256)
def _misspelled(name: str) -> str | None:
    """Return the field that an unknown field probably is. It would otherwise be asked of the wrong index, or in another session."""
    plain = name.strip().lower()
    if plain in FIELDS:
        return plain
    return next(iter(get_close_matches(plain, ("index_ids", "session_id"), 1, 0.75)), None)


def _check_extra(extra: dict[str, Any]) -> None:
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise InvalidArgumentError(
            f" has a field that is not JSON, so it cannot be written to the results. Fields: {excerpt(', '.join(map(str, extra)))}. "
            f"Cause: {excerpt(str(problem), limit=100)}."
        ) from None


def _check_indexes(where: str, item: Item, index_ids: list[str] | None, session_mode: str) -> None:
    if item.session_id is not None:
        return  # its session may be bound, which is known only when it is read
    ids = item.index_ids or index_ids
    if not ids:
        raise InvalidArgumentError(
            f"{where} has no indexes. Set index_ids for the batch or the prompt, or a session_id that is bound to indexes."
        )
    if session_mode == "shared" and item.index_ids and set(item.index_ids) != set(index_ids or []):
        raise InvalidArgumentError(
            f"{where} has its own index_ids, but with session_mode='shared' all prompts use one session, which is locked to the "
            "batch's index_ids. Use session_mode='per_prompt', or omit them."
        )
    if len(ids) > MAX_SESSION_INDEXES:
        raise InvalidArgumentError(
            f"{where} has {len(ids)} indexes, but a session can be bound to at most {MAX_SESSION_INDEXES}."
        )


def _shown(value: Any) -> str:
    return excerpt(repr(value), limit=80)
