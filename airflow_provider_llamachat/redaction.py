"""What may be shown of text that somebody else wrote: bounded, one line, without secrets."""

from __future__ import annotations

import re

MAX_EXCERPT = 500
"""Characters of foreign text that an error message or a log line quotes at the most."""

# Anything that looks like a credential, wherever it came from (a proxy's error page may echo our own request headers).
_CREDENTIALS = re.compile(r"(?i)\bbearer\s+[^\s\"',;<>]+|\bllx-[A-Za-z0-9_\-]+")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def excerpt(text: str | bytes, *, secrets: tuple[str, ...] = (), limit: int = MAX_EXCERPT) -> str:
    """Return the beginning of ``text`` in a form that is safe to log.

    :param text: foreign text; bytes are read as UTF-8, what is not becomes a replacement character.
    :param secrets: values that must not appear; each is replaced by ``***``.
    :param limit: characters at the most; a cut is marked with how much was left out.
    """
    # Only the part that can be shown is worked on, with room for what redaction removes: a hostile body is never scanned whole.
    window = limit * 4
    total = len(text)
    head = text[:window]
    if isinstance(head, bytes):
        head = head.decode("utf-8", errors="replace")
    # A secret may straddle the window's edge; dropping a possible prefix of it costs a few characters of foreign text.
    longest = max((len(secret) for secret in secrets), default=0)
    cut = total > window
    for secret in secrets:
        if secret:
            head = head.replace(secret, "***")
    head = _CREDENTIALS.sub("***", head)
    if cut and longest:
        head = head[: max(0, len(head) - longest)]
    head = _UNPRINTABLE.sub(" ", head).strip()
    if len(head) > limit or cut:
        shown = head[:limit]
        return f"{shown}… ({total} in all)"
    return head


def scrub(text: str, secrets: tuple[str, ...]) -> str:
    """Replace each of ``secrets`` in ``text`` by ``***`` without shortening it."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _CREDENTIALS.sub("***", text)
