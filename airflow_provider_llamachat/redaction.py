"""What may be shown of text that somebody else wrote: bounded, one line, without secrets."""

from __future__ import annotations

import base64
import functools
import html
import re
from urllib.parse import quote

MAX_EXCERPT = 500
"""Characters of foreign text that an error message or a log line quotes at the most."""

MAX_MESSAGE = 2400
"""Characters of an exception's message at the most."""

# Anything that looks like a credential, wherever it came from (a proxy's error page may echo our own request headers).
_CREDENTIALS = re.compile(r"(?i)\bbearer\s+[^\s\"',;<>]+|\bllx-[A-Za-z0-9_\-]+")
# Control characters, line separators, halves of surrogate pairs (no log file can hold them), and what turns text round.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]+")


def excerpt(text: str | bytes, *, secrets: tuple[str, ...] = (), limit: int = MAX_EXCERPT) -> str:
    """Return the beginning of ``text`` in a form that is safe to log.

    :param text: foreign text; bytes are read as UTF-8, what is not becomes a replacement character.
    :param secrets: values that must not appear, however a program writes them (see :func:`scrub`).
    :param limit: characters at the most; a cut is marked with how much was left out.
    """
    # Only the part that can be shown is worked on, with room for what redaction removes: a hostile body is never scanned whole.
    window = limit * 4
    total = len(text)
    head = text[:window]
    if isinstance(head, bytes):
        # Without its zeros, UTF-16 reads as the ASCII in it, and a secret is recognized there too.
        head = head.replace(b"\x00", b"").decode("utf-8", errors="replace")
    cut = total > window
    head = scrub(head, secrets)
    if cut and secrets:
        # A secret may straddle the window's edge; dropping a possible prefix of it costs a few characters of foreign text.
        head = head[: max(0, len(head) - max(len(form) for secret in secrets for form in ("", *_forms(secret))))]
    head = _UNPRINTABLE.sub(" ", head).strip()
    if len(head) > limit or cut:
        return f"{head[:limit]}… ({total} in all)"
    return head


def scrub(text: str, secrets: tuple[str, ...]) -> str:
    """Replace each of ``secrets`` in ``text`` by ``***`` without shortening it.

    Also as a URL, JSON, source code, HTML, Base64 (of an ``Authorization: Basic`` header as well) and hexadecimal digits would hold
    them, in upper or lower case; and whatever looks like one of LlamaCloud's keys.
    """
    for secret in secrets:
        if secret:
            text = _pattern(secret).sub("***", text)
    return _CREDENTIALS.sub("***", text)


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return ``text`` without control characters, cut to ``limit``; doing it twice changes nothing more."""
    text = _UNPRINTABLE.sub(" ", text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


@functools.lru_cache(maxsize=16)
def _pattern(secret: str) -> re.Pattern[str]:
    # Any number of backslashes: JSON in JSON, and the representation of bytes in it, escape what was escaped.
    forms = ("".join(char if char.isalnum() else rf"\\*{re.escape(char)}" for char in form) for form in _forms(secret))
    return re.compile("|".join(forms), re.IGNORECASE)


@functools.lru_cache(maxsize=16)
def _forms(secret: str) -> tuple[str, ...]:
    raw = secret.encode("utf-8", "replace")
    forms = {secret, quote(secret, safe=""), html.escape(secret), raw.hex()}
    for before in range(3):
        # In Base64 the same bytes look different at each of three offsets; the digits that mix with their neighbours are left out.
        digits = base64.b64encode(b"\x00" * before + raw).decode().rstrip("=")
        middle = digits[(0, 2, 3)[before] : len(digits) - (1 if (before + len(raw)) % 3 else 0)]
        if len(middle) >= 8:
            forms |= {middle, middle.replace("+", "-").replace("/", "_")}
    return tuple(sorted(filter(None, forms), key=len, reverse=True))
