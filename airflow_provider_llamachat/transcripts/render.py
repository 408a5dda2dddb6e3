"""Renders a session as a transcript.

Everything in a transcript is text of others: a prompt, an answer or a document may hold markup. HTML is escaped by Jinja2, and
Markdown by :func:`escaped`. No text becomes a template.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.conversation.history import turns
from airflow_provider_llamachat.evidence import page_range, plain
from airflow_provider_llamachat.models import ChatTurn, Session
from airflow_provider_llamachat.redaction import printable

if TYPE_CHECKING:
    from jinja2 import Environment

SHORT = 300
"""Maximum number of characters of the arguments of a tool call in Markdown and HTML."""

# Characters that have a meaning in Markdown anywhere, and those that have one at the beginning of a line.
_SPECIAL = re.compile(r"[\\`*_{}\[\]|~$]")
_SPECIAL_AT_BEGIN = re.compile(r"^(\d+(?=[.)])|)([#+\-=:.)])")

# Where the beginning of a transcript names its session, by format.
_SESSION = re.compile(
    rb"# .*\n\n- Session: (?P<markdown>.*)\n"
    rb"|<!DOCTYPE html>\n[\s\S]*?\n<dt>Session</dt><dd>(?P<html>.*)</dd>\n"
    rb'|\{\n  "session_id": (?P<json>.*),\n'
)


def as_json(session: Session) -> dict[str, Any]:
    """Return the transcript as JSON values: the session, and for each turn the question, answer, tool calls, sources and usage."""
    fields: dict[str, Any] = {
        "session_id": session.session_id,
        "title": session.generated_title,
        "index_ids": session.index_ids,
        "last_updated_at": session.last_updated_at,
        "turns": [_turn(turn) for turn in turns(session)],
    }
    values: dict[str, Any] = plain(fields)
    return values


def _turn(turn: ChatTurn) -> dict[str, Any]:
    return {
        "position": turn.position,
        "question": turn.prompt,
        "answer": turn.answer,
        "thinking": turn.thinking,
        "tools": [{"name": tool.name, "arguments": tool.arguments, "finished": tool.finished} for tool in turn.tools],
        "sources": turn.sources,
        "skipped_index_ids": turn.skipped_index_ids,
        "usage": turn.usage_as_dict(),
        "finished": turn.finished,
        "is_error": turn.is_error,
        "error": turn.error,
    }


def render(session: Session, form: str) -> str:
    """Return the transcript as text.

    :param form: ``markdown``, ``json`` or ``html``.
    """
    transcript = as_json(session)
    if form == "json":
        return json.dumps(transcript, ensure_ascii=False, indent=2) + "\n"
    return _environment().get_template(f"transcript.{form}").render(transcript)


def is_of_another(head: bytes, session: Session) -> bool:
    """Whether ``head`` is the beginning of the transcript of another session, in any format."""
    found = _SESSION.match(head)
    if found is None or (form := found.lastgroup) is None:
        return False
    empty = session.model_copy(update={"events": []})  # only the beginning is compared
    ours = _SESSION.match(render(empty, form).encode("utf-8", "replace"))
    return ours is None or found[form] != ours[form]


@functools.cache
def _environment() -> Environment:
    # Airflow has Jinja2, and importing it takes longer than this module.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=lambda name: name == "transcript.html",  # noqa: S701  # Markdown has an escaping of its own
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "name": lambda source: source.get("file_name") or source.get("file_id") or f"result of {source['tool']}",
        "passage": lambda source: (
            source["text"] if "text" in source else _brief(source["raw"]) if "raw" in source else ""
        ),
        "seconds": _seconds,
        "brief": _brief,
        "pages": page_range,
        "line": lambda value: escaped(" ".join(printable(str(value)).split())),
        "lines": lambda value: "\n".join(f"> {line}" for line in escaped(printable(value)).split("\n")),
    }
    return environment


def escaped(text: str) -> str:
    """Return ``text`` in Markdown that shows it as it is: no markup in it has an effect, and lines stay lines."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "  \n".join(map(_at_begin, _SPECIAL.sub(r"\\\g<0>", text).split("\n")))


def _at_begin(line: str) -> str:
    rest = line.lstrip(" \t")
    # Blanks at the beginning could make a block of code.
    indent = "\N{NO-BREAK SPACE}" * len(line[: len(line) - len(rest)].expandtabs(4))
    return indent + _SPECIAL_AT_BEGIN.sub(r"\1\\\2", rest)


def _seconds(usage: dict[str, Any]) -> str:
    duration = usage.get("duration_ms")
    return "unknown" if duration is None else f"{duration / 1000:.1f} s"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"
