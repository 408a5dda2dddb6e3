"""What a batch may still spend, over all its attempts. It reads the records of the journal, old ones and its own. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow_provider_llamachat.batch import records


class Budget:
    """Decides whether a prompt may be asked.

    A turn has a place in ``max_turns`` from the moment its session is prepared. What a turn costs in tokens is known only at its end,
    so turns in flight may exceed ``max_total_tokens``.

    :param max_total_tokens: input and output tokens after which nothing more is asked. None means no limit.
    :param max_turns: maximum number of turns. None means no limit.
    :ivar stopped_by: name of the limit because of which a prompt was not asked, or None.
    """

    def __init__(self, max_total_tokens: int | None = None, max_turns: int | None = None) -> None:
        self._max_tokens = max_total_tokens
        self._max_turns = max_turns
        self._tokens = 0
        # Tokens of each turn. After a kill, the journal may hold a record twice; and an interrupted turn may end later.
        self._turns: dict[int, int] = {}
        self._places: set[str] = set()
        self._intended: set[str] = set()
        self.stopped_by: str | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self._max_tokens is not None or self._max_turns is not None

    @property
    def reason(self) -> str:
        """Why nothing more is asked."""
        spent = f"{self._tokens} tokens in {len(self._turns)} turns were spent, over all attempts"
        ahead = f", and {len(self._places)} turns are in flight or about to be asked" if self._places else ""
        return f"{self.stopped_by} is reached: {spent}{ahead}. Turns in flight end, and nothing more is asked."

    def take(self, written: Iterable[dict[str, Any] | None]) -> None:
        """Count records, oldest first. None is a damaged record."""
        if not self.is_limited:
            return
        for record in filter(None, written):
            match record:
                case {"kind": "intent", "key": key}:
                    self._places.add(key)
                    self._intended.add(key)
                case {"kind": "result", "key": key, "baseline": None} if key in self._intended:
                    pass  # its session could not be read, so its turn may be there
                case {"kind": "release", "key": key}:
                    self._give_back(key)
                case {"kind": "result", "key": key, "line": dict(line), "baseline": baseline}:
                    self._give_back(key)
                    if records.is_turn(record) and baseline is not None:
                        turn, tokens = hash((line.get("session_id"), baseline)), records.tokens(line)
                        self._tokens += tokens - self._turns.get(turn, 0)
                        self._turns[turn] = tokens

    def _give_back(self, key: str) -> None:
        self._places.discard(key)
        self._intended.discard(key)

    def reserve(self, key: str) -> bool:
        """Give an item a place. Return False if it must not be asked."""
        if self._max_tokens is not None and self._tokens >= self._max_tokens:
            self.stopped_by = "max_total_tokens"
            return False
        if key not in self._places and self._is_full():
            self.stopped_by = "max_turns"
            return False
        if self.is_limited:
            self._places.add(key)
        return True

    def reopen(self) -> bool:
        """Return whether prompts that had no place may be asked after all, because other prompts were not accepted."""
        if self.stopped_by == "max_turns" and not self._is_full():
            self.stopped_by = None
        return self.stopped_by is None

    def _is_full(self) -> bool:
        return self._max_turns is not None and len(self._turns) + len(self._places) >= self._max_turns
