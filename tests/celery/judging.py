"""What many conversations may leave behind: each one's answer, turn and session against what the emulator saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_llamachat.testing import TurnRecord
from tests.chaos.judging import wrong_answer
from tests.chaos.plans import prompt


@dataclass(frozen=True)
class Conversation:
    """What a user of Airflow sees of one conversation.

    :ivar states: the state of each of its tasks.
    :ivar tries: how often each of its tasks was tried.
    """

    vault: int
    states: Mapping[str, str]
    tries: Mapping[str, int]
    session_id: str
    answer: Any
    usage: Any


@dataclass(frozen=True)
class Evidence:
    """What the emulator saw.

    :ivar left: the sessions that are still there, with their histories.
    """

    turns: Sequence[TurnRecord]
    left: Mapping[str, Mapping[str, Any]]


def judge(conversations: Sequence[Conversation], evidence: Evidence) -> Iterator[str]:
    """Yield what is wrong."""
    known = {prompt(one.vault) for one in conversations}
    for turn in evidence.turns:
        if turn.prompt not in known:
            yield f"the server was asked something that nobody asks: {turn.prompt!r}"
    sessions = [one.session_id for one in conversations]
    if len(set(sessions)) < len(sessions):
        yield "two conversations have one session"
    for one in conversations:
        yield from _conversation(one, len(conversations), evidence)
    empty = 0
    for session_id, session in evidence.left.items():
        if session_id in sessions:
            yield f"session {session_id} is left over although its deletion succeeded"
        elif session["events"]:
            yield f"session {session_id} is left over, with a history"
        else:
            empty += 1
    # A creation that was killed before it knew the session's id is the only one that may leave it behind, and only empty.
    killed = sum(one.tries["create"] - 1 for one in conversations)
    if empty > killed:
        yield f"{empty} empty sessions are left over, but only {killed} creations were tried again"


def _conversation(one: Conversation, vaults: int, evidence: Evidence) -> Iterator[str]:
    asked = prompt(one.vault)
    failed = {name: state for name, state in one.states.items() if state != "success"}
    if failed:
        yield f"{asked!r}: {failed}"
    yield from wrong_answer(one.answer, one.vault, vaults)
    turns = [turn for turn in evidence.turns if turn.prompt == asked]
    completed = [turn for turn in turns if turn.state == "completed"]
    if len(completed) != 1:
        yield f"{asked!r} was completed {len(completed)} times"
    if any(turn.session_id != one.session_id for turn in turns):
        yield f"{asked!r} was asked in another conversation's session"
    counted = [turn.output_tokens for turn in completed]
    if not isinstance(one.usage, dict) or one.usage.get("total_output_tokens") not in counted:
        yield f"{asked!r}: usage {one.usage}, but the server counted {counted}"
