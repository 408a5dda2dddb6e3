"""A turn under way: who moves it on, what it leaves in the history, and what becomes of it when its client leaves."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.testing.answers import Answer, answer
from airflow_provider_llamachat.testing.ledger import TurnRecord, TurnState
from airflow_provider_llamachat.testing.script import AcceptedPrompt, Step, whole, write_script

if TYPE_CHECKING:
    from airflow_provider_llamachat.testing.state import ServiceState, StoredSession


class TurnRun:
    """One accepted prompt.

    A turn that survives its client runs by itself, at its own pace, and the stream only watches. One that does not is coupled to the
    stream: each event comes to be when it is about to be sent, so a stream that stops stops the turn, with no race between the two.

    :ivar frames: bytes of the events that exist so far.
    :ivar length: how many events it will have, its stop included; 0 until it has begun.
    :ivar begun: False while the turn waits for its session to be free.
    :ivar ended: True after the stop, or after the turn was abandoned.
    """

    def __init__(self, state: ServiceState, session: StoredSession, prompt: AcceptedPrompt) -> None:
        self.frames: list[bytes] = []
        self.length = 0
        self.begun = False
        self.ended = False
        self.coupled = not state.settings.survives_disconnect
        self._alone = False
        self._state = state
        self._session = session
        self._prompt = prompt
        self._held_back: list[dict[str, Any]] = []
        self._task: asyncio.Task[None] | None = None
        self._time = asyncio.get_running_loop().time
        self._news = asyncio.Event()
        self._wanted = asyncio.Event()

    def submit(self) -> None:
        """Begin, or wait for the session's other turn to end (whether two may run at once is the caller's question)."""
        self._state.live.add(self)
        busy = self._session.running or self._session.waiting
        if busy and self._state.settings.concurrent_turns != "allow":
            self._session.waiting.append(self)
        else:
            self.begin()

    def begin(self) -> None:
        """Begin now: the session is free, or two turns may run at once."""
        session, settings = self._session, self._state.settings
        session.settle()
        if settings.foreign_first is not None:
            session.record({"type": "user_input", "content": settings.foreign_first}, foreign=True)
        position = len(session.prompts)
        previous = session.prompts[-1] if session.prompts else None
        said = answer(self._prompt.text, previous, self._prompt.sources, settings.answer_chars)
        steps = write_script(self._prompt, said, position, settings)
        self.length = len(steps) + 1
        asked, skipped = self._prompt.index_ids, self._prompt.skipped
        self._record = TurnRecord(session.id, self._prompt.text, position, asked, skipped, "running", time.time())
        self._state.turns.append(self._record)
        session.running.add(self)
        session.locked = True
        self.begun = True
        self._add(steps[0])
        self._task = asyncio.create_task(self._go_on(steps[1:], said, settings.turn_latency / len(steps)))

    async def _go_on(self, steps: list[Step], said: Answer, apart: float) -> None:
        """Let the other events come to be: in time, late ones in one go, and those of a coupled turn when they are wanted."""
        began = self._time()
        for step in (*steps, None):
            if self.coupled:
                await self._wanted.wait()
                self._wanted.clear()
            wait = began + len(self.frames) * apart - self._time()
            if wait > 0:
                await asyncio.sleep(wait)
            if step is not None:
                self._add(step)
        self._stop(said, self._time() - began)

    def _add(self, step: Step) -> None:
        self.frames.append(step.frame)
        if step.event is not None:
            self._held_back.append(step.event)
        if self._state.settings.records == "start":
            self._record_held_back()
        self._news.set()

    def _record_held_back(self) -> None:
        for event in self._held_back:
            self._session.record(event, self._prompt.text)
        self._held_back.clear()

    def _stop(self, said: Answer, duration: float) -> None:
        error, settings, record = self._prompt.error, self._state.settings, self._record
        record.input_tokens, record.output_tokens = said.input_tokens, said.output_tokens if error is None else 0
        usage = {
            "total_input_tokens": record.input_tokens,
            "total_output_tokens": record.output_tokens,
            "turns": 1,
            "duration_ms": round(duration * 1000, 3),
        }
        verdict = {"is_error": error is not None, "error": error}
        if error is None and settings.text_in == "history":
            self._held_back.append({"type": "text", "content": said.text})
        skipped = self._prompt.skipped
        self._add(whole(settings.newline, "stop", usage=usage, **verdict, skipped_index_ids=skipped))
        self._record_held_back()
        exports = [f"export-{index_id.removeprefix('idx-')}" for index_id in self._prompt.sources]
        self._session.end_job({**usage, **verdict, "export_config_ids": exports})
        self._end("completed" if error is None else "failed")

    def _end(self, how: TurnState) -> None:
        self.ended = True
        self._state.live.discard(self)
        if self.begun:
            self._record.state = how
            self._record.ended = time.time()
        self._session.running.discard(self)
        if self._session.waiting:
            # In a call of its own: a long queue of instant turns would otherwise end in a recursion.
            asyncio.get_running_loop().call_soon(_begin_next, self._session)
        self._news.set()

    def abandon(self) -> None:
        """Stop where it is, without a stop event. A turn that has not begun leaves nothing at all."""
        if self.ended:
            return
        if self._task is not None:
            self._task.cancel()
        if self in self._session.waiting:
            self._session.waiting.remove(self)
        self._end("abandoned")

    def client_left(self) -> None:
        """Nobody reads the stream any more: run on alone, or be abandoned, as the settings have it now."""
        if self._alone or self._state.settings.survives_disconnect:
            self.run_alone()
        else:
            self.abandon()

    def run_alone(self) -> None:
        """Go on to the end, whoever reads the stream or leaves it."""
        self._alone = True
        self.coupled = False
        self._wanted.set()

    async def more(self) -> None:
        """Wait until an event has come to be or the turn has ended."""
        self._news.clear()
        self._wanted.set()
        await self._news.wait()


def _begin_next(session: StoredSession) -> None:
    if session.waiting and not session.running:
        session.waiting.popleft().begin()
