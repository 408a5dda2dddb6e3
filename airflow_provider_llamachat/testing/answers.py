"""Answers a prompt from the passages of indexes: a small, deterministic stand-in for the service's model.

The same prompt over the same indexes gives the same words and the same token counts; only a question that leans on the one
before it ("and in Q2?") takes its subject from there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_llamachat.testing.corpus import Passage

_WORD = re.compile(r"[a-z0-9]+")
_PERIOD = re.compile(r"q[1-4]|(19|20)\d\d")
_FOLLOW_UP = re.compile(r"\s*(and|or|what about|how about|then|also)\b", re.IGNORECASE)
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about an and are at be by can did do does for from give had has have how i in is it its me of on or our please
        say tell than that the their then there these they this to was we were what when where which who why will with you
        your""",
    )
)
_PROMPT_OVERHEAD = 180
"""Tokens of the instructions that a service puts around a prompt."""


@dataclass(frozen=True, slots=True)
class Source:
    """An index as a turn searches it."""

    index_id: str
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model thinks, searches, finds and says."""

    thinking: str
    query: str
    found: list[dict[str, Any]]
    text: str
    input_tokens: int
    output_tokens: int


@functools.lru_cache(maxsize=4096)
def _terms(text: str) -> frozenset[str]:
    words = (word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS)
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words)


def count_tokens(text: str) -> int:
    """About what a tokenizer makes of ``text``: one token for every four characters begun."""
    return -(-len(text) // 4)


def _subject(prompt: str, previous: str | None) -> frozenset[str]:
    own = _terms(prompt)
    content = {term for term in own if not _PERIOD.fullmatch(term)}
    leans = previous is not None and (not content or (len(content) <= 2 and _FOLLOW_UP.match(prompt) is not None))
    if previous is None or not leans:
        return own
    inherited = _terms(previous)
    if own != content:
        inherited = frozenset(term for term in inherited if not _PERIOD.fullmatch(term))
    return inherited | own


def answer(prompt: str, previous: str | None, sources: Sequence[Source], *, length: int | None = None) -> Answer:
    """Answer ``prompt``, asked after ``previous`` in the same session.

    :param length: characters to cut or repeat the answer's text to; None leaves it as it is.
    """
    subject = _subject(prompt, previous)
    hits = []
    for source in sources:
        for passage in source.passages:
            common = subject & (_terms(passage.text) | _terms(passage.document))
            if common:
                # A quarter or a year decides between passages that are otherwise alike.
                score = sum(3 if _PERIOD.fullmatch(term) else 1 for term in common)
                hits.append((score, source.index_id, passage))
    hits.sort(key=lambda hit: -hit[0])
    best = [hit for hit in hits[:2] if 5 * hit[0] >= 4 * hits[0][0]]
    query = " ".join(sorted(subject)) or prompt.strip()
    names = ", ".join(source.index_id for source in sources) or "none"
    thinking = f"The question is about: {query}. I search the indexes {names} for it."
    if best:
        text = " ".join(f"{passage.text} ({passage.document}, page {passage.page})" for _, _, passage in best)
    elif sources:
        text = f"The documents of {names} say nothing about that."
    else:
        text = "There is nothing to search: none of the requested indexes can be queried."
    if length is not None:
        text = (text + " ") * (length // (len(text) + 1) + 1)
        text = text[:length]
    found = [
        {"index_id": index_id, "document": passage.document, "page": passage.page, "score": score, "text": passage.text}
        for score, index_id, passage in best
    ]
    read = _PROMPT_OVERHEAD + count_tokens(prompt) + sum(count_tokens(passage.text) for _, _, passage in best)
    return Answer(thinking, query, found, text, read, count_tokens(thinking) + count_tokens(text))
