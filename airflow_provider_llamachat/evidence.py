"""What an answer is based on: a tool's result becomes a list of sources, plain JSON values of bounded size. No I/O.

The API documents no form of a tool's result. The known forms are those of its retrieval endpoints (retrieve, find, grep, read);
anything else is passed on as it is. Nothing here raises for a result of another form, because its turn was paid for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

MAX_TEXT = 2_000
"""Maximum number of characters of a source's text, of its metadata and of a result of unknown form."""
MAX_NAME = 512
"""Maximum number of characters of ids and names."""
MAX_COUNT = 100
"""Maximum number of sources in an XCom and in a line of a batch."""
MAX_BYTES = 48 * 1024
"""Maximum size of the sources in an XCom, in bytes of JSON."""
MAX_NUMBER = 2**63 - 1
"""The largest integer of databases and of Airflow's own messages."""
LINE_BYTES = 16 * 1024
"""Maximum size of the sources in a line of a batch, in bytes of JSON."""

_LENGTHS = (MAX_TEXT, 500, 100, 0)
# Lengths to which texts are cut before sources are left out: which page it was says more than what stands there.
_NOTE_BYTES = 300
_MAX_NESTING = 50
_UNSTORABLE = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]"
# PostgreSQL's JSON refuses NUL and halves of surrogate pairs; terminals obey the other control characters.

Source = dict[str, Any]


