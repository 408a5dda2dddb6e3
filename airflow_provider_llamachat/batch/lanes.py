"""The order in which the items of a batch are asked. No I/O."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from airflow_provider_llamachat.batch.items import BatchScope, Item

Lane = deque[int]
"""Positions of items that are asked one after another, because a session answers one turn at a time. Those in doubt come first."""


class Lanes(Iterator[Lane]):
    """Lanes, which may run concurrently. Use it as an iterator.

    :param shared: whether all items share a session.
    :ivar positions: the position of each item, by its key.
    :ivar parked: lanes that were put aside, because nothing may be asked now.
    """

    def __init__(self, items: Iterable[Item], scope: BatchScope, *, shared: bool) -> None:
        self.positions: dict[str, int] = {}
        self._session_of: dict[int, str | None] = {}
        for item in items:
            self.positions[item.key(scope)] = item.position
            if shared or item.session_id is not None:
                self._session_of[item.position] = item.session_id
        self._waiting: deque[Lane] = deque()
        self.parked: list[Lane] = []

    def begin(
        self, positions: Iterable[int], was_intended: Callable[[int], bool], is_in_doubt: Callable[[int], bool]
    ) -> None:
        """Begin with these items.

        :param was_intended: whether an item may have been asked before. These come first, because their answers may be paid for.
        :param is_in_doubt: whether a post of an item may have become a turn. It comes first in its lane, because another item could
            take its place in the session.
        """
        self._waiting.clear()
        self.parked.clear()
        self._was_intended, self._is_in_doubt = was_intended, is_in_doubt
        self._coming = self._ordered(list(positions))

    def _ordered(self, positions: list[int]) -> Iterator[Lane]:
        lanes: dict[str | None, Lane] = {}
        for position in sorted(positions, key=self._turn):
            if position in self._session_of:
                lanes.setdefault(self._session_of[position], deque()).append(position)
        for position in sorted(positions, key=lambda position: not self._was_intended(position)):
            if position not in self._session_of:
                yield deque((position,))
            elif (lane := lanes.pop(self._session_of[position], None)) is not None:
                yield lane

    def _turn(self, position: int) -> tuple[bool, int]:
        return not self._is_in_doubt(position), position

    def is_early(self, position: int, lane: Lane) -> bool:
        """Whether an item that was taken out of the lane must not be asked before the next one."""
        return bool(lane) and self._turn(lane[0]) < self._turn(position)

    def put_back(self, position: int, lane: Lane) -> None:
        """Put back an item that is no longer in doubt."""
        insort(lane, position, key=self._turn)

    def __next__(self) -> Lane:
        lane = self._waiting.popleft() if self._waiting else next(self._coming)
        # While nothing may be asked, only lanes with items that may have been asked before go on. They come first.
        if self.parked and not any(map(self._was_intended, lane)):
            self._waiting.appendleft(lane)
            raise StopIteration
        return lane

    def unpark(self) -> None:
        """Continue with the lanes that were put aside."""
        self._waiting.extendleft(reversed(self.parked))
        self.parked.clear()
