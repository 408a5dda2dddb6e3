"""The pure core: events become a turn, and a history becomes a verdict. No I/O, no clock.

The session's history on the server is the only record of what was asked. :func:`judge` reads it: given how many turns the
session had before we first asked (the *baseline*) and what we asked, is our turn absent, running or finished?
"""

from __future__ import annotations

import hashlib
import io
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.models import (
    ChatTurn,
    Event,
    Session,
    SessionSummary,
    StopEvent,
    TextDeltaEvent,
    TextEvent,
    ThinkingDeltaEvent,
    ThinkingEvent,
    ToolCallEvent,
    ToolResultEvent,
    ToolUse,
    Usage,
    UserInputEvent,
)
from airflow_provider_llamachat.redaction import excerpt


class TurnFolder:
    """Folds the events of one turn, in order, into a :class:`~.models.ChatTurn`.

    ``text`` events are the answer. Deltas stand in for it only when no ``text`` event came, so that a turn is whole either way.
    """

    def __init__(
        self, session_id: str, prompt: str, *, index_ids: list[str] | None = None, position: int | None = None
    ) -> None:
        self._session_id = session_id
        self._prompt = prompt
        self._index_ids = index_ids
        self._position = position
        self._text: list[str] = []
        self._thinking: list[str] = []
        # Not lists of pieces: a delta is a few characters, and each would cost sixty bytes more.
        self._text_deltas = io.StringIO(newline="")
        self._thinking_deltas = io.StringIO(newline="")
        self._tools: dict[str, ToolUse] = {}
        self._stop: StopEvent | None = None

    def add(self, event: Event) -> None:
        """Take in the next event; types without meaning for the turn are passed over, and nothing counts after ``stop``."""
        if self._stop is not None:
            return
        match event:
            case TextDeltaEvent():
                self._text_deltas.write(event.content)
            case TextEvent():
                self._text.append(event.content)
                self._text_deltas = io.StringIO(newline="")
            case ThinkingDeltaEvent():
                self._thinking_deltas.write(event.content)
            case ThinkingEvent():
                self._thinking.append(event.content)
                self._thinking_deltas = io.StringIO(newline="")
            case ToolCallEvent():
                self._tools[event.call_id] = ToolUse(name=event.name, call_id=event.call_id, arguments=event.arguments)
            case ToolResultEvent():
                called = self._tools.get(event.call_id)
                arguments = called.arguments if called else {}
                self._tools[event.call_id] = ToolUse(
                    name=event.name, call_id=event.call_id, arguments=arguments, result=event.result, finished=True
                )
            case StopEvent():
                self._stop = event
            case _:
                pass

    @property
    def finished(self) -> bool:
        """Whether the turn's ``stop`` has been seen."""
        return self._stop is not None

    def turn(self) -> ChatTurn:
        """Return what the events so far make."""
        stop = self._stop
        return ChatTurn(
            session_id=self._session_id,
            prompt=self._prompt,
            answer=_joined(self._text, self._text_deltas),
            thinking=_joined(self._thinking, self._thinking_deltas),
            tools=list(self._tools.values()),
            usage=stop.usage if stop else Usage(),
            skipped_index_ids=list(stop.skipped_index_ids or []) if stop else [],
            index_ids=self._index_ids,
            finished=stop is not None,
            is_error=stop.is_error if stop else False,
            error=stop.error if stop else None,
            position=self._position,
        )


def _joined(whole: list[str], deltas: io.StringIO) -> str:
    rest = deltas.getvalue()
    return "\n\n".join([*whole, rest] if rest else whole)


def fold(events: Iterable[Event], session_id: str, prompt: str, **known: Any) -> ChatTurn:
    """Fold ``events`` at once; see :class:`TurnFolder`."""
    folder = TurnFolder(session_id, prompt, **known)
    for event in events:
        folder.add(event)
    return folder.turn()


class State(Enum):
    """What a history says of our turn."""

    ABSENT = "absent"
    """It is not there, and nobody else's turn stands in its place."""
    RUNNING = "running"
    """It is there without a ``stop``: it may still be running, or have been cut off for good."""
    FINISHED = "finished"
    """It is there with its ``stop``."""
    FOREIGN = "foreign"
    """Another prompt stands in its place: somebody else uses the session."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state of our turn, and what is there of it.

    :param turn: the folded turn; None when there is none.
    :param size: events of our turn so far, to see whether it still grows.
    :param asked: how often our prompt stands in the history since the baseline.
    :param overtaken: a later turn began before ours had its ``stop``.
    """

    state: State
    turn: ChatTurn | None = None
    size: int = 0
    asked: int = 0
    overtaken: bool = False


def count_turns(events: Iterable[Event]) -> int:
    """How many turns a history has: its ``user_input`` events. Taken before asking, this is the baseline."""
    return sum(isinstance(event, UserInputEvent) for event in events)


def _folded(prompt: str) -> str:
    return " ".join(unicodedata.normalize("NFC", prompt).split())


def same_prompt(one: str, other: str) -> bool:
    """Whether two prompts are the same but for white space and Unicode form, which a server may change when it records them."""
    return _folded(one) == _folded(other)


def is_plainly_another(recorded: str, prompt: str) -> bool:
    """Whether a stream that begins with the prompt ``recorded`` answers something else than ``prompt``.

    Less strict than :func:`same_prompt`: the stream is the answer to our own request, and a server may well add to a prompt, or cut
    it. Only what has nothing of ours comes from a mix-up.
    """
    one, other = _folded(recorded), _folded(prompt)
    return bool(one) and one not in other and other not in one


