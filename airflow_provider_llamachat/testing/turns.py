"""A turn under way: who moves it on, what it leaves in the history, and what becomes of it when its client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.testing.answers import Source
from airflow_provider_llamachat.testing.records import TurnRecord, TurnState
from airflow_provider_llamachat.testing.scripts import Script, encode, frame, stop_event, write_script
from airflow_provider_llamachat.testing.settings import Settings

if TYPE_CHECKING:
    from airflow_provider_llamachat.testing.state import Session, State


class Turn:
    """One accepted prompt.

    A turn that survives its client runs by itself, at its own pace, and the stream only watches. One that does not is coupled to the
    stream: each event comes to be when it is about to be sent, so a stream that stops stops the turn, with no race between the two.

    :ivar frames: bytes of the events that exist so far.
    :ivar length: how many events it will have, its stop included; 0 until it has begun.
    :ivar begun: False while the turn waits for its session to be free.
    :ivar ended: True after the stop, or after the turn was abandoned.
    """

    def __init__(
        self,
        state: State,
        session: Session,
        prompt: str,
        index_ids: list[str],
        sources: Sequence[Source],
        skipped: list[str],
        *,
        error: str | None = None,
        error_after: int = 1,
    ) -> None:
        self.frames: list[bytes] = []
        self.length = 0
        self.begun = False
        self.ended = False
        self.coupled = not state.settings.survives_disconnect
        self._state = state
        self._session = session
        self._prompt = prompt
        self._index_ids = index_ids
        self._sources = sources
        self._skipped = skipped
        self._error = error
        self._error_after = error_after
        self._script: Script | None = None
        self._record: TurnRecord | None = None
        self._held_back: list[dict[str, Any]] = []
        self._began_at = 0.0
        self._runner: asyncio.Task[None] | None = None
        self._watcher: asyncio.Future[None] | None = None

    @property
    def _settings(self) -> Settings:
        return self._state.settings

    def submit(self) -> None:
        """Begin, or wait for the session's other turn to end (whether two may run at once is the caller's question)."""
        self._state.live.add(self)
        busy = self._session.running or self._session.waiting
        if busy and self._settings.concurrent_turns != "allow":
            self._session.waiting.append(self)
        else:
            self.begin()

    def begin(self) -> None:
        """Begin now: the session is free, or two turns may run at once."""
        session = self._session
        session.settle()
        if self._settings.foreign_first is not None:
            session.record({"type": "user_input", "content": self._settings.foreign_first}, foreign=True)
        previous = session.prompts[-1] if session.prompts else None
        position = len(session.prompts)
        self._script = write_script(
            self._prompt,
            previous,
            position,
            self._sources,
            self._skipped,
            self._settings,
            error=self._error,
            error_after=self._error_after,
        )
        self.length = len(self._script.steps) + 1
        self._record = TurnRecord(
            session.id, self._prompt, position, self._index_ids, self._skipped, "running", time.time()
        )
        self._state.turns.append(self._record)
        session.running.add(self)
        session.locked = True
        self.begun = True
        self._began_at = asyncio.get_running_loop().time()
        self._advance()
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
            self._advance()

    def due_in(self) -> float:
        """Seconds until the next event of a turn that has begun is due; 0 or less when it is."""
        if self._script is None:
            raise RuntimeError("the turn has not begun")
        done = len(self.frames)
        at = self._script.steps[done].at if done < len(self._script.steps) else self._script.stop_at
        return at + self._began_at - asyncio.get_running_loop().time() if at else 0.0

    def advance(self) -> None:
        """Let the next event of a coupled turn come to be."""
        if not self.ended:
            self._advance()

    def _advance(self) -> None:
        script = self._script
        if script is None:
            raise RuntimeError("the turn has not begun")
        done = len(self.frames)
        if done < len(script.steps):
            step = script.steps[done]
            self.frames.append(step.frame)
            if step.event is not None:
                self._remember(step.event)
            self._notify()
            return
        stop = stop_event(script, round((asyncio.get_running_loop().time() - self._began_at) * 1000, 3))
        self.frames.append(frame("message", encode(stop), self._settings.newline))
        for event in (*script.unsent, stop):
            self._remember(event)
        for event in self._held_back:
            self._record_event(event)
        self._held_back = []
        exports = [f"export-{source.index_id.removeprefix('idx-')}" for source in self._sources]
        self._session.end_job(
            {**stop["usage"], "is_error": stop["is_error"], "error": stop["error"], "export_config_ids": exports}
        )
        if self._record is not None:
            self._record.input_tokens = script.input_tokens
            self._record.output_tokens = script.output_tokens
        self._end("completed" if script.error is None else "failed")

    def _remember(self, event: dict[str, Any]) -> None:
        if self._settings.records == "end":
            self._held_back.append(event)
        else:
            self._record_event(event)

    def _record_event(self, event: dict[str, Any]) -> None:
        self._session.record(event, self._prompt)

    def _end(self, how: TurnState) -> None:
        self.ended = True
        self._state.live.discard(self)
        self._script = None
        if self._record is not None:
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
        if self.ended:
            return
        if not self._settings.survives_disconnect:
            self.abandon()
        else:
            self.run_alone()

    def run_alone(self) -> None:
        """Go on to the end, whoever reads the stream or leaves it."""
        if self.coupled:
            self.coupled = False
            if self.begun:
                self._run()

    async def changed(self, seconds: float | None) -> bool:
        """Wait until an event has come to be or the turn has ended.

        :param seconds: how long to wait at the most; None for ever.
        :returns: False when the time was over first.
        """
        loop = asyncio.get_running_loop()
        watcher: asyncio.Future[None] = loop.create_future()
        self._watcher = watcher
        timer = None if seconds is None else loop.call_later(seconds, _wake, watcher)
        try:
            await watcher
        finally:
            self._watcher = None
            if timer is not None:
                timer.cancel()
        return timer is None or loop.time() < timer.when()

    async def finished(self) -> None:
        """Wait until the turn has ended; whoever waits moves a coupled turn on."""
        while not self.ended:
            if self.coupled and self.begun:
                await asyncio.sleep(max(self.due_in(), 0))
                self.advance()
            else:
                await self.changed(None)

    def _notify(self) -> None:
        if self._watcher is not None:
            _wake(self._watcher)


def _begin_next(session: Session) -> None:
    if session.waiting and not session.running:
        session.waiting.popleft().begin()


def _wake(watcher: asyncio.Future[None]) -> None:
    if not watcher.done():
        watcher.set_result(None)
