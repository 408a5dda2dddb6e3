"""A turn: its events in order, its pace, what it leaves in the history, and how its events reach the client."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import html
import re
import time
import unicodedata
from collections.abc import Callable
from typing import Any

from aiohttp import web

from airflow_provider_llamachat.testing.corpus import Answer, answer
from airflow_provider_llamachat.testing.faults import Fault, TurnRecord, TurnState, encode
from airflow_provider_llamachat.testing.settings import Settings
from airflow_provider_llamachat.testing.state import ServiceState, StoredIndex, StoredSession
from airflow_provider_llamachat.testing.wire import STREAM_HEADERS, park, reset

_RECORDED_AS: dict[str, Callable[[str], str]] = {
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

_ODD_EVENTS = {
    "garbage": b'event: message\ndata: {"type": "text", "content": "not js\n\n',
    "unknown_event": b'event: message\ndata: {"type":"citation_map","content":{"1":"doc"},"confidence":0.5}\n\n',
    "invalid_utf8": b'event: delta\ndata: {"type":"text_delta","content":"caf\xe9 \xff\xfe"}\n\n',
}

Step = tuple[bytes, dict[str, Any] | None]
"""One event of a turn: its bytes on the wire, with line feeds as line ends, and its entry in the history (deltas have none)."""


def _step(kind: str, **values: Any) -> Step:
    event, is_delta = {"type": kind, **values}, kind.endswith("_delta")
    frame = f"event: {'delta' if is_delta else 'message'}\ndata: {encode(event)}\n\n"
    return frame.encode(), None if is_delta else event


def _deltas(kind: str, text: str, count: int) -> list[Step]:
    """Deltas of about the same length, none of them empty."""
    length, count = len(text), max(1, min(count, len(text)))
    pieces = [text[place * length // count : (place + 1) * length // count] for place in range(count)]
    return [_step(kind, content=piece) for piece in pieces]


def _script(turn: TurnRun, said: Answer, settings: Settings) -> list[Step]:
    """All events of a turn except its stop, whose usage is known only at the end."""
    thinking_count, text_count = (-(-len(text) // max(1, settings.delta_chars)) for text in (said.thinking, said.text))
    if settings.events_per_turn is not None:
        # Six events are not deltas: prompt, thinking, call, result, text, stop.
        room = max(2, settings.events_per_turn - 6)
        thinking_count = max(1, room * len(said.thinking) // (len(said.thinking) + len(said.text)))
        text_count = room - thinking_count
    call = {"name": "retrieve", "call_id": f"call-{turn.record.position + 1}-1"}
    steps = [
        _step("user_input", content=_RECORDED_AS[settings.recorded_as](turn.record.prompt)),
        *_deltas("thinking_delta", said.thinking, thinking_count),
        _step("thinking", content=said.thinking),
        _step("tool_call", arguments={"query": said.query, "index_ids": list(turn.sources)}, **call),
        _step("tool_result", **call, result=said.found, image_attachment=None),
    ]
    content = {"null": None, "list": [said.text]}.get(settings.malformed_text, said.text)
    frame, event = _step("text", content=content)[0], {"type": "text", "content": said.text}
    if settings.malformed_text == "broken_json":
        whole = encode(event)
        frame = frame.replace(whole[len(whole) // 2 :].encode(), b"")
    if settings.text_in == "both":
        steps += _deltas("text_delta", said.text, text_count) if settings.malformed_text == "none" else []
        steps.append((frame, event))
    return steps if turn.error is None else steps[: max(1, turn.error_after)]


class TurnRun:
    """One accepted prompt.

    A turn that survives its client runs at its own pace, and the stream only watches it. One that does not is coupled to the stream:
    each event is created when it is about to be sent, so that the turn stops where the stream stops, without a race between them.

    :ivar error: why the turn is to fail, after ``error_after`` events; None if it is to succeed.
    :ivar length: number of events that it will have, including its stop; 0 while it waits for earlier turns of its session.
    :ivar task: done when the session is free for the next turn.
    """

    def __init__(self, state: ServiceState, session: StoredSession, prompt: str, index_ids: list[str]) -> None:
        self.session, self._state = session, state
        self.record = TurnRecord(session.id, prompt, 0, index_ids, [], "running", 0.0)
        self.sources: dict[str, StoredIndex] = {}
        self.error: str | None = None
        self.error_after = 1
        self.frames: list[bytes] = []
        self.length = 0
        self._coupled = not state.settings.survives_disconnect
        self._held_back: list[dict[str, Any]] = []
        self._news, self._wanted = asyncio.Event(), asyncio.Event()

    def start(self) -> None:
        """Begin, after the session's earlier turns unless the settings allow several at once."""
        queues = self._state.settings.concurrent_turns != "allow"
        earlier = [turn.task for turn in self._state.live if queues and turn.session is self.session]
        self.session.locked = True
        self._state.live.append(self)
        self.task: asyncio.Task[None] = asyncio.create_task(self._run(earlier))

    async def _run(self, earlier: list[asyncio.Task[None]]) -> None:
        """Create the events at their times, or those of a coupled turn when the stream wants them. Late ones come at once."""
        if earlier:
            await asyncio.wait(earlier)
        session, settings, record = self.session, self._state.settings, self.record
        if (foreign := settings.foreign_first) is not None:
            session.record({"type": "user_input", "content": foreign}, foreign, foreign=True)
        before = [stored.prompt for stored in session.shown() if stored.event["type"] == "user_input"]
        snippets = {index_id: index.snippets for index_id, index in self.sources.items()}
        said = answer(record.prompt, before, snippets, settings.answer_chars, self._state.scripted)
        record.position, record.started = len(before), time.time()
        self._state.turns.append(record)
        steps = _script(self, said, settings)
        self.length = len(steps) + 1
        clock = asyncio.get_running_loop().time
        began = clock()
        for step in (*steps, None):
            # The prompt's event exists as soon as the turn begins.
            if self.frames and self._coupled:
                await self._wanted.wait()
                self._wanted.clear()
            done = len(self.frames) / len(steps)
            # A test that has seen enough of a slow turn sets the latency to 0, so look often.
            while (wait := began + done * self._state.settings.turn_latency - clock()) > 0:  # noqa: ASYNC110  # no event for it
                await asyncio.sleep(min(wait, 0.05))
            if step is not None:
                self._add(*step)
        record.input_tokens, record.output_tokens = said.input_tokens, said.output_tokens if self.error is None else 0
        usage: dict[str, Any] = {"total_input_tokens": record.input_tokens, "total_output_tokens": record.output_tokens}
        usage |= {"turns": 1, "duration_ms": round(1000 * (clock() - began), 3)}
        verdict = {"is_error": self.error is not None, "error": self.error}
        if self.error is None and self._state.settings.text_in == "history":
            self._held_back.append({"type": "text", "content": said.text})
        exports = [index.named("export") for index in self.sources.values()]
        session.job = {**usage, **verdict, "export_config_ids": exports}
        self._add(*_step("stop", usage=usage, **verdict, skipped_index_ids=record.skipped_index_ids), last=True)
        self._end("completed" if self.error is None else "failed")

    def _add(self, frame: bytes, event: dict[str, Any] | None, *, last: bool = False) -> None:
        self.frames.append(frame)
        self._held_back += [] if event is None else [event]
        if last or self._state.settings.records == "start":
            for held in self._held_back:
                self.session.record(held, self.record.prompt)
            self._held_back.clear()
        self._news.set()

    def _end(self, how: TurnState) -> None:
        self.record.state, self.record.ended = how, time.time()
        self._state.live.remove(self)
        self._news.set()

    def abandon(self) -> None:
        """Stop where it is, without a stop event. A turn that has not begun leaves nothing behind."""
        if self.record.ended is None:
            self.task.cancel()
            self._end("abandoned")

    def client_left(self) -> None:
        """Nobody reads the stream any more: go on alone or abandon the turn, by the current settings."""
        (self.run_alone if self._state.settings.survives_disconnect else self.abandon)()

    def run_alone(self) -> None:
        """Go on to the end, whether or not anybody reads the stream."""
        self._coupled = False
        self._wanted.set()

    async def more(self) -> None:
        """Wait until there is another event, or the turn has ended."""
        self._news.clear()
        self._wanted.set()
        await self._news.wait()


