"""Answers prompts from the documents of indexes: a small, deterministic stand-in for the service's model.

The same prompt over the same indexes gives the same words and token counts. A follow-up ("and in Q2?") also depends on the one before it.
"""

import contextlib
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


class Snippet(NamedTuple):
    """A piece of a document, as retrieval finds it."""

    document: str
    page: int
    text: str


Scripted = tuple[re.Pattern[str], str, list[dict[str, Any]]]
"""An answer that a test gave: the pattern that is searched in the prompt, the text, and the retrieval results."""


class Answer(NamedTuple):
    """What the model thinks, searches, finds and says."""

    thinking: str
    query: str
    found: list[dict[str, Any]]
    text: str
    input_tokens: int
    output_tokens: int


def snippets_from(documents: Sequence[str | Mapping[str, Any]]) -> list[Snippet]:
    """The documents of an index that a test adds: texts, or objects with ``text``. Anything else raises ``ValueError``."""
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
    # Tokenizers make about one token of four characters.
    return -(-len(text) // 4)


def _subject(prompt: str, previous: str | None) -> frozenset[str]:
    own = _terms(prompt)
    content = {term for term in own if not _PERIOD.fullmatch(term)}
    if previous is None or (content and (len(content) > 2 or not _FOLLOW_UP.match(prompt))):
        return own
    # A period in the prompt replaces the one in the previous prompt.
    return own | {term for term in _terms(previous) if own == content or not _PERIOD.fullmatch(term)}


def attachment(snippet: Snippet) -> dict[str, Any]:
    """The screenshot of a snippet's page."""
    file_id = f"dfl-{zlib.crc32(snippet.document.encode()):08x}"
    return {"attachment_name": f"screenshots/page_{snippet.page}.jpg", "source_id": file_id, "type": "screenshot"}


def retrieved(index_id: str | None, snippet: Snippet, score: float | None = None) -> dict[str, Any]:
    """A snippet as a retrieval result of the API, with an ``index_id`` that the API does not have: a turn may search several indexes."""
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
    """The retrieval result of a source that a test gives, which may be one already. Another form raises ``ValueError``."""
    with contextlib.suppress(TypeError, ValueError, LookupError, AttributeError):
        if "content" in source:
            return dict(source)
        given = {"text": "", "pages": [1], "score": None, "index_id": None, **source}
        if given.keys() == {"file_name", "text", "pages", "score", "index_id"}:
            found = retrieved(given["index_id"], Snippet(given["file_name"], given["pages"][0], given["text"]))
            # No index has a screenshot of it.
            found["static_fields"] |= {"page_range_end": given["pages"][-1], "attachments": []}
            return {**found, "score": given["score"]}
    message = "A source has file_name, text, pages, score and index_id, of which only file_name is required, or it has content"
    raise ValueError(f"{message}. Got: {source!r}")


def answer(
    prompt: str, before: list[str], sources: dict[str, list[Snippet]], length: int | None, scripted: list[Scripted]
) -> Answer:
    """Answer ``prompt``, which comes after those ``before`` in its session, from ``sources`` by index id.

    The text is cut or repeated to ``length`` characters, unless one of the ``scripted`` answers matches: the first that does is given.
    """
    subject = _subject(prompt, before[-1] if before else None)

    def score(snippet: Snippet) -> int:
        common = subject & (_terms(snippet.text) | _terms(snippet.document))
        # The quarter or the year decides between snippets that are otherwise alike.
        return sum(3 if _PERIOD.fullmatch(term) else 1 for term in common)

    there = [(score(snippet), index_id, snippet) for index_id, snippets in sources.items() for snippet in snippets]
    hits = sorted(there, key=lambda hit: -hit[0])[:2]
    best = [hit for hit in hits if hit[0] and 5 * hit[0] >= 4 * hits[0][0]]
    query = " ".join(sorted(subject)) or prompt.strip()
    names = ", ".join(sources) or "none"
    thinking = f"The question is about: {query}. I search the indexes {names} for it."
    text = " ".join(f"{snippet.text} ({snippet.document}, page {snippet.page})" for _, _, snippet in best)
    if not sources:
        text = "There is nothing to search: none of the requested indexes can be queried."
    elif not best:
        text = f"The documents of {names} say nothing about that."
    if length is not None:
        text = ((text + " ") * (length // (len(text) + 1) + 1))[:length]
    found = [retrieved(index_id, snippet, points / (points + 1)) for points, index_id, snippet in best]
    text, found = next(((said, there) for wanted, said, there in scripted if wanted.search(prompt)), (text, found))
    # A service adds instructions to a prompt, say 180 tokens.
    read = 180 + _tokens(prompt) + sum(_tokens(str(result["content"])) for result in found)
    return Answer(thinking, query, found, text, read, _tokens(thinking) + _tokens(text))
