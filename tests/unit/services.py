"""A family of servers, each with one session on a simulated clock, and the attempts of a task that asks there."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.conversation.ask import ask
from airflow_provider_llamachat.conversation.history import State, begin, fold, judge
from airflow_provider_llamachat.conversation.question import Question, Trace
from airflow_provider_llamachat.conversation.steps import Limits, Outcome, Pause, Post, ReadHistory, Remember
from airflow_provider_llamachat.models import ChatTurn, Session, parse_event
from airflow_provider_llamachat.triggers.chat import MOMENT
from airflow_provider_llamachat.triggers.events import ANSWERED, TurnEvent

_QUOTES = str.maketrans({'"': "\u201c", "'": "\u2019", "\u2019": "'"})
SURE: dict[str, Callable[[str], str]] = {
    "verbatim": lambda text: text,
    "trimmed": str.strip,
    "NFC": lambda text: unicodedata.normalize("NFC", text),
    "NFKC": lambda text: unicodedata.normalize("NFKC", text),
    "html": html.escape,
    "lower": str.lower,
    "quotes": lambda text: text.translate(_QUOTES),
    "no zero width": lambda text: re.sub("[\u200b-\u200d\ufeff]", "", text),
    "no controls": lambda text: re.sub("[\x00-\x1f\x7f]", "", text),
}
"""Forms that keep a prompt's words."""
RECORDS: dict[str, Callable[[str], str]] = SURE | {
    "prefix": lambda text: f"User: {text}",
    "suffix": lambda text: f"{text} Answer briefly.",
    "cut": lambda text: text[:20] + "\u2026" if len(text) > 20 else text,
    "empty": lambda text: "",
}

PROMPT = '  Is "a < b" & it\u2019s \ufb01ne,\u200b caf\u00e9 or e\u0301?\x07 Tell me, please.\n'
QUESTION = Question("ses-1", PROMPT, ["idx"])
BROKEN = errors.ServerError("boom", status=500)


class Crash(BaseException):
    """The process dies."""


@dataclass
class Turn:
    """A turn on the server.

    :ivar ends: when its end is reached; None when it was cut off for good.
    """

    prompt: str
    answer: str
    starts: float
    ends: float | None
    is_ours: bool = True
    is_error: bool = False


