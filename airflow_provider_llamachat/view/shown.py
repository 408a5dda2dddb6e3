"""What the page receives: plain, bounded JSON values, made of what tasks pushed. No I/O, and no trust in the form of any value."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.evidence import number, plain

if TYPE_CHECKING:
    from airflow_provider_llamachat.view.queries import Task

MAX_TEXT = 50_000
"""Maximum number of characters of a question or an answer."""
MAX_LINE_TEXT = 4_000
"""Maximum number of characters of a question or an answer in a line of a batch."""
MAX_LINES = 100
"""Maximum number of lines of a batch's results."""
MAX_SOURCES = 100
"""Maximum number of sources of an answer."""
MAX_SOURCE_TEXT = 2_000
MAX_NAME = 512
OUTCOMES = ("answered", "failed", "interrupted", "running", "unasked")
MAX_COUNT = 2**53
"""Largest number that JavaScript counts exactly. Sums ignore larger and negative numbers, so they stay finite."""
_ENDS = {"success": "answered", "failed": "failed"}
_NOT_ASKED = frozenset({None, "skipped", "upstream_failed", "removed"})
_MANIFEST = (
    "total",
    "answered",
    "failed",
    "interrupted",
    "unasked",
    "total_input_tokens",
    "total_output_tokens",
    "sessions_opened",
    "sessions_deleted",
    "kept",
    "settled",
    "rate_limited",
    "seconds",
)


def _text(value: Any, limit: int = MAX_NAME) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        except (ValueError, RecursionError):
            value = "(unreadable)"
    return str(plain(value if len(value) <= limit else value[: limit - 1] + "…"))


def _count(value: Any) -> float:
    count = number(value) or 0
    return count if 0 <= count <= MAX_COUNT else 0


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _time(value: datetime | None) -> str | None:
    return value.isoformat() if value else None


def manifest(task: Task) -> dict[str, Any] | None:
    """Return the manifest of a batch, None for other tasks and for a batch without one."""
    given = _mapping(task.xcoms.get("return_value"))
    if not {"total", "answered", "output_path"} <= given.keys():
        return None
    return {name: number(given.get(name)) for name in _MANIFEST} | {"output_path": _text(given["output_path"], 2_000)}


def outcome(task: Task) -> str:
    """Return what became of a task, one of :data:`OUTCOMES`."""
    state = None if task.state is None else str(task.state)
    if state in _NOT_ASKED:
        return "unasked"
    found = _ENDS.get(state or "", "running")
    is_interrupted = _mapping(task.xcoms.get("usage")).get("outcome") == "interrupted"
    return "interrupted" if found == "failed" and is_interrupted else found


def totals(tasks: Iterable[Task]) -> dict[str, float]:
    """Return how many questions had which outcome, and their tokens. A batch counts as many questions as its manifest says."""
    found: dict[str, float] = dict.fromkeys((*OUTCOMES, "input_tokens", "output_tokens"), 0)
    for task in tasks:
        made = manifest(task)
        usage = made or _mapping(task.xcoms.get("usage"))
        if made:
            for name in ("answered", "failed", "interrupted", "unasked"):
                found[name] += _count(made[name])
        else:
            found[outcome(task)] += 1
        for name in ("input", "output"):
            found[f"{name}_tokens"] += _count(usage.get(f"total_{name}_tokens"))
    return found


def run(row: Any, tasks: list[Task]) -> dict[str, Any]:
    """Return a run of the list."""
    return {
        "dag_id": row.dag_id,
        "run_id": row.run_id,
        "state": str(row.state),
        "run_after": _time(row.run_after),
        "seconds": (row.end_date - row.start_date).total_seconds() if row.end_date and row.start_date else None,
        "tasks": len(tasks),
        **totals(tasks),
    }


def days(runs: Mapping[int, Any], tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Return outcomes and tokens per day (UTC) and Dag, oldest first.

    :param runs: rows with ``dag_id`` and ``run_after``, by the number that a task knows its run by.
    """
    groups: dict[tuple[str, str], list[Task]] = {}
    keys = {number: (row.run_after.date().isoformat(), row.dag_id) for number, row in runs.items()}
    for task in tasks:
        # A run that began between two statements is not there.
        if key := keys.get(task.run):
            groups.setdefault(key, []).append(task)
    return [{"day": day, "dag_id": dag_id, **totals(group)} for (day, dag_id), group in sorted(groups.items())]


def task(task: Task) -> dict[str, Any]:
    """Return the conversation of a task."""
    xcoms, made = task.xcoms, manifest(task)
    lines = _list(xcoms.get("results"))
    usage = _mapping(xcoms.get("usage"))
    adopted = usage.get("adopted")
    is_batch = made is not None or task.operator == "ChatBatchOperator"
    return {
        "task_id": task.task_id,
        "map_index": task.map_index,
        "operator": task.operator,
        "state": None if task.state is None else str(task.state),
        "outcome": outcome(task),
        "try_number": task.try_number,
        "start_date": _time(task.start_date),
        "seconds": number(task.duration),
        "session_id": None if is_batch else _text(_id(task.rendered.get("session_id"))),
        "index_ids": [] if is_batch else _ids(task.rendered.get("index_ids")),
        "skipped_index_ids": _ids(xcoms.get("skipped_index_ids")),
        "question": None if is_batch else _text(task.rendered.get("prompt"), MAX_TEXT),
        "answer": None if is_batch else _text(xcoms.get("return_value"), MAX_TEXT),
        "adopted": adopted if isinstance(adopted, bool) else None,
        "usage": _usage(usage),
        **_evidence(xcoms.get("sources"), MAX_SOURCE_TEXT),
        "is_batch": is_batch,
        "manifest": made,
        "results": [_line(_mapping(item)) for item in lines[:MAX_LINES]],
    }


def _ids(given: Any) -> list[str]:
    ids = given if isinstance(given, list) else [given]
    return [text for item in ids[:MAX_SOURCES] if (text := _text(item))]


def _id(session: Any) -> Any:
    # A mapped task gets the whole session.
    return session.get("session_id", session) if isinstance(session, dict) else session


def _usage(usage: dict[str, Any]) -> dict[str, float | None]:
    names = ("total_input_tokens", "total_output_tokens", "turns", "duration_ms")
    return {name: number(usage.get(name)) for name in names}


def _evidence(given: Any, limit: int) -> dict[str, Any]:
    sources = [_mapping(item) for item in _list(given)[:MAX_SOURCES]]
    tools = Counter(_text(source.get("tool")) or "unknown" for source in sources)
    return {
        "sources": [
            {
                "tool": _text(source.get("tool")),
                "file_name": _text(source.get("file_name")) or _text(source.get("file_id")),
                "index_id": _text(source.get("index_id")),
                "pages": [number(page) for page in _list(source.get("pages"))[:2]],
                "score": number(source.get("score")),
                "text": _text(source.get("text", source.get("raw")), limit),
            }
            for source in sources
        ],
        "tools": [{"name": name, "results": count} for name, count in tools.items()],
    }


def _line(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": _text(line.get("id")) or _text(line.get("position")),
        "outcome": _text(line.get("outcome")),
        "question": _text(line.get("prompt"), MAX_LINE_TEXT),
        "answer": _text(line.get("answer"), MAX_LINE_TEXT),
        "error": _text(_mapping(line.get("error")).get("message"), MAX_LINE_TEXT),
        "session_id": _text(line.get("session_id")),
        "usage": _usage(_mapping(line.get("usage"))),
        **_evidence(line.get("sources"), 300),
    }
