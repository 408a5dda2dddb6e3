"""The order in which the items of a batch are asked. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from airflow_provider_llamachat.batch.items import Item, Scope

Lane = deque[int]
"""Positions of items that are asked one after another, because a session answers one turn at a time."""


class Lanes:
    """Lanes, which may run concurrently. Use it as an iterator.

    :param shared: whether all items share a session.
    :ivar positions: the position of each item, by its key.
    """

    def __init__(self, items: Iterable[Item], scope: Scope, *, shared: bool) -> None:
        self.positions: dict[str, int] = {}
        self._session_of: dict[int, str | None] = {}
        for item in items:
            self.positions[item.key(scope)] = item.position
            if shared or item.session_id is not None:
                self._session_of[item.position] = item.session_id
        self._coming: Iterator[Lane] = iter(())
        self._waiting: deque[Lane] = deque()
        self._parked: list[Lane] = []
        self._was_intended: Callable[[int], bool] = lambda _position: False

    def begin(self, positions: Iterable[int], was_intended: Callable[[int], bool]) -> None:
        """Begin with these items.

        :param was_intended: whether an item may have been asked before. These come first, because their answers may be paid for.
        """
        self._waiting.clear()
        self._parked.clear()
        self._was_intended = was_intended
        self._coming = self._ordered(list(positions), was_intended)

    def _ordered(self, positions: list[int], was_intended: Callable[[int], bool]) -> Iterator[Lane]:
        lanes: dict[str | None, Lane] = {}
        for position in positions:
            if position in self._session_of:
                lanes.setdefault(self._session_of[position], deque()).append(position)
        for position in sorted(positions, key=lambda position: not was_intended(position)):
            if position not in self._session_of:
                yield deque((position,))
            elif (lane := lanes.pop(self._session_of[position], None)) is not None:
                yield lane

    def __iter__(self) -> Iterator[Lane]:
        return self

    def __next__(self) -> Lane:
        lane = self._waiting.popleft() if self._waiting else next(self._coming)
        # While nothing may be asked, only lanes with items that may have been asked before go on. They come first.
        if self._parked and not any(map(self._was_intended, lane)):
            self._waiting.appendleft(lane)
            raise StopIteration
        return lane

    def park(self, lane: Lane) -> None:
        """Put a lane aside, because nothing may be asked now."""
        self._parked.append(lane)

    @property
    def has_parked(self) -> bool:
        """Whether lanes were put aside."""
        return bool(self._parked)

    def unpark(self) -> None:
        """Continue with the lanes that were put aside."""
        self._waiting.extendleft(reversed(self._parked))
        self._parked.clear()
