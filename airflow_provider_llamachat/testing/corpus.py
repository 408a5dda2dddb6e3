"""Answers a prompt from the documents of indexes: a small, deterministic stand-in for the service's model.

The same prompt over the same indexes gives the same words and the same token counts; only a question that leans on the one
before it ("and in Q2?") takes its subject from there.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_PERIOD = re.compile(r"q[1-4]|(19|20)\d\d")
_FOLLOW_UP = re.compile(r"\s*(and|or|what about|how about|then|also)\b", re.IGNORECASE)
_STOP_WORDS = """
a about an and are at be by can did do does for from give had has have how i in is it its me of on or our please say tell than that the
their then there these they this to was we were what when where which who why will with you your
"""
_PROMPT_OVERHEAD = 180
"""Tokens of the instructions that a service puts around a prompt."""


class Snippet(NamedTuple):
    """A piece of a document, as retrieval finds it."""

    document: str
    page: int
    text: str


class Scripted(NamedTuple):
    """An answer that a test prescribed: what the prompt has to match, the text, and the results of the search."""

    match: str | re.Pattern[str]
    text: str
    found: list[dict[str, Any]]


class Answer(NamedTuple):
    """What the model thinks, searches, finds and says."""

    thinking: str
    query: str
    found: list[dict[str, Any]]
    text: str
    input_tokens: int
    output_tokens: int


def snippets_from(documents: Sequence[str | Mapping[str, Any]]) -> list[Snippet]:
    """The documents of an index that a test adds: texts, or ``{"document", "page", "text"}`` objects.

    :raises ValueError: anything else.
    """
    found = []
    for number, given in enumerate(documents, start=1):
        document: Any = {"text": given} if isinstance(given, str) else given
        if not isinstance(document, Mapping) or not isinstance(document.get("text"), str):
            raise ValueError(f"Document {number} is neither a text nor an object with 'text': {given!r}")
        name = str(document.get("document", f"Document {number}"))
        found.append(Snippet(name, int(document.get("page", 1)), document["text"]))
    return found


@functools.lru_cache(maxsize=4096)
def _terms(text: str) -> frozenset[str]:
    words = set(re.findall("[a-z0-9]+", text.lower())).difference(_STOP_WORDS.split())
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words)


def _tokens(text: str) -> int:
    # About what a tokenizer makes of a text: one token for every four characters.
    return -(-len(text) // 4)


def _subject(prompt: str, previous: str | None) -> frozenset[str]:
    own = _terms(prompt)
    content = {term for term in own if not _PERIOD.fullmatch(term)}
    if previous is None or (content and (len(content) > 2 or not _FOLLOW_UP.match(prompt))):
        return own
    inherited = _terms(previous)
    if own != content:
        inherited = frozenset(term for term in inherited if not _PERIOD.fullmatch(term))
    return inherited | own


def attachment(snippet: Snippet) -> dict[str, Any]:
    """The picture of a snippet's page."""
    file_id = f"dfl-{zlib.crc32(snippet.document.encode()):08x}"
    return {"attachment_name": f"screenshots/page_{snippet.page}.jpg", "source_id": file_id, "type": "screenshot"}


def retrieved(index_id: str | None, snippet: Snippet, score: float | None = None) -> dict[str, Any]:
    """A snippet in the form of the API's retrieval results. ``index_id`` is the emulator's own, because a turn may search several."""
    picture = attachment(snippet)
    return {
        "index_id": index_id,
        "content": snippet.text,
        "score": None if score is None else round(score, 4),
        "rerank_score": None,
        "metadata": {"file_name": snippet.document},
        "static_fields": {
            "page_range_start": snippet.page,
            "page_range_end": snippet.page,
            "chunk_index": 0,
            "chunk_start_char": 0,
            "chunk_end_char": len(snippet.text),
            "chunk_token_count": _tokens(snippet.text),
            "parsed_directory_file_id": picture["source_id"],
            "attachments": [picture],
        },
    }


def found_in(source: Mapping[str, Any]) -> dict[str, Any]:
    """The retrieval result of a source that a test gives; one that is a retrieval result already stays as it is.

    :raises ValueError: another form.
    """
    if "content" in source:
        return dict(source)
    if unknown := set(source) - {"file_name", "text", "pages", "score", "index_id"} or {"file_name"} - set(source):
        raise ValueError(
            f"A source has file_name, text, pages, score and index_id; unknown or missing: {sorted(unknown)}"
        )
    pages = source.get("pages", [1])
    found = retrieved(source.get("index_id"), Snippet(source["file_name"], pages[0], source.get("text", "")))
    found["static_fields"]["page_range_end"] = pages[-1]
    found["static_fields"]["attachments"] = []  # no index has a picture of it
    return {**found, "score": source.get("score")}


def answer(
    prompt: str,
    previous: str | None,
    sources: Mapping[str, Sequence[Snippet]],
    length: int | None = None,
    scripted: Sequence[Scripted] = (),
) -> Answer:
    """Answer ``prompt``, asked after ``previous`` in the same session, from ``sources`` by index id.

    :param length: characters to cut or repeat the answer's text to; None leaves it as it is.
    :param scripted: answers that are given instead; the first that matches.
    """
    subject = _subject(prompt, previous)

    def score(snippet: Snippet) -> int:
        common = subject & (_terms(snippet.text) | _terms(snippet.document))
        # A quarter or a year decides between snippets that are otherwise alike.
        return sum(3 if _PERIOD.fullmatch(term) else 1 for term in common)

    there = [(score(snippet), index_id, snippet) for index_id, snippets in sources.items() for snippet in snippets]
    hits = sorted(there, key=lambda hit: -hit[0])[:2]
    best = [hit for hit in hits if hit[0] and 5 * hit[0] >= 4 * hits[0][0]]
    query = " ".join(sorted(subject)) or prompt.strip()
    names = ", ".join(sources) or "none"
    thinking = f"The question is about: {query}. I search the indexes {names} for it."
    if best:
        text = " ".join(f"{snippet.text} ({snippet.document}, page {snippet.page})" for _, _, snippet in best)
    elif sources:
        text = f"The documents of {names} say nothing about that."
    else:
        text = "There is nothing to search: none of the requested indexes can be queried."
    if length is not None:
        text = ((text + " ") * (length // (len(text) + 1) + 1))[:length]
    found = [retrieved(index_id, snippet, points / (points + 1)) for points, index_id, snippet in best]
    for given in scripted:
        if given.match in prompt if isinstance(given.match, str) else given.match.search(prompt):
            text, found = given.text, given.found
            break
    read = _PROMPT_OVERHEAD + _tokens(prompt) + sum(_tokens(str(result["content"])) for result in found)
    return Answer(thinking, query, found, text, read, _tokens(thinking) + _tokens(text))