@dataclass
class Service:
    """A server of the family.

    :ivar faults: what becomes of each post: (kind, accepted); a post after them succeeds.
    :ivar foreign: when somebody else's prompts arrive.
    :ivar outages: (from, to) when the history cannot be read.
    """

    lag: float = 0.0
    record: str = "verbatim"
    window: int | None = None
    takes: float = 5.0
    survives: bool = True
    written_at_end: bool = False
    echoes: bool = True
    text: str = "stream"
    has_conflicts: bool = True
    faults: list[tuple[str, bool]] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    earlier: int = 0
    clock: float = 1000.0
    turns: list[Turn] = field(default_factory=list)
    posts: int = 0
    reads: int = 0

    def __post_init__(self) -> None:
        self.turns = [Turn(f"earlier {n}", f"old {n}", n, n + 0.5, is_ours=False) for n in range(self.earlier)]
        self.foreign = sorted(1000.0 + at for at in self.foreign)

    @property
    def paid(self) -> int:
        """Turns of ours that were taken and that the server itself did not fail."""
        return sum(turn.is_ours and not turn.is_error for turn in self.turns)

    @property
    def is_prompt(self) -> bool:
        """Whether the history shows each turn at once, in a form of its prompt, and nobody else's."""
        is_alone = (
            self.window is None
            and not self.foreign
            and not any(turn.prompt.startswith("theirs") for turn in self.turns)
        )
        return is_alone and not self.lag and not self.written_at_end and self.record in SURE

    def _free_at(self) -> float:
        return max((turn.ends or turn.starts for turn in self.turns), default=0.0)

    def _let_others_in(self, until: float) -> None:
        while self.foreign and self.foreign[0] <= until:
            at = max(self.foreign.pop(0), self._free_at())
            self.turns.append(Turn(f"theirs {at}", f"not ours {at}", at, at + 2.0, is_ours=False))

    def _events(self, turn: Turn, now: float) -> list[dict[str, Any]]:
        is_over = turn.ends is not None and turn.ends <= now
        if now < turn.starts or (self.written_at_end and not is_over):
            return []
        recorded = RECORDS[self.record](turn.prompt) if turn.is_ours else turn.prompt
        began = [{"type": "user_input", "content": recorded}]
        if not is_over:
            return began
        stop = {
            "type": "stop",
            "is_error": turn.is_error,
            "usage": {"duration_ms": turn.starts},
            "error": "no" if turn.is_error else None,
        }
        return [*began, {"type": "thinking", "content": "hm"}, {"type": "text", "content": turn.answer}, stop]

    def read(self) -> Session | errors.LlamaCloudError:
        """The history, as it is shown now."""
        self.reads += 1
        self.clock += 0.1
        self._let_others_in(self.clock)
        if any(start <= self.clock - 1000.0 <= end for start, end in self.outages):
            return BROKEN
        shown = [event for turn in self.turns for event in self._events(turn, self.clock - self.lag)]
        if self.window is not None:
            shown = shown[-self.window :]
        return Session.model_validate({"session_id": "ses-1", "events": shown})

    def _lose(self, turn: Turn, at: float) -> None:
        if not self.survives and (turn.ends is None or turn.ends > at):
            turn.ends = None

    def post(self, step: Post, deadline: float, keep: Callable[[Trace], None], crash_at: str | None) -> Outcome:
        """Take the prompt, or not; crash on the way when told to."""
        self.posts += 1
        if crash_at == "before":
            raise Crash
        self._let_others_in(self.clock)
        if self.clock < self._free_at():
            if self.has_conflicts:
                return Outcome(step.trace, problem=errors.SessionBusyError("busy", status=409))
            self.clock = self._free_at()
        kind, is_taken = self.faults.pop(0) if self.faults else ("ok", True)
        turn = Turn(PROMPT, f"ours {self.posts}", self.clock, self.clock + self.takes, is_error=kind == "error")
        if is_taken:
            self.turns.append(turn)
        if crash_at == "taken":
            self._lose(turn, self.clock)
            raise Crash
        if kind in {"ok", "error", "cut"}:
            return self._stream(step, turn, kind, deadline, keep, crash_at)
        self.clock = min(self.clock + (60.0 if kind == "stall" else 0.1), max(deadline, self.clock))
        self._lose(turn, self.clock)
        return Outcome(step.trace, problem=_problem(kind))

    def _stream(
        self, step: Post, turn: Turn, kind: str, deadline: float, keep: Callable[[Trace], None], crash_at: str | None
    ) -> Outcome:
        assert turn.ends is not None
        trace, events = step.trace, self._events(turn, turn.ends)[0 if self.echoes else 1 :]
        is_damaged = self.text == "malformed"
        if self.text != "stream":
            events = [event for event in events if event["type"] != "text"]
        is_over = kind != "cut" and turn.ends <= deadline
        arrived = [parse_event(event) for event in (events if is_over else events[:1])]
        for event in arrived:
            assert event is not None
            known = trace.after(event)
            if known is not trace:
                if crash_at == "learning":
                    self._lose(turn, self.clock)
                    raise Crash
                trace = known
                keep(trace)
        self.clock = turn.ends if is_over else min(self.clock + 1.0, deadline)
        if not is_over:
            self._lose(turn, self.clock)
        if crash_at == "answered":
            self._lose(turn, self.clock)
            raise Crash
        folded = fold([event for event in arrived if event], "ses-1", PROMPT, position=step.position)
        problem = None if is_over else errors.LlamaCloudConnectionError("cut", accepted=True)
        return Outcome(trace, folded, problem, is_damaged=is_damaged)


def _problem(kind: str) -> errors.LlamaCloudError:
    match kind:
        case "429":
            return errors.RateLimitError("slow", status=429, retry_after=2.0)
        case "500" | "503" | "504":
            return errors.ServerError("down", status=int(kind))
        case "html":
            return errors.LlamaCloudProtocolError("a page", status=200)
        case "stall":
            return errors.LlamaCloudTimeoutError("silence")
        case "connect":
            return errors.LlamaCloudConnectionError("no route", accepted=False)
    return errors.LlamaCloudConnectionError(kind)


@dataclass
class Attempt:
    """One attempt of a task.

    :ivar crash_after: the process dies before it carries out this step, counted from 0.
    :ivar crash_at: or within its first post: ``before``, ``taken``, ``learning`` (before what was learned is kept), ``answered``.
    :ivar gap: seconds until the next attempt, or the next start of the trigger.
    :ivar loses_result: the task fails after the answer was there.
    :ivar restarts: a deferred attempt's trigger: when its starts die, as above.
    """

    crash_after: int | None = None
    crash_at: str | None = None
    gap: float = 1.0
    loses_result: bool = False
    is_deferred: bool = False
    restarts: list[Attempt] = field(default_factory=list)