async def stream(turn: TurnRun, request: web.Request, settings: Settings, fault: Fault | None) -> web.StreamResponse:
    """Send the events of a turn that come before the fault, let it act, and send the others unless it ends the stream."""
    answer, sent, place = web.StreamResponse(headers=STREAM_HEADERS), 0, None
    drip: float | None = None  # seconds between two bytes; None sends everything at once

    async def put(data: bytes) -> None:
        data = data.replace(b"\n", settings.newline.encode())
        step = 1 if drip is not None else max(1, len(data))
        for start in range(0, len(data), step):
            await answer.write(data[start : start + step])
            if drip is not None:
                await asyncio.sleep(drip)

    # The client may leave between two events. The task is cancelled only a moment later.
    with contextlib.suppress(ConnectionError):
        await answer.prepare(request)
        while fault is not None or sent < len(turn.frames) or turn.record.ended is None:
            if fault is not None and turn.length:
                place = min(fault.after_events, turn.length - (fault.kind == "cut"))
            if ready := turn.frames[sent:place]:
                await put(b"".join(ready))
                sent += len(ready)
            elif fault is not None and sent == place:
                drip, pause = (fault.delay, 0.0) if fault.kind == "slow" else (None, fault.delay)
                await asyncio.sleep(pause)
                if fault.kind == "cut":
                    break
                if fault.kind in ("stall", "stream_reset"):
                    await (park() if fault.kind == "stall" else reset(request))
                await put(_ODD_EVENTS.get(fault.kind, b""))
                fault = place = None
            else:
                try:
                    async with asyncio.timeout(settings.keepalive_interval):
                        await turn.more()
                except TimeoutError:
                    await put(b": keep-alive\n\n")
    return answer
