"""A server with sessions on a simulated clock. It remembers every turn that it took."""

from __future__ import annotations

from dataclasses import dataclass, field

from airflow_provider_llamachat.models import Event, JobMetadata, Session, StopEvent, TextEvent, Usage, UserInputEvent
from tests.batch.simulation.loop import Clock
from tests.unit.services import RECORDS

TOKENS = 10
"""Tokens that each turn takes."""


def answer_to(prompt: str) -> str:
    """The only right answer."""
    return f"answer to <{prompt}>"


@dataclass(eq=False)
class Turn:
    """A turn that the server took.

    :ivar kind: ``ok``, ``error`` if the server ends it with an error, or ``dies`` if its end is never shown.
    :ivar attempt: number of the attempt that asked.
    :ivar may_repeat: whether that attempt may ask again.
    :ivar is_watched: whether the attempt that asked still reads its stream.
    :ivar is_seen: whether that stream brought the end of the turn.
    """

    session_id: str
    prompt: str
    arrived: float
    starts: float
    ends: float
    kind: str
    attempt: int
    may_repeat: bool
    is_watched: bool = True
    is_seen: bool = False

    def __str__(self) -> str:
        asked = f"{self.session_id} {self.prompt[-2:]} by attempt {self.attempt}{' again' if self.may_repeat else ''}"
        times = f"arrived {self.arrived:.2f}, ran {self.starts:.2f} to {self.ends:.2f}"
        return f"{asked}, {times}, {self.kind}{', seen' if self.is_seen else ''}"

    def end(self) -> list[Event]:
        """The events that end the turn, once it is over."""
        if self.kind == "dies":
            return []
        usage = Usage(total_input_tokens=TOKENS // 2, total_output_tokens=TOKENS // 2, duration_ms=self.starts)
        if self.kind == "error":
            return [StopEvent(type="stop", is_error=True, error="the model is overloaded", usage=usage)]
        return [
            TextEvent(type="text", content=answer_to(self.prompt)),
            StopEvent(type="stop", is_error=False, usage=usage),
        ]


@dataclass
class BusyPost:
    """A prompt that arrived while another turn of its session ran.

    :ivar was_watched: whether the attempt was reading the stream of the running turn.
    """

    turn: Turn
    running: Turn
    was_watched: bool


@dataclass
class Server:
    """A server that answers prompts that arrive in a busy session later, one after another.

    :param record: how prompts look in a history, as in :data:`~tests.unit.services.RECORDS`.
    :param late: seconds after which a history shows what happened.
    :ivar attempt: number of the current attempt.
    :ivar may_repeat: whether it may ask again.
    """

    clock: Clock
    record: str = "verbatim"
    late: float = 0.0
    attempt: int = 0
    may_repeat: bool = False
    sessions: dict[str, list[Turn]] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    busy: list[BusyPost] = field(default_factory=list)
    posts: list[str] = field(default_factory=list)

    def open(self, earlier: int = 0) -> str:
        """Open a session, with turns of somebody else, and return its id."""
        session_id = f"ses-{len(self.sessions) + 1:03d}"
        then = self.clock.now - 100.0
        self.sessions[session_id] = [
            Turn(session_id, f"Earlier question {n}", then + n, then + n, then + n + 0.5, "ok", -1, may_repeat=False)
            for n in range(earlier)
        ]
        return session_id

    def take(self, session_id: str, prompt: str, at: float, kind: str, seconds: float) -> Turn:
        """Take a prompt that arrives at a time, which may be in a moment."""
        others = self.sessions[session_id]
        starts = max([at, *(other.ends for other in others)])
        turn = Turn(session_id, prompt, at, starts, starts + seconds, kind, self.attempt, self.may_repeat)
        self.busy += [
            BusyPost(turn, other, other.is_watched and other.attempt == self.attempt)
            for other in others
            if other.arrived <= at < other.ends
        ]
        others.append(turn)
        self.turns.append(turn)
        return turn

    def beginning(self, turn: Turn) -> Event:
        """The event with which a turn begins."""
        return UserInputEvent(type="user_input", content=RECORDS[self.record](turn.prompt))

    def read(self, session_id: str) -> Session:
        """Return the session with the history that is shown now."""
        shown_until = self.clock.now - self.late
        events: list[Event] = []
        job = None
        for turn in self.sessions[session_id]:
            if turn.starts > shown_until:
                break
            events.append(self.beginning(turn))
            if turn.ends <= shown_until and (end := turn.end()):
                events += end
                job = JobMetadata(is_error=turn.kind == "error")
        return Session(session_id=session_id, events=events, index_ids=["idx-1"], job_metadata=job)