@dataclass
class Life:
    """A task's attempts, with a store of task state or without one."""

    service: Service
    lag: float = 10.0
    has_store: bool = True
    turn_timeout: float = 600.0
    ask_again: bool = False
    kept: str | None = None
    tries: int = 0
    steps: list[Any] = field(default_factory=list)
    answers: list[ChatTurn] = field(default_factory=list)
    problems: list[errors.LlamaCloudError] = field(default_factory=list)

    def keep(self, trace: Trace) -> None:
        """What Airflow's store does."""
        if self.has_store:
            self.kept = json.dumps(trace.as_dict())

    def run(self, attempts: list[Attempt]) -> Life:
        """Let the task be tried until it has succeeded."""
        for attempt in attempts:
            self.tries += 1
            try:
                turn = self._attempt(attempt)
            except Crash:
                pass
            except errors.LlamaCloudError as problem:
                self.problems.append(problem)
            else:
                self.answers.append(turn)
                if not attempt.loses_result:
                    return self
            self.service.clock += attempt.gap
        return self

    def _attempt(self, attempt: Attempt) -> ChatTurn:
        deadline = self.service.clock + self.turn_timeout
        session = self.service.read()
        if isinstance(session, errors.LlamaCloudError):
            raise session
        kept = None if self.kept is None else Trace.read(json.loads(self.kept))
        is_retry = not self.has_store and self.tries > 1
        trace = begin(session, QUESTION, memory=kept, is_retry=is_retry, now=self.service.clock)
        is_answered = trace.is_open and judge(session.events, QUESTION, trace).state is State.FINISHED
        if not attempt.is_deferred or is_answered:
            return self._ask(trace, deadline, attempt, self.keep)
        self.keep(replace(trace, intended_at=deadline))
        event = self._trigger(trace, deadline, attempt)
        told = TurnEvent.parse(json.loads(json.dumps(event)))
        self.keep(told.trace)
        told.raise_for_failure()
        return self._ask(told.trace, self.service.clock + self.lag + 30.0, attempt, self.keep)

    def _trigger(self, trace: Trace, deadline: float, attempt: Attempt) -> dict[str, Any]:
        deferred_at = self.service.clock
        for run in [*attempt.restarts, Attempt()]:
            is_first = self.service.clock - deferred_at <= MOMENT
            self._known = trace if is_first else replace(trace, intended_at=self.service.clock)
            try:
                self._ask(self._known, deadline, run, self._know, look_first=True)
                return TurnEvent(ANSWERED, QUESTION, self._known).as_dict()
            except Crash:
                # A triggerer that is replaced within a moment is a documented limit of histories that are late.
                self.service.clock += max(run.gap, 0.0 if self.service.is_prompt else MOMENT + 0.1)
            except errors.LlamaCloudError as problem:
                return TurnEvent.of(problem, QUESTION, self._known).as_dict()
        raise AssertionError("the last start does not crash")

    def _know(self, trace: Trace) -> None:
        self._known = trace

    def _ask(
        self,
        trace: Trace,
        deadline: float,
        attempt: Attempt,
        keep: Callable[[Trace], None],
        *,
        look_first: bool = False,
    ) -> ChatTurn:
        service, result = self.service, cast("Any", None)
        limits = Limits(deadline, 120.0, 3, lag=self.lag, pause=lambda number, after: after or float(number))
        ask_again = self.ask_again and self.tries > 1
        steps = ask(QUESTION, trace, limits, ask_again=ask_again, look_first=look_first, now=lambda: service.clock)
        crash_at = attempt.crash_at
        for number in range(5000):
            try:
                step = steps.send(result)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # a generator's value is untyped
            if number == attempt.crash_after:
                raise Crash
            # An answer that is there may be read for as long as a history is late.
            last = limits.deadline + (self.lag if any(turn.is_ours for turn in service.turns) else 0.0)
            assert service.clock <= last + 0.11 or isinstance(step, Remember | ReadHistory)
            self.steps.append(step)
            result = None
            match step:
                case Remember():
                    keep(step.trace)
                case ReadHistory():
                    result = service.read()
                case Post():
                    result = service.post(step, deadline, keep, crash_at)
                    crash_at = None
                case Pause():
                    service.clock += step.seconds
        raise AssertionError("the steps do not end")
