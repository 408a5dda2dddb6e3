"""Reads histories: makes a turn of events, and a verdict about our turn of a session's history. No I/O, no clock.

A turn is identified by its position and our own evidence. Its text is a hint. :func:`judge` looks for the turn with our prompt at or
after the question's baseline, and its verdict says so if this is uncertain.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from airflow_provider_llamachat.conversation.question import (
    Question,
    Trace,
    fingerprint,
    is_same_text,
    may_be_same_text,
)
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
    UserInputEvent,
)
from airflow_provider_llamachat.redaction import excerpt


class TurnFolder:
    """Folds the events of one turn, in order, into a :class:`~.models.ChatTurn`.

    ``text`` events are the answer. Deltas are used only if there was no ``text`` event.
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
        self.is_damaged = False

    def add(self, event: Event) -> None:
        """Add the next event. Types without a meaning for the turn are skipped, and so is everything after ``stop``."""
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
                self._tools[event.call_id] = ToolUse(
                    name=event.name,
                    call_id=event.call_id,
                    arguments=called.arguments if called else {},
                    result=event.result,
                    finished=True,
                    image_attachment=event.image_attachment,
                )
            case StopEvent():
                self._stop = event

    def lose(self) -> None:
        """Note that an event, or a part of its text, was lost."""
        self.is_damaged = True

    @property
    def finished(self) -> bool:
        """Whether the turn's ``stop`` has been seen."""
        return self._stop is not None

    def turn(self) -> ChatTurn:
        """Return the turn of the events so far."""
        stop = self._stop or StopEvent(type="stop")
        return ChatTurn(
            session_id=self._session_id,
            prompt=self._prompt,
            index_ids=self._index_ids,
            position=self._position,
            answer=_joined(self._text, self._text_deltas),
            thinking=_joined(self._thinking, self._thinking_deltas),
            tools=list(self._tools.values()),
            usage=stop.usage,
            skipped_index_ids=stop.skipped_index_ids or [],
            finished=self.finished,
            is_error=stop.is_error,
            error=stop.error,
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


def turns(session: Session) -> list[ChatTurn]:
    """Return all turns of a session, oldest first. What stands before the first prompt belongs to none."""
    starts = [number for number, event in enumerate(session.events) if isinstance(event, UserInputEvent)]
    return [
        fold(session.events[start:end], session.session_id, session.events[start].content, position=position)
        for position, (start, end) in enumerate(itertools.pairwise([*starts, len(session.events)]))
    ]


class State(Enum):
    """What a history says about our turn."""

    ABSENT = "absent"
    """It is not there, and no other turn is in its place."""
    RUNNING = "running"
    """It is there without a ``stop``: it may still be running, or have been cut off for good."""
    FINISHED = "finished"
    """It is there with its ``stop``."""
    FOREIGN = "foreign"
    """Turns are in its place that are not known to be ours."""
    TRUNCATED = "truncated"
    """The history lacks turns that are known, so positions mean nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state of our turn, and its content.

    :param turn: the folded turn. For ``FOREIGN``, the one at our position if no other turn follows it. Otherwise None.
    :param size: number of events of our turn so far, which shows whether it still grows.
    :param asked: number of times that our prompt is in the history since the baseline.
    :param overtaken: a later turn began before the ``stop`` of ours.
    :param recorded: fingerprint of the prompt as the server recorded it. None if there is no turn of ours.
    :param is_sure: False for a turn at our position whose prompt may be ours, cut or with something added.
    :param turns: number of turns that the history shows.
    :param is_other_running: the history ends with a turn without a ``stop``, and none of its turns is ours.
    """

    state: State
    turn: ChatTurn | None = None
    size: int = 0
    asked: int = 0
    overtaken: bool = False
    recorded: str | None = None
    is_sure: bool = True
    turns: int = 0
    is_other_running: bool = False

    @property
    def is_shown(self) -> bool:
        """Whether the history surely shows our turn."""
        return self.state in {State.FINISHED, State.RUNNING} and self.is_sure


def count_turns(events: Iterable[Event]) -> int:
    """Return the number of turns in a history: its ``user_input`` events. Before the question is asked, this is the baseline."""
    return sum(isinstance(event, UserInputEvent) for event in events)


def is_running(events: Sequence[Event]) -> bool:
    """Whether the history ends with a turn that has no ``stop``."""
    last = [event for event in events if isinstance(event, UserInputEvent | StopEvent)][-1:]
    return bool(last) and isinstance(last[0], UserInputEvent)


def anchor(events: Iterable[Event], baseline: int) -> str:
    """Return a digest of the beginning of a history: what is before its first turn and, if it had turns at the baseline, that turn.

    The whole content of the events counts, including the figures of a ``stop``, because the same question may get the same answer every
    day. If the turn has not ended, only its prompt counts, because the rest still changes.
    """
    return _anchors(events, baseline)[-1]


def _anchors(events: Iterable[Event], baseline: int) -> list[str]:
    turns, found, digest = 0, [], hashlib.sha256()
    for event in events:
        turns += isinstance(event, UserInputEvent)
        if turns > min(baseline, 1):
            break
        digest.update(json.dumps(event.model_dump(), default=str).encode())
        if turns and isinstance(event, UserInputEvent | StopEvent):
            found.append(digest.hexdigest()[:24])
        if turns and isinstance(event, StopEvent):
            break
    return found or [digest.hexdigest()[:24]]


def _ours(prompts: Sequence[str], question: Question, trace: Trace, *, is_moved: bool) -> tuple[list[int], int, bool]:
    """Return the turns that count as ours, the number of times that our prompt was asked, and whether this is sure.

    :param prompts: the prompt of each turn, as it is recorded.
    :param is_moved: the positions have moved. A prompt that was seen to be taken is told by its text, as the last one.
    """
    baseline, others = max(0, trace.baseline), question.others

    def is_our_text(position: int) -> bool:
        return is_same_text(prompts[position], question.prompt)

    def is_recorded(position: int) -> bool:
        return fingerprint(prompts[position]) == trace.recorded and position not in others

    is_alike = trace.recorded in others
    if is_moved:
        last = len(prompts) - 1
        may_be_last = bool(prompts) and (trace.accepted or trace.answered)
        is_told = may_be_last and (is_our_text(last) or (not is_alike and fingerprint(prompts[last]) == trace.recorded))
        return [last] if is_told else [], int(is_told), True
    asked = [place for place in range(baseline, len(prompts)) if is_our_text(place) or is_recorded(place)]
    found = [place for place in asked if not is_alike or place == baseline or is_our_text(place)]
    if found:
        return found, len(asked), True
    is_free = len(prompts) > baseline and baseline not in others
    if is_free and may_be_same_text(prompts[baseline], question.prompt):
        return [baseline], max(1, len(asked)), False
    return [], 0, False


def judge(events: Sequence[Event], question: Question, trace: Trace) -> Verdict:
    """Return what the history says about the question's turn.

    Our turn is at or after the baseline and has our prompt, in our form or in the form that the server is known to record. If there is
    none, the turn exactly at the baseline is ours if its prompt may be ours, cut or with something added. A recorded form that other
    prompts are known to have too says nothing, so only the position counts. If the prompt was asked more than once (only with
    ``on_interrupted="ask_again"``), the first turn that finished without an error counts, otherwise the last one.
    """
    starts = [number for number, event in enumerate(events) if isinstance(event, UserInputEvent)]
    prompts = [str(getattr(events[start], "content", "")) for start in starts]
    baseline = max(0, trace.baseline)
    is_moved = len(starts) < baseline or (trace.anchor is not None and trace.anchor not in _anchors(events, baseline))
    found, asked, is_sure = _ours(prompts, question, trace, is_moved=is_moved)
    if is_moved and not found:
        return Verdict(State.TRUNCATED, turns=len(starts))

    def verdict(position: int, state: State | None = None) -> Verdict:
        end = starts[position + 1] if position + 1 < len(starts) else len(events)
        known = {"position": position, "index_ids": question.index_ids or None}
        turn = fold(events[starts[position] + 1 : end], question.session_id, question.prompt, **known)
        state = state or (State.FINISHED if turn.finished else State.RUNNING)
        overtaken = end < len(events) and state is State.RUNNING
        recorded = fingerprint(prompts[position])
        return Verdict(state, turn, end - starts[position], asked, overtaken, recorded, is_sure, len(starts))

    if not found:
        if len(starts) == baseline + 1 and baseline not in question.others:
            return replace(verdict(baseline, State.FOREIGN), recorded=None)
        state = State.FOREIGN if len(starts) > baseline else State.ABSENT
        return Verdict(state, turns=len(starts), is_other_running=is_running(events))
    verdicts = [verdict(position) for position in found]
    is_at_place = found[0] == baseline and verdicts[0].state is State.FINISHED
    if trace.answered and is_at_place and not is_same_text(prompts[baseline], question.prompt):
        # Its end was seen, and it was not asked once more. A later prompt that is recorded like this may be anybody's.
        return verdicts[0]
    return next((one for one in verdicts if one.turn and one.turn.finished and not one.turn.is_error), verdicts[-1])


def begin(
    session: Session, question: Question, *, memory: Trace | None = None, is_retry: bool = False, now: float
) -> Trace:
    """Return what is known about the question's turn at the beginning of an attempt.

    A first attempt asks at the end of the history, and so does an attempt for which no earlier post is in doubt. A retry looks for the
    turn of the earlier attempt at the remembered baseline. If nothing is remembered, it looks at the end of the history, and the last
    prompt has to be ours. If the server ended the turn with an error, there is no answer, so a retry asks again after that turn. A turn
    that was given up because the history did not show it in time is ours if the history shows it now.

    :param memory: what an earlier attempt stored. None if it stored nothing.
    :param is_retry: an earlier attempt may have asked without storing anything.
    :param now: epoch seconds. An earlier post at an unknown time counts as made now.
    """
    count = count_turns(session.events)
    fresh = Trace(count, anchor=anchor(session.events, count))
    if memory is None:
        if not is_retry:
            return fresh
        # An attempt after the one whose turn is shown may have asked as well.
        fresh = replace(fresh, intended_at=now)
        memory = Trace(count - 1, intended_at=now, anchor=anchor(session.events, count - 1))
        last = [event for event in session.events if isinstance(event, UserInputEvent)][-1:]
        if not last or not is_same_text(last[0].content, question.prompt):
            memory = fresh
    verdict = judge(session.events, question, memory)
    if verdict.is_shown and verdict.turn is not None and verdict.turn.is_error:
        return fresh
    if not memory.is_open:
        return replace(memory, intended_at=now) if verdict.is_shown else fresh
    return memory


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
