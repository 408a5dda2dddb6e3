"""The script of a turn: its events in order, each with its bytes on the wire and its place in time."""

from __future__ import annotations

import functools
import html
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_llamachat.testing.answers import Answer, Source, answer
from airflow_provider_llamachat.testing.settings import Settings

encode: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Compact JSON, as the service sends it; one encoder for all, because making one costs more than most events."""


@dataclass(slots=True)
class Step:
    """One event of a turn.

    :ivar frame: its bytes on the wire.
    :ivar event: what it leaves in the history; None for increments, which leave nothing.
    :ivar at: seconds after the turn's beginning.
    """

    frame: bytes
    event: dict[str, Any] | None
    at: float = 0.0


@dataclass(slots=True)
class Script:
    """A turn as it will go, before it does.

    :ivar steps: its events but for the stop, whose usage is known at the end only.
    :ivar unsent: events that enter the history with the stop and are never sent.
    """

    steps: list[Step]
    unsent: list[dict[str, Any]]
    stop_at: float
    input_tokens: int
    output_tokens: int
    skipped: list[str]
    error: str | None


def frame(kind: str, data: str, newline: str) -> bytes:
    """A server-sent event."""
    return f"event: {kind}{newline}data: {data}{newline}{newline}".encode()


def stop_event(script: Script, duration_ms: float) -> dict[str, Any]:
    """The event that ends a turn."""
    return {
        "type": "stop",
        "usage": {
            "total_input_tokens": script.input_tokens,
            "total_output_tokens": script.output_tokens,
            "turns": 1,
            "duration_ms": duration_ms,
        },
        "is_error": script.error is not None,
        "error": script.error,
        "skipped_index_ids": script.skipped,
    }


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


def recorded(prompt: str, form: str) -> str:
    """``prompt`` as ``Settings.recorded_as`` has it."""
    return _RECORDED[form](prompt)


def write_script(
    prompt: str,
    previous: str | None,
    position: int,
    sources: Sequence[Source],
    skipped: list[str],
    settings: Settings,
    *,
    error: str | None = None,
    error_after: int = 1,
) -> Script:
    """Write the script of a turn.

    :param error: reason of a turn that fails; None for one that succeeds.
    :param error_after: events before the failing stop; the prompt's own comes first in any case.
    """
    newline = settings.newline
    reply = answer(prompt, previous, sources, length=settings.answer_chars)
    steps = _steps(prompt, position, reply, [source.index_id for source in sources], settings, newline)
    unsent = [{"type": "text", "content": reply.text}] if settings.text_in == "history" else []
    script = Script(steps, unsent, settings.turn_latency, reply.input_tokens, reply.output_tokens, skipped, error)
    if error is not None:
        del steps[max(1, error_after) :]
        script.unsent = []
        script.output_tokens = 0
    if settings.turn_latency:
        apart = settings.turn_latency / len(steps)
        for place, step in enumerate(steps):
            step.at = place * apart
    return script


def _steps(
    prompt: str, position: int, reply: Answer, index_ids: list[str], settings: Settings, newline: str
) -> list[Step]:
    def whole(event: dict[str, Any]) -> Step:
        return Step(frame("message", encode(event), newline), event)

    call_id = f"call-{position + 1}-1"
    thinking, text = reply.thinking, reply.text
    size = max(1, settings.delta_chars)
    thinking_count, text_count = -(-len(thinking) // size), -(-len(text) // size)
    if settings.events_per_turn is not None:
        # Six events are no increments: prompt, thinking, call, result, text, stop.
        room = max(2, settings.events_per_turn - 6)
        thinking_count = max(1, room * len(thinking) // (len(thinking) + len(text)))
        text_count = room - thinking_count
    return [
        whole({"type": "user_input", "content": recorded(prompt, settings.recorded_as)}),
        *_increments("thinking_delta", thinking, thinking_count, newline),
        whole({"type": "thinking", "content": thinking}),
        whole(
            {
                "type": "tool_call",
                "arguments": {"query": reply.query, "index_ids": index_ids},
                "name": "retrieve",
                "call_id": call_id,
            }
        ),
        whole(
            {
                "type": "tool_result",
                "name": "retrieve",
                "call_id": call_id,
                "result": reply.found,
                "image_attachment": None,
            }
        ),
        *([] if settings.text_in == "history" else _text(text, text_count, settings)),
    ]


def _text(text: str, count: int, settings: Settings) -> list[Step]:
    event = {"type": "text", "content": text}
    sent = encode(event)
    if settings.malformed_text == "none":
        return [
            *_increments("text_delta", text, count, settings.newline),
            Step(frame("message", sent, settings.newline), event),
        ]
    if settings.malformed_text == "broken_json":
        sent = sent[: len(sent) // 2]
    else:
        sent = encode({"type": "text", "content": None if settings.malformed_text == "null" else [text]})
    return [Step(frame("message", sent, settings.newline), event)]


def _increments(kind: str, text: str, count: int, newline: str) -> list[Step]:
    return [
        Step(frame("delta", encode({"type": kind, "content": piece}), newline), None) for piece in _cut(text, count)
    ]


def _cut(text: str, count: int) -> list[str]:
    """``text`` in ``count`` pieces of about the same length, none of them empty."""
    length = len(text)
    count = max(1, min(count, length))
    return [text[place * length // count : (place + 1) * length // count] for place in range(count)]
