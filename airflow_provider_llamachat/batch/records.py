"""The records of the journal, and the state of each item that they describe. No I/O.

An *intent* is durable before its prompt is posted, and a *result* after the turn ended. Whenever the process is killed, an item
has no intent (it was not posted), an intent (the session's history shows its outcome), or a result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.batch.owners import Owners
from airflow_provider_llamachat.conversation.question import Trace
from airflow_provider_llamachat.evidence import LINE_BYTES, MAX_COUNT, bounded
from airflow_provider_llamachat.exceptions import ChatTurnFailedError, ChatTurnInterruptedError, LlamaCloudError
from airflow_provider_llamachat.redaction import excerpt

if TYPE_CHECKING:
    from airflow_provider_llamachat.batch.items import Item
    from airflow_provider_llamachat.batch.sessions import Prepared
    from airflow_provider_llamachat.models import ChatTurn

VERSION = 1

ADDED_LATER: dict[str, Any] = {"sources": None, "extra": {}}
"""Fields that a line lacks if an earlier release wrote it."""

ANSWERED = "answered"
"""The turn finished, and its answer is in the results."""
FAILED = "failed"
"""The turn ended with an error, or was refused, or could not be sent."""
INTERRUPTED = "interrupted"
"""The prompt may have been accepted, but the end of its turn was not seen. It was not sent again."""
UNASKED = "unasked"
"""The prompt was not sent, because the batch stopped or an earlier turn of its session was interrupted."""
OUTCOMES = (ANSWERED, FAILED, INTERRUPTED, UNASKED)


def intent(key: str, session_id: str, trace: Trace, *, opened: bool, ahead: bool = False) -> dict[str, Any]:
    """``key`` is about to be asked in a session that had ``trace.baseline`` turns.

    :param opened: the batch opened that session.
    :param ahead: written while the previous turn was still running. The prompt is posted only after that turn was answered.
    """
    return _record("intent", key=key, session_id=session_id, opened=opened, ahead=ahead, **trace.as_dict())


def acceptance(key: str, trace: Trace) -> dict[str, Any]:
    """The server accepted the prompt of ``key``. It is not asked again just because the history does not show it."""
    return _record("accepted", key=key, recorded=trace.recorded)


def line(
    item: Item, prepared: Prepared | None, result: ChatTurn | LlamaCloudError, *, outcome: str | None = None
) -> dict[str, Any]:
    """Return the result of an item as JSON values. ``outcome`` overrides the outcome of the result."""
    values: dict[str, Any] = {
        "position": item.position,
        "id": item.id,
        "outcome": outcome,
        "prompt": item.prompt,
        "answer": None,
        "sources": [],
        "session_id": prepared.question.session_id if prepared else item.session_id,
        "index_ids": prepared.question.index_ids if prepared else item.index_ids,
        "skipped_index_ids": [],
        "usage": None,
        "error": None,
        "extra": item.extra,
    }
    if isinstance(result, LlamaCloudError):
        interrupted = isinstance(result, ChatTurnInterruptedError)
        values["outcome"] = outcome or (INTERRUPTED if interrupted else FAILED)
        values["usage"] = getattr(result, "usage", None)
        values["error"] = {"type": type(result).__name__, "message": excerpt(str(result), limit=1000)}
    else:
        values |= {"outcome": ANSWERED, "answer": result.answer}
        values |= {"sources": bounded(result.first_sources(MAX_COUNT), LINE_BYTES)}
        values |= {"skipped_index_ids": result.skipped_index_ids, "usage": result.usage_as_dict()}
    return values


def is_turn(record: dict[str, Any]) -> bool:
    """Whether the server accepted, or may have accepted, the prompt of a result."""
    line = record["line"]
    if line["outcome"] == INTERRUPTED:
        trace = Trace.read(record)  # not open: the time was over before the prompt was accepted
        return trace is not None and trace.is_open
    return line["outcome"] == ANSWERED or (line.get("error") or {}).get("type") == ChatTurnFailedError.__name__


def tokens(line: dict[str, Any]) -> int:
    """Return the input and output tokens of a line, as far as they are known."""
    usage = line.get("usage") or {}
    return int(usage.get("total_input_tokens") or 0) + int(usage.get("total_output_tokens") or 0)


def result(key: str, line: dict[str, Any], *, trace: Trace | None) -> dict[str, Any]:
    """The result of ``key``. ``line`` is its line of the output."""
    return _record("result", key=key, line=line, **(trace.as_dict() if trace else {"baseline": None}))


def session(session_id: str) -> dict[str, Any]:
    """The session that all prompts share."""
    return _record("session", session_id=session_id)


def release(key: str) -> dict[str, Any]:
    """The intent of ``key`` was released before its prompt was posted."""
    return _record("release", key=key)


def _record(kind: str, **values: Any) -> dict[str, Any]:
    return {"v": VERSION, "kind": kind, "at": round(time.time(), 3), **values}


def encode(value: Any) -> bytes:
    """Return a line of JSON. Halves of surrogate pairs, which a model may produce, are escaped because UTF-8 cannot encode them."""
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
    """Read a line. Return None if it is damaged, unknown, or written by a later release."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return checked(record)


