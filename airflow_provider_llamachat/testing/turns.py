"""A turn: its events in order, who moves it on, what it leaves in the history, and how its events reach the client."""

from __future__ import annotations

import asyncio
import functools
import html
import re
import time
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from airflow_provider_llamachat.testing.corpus import Answer, answer
from airflow_provider_llamachat.testing.records import Fault, TurnRecord, TurnState, encode
from airflow_provider_llamachat.testing.settings import Settings
from airflow_provider_llamachat.testing.state import StoredIndex, StoredSession
from airflow_provider_llamachat.testing.wire import STREAM_HEADERS, park, reset

if TYPE_CHECKING:
    from airflow_provider_llamachat.testing.state import ServiceState

_RECORDED: dict[str, Callable[[str], str]] = {
    "verbatim": str,
    "trimmed": str.strip,
    "nfc": functools.partial(unicodedata.normalize, "NFC"),
    "nfkc": functools.partial(unicodedata.normalize, "NFKC"),
    "html": html.escape,
    "lower": str.lower,
    "quotes": lambda prompt: re.sub(r'"([^"]*)"', r"“\1”", prompt).replace('"', "“").replace("'", "’"),
    "no_zero_width": lambda prompt: re.sub("[\u200b-\u200d\u2060\ufeff]", "", prompt),
    "no_control": lambda prompt: "".join(char for char in prompt if unicodedata.category(char) != "Cc"),
    "prefix": "[user] {}".format,
    "suffix": "{} [sent by user]".format,
    "cut": lambda prompt: prompt[: len(prompt) // 2],
    "empty": "".format,
}
"""What ``Settings.recorded_as`` makes of a prompt."""


_ODD_EVENTS = {
    "garbage": b'event: message@data: {"type": "text", "content": "not js@@',
    "unknown_event": b'event: message@data: {"type":"citation_map","content":{"1":"doc"},"confidence":0.5}@@',
    "invalid_utf8": b'event: delta@data: {"type":"text_delta","content":"caf\xe9 \xff\xfe"}@@',
}
"""What the faults of these kinds add to a stream; ``@`` stands for a line end."""

Step = tuple[bytes, dict[str, Any] | None]
"""One event of a turn: its bytes on the wire, and what it leaves in the history (deltas leave nothing)."""


def _frame(kind: str, data: str, newline: str) -> bytes:
    return f"event: {kind}{newline}data: {data}{newline}{newline}".encode()


def _message(newline: str, kind: str, **values: Any) -> Step:
    event = {"type": kind, **values}
    return _frame("message", encode(event), newline), event


def _deltas(newline: str, kind: str, text: str, count: int) -> list[Step]:
    """Deltas of about the same length, none of them empty."""
    length, count = len(text), max(1, min(count, len(text)))
    pieces = [text[place * length // count : (place + 1) * length // count] for place in range(count)]
    return [(_frame("delta", encode({"type": kind, "content": piece}), newline), None) for piece in pieces]


def _script(turn: TurnRun, said: Answer, settings: Settings) -> list[Step]:
    """A turn as it will go, except for its stop, whose usage is known only at the end."""
    size, newline = max(1, settings.delta_chars), settings.newline
    thinking_count, text_count = -(-len(said.thinking) // size), -(-len(said.text) // size)
    if settings.events_per_turn is not None:
        # Six events are no deltas: prompt, thinking, call, result, text, stop.
        room = max(2, settings.events_per_turn - 6)
        thinking_count = max(1, room * len(said.thinking) // (len(said.thinking) + len(said.text)))
        text_count = room - thinking_count
    call = {"name": "retrieve", "call_id": f"call-{turn.record.position + 1}-1"}
    arguments = {"query": said.query, "index_ids": list(turn.sources)}
    steps = [
        _message(newline, "user_input", content=_RECORDED[settings.recorded_as](turn.record.prompt)),
        *_deltas(newline, "thinking_delta", said.thinking, thinking_count),
        _message(newline, "thinking", content=said.thinking),
        _message(newline, "tool_call", arguments=arguments, **call),
        _message(newline, "tool_result", **call, result=said.found, image_attachment=None),
    ]
    frame, event = _message(newline, "text", content=said.text)
    if settings.malformed_text != "none":
        content = {"broken_json": said.text, "null": None, "list": [said.text]}[settings.malformed_text]
        sent = encode({"type": "text", "content": content})
        frame = _frame("message", sent[: len(sent) // 2] if content == said.text else sent, newline)
    elif settings.text_in == "both":
        steps += _deltas(newline, "text_delta", said.text, text_count)
    if settings.text_in == "both":
        steps.append((frame, event))
    return steps if turn.error is None else steps[: max(1, turn.error_after)]


class TurnRun:
    """One accepted prompt.

    A turn that survives its client runs by itself, at its own pace, and the stream only watches. One that does not is coupled to the
    stream: each event comes to be when it is about to be sent, so a stream that stops stops the turn, with no race between the two.

    :ivar sources: the indexes that can be searched, by id.
    :ivar error: reason of a turn that is to fail, after ``error_after`` events; None for one that is to succeed.
    :ivar frames: bytes of the events that exist so far.
    :ivar length: how many events it will have, its stop included; 0 while it waits for its session's earlier turns.
    :ivar task: done when the session is free for the next turn.
    """

    def __init__(self, state: ServiceState, session: StoredSession, prompt: str, index_ids: list[str]) -> None:
        self.session = session
        self.record = TurnRecord(session.id, prompt, 0, index_ids, [], "running", 0.0)
        self.sources: dict[str, StoredIndex] = {}
        self.error: str | None = None
        self.error_after = 1
        self.frames: list[bytes] = []
        self.length = 0
        self.ended = False
        self._coupled = not state.settings.survives_disconnect
        self._alone = False
        self._state = state
        self._held_back: list[dict[str, Any]] = []
        self._news = asyncio.Event()
        self._wanted = asyncio.Event()

    def start(self) -> None:
        """Begin, or wait for the session's earlier turns, unless the settings allow several at once."""
        earlier = [] if self._state.settings.concurrent_turns == "allow" else self._state.running(self.session)
        self.session.locked = True
        self._state.live.append(self)
        self.task: asyncio.Task[None] = asyncio.create_task(self._run([turn.task for turn in earlier]))

    async def _run(self, earlier: list[asyncio.Task[None]]) -> None:
        """Live through the turn: events come in time, late ones in one go, and those of a coupled turn when they are wanted."""
        if earlier:
            await asyncio.wait(earlier)
        session, settings, record = self.session, self._state.settings, self.record
        if (foreign := settings.foreign_first) is not None:
            session.record({"type": "user_input", "content": foreign}, foreign, foreign=True)
        before = [stored.prompt for stored in session.shown() if stored.event["type"] == "user_input"]
        snippets = {index_id: index.snippets for index_id, index in self.sources.items()}
        said = answer(
            record.prompt, before[-1] if before else None, snippets, settings.answer_chars, self._state.scripted
        )
        record.position, record.started = len(before), time.time()
        self._state.turns.append(record)
        steps = _script(self, said, settings)
        self.length = len(steps) + 1
        clock = asyncio.get_running_loop().time
        began = clock()
        for step in (*steps, None):
            # The prompt's event exists from the moment the turn begins.
            if self.frames and self._coupled:
                await self._wanted.wait()
                self._wanted.clear()
            done = len(self.frames) / len(steps)
            # Looks again soon: a test that has seen enough of a slow turn sets the latency to 0.
            while (wait := began + done * self._state.settings.turn_latency - clock()) > 0:  # noqa: ASYNC110  # no event for it
                await asyncio.sleep(min(wait, 0.05))
            if step is not None:
                self._add(*step)
        self._stop(said, clock() - began)

    def _add(self, frame: bytes, event: dict[str, Any] | None, *, last: bool = False) -> None:
        self.frames.append(frame)
        self._held_back += [] if event is None else [event]
        if last or self._state.settings.records == "start":
            for held in self._held_back:
                self.session.record(held, self.record.prompt)
            self._held_back.clear()
        self._news.set()

    def _stop(self, said: Answer, duration: float) -> None:
        error, record, settings = self.error, self.record, self._state.settings
        record.input_tokens, record.output_tokens = said.input_tokens, said.output_tokens if error is None else 0
        usage: dict[str, Any] = {"total_input_tokens": record.input_tokens, "total_output_tokens": record.output_tokens}
        usage |= {"turns": 1, "duration_ms": round(duration * 1000, 3)}
        verdict = {"is_error": error is not None, "error": error}
        if error is None and settings.text_in == "history":
            self._held_back.append({"type": "text", "content": said.text})
        exports = [index.named("export") for index in self.sources.values()]
        self.session.job = {**usage, **verdict, "export_config_ids": exports}
        skipped = record.skipped_index_ids
        self._add(*_message(settings.newline, "stop", usage=usage, **verdict, skipped_index_ids=skipped), last=True)
        self._end("completed" if error is None else "failed")

    def _end(self, how: TurnState) -> None:
        self.ended = True
        self.record.state, self.record.ended = how, time.time()
        self._state.live.remove(self)
        self._news.set()

    def abandon(self) -> None:
        """Stop where it is, without a stop event. A turn that has not begun leaves nothing at all."""
        if not self.ended:
            self.task.cancel()
            self._end("abandoned")

    def client_left(self) -> None:
        """Nobody reads the stream any more: run on alone, or be abandoned, as the settings are now."""
        if self._alone or self._state.settings.survives_disconnect:
            self.run_alone()
        else:
            self.abandon()

    def run_alone(self) -> None:
        """Go on to the end, whether or not anybody reads the stream."""
        self._alone, self._coupled = True, False
        self._wanted.set()

    async def more(self) -> None:
        """Wait until an event has come to be or the turn has ended."""
        self._news.clear()
        self._wanted.set()
        await self._news.wait()


class TurnStream:
    """Sends a turn's events to the client that asked, with the fault that meets the stream, if any."""

    def __init__(self, request: web.Request, turn: TurnRun, settings: Settings) -> None:
        self._request, self._turn, self._settings = request, turn, settings
        self._answer = web.StreamResponse(headers=STREAM_HEADERS)
        self._sent, self._quiet_since = 0, 0.0
        # Seconds between two bytes; None sends everything at once.
        self._drip: float | None = None

    async def answer(self, fault: Fault | None) -> web.StreamResponse:
        """Answer with the turn's events."""
        try:
            await self._answer.prepare(self._request)
            self._quiet_since = asyncio.get_running_loop().time()
            if fault is not None and fault.kind != "error_stop":
                await self._act(fault)
            if fault is None or fault.kind != "cut":
                await self._send()
        except ConnectionError:
            # The client left between two events; its task's cancellation comes a moment later.
            pass
        return self._answer

    async def _act(self, fault: Fault) -> None:
        """Send the events before the fault, and do what it does; whatever comes back is followed by the other events."""
        while not self._turn.length and not self._turn.ended:
            await self._wait()
        await self._send(min(fault.after_events, self._turn.length - (fault.kind == "cut")))
        if fault.kind == "stall":
            await park()
        elif fault.kind == "stream_reset":
            await reset(self._request)
        elif fault.kind == "slow":
            self._drip = fault.delay
        elif fault.kind != "cut":
            await self._put(_ODD_EVENTS[fault.kind].replace(b"@", self._settings.newline.encode()))

    async def _send(self, upto: int | None = None) -> None:
        """Send events until ``upto`` of the turn's are sent, or all of them."""
        while upto is None or self._sent < upto:
            ready = self._turn.frames[self._sent : upto]
            if ready:
                await self._put(b"".join(ready))
                self._sent += len(ready)
            elif self._turn.ended:
                return
            else:
                await self._wait()

    async def _put(self, data: bytes) -> None:
        step = len(data) if self._drip is None else 1
        for place in range(0, len(data), step):
            await self._answer.write(data[place : place + step])
            if self._drip is not None:
                await asyncio.sleep(self._drip)
        self._quiet_since = asyncio.get_running_loop().time()

    async def _wait(self) -> None:
        interval = self._settings.keepalive_interval
        try:
            async with asyncio.timeout_at(None if interval is None else self._quiet_since + interval):
                await self._turn.more()
        except TimeoutError:
            await self._put(f": keep-alive{self._settings.newline * 2}".encode())
