"""The script of a turn: its events in order, each with its bytes on the wire."""

from __future__ import annotations

import functools
import html
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from airflow_provider_llamachat.testing.answers import Answer
from airflow_provider_llamachat.testing.corpus import Snippet
from airflow_provider_llamachat.testing.settings import Settings

encode: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Compact JSON, as the service sends it; one encoder for all, because making one costs more than most events."""

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


@dataclass
class AcceptedPrompt:
    """A prompt that was accepted.

    :ivar sources: what can be searched, by index id.
    :ivar skipped: ids of indexes that cannot be queried.
    :ivar error: reason of a turn that is to fail; None for one that is to succeed.
    :ivar error_after: events before the failing stop; the prompt's own comes first in any case.
    """

    text: str
    index_ids: list[str]
    sources: Mapping[str, Sequence[Snippet]]
    skipped: list[str]
    error: str | None = None
    error_after: int = 1


class Step(NamedTuple):
    """One event of a turn: its bytes on the wire, and what it leaves in the history (increments leave nothing)."""

    frame: bytes
    event: dict[str, Any] | None


def frame(kind: str, data: str, newline: str) -> bytes:
    """A server-sent event."""
    return f"event: {kind}{newline}data: {data}{newline}{newline}".encode()


def whole(newline: str, kind: str, **values: Any) -> Step:
    """An event that the history keeps."""
    event = {"type": kind, **values}
    return Step(frame("message", encode(event), newline), event)


def write_script(prompt: AcceptedPrompt, said: Answer, position: int, settings: Settings) -> list[Step]:
    """A turn as it will go, but for its stop, whose usage is known at the end only."""
    message = functools.partial(whole, settings.newline)

    def increments(kind: str, text: str, count: int) -> list[Step]:
        pieces = [encode({"type": kind, "content": piece}) for piece in _cut(text, count)]
        return [Step(frame("delta", piece, settings.newline), None) for piece in pieces]

    size = max(1, settings.delta_chars)
    thinking_count, text_count = -(-len(said.thinking) // size), -(-len(said.text) // size)
    if settings.events_per_turn is not None:
        # Six events are no increments: prompt, thinking, call, result, text, stop.
        room = max(2, settings.events_per_turn - 6)
        thinking_count = max(1, room * len(said.thinking) // (len(said.thinking) + len(said.text)))
        text_count = room - thinking_count
    call = {"name": "retrieve", "call_id": f"call-{position + 1}-1"}
    steps = [
        message("user_input", content=_RECORDED[settings.recorded_as](prompt.text)),
        *increments("thinking_delta", said.thinking, thinking_count),
        message("thinking", content=said.thinking),
        message("tool_call", arguments={"query": said.query, "index_ids": list(prompt.sources)}, **call),
        message("tool_result", **call, result=said.found, image_attachment=None),
    ]
    if settings.text_in == "both":
        text = message("text", content=said.text)
        if settings.malformed_text == "none":
            steps += increments("text_delta", said.text, text_count)
        else:
            text = Step(_malformed(said.text, settings), text.event)
        steps.append(text)
    return steps if prompt.error is None else steps[: max(1, prompt.error_after)]


def _malformed(text: str, settings: Settings) -> bytes:
    content: Any = {"broken_json": text, "null": None, "list": [text]}[settings.malformed_text]
    sent = encode({"type": "text", "content": content})
    return frame("message", sent[: len(sent) // 2] if content is text else sent, settings.newline)


def _cut(text: str, count: int) -> list[str]:
    """``text`` in ``count`` pieces of about the same length, none of them empty."""
    length = len(text)
    count = max(1, min(count, length))
    return [text[place * length // count : (place + 1) * length // count] for place in range(count)]