def checked(record: Any) -> dict[str, Any] | None:
    """Return ``record`` if it is valid, else None."""
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
    """Where an item was, or was about to be, asked, and what is known about its turn.

    :ivar is_own: this attempt asked it, not an earlier one.
    """

    session_id: str
    trace: Trace
    opened: bool
    ahead: bool = False
    is_own: bool = False


@dataclass(slots=True)
class Past:
    """The state that earlier attempts left, by position of the item.

    :ivar answered: items that have an answer.
    :ivar intents: items whose session's history must be read first.
    :ivar shared_session: the session that all prompts share, if it was opened.
    :ivar turns: by session, the minimum number of its turns, because that many have ended.
    :ivar owners: which items the turns of common sessions belong to.
    :ivar is_complete: whether the results are in place, although some prompts may have no answer.
    :ivar stopped_by: if it is complete, name of the limit because of which prompts were not asked.
    :ivar foreign: number of records of items that are not in the batch.
    :ivar damaged: number of damaged records.
    """

    answered: set[int] = field(default_factory=set)
    intents: dict[int, Intent] = field(default_factory=dict)
    shared_session: str | None = None
    turns: dict[str, int] = field(default_factory=dict)
    owners: Owners = field(default_factory=Owners)
    is_complete: bool = False
    stopped_by: str | None = None
    foreign: int = 0
    damaged: int = 0

    @classmethod
    def of(cls, records: Iterable[dict[str, Any] | None], positions: dict[str, int]) -> Past:
        """Read records, oldest first. None is a damaged record.

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
            position = positions.get(record["key"])
            asked = None if position is None else past.intents.get(position)
            # Nothing follows in a session that was opened for one item, and thousands of them would take memory.
            if record["kind"] == "result" and not (asked and asked.opened):
                session_id, baseline = record["line"].get("session_id"), record.get("baseline")
                is_answered = record["line"]["outcome"] == ANSWERED
                if is_answered:
                    answered_at.add((session_id, baseline))
                # A turn that failed is a turn of the session, too.
                if (
                    (is_answered or record.get("done") is True)
                    and isinstance(session_id, str)
                    and isinstance(baseline, int)
                ):
                    past.turns[session_id] = max(past.turns.get(session_id, 0), baseline + 1)
            if position is None:
                past.foreign += 1
            elif position not in past.answered:
                past._take(position, record)
        # An answer is durable before the next prompt of its session is posted. These prompts were therefore never posted.
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
                self._learn(position, asked, replace(asked.trace, accepted=True, recorded=record.get("recorded")))
            case "release":
                self.intents.pop(position, None)
            case "result":
                is_answered = record["line"]["outcome"] == ANSWERED
                # A failed or interrupted turn keeps its intent, because the history may contain its answer by now.
                if asked is not None and (is_answered or "intended_at" in record):
                    self._learn(position, asked, Trace.read(record) or asked.trace)
                if is_answered:
                    self.answered.add(position)
                    self.intents.pop(position, None)

    def _learn(self, position: int, asked: Intent, trace: Trace) -> None:
        self.intents[position] = replace(asked, trace=trace)
        if not asked.opened:
            self.owners.note(asked.session_id, position, trace)
