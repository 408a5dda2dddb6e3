"""Which items of a batch the turns of their common sessions belong to. No I/O."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_llamachat.conversation.question import Others, Trace

_SEVERAL = -1


@dataclass(slots=True)
class Owners:
    """The turns of each session, and its prompts as the server recorded them, with the position of their item.

    A server may record different prompts alike. Then one item must not get the answer of another.
    """

    _turns: dict[str, dict[int, int]] = field(default_factory=dict)
    _forms: dict[str, dict[str, int]] = field(default_factory=dict)

    def note(self, session_id: str, item: int, trace: Trace, turn: int | None = None) -> None:
        """Note what is known about the turn of an item.

        :param turn: the position of the turn, if it is not the baseline.
        """
        if not trace.accepted and not trace.answered:
            return
        _give(self._turns.setdefault(session_id, {}), trace.baseline if turn is None else turn, item)
        if trace.recorded is not None:
            _give(self._forms.setdefault(session_id, {}), trace.recorded, item)

    def others(self, session_id: str, item: int) -> Others:
        """Return what is known about the other items of the session. It includes what is noted later."""
        return Others(_OfOthers(self._turns, session_id, item), _OfOthers(self._forms, session_id, item))


def _give(owners: dict[Any, int], thing: int | str, item: int) -> None:
    owners[thing] = item if owners.get(thing, item) == item else _SEVERAL


@dataclass(frozen=True, slots=True)
class _OfOthers(Container[Any]):
    owners: Mapping[str, Mapping[Any, int]]
    session_id: str
    item: int

    def __contains__(self, thing: object) -> bool:
        return self.owners.get(self.session_id, {}).get(thing, self.item) != self.item
