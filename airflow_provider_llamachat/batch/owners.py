"""Which items of a batch the turns of their common sessions belong to. No I/O."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_llamachat.conversation.question import Trace

_SEVERAL = -1


@dataclass(slots=True)
class Owners:
    """The turns of each session, and its prompts as the server recorded them, with the position of their item.

    A server may record different prompts alike. Then one item must not get the answer of another.
    """

    _owners: dict[str, dict[Any, int]] = field(default_factory=dict)

    def note(self, session_id: str, item: int, trace: Trace) -> None:
        """Note what is known about the turn of an item."""
        if not trace.accepted and not trace.answered:
            return
        owners = self._owners.setdefault(session_id, {})
        for thing in {trace.baseline, trace.recorded} - {None}:
            owners[thing] = item if owners.get(thing, item) == item else _SEVERAL

    def others(self, session_id: str, item: int) -> Container[Any]:
        """Return what is known about the other items of the session. It includes what is noted later."""
        return _OfOthers(self._owners, session_id, item)


@dataclass(frozen=True, slots=True)
class _OfOthers(Container[Any]):
    owners: Mapping[str, Mapping[Any, int]]
    session_id: str
    item: int

    def __contains__(self, thing: object) -> bool:
        return self.owners.get(self.session_id, {}).get(thing, self.item) != self.item