def plain(value: Any) -> Any:
    """Return a JSON value without what some JSON store refuses: NaN and very large numbers become None, control characters blanks."""
    # The JSON parser limits the depth.
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return re.sub(_UNSTORABLE, " ", value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        return None
    return value


def passages(result: Any) -> list[Any]:
    """Return the parts of a tool's result: one per passage, match or file."""
    if isinstance(result, dict) and isinstance(result.get("results"), list):
        result = result["results"]
    if isinstance(result, list):
        return [part for part in result if part not in (None, "", {}, [])]
    return [] if result in (None, "", {}) else [result]


def sources(
    tool: str, result: Any, arguments: Any = None, image_attachment: Any = None, *, most: int | None = None
) -> list[Source]:
    """Return the sources in the result of one tool call.

    Each has ``tool`` and, if it is known, ``index_id``, ``file_id``, ``file_name``, ``pages`` (first and last), ``score``, ``text``,
    ``metadata``, ``attachment`` (``source_id`` and ``attachment_name``); or, for an unknown form, ``raw``.

    :param arguments: arguments of the call, which may name the index or file.
    :param image_attachment: the picture of a page that came with the result.
    :param most: number of sources that are needed. Further ones have only ``tool``, because a result may have a million parts.
    """
    about = {"tool": _cut(str(tool), MAX_NAME)}
    asked = _names_in_call(arguments)
    parts = passages(result)
    found = [_source(about, part, asked) for part in parts[:most]]
    found += [about] * (len(parts) - len(found))
    picture = _attachment(image_attachment)
    if picture and all(source.get("attachment") != picture for source in found):
        if len(found) == 1 and "attachment" not in found[0]:
            found[0]["attachment"] = picture
        else:
            found.append({**about, "attachment": picture})
    return found


def _names_in_call(arguments: Any) -> Source:
    given = arguments if isinstance(arguments, Mapping) else {}
    several = given.get("index_ids")
    only = several[0] if isinstance(several, list) and len(several) == 1 else None
    return _present(index_id=_name(given.get("index_id")) or _name(only), file_id=_name(given.get("file_id")))


def _source(about: Source, part: Any, asked: Source) -> Source:
    if isinstance(part, str):
        return {**about, **asked, "text": _cut(part, MAX_TEXT)}
    known = _known(part, asked) if isinstance(part, dict) else {}
    return {**about, **(known or {"raw": _raw(part)})}


def _known(part: dict[str, Any], asked: Source) -> Source:
    """Return the fields of a retrieved passage, a match or a file; nothing for another form."""
    text = part.get("content")
    own = _present(index_id=_name(part.get("index_id")), file_id=_name(part.get("file_id")))
    file_name = _name(part.get("file_name"))
    if not isinstance(text, str) and not (own.get("file_id") or file_name):
        return {}
    static = part["static_fields"] if isinstance(part.get("static_fields"), dict) else {}
    metadata = part["metadata"] if isinstance(part.get("metadata"), dict) else {}
    names = {**asked, **_present(file_id=_name(static.get("parsed_directory_file_id"))), **own}
    score = number(part.get("score"))
    return _present(
        index_id=names.get("index_id"),
        file_id=names.get("file_id"),
        file_name=file_name or _name(metadata.get("file_name")),
        pages=_pages(static),
        score=number(part.get("rerank_score")) if score is None else score,
        text=_cut(text, MAX_TEXT) if isinstance(text, str) else None,
        metadata=_metadata(metadata) or None,
        attachment=_picture(static.get("attachments")),
    )


def _present(**fields: Any) -> Source:
    return {name: value for name, value in fields.items() if value is not None}


def _name(value: Any) -> str | None:
    return _cut(value, MAX_NAME) or None if isinstance(value, str) else None


def number(value: Any) -> float | None:
    """Return a JSON number that every store takes, or None."""
    return plain(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _pages(static: dict[str, Any]) -> list[int] | None:
    given = [static.get("page_range_start"), static.get("page_range_end")]
    pages = [int(page) for page in given if isinstance(page, int) and number(page) is not None]
    return [pages[0], pages[-1]] if pages else None


def _attachment(value: Any) -> dict[str, str] | None:
    if not isinstance(value, Mapping):
        return None
    source_id, name = _name(value.get("source_id")), _name(value.get("attachment_name"))
    return {"source_id": source_id, "attachment_name": name} if source_id and name else None


def _picture(attachments: Any) -> dict[str, str] | None:
    """Return the picture of the page among a passage's attachments, or else the first of them."""
    items = [item for item in attachments if isinstance(item, dict)] if isinstance(attachments, list) else []
    items.sort(key=lambda item: item.get("type") != "screenshot")
    return next(filter(None, map(_attachment, items)), None)


def _metadata(given: dict[str, Any]) -> Source:
    """Return as many of the user's own fields as fit into :data:`MAX_TEXT` characters."""
    kept: Source = {}
    size = 0
    for key, value in given.items():
        field = _raw(value)
        size += len(key) + len(json.dumps(field))
        if size > MAX_TEXT:
            break
        if not key.startswith("__"):
            kept[_cut(key, MAX_NAME)] = field
    return kept


_encoder = json.JSONEncoder(ensure_ascii=False)


def _raw(value: Any) -> Any:
    """Return ``value`` if it is small and flat enough for every XCom, or else the beginning of its JSON text."""
    text = ""
    try:
        # Piece by piece, so that a large value is not encoded as a whole.
        for piece in _encoder.iterencode(value):
            text += piece
            if len(text) > MAX_TEXT:
                return _cut(text, MAX_TEXT)
    except (RecursionError, TypeError, ValueError):
        return f"a value of type {type(value).__name__} that is no JSON"
    # Airflow's serialization is recursive, and refuses or interprets some names that begin in this way.
    if text.count("[") + text.count("{") > _MAX_NESTING or '"__' in text:
        return _cut(text, MAX_TEXT)
    return plain(value)


def _cut(text: str, limit: int) -> str:
    return re.sub(_UNSTORABLE, " ", text if len(text) <= limit else text[: max(0, limit - 1)] + "…"[:limit])


def bounded(found: list[Source], size: int = MAX_BYTES) -> list[Source]:
    """Return ``found`` in at most :data:`MAX_COUNT` entries and ``size`` bytes of JSON.

    Long texts are cut first, then the last sources are left out. The last entry is then a ``note`` that says so.
    """
    kept, sizes, length = found, [0], MAX_TEXT
    for length in _LENGTHS:
        kept = [_shortened(source, length) for source in found[:MAX_COUNT]]
        sizes = [len(json.dumps(source)) + 2 for source in kept]
        if sum(sizes) <= size - _NOTE_BYTES:
            break
    while sum(sizes) > size - _NOTE_BYTES:
        kept.pop()
        sizes.pop()
    if len(kept) == len(found) and length == MAX_TEXT:
        return kept
    left_out, cut = len(found) - len(kept), length < MAX_TEXT
    parts = [
        f"{left_out} of {len(found)} sources are left out." if left_out else "",
        f"Texts of sources are cut to {length} characters." if cut else "",
        f"At most {MAX_COUNT} sources and {size} bytes are kept.",
    ]
    return [*kept, {"note": " ".join(filter(None, parts))}]


def _shortened(source: Source, length: int) -> Source:
    if length == MAX_TEXT:
        return source
    short = {name: value for name, value in source.items() if name not in {"text", "raw", "metadata"}}
    for name in ("text", "raw"):
        if name in source and length:
            value = source[name]
            short[name] = _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), length)
    if "metadata" in source and len(json.dumps(source["metadata"])) <= length:
        short["metadata"] = source["metadata"]
    return short


def note(found: list[Source]) -> str | None:
    """Return what :func:`bounded` says of what it left out, or None."""
    return found[-1].get("note") if found else None


def cited(found: Iterable[Source]) -> list[str]:
    """Return a short citation for each document, such as ``report.pdf, pages 2, 4-5``, in the order of the sources."""
    documents: dict[str, list[str]] = {}
    for source in found:
        if "note" in source:
            continue
        name = source.get("file_name") or source.get("file_id") or f"result of {source['tool']}"
        pages = documents.setdefault(name, [])
        if (page := page_range(source)) and page not in pages:
            pages.append(page)
    return [
        f"{name}, {'page' if len(pages) == 1 and '-' not in pages[0] else 'pages'} {', '.join(pages)}"
        if pages
        else name
        for name, pages in documents.items()
    ]


def page_range(source: Source) -> str:
    """Return the pages of a source as text, such as ``2`` or ``4-5``, or an empty text."""
    pages = source.get("pages")
    return "" if not pages else "-".join(str(page) for page in dict.fromkeys(pages))