def judge(events: Sequence[Event], baseline: int, prompt: str, *, session_id: str = "") -> Verdict:
    """Say what the history tells about the turn that we asked after ``baseline`` turns.

    Ours is a turn at or after position ``baseline`` with our prompt. When it was asked more than once there (only
    ``on_interrupted="ask_again"`` does that), the first that finished without an error counts, else the last.
    """
    starts = [number for number, event in enumerate(events) if isinstance(event, UserInputEvent)]
    found: list[Verdict] = []
    for position, start in list(enumerate(starts))[max(0, baseline) :]:
        opening = events[start]
        if not isinstance(opening, UserInputEvent) or not same_prompt(opening.content, prompt):
            continue
        end = starts[position + 1] if position + 1 < len(starts) else len(events)
        turn = fold(events[start + 1 : end], session_id, prompt, position=position)
        state = State.FINISHED if turn.finished else State.RUNNING
        found.append(Verdict(state, turn, size=end - start, overtaken=end < len(events)))
    if not found:
        return Verdict(State.FOREIGN if len(starts) > max(0, baseline) else State.ABSENT)
    best = next((item for item in found if item.turn and item.turn.finished and not item.turn.is_error), found[-1])
    return Verdict(best.state, best.turn, best.size, len(found), best.overtaken and best.state is State.RUNNING)


def fingerprint(prompt: str) -> str:
    """A short, stable digest of a prompt: enough to tell whether a retry asks the same, and safe to store."""
    return hashlib.sha256(_folded(prompt).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Memory:
    """What a try of a task leaves for those after it (Airflow 3.3's task state store keeps it).

    :param baseline: the position of the turn: how many the session had before it.
    :param prompt: the prompt's :func:`fingerprint`.
    :param accepted: the server was seen to take the prompt. Then its absence from the history is no proof that it does not run.
    :param done: the task handed the answer on.
    """

    session_id: str
    baseline: int
    prompt: str
    accepted: bool = False
    done: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The memory as JSON values."""
        return asdict(self)

    @classmethod
    def from_value(cls, value: Any) -> Memory | None:
        """Read what :meth:`as_dict` gave; None for anything else, an older release's form included."""
        if not isinstance(value, dict):
            return None
        session_id, baseline, prompt = value.get("session_id"), value.get("baseline"), value.get("prompt")
        if isinstance(session_id, str) and isinstance(baseline, int) and isinstance(prompt, str):
            return cls(session_id, baseline, prompt, value.get("accepted") is True, value.get("done") is True)
        return None


@dataclass(frozen=True, slots=True)
class Opening:
    """How to begin: which position is ours, whether something of ours may already stand there, and whether it was accepted."""

    baseline: int
    resume: bool
    accepted: bool = False


def opening(session: Session, prompt: str, *, retry: bool = False, memory: Memory | None = None) -> Opening:
    """Decide how a try begins, from the session's history and what is known of earlier tries.

    A first try (or a cleared task) asks after what is there. A retry looks for the earlier try's turn: at the remembered
    baseline, or, where nothing is remembered, at the end of the history if the last prompt is ours. A turn that the server itself
    ended with an error is no answer, so a retry asks again after it; so it does when only other prompts came after the baseline and
    ours was never seen to be taken.

    :param retry: an earlier try may have asked, and nothing would be remembered of it.
    :param memory: what an earlier try left; it proves that there was one.
    """
    count = count_turns(session.events)
    fresh = Opening(count, resume=False)
    if memory is None:
        last = count - 1
        if not retry or last < 0 or judge(session.events, last, prompt).state is State.FOREIGN:
            return fresh
        memory = Memory(session.session_id, last, fingerprint(prompt))
    elif memory.session_id != session.session_id or memory.prompt != fingerprint(prompt):
        return fresh  # the Dag asks something else now
    verdict = judge(session.events, memory.baseline, prompt)
    if verdict.state is State.ABSENT:
        return Opening(memory.baseline, resume=memory.accepted, accepted=memory.accepted)
    failed = verdict.turn is not None and verdict.turn.is_error
    if failed or (verdict.state is State.FOREIGN and not memory.accepted):
        return fresh
    return Opening(memory.baseline, resume=True, accepted=memory.accepted)


def indexes_to_ask(session: SessionSummary, index_ids: list[str] | None) -> list[str]:
    """Return the index ids to send with a turn: those given, else the session's own.

    :raises InvalidArgumentError: there are none, or the session is locked to other ones.
    """
    bound = session.index_ids or []
    if not index_ids:
        if bound:
            return list(bound)
        raise InvalidArgumentError(
            f"Chat session {session.session_id} is not bound to any index, so index_ids has to say which indexes the turn may use.",
            session_id=session.session_id,
        )
    locked = bound and session.job_metadata is not None
    if locked and set(index_ids) != set(bound):
        raise InvalidArgumentError(
            f"Chat session {session.session_id} was locked to the indexes {_shown(bound)} by its first message; "
            f"index_ids={_shown(index_ids)} does not match. Leave index_ids out, or create another session.",
            session_id=session.session_id,
        )
    return list(index_ids)


def _shown(index_ids: list[str]) -> str:
    return excerpt(str(sorted(index_ids)[:20]), limit=600)
