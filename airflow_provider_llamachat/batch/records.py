"""The journal's records, and what an earlier try's records say about each item. No I/O.

An *intent* is durable before its prompt is posted, a *result* after the turn ended; so whatever kills the process, an item
has no intent (it was never posted), an intent (its session's history tells what became of it), or its result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_provider_llamachat.conversation.question import Trace

VERSION = 1

ANSWERED = "answered"
"""The turn finished, and its answer is in the results."""
FAILED = "failed"
"""The turn ended with an error, or was refused, or could not be sent."""
INTERRUPTED = "interrupted"
"""The prompt may have been accepted, but the turn's end was not seen; it was not sent again."""
UNASKED = "unasked"
"""The prompt was not sent, because the batch stopped or an earlier turn of its session was interrupted."""
OUTCOMES = (ANSWERED, FAILED, INTERRUPTED, UNASKED)


def intent(key: str, session_id: str, trace: Trace, *, opened: bool, ahead: bool = False) -> dict[str, Any]:
    """``key`` is about to be asked in a session that had ``trace.baseline`` turns.

    :param opened: the batch opened that session.
    :param ahead: written while the turn before it still ran; it is asked only when that one was answered.
    """
    return _record("intent", key=key, session_id=session_id, opened=opened, ahead=ahead, **trace.as_dict())


def acceptance(key: str, trace: Trace) -> dict[str, Any]:
    """The server was seen to take the prompt of ``key``: its absence from the history is no reason any more to ask again."""
    return _record("accepted", key=key, recorded=trace.recorded)


def result(key: str, line: dict[str, Any], *, trace: Trace | None) -> dict[str, Any]:
    """What came of ``key``: ``line`` is its line of the output."""
    return _record("result", key=key, line=line, **(trace.as_dict() if trace else {"baseline": None}))


def session(session_id: str) -> dict[str, Any]:
    """The session that all prompts share."""
    return _record("session", session_id=session_id)


def release(key: str) -> dict[str, Any]:
    """The intent of ``key`` was given up before its prompt was posted."""
    return _record("release", key=key)


def _record(kind: str, **values: Any) -> dict[str, Any]:
    return {"v": VERSION, "kind": kind, "at": round(time.time(), 3), **values}


def encode(value: Any) -> bytes:
    """One line of JSON. Half surrogates, which a model may well produce, are escaped: they do not exist in UTF-8."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode() + b"\n"


_NEEDS: dict[str, tuple[tuple[str, type], ...]] = {
    "intent": (("key", str), ("session_id", str), ("baseline", int)),
    "result": (("key", str), ("line", dict)),
    "session": (("session_id", str),),
    "accepted": (("key", str),),
    "release": (("key", str),),
}


def decode(line: bytes) -> dict[str, Any] | None:
    """Read a line; None for what is torn, foreign, or of a later release's form."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return checked(record)


def checked(record: Any) -> dict[str, Any] | None:
    """Return ``record`` if it is one of ours and whole, else None."""
    if not isinstance(record, dict) or record.get("v") != VERSION:
        return None
    needs = _NEEDS.get(str(record.get("kind")))
    if needs is None or not all(isinstance(record.get(name), kind) for name, kind in needs):
        return None
    if record["kind"] == "result" and record["line"].get("outcome") not in OUTCOMES:
        return None
    return record


@dataclass(frozen=True, slots=True)
class Intent:
    """Where an item was asked, or was about to be, and what is known of its turn."""

    session_id: str
    trace: Trace
    opened: bool
    ahead: bool = False


@dataclass(slots=True)
class Past:
    """What earlier tries left, by position of the item.

    :ivar answered: items that need nothing any more.
    :ivar intents: items whose session's history has to be asked before anything else.
    :ivar shared_session: the session that all prompts share, if it was opened.
    :ivar foreign: records of items that are not (or no longer) in the batch.
    :ivar damaged: lines that could not be read.
    """

    answered: set[int] = field(default_factory=set)
    intents: dict[int, Intent] = field(default_factory=dict)
    shared_session: str | None = None
    foreign: int = 0
    damaged: int = 0

    @classmethod
    def of(cls, records: Iterable[dict[str, Any] | None], positions: dict[str, int]) -> Past:
        """Go through records, oldest first; None stands for a damaged one.

        :param positions: the position of each item, by its key.
        """
        past = cls()
        answered_at: set[tuple[Any, Any]] = set()
        for record in records:
            if record is None:
                past.damaged += 1
                continue
            if record["kind"] == "session":
                past.shared_session = record["session_id"]
                continue
            if record["kind"] == "result" and record["line"]["outcome"] == ANSWERED:
                answered_at.add((record["line"].get("session_id"), record.get("baseline")))
            position = positions.get(record["key"])
            if position is None:
                past.foreign += 1
            elif position not in past.answered:
                past._take(position, record)
        # An answer is durable before what follows it in its session is asked. So this was never asked:
        for position, asked in list(past.intents.items()):
            if asked.ahead and (asked.session_id, asked.trace.baseline - 1) not in answered_at:
                del past.intents[position]
        return past

    def _take(self, position: int, record: dict[str, Any]) -> None:
        asked = self.intents.get(position)
        match record["kind"]:
            case "intent" if (trace := Trace.read(record)) is not None:
                self.intents[position] = Intent(
                    record["session_id"], trace, bool(record.get("opened")), bool(record.get("ahead"))
                )
            case "accepted" if asked is not None:
                trace = replace(asked.trace, accepted=True, recorded=record.get("recorded"))
                self.intents[position] = replace(asked, trace=trace)
            case "release":
                self.intents.pop(position, None)
            case "result" if record["line"]["outcome"] == ANSWERED:
                self.answered.add(position)
                self.intents.pop(position, None)
            case "result" if asked is not None and "intended_at" in record:
                # A turn that failed or was interrupted keeps its intent: the history says whether it has an answer by now.
                self.intents[position] = replace(asked, trace=Trace.read(record) or asked.trace)
            case _:
                pass
