"""A turn under way: who moves it on, what it leaves in the history, and what becomes of it when its client leaves."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.testing.ledger import TurnRecord, TurnState
from airflow_provider_llamachat.testing.script import AcceptedPrompt, Script, encode, frame

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
        self._runner: asyncio.Task[None] | None = None
        self._watcher: asyncio.Future[None] | None = None

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
        self._script = Script(self._prompt, previous, position, settings)
        self.length = len(self._script.steps) + 1
        asked, skipped = self._prompt.index_ids, self._prompt.skipped
        self._record = TurnRecord(
            session.id, self._prompt.text, position, asked, skipped, "running", started=time.time()
        )
        self._state.turns.append(self._record)
        session.running.add(self)
        session.locked = True
        self.begun = True
        self._began = asyncio.get_running_loop().time()
        self.advance()
        if not self.coupled:
            self._run()

    def _run(self) -> None:
        self._catch_up()
        if not self.ended:
            self._runner = asyncio.create_task(self._run_in_time())

    async def _run_in_time(self) -> None:
        while not self.ended:
            await asyncio.sleep(max(self.due_in(), 0))
            self._catch_up()

    def _catch_up(self) -> None:
        """Let come to be all that is due, in one go: under load a late wake-up costs no further ones."""
        while not self.ended and self.due_in() <= 0:
            self.advance()

    def due_in(self) -> float:
        """Seconds until the next event of a turn that has begun is due; 0 or less when it is."""
        at = len(self.frames) * self._script.apart
        return at + self._began - asyncio.get_running_loop().time() if at else 0.0

    def advance(self) -> None:
        """Let the next event come to be."""
        if self.ended:
            return
        done, script = len(self.frames), self._script
        if done < len(script.steps):
            step = script.steps[done]
            self.frames.append(step.frame)
            if step.event is not None:
                self._remember(step.event)
            self._notify()
            return
        stop = script.stop(asyncio.get_running_loop().time() - self._began)
        self.frames.append(frame("message", encode(stop), self._state.settings.newline))
        for event in (*script.unsent, stop):
            self._remember(event)
        for event in self._held_back:
            self._session.record(event, self._prompt.text)
        exports = [f"export-{index_id.removeprefix('idx-')}" for index_id in self._prompt.sources]
        verdict = {"is_error": stop["is_error"], "error": stop["error"], "export_config_ids": exports}
        self._session.end_job({**stop["usage"], **verdict})
        self._record.input_tokens, self._record.output_tokens = script.answer.input_tokens, script.output_tokens
        self._end("failed" if stop["is_error"] else "completed")

    def _remember(self, event: dict[str, Any]) -> None:
        if self._state.settings.records == "end":
            self._held_back.append(event)
        else:
            self._session.record(event, self._prompt.text)

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
        self._notify()

    def abandon(self) -> None:
        """Stop where it is, without a stop event. A turn that has not begun leaves nothing at all."""
        if self.ended:
            return
        if self._runner is not None:
            self._runner.cancel()
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
        if self.coupled:
            self.coupled = False
            if self.begun:
                self._run()

    async def changed(self, seconds: float | None) -> None:
        """Wait until an event has come to be or the turn has ended, at most so many seconds (None: for ever)."""
        loop = asyncio.get_running_loop()
        self._watcher = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self._notify)
        try:
            await self._watcher
        finally:
            self._watcher = None
            if timer is not None:
                timer.cancel()

    async def finished(self) -> None:
        """Wait until the turn has ended; whoever waits moves a coupled turn on."""
        while not self.ended:
            if self.coupled and self.begun:
                await asyncio.sleep(max(self.due_in(), 0))
                self.advance()
            else:
                await self.changed(None)

    def _notify(self) -> None:
        if self._watcher is not None and not self._watcher.done():
            self._watcher.set_result(None)


def _begin_next(session: StoredSession) -> None:
    if session.waiting and not session.running:
        session.waiting.popleft().begin()
