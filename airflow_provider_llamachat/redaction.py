"""Makes text from elsewhere safe to show: bounded, on one line, without secrets."""

from __future__ import annotations

import base64
import functools
import html
import re
from typing import Any

MAX_EXCERPT = 500
"""Maximum number of characters that an error message or a log line quotes."""

MAX_MESSAGE = 2400
"""Maximum length of an exception's message."""

# Patterns are text, which re compiles when it is first used, and keeps: most processes that parse a Dag redact nothing.
# Anything that looks like a credential, wherever it came from (a proxy's error page may echo our own request headers). A bearer
# token is told from a word by its length, and by a digit in it: "bearer responsibilities" is no secret. Nor is "llx-files".
_CREDENTIALS = r"(?ia)\bbearer\s++(?:(?=[\w\-.~+/]*\d)[\w\-.~+/]{16,}|[\w\-.~+/]{32,})=*|\bllx-(?:(?=[\w\-]*\d)[\w\-]{6,}|[\w\-]{16,})"
# What signs a URL of a storage service (Amazon, Google, Azure) gives access to a file. By itself, because it begins with a character
# that is quickly found. JSON and HTML may write the & before it in their own way.
_SIGNATURES = (
    r"(?ia)([?&\\%](?:amp;|u0026|26|3f)?)"
    r"(?:x-(?:amz|goog)-(?:signature|security-token|credential)|signature|sig)(?:=|%3d)[\w%.+/=\-~]{16,}"
)
# Control characters, line separators, halves of surrogate pairs (no log file can hold them), and what turns text round.
_UNPRINTABLE = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+"

_UNPRINTABLE_IN_LINE = _UNPRINTABLE.replace(r"\x00-\x1f", r"\x00-\x08\x0b-\x1f")

_MAX_KNOWN = 32
# Minimum length of a secret. A shorter one would also match parts of ordinary words.
_MIN_KNOWN = 8
_known: tuple[str, ...] = ()


def remember(secret: str) -> None:
    """Make :func:`scrub` replace ``secret`` in every text of this process. The clients register their API keys.

    The last 32 secrets are kept. A secret of less than 8 characters is ignored, because it could be part of any word.
    """
    global _known  # noqa: PLW0603  # one list for the process, replaced as a whole: no lock is needed
    if len(secret) >= _MIN_KNOWN and secret not in _known:
        _known = (*_known, secret)[-_MAX_KNOWN:]


def excerpt(text: str | bytes, *, secrets: tuple[str, ...] = (), limit: int = MAX_EXCERPT) -> str:
    """Return the beginning of ``text`` in a form that is safe to log.

    :param text: text from elsewhere. Bytes are decoded as UTF-8; invalid ones become replacement characters.
    :param secrets: values that must not appear in any encoding (see :func:`scrub`).
    :param limit: maximum number of characters. Text that is cut ends with its full length.
    """
    # Only the part that can be shown is processed, plus what redaction may remove. A huge body is never scanned as a whole.
    margin = _LONGEST * max(map(len, (*secrets, *_known)), default=0)
    window = limit * 4 + margin
    total = len(text)
    head = text[:window]
    if isinstance(head, bytes):
        # Without its zeros, UTF-16 reads as the ASCII in it, and a secret is recognized there too.
        head = head.replace(b"\x00", b"").decode("utf-8", errors="replace")
    cut = total > window
    head = scrub(head, secrets)
    if cut:
        # A secret that crosses the edge of the window is not recognized.
        head = head[: max(0, len(head) - margin)]
    head = re.sub(_UNPRINTABLE, " ", head).strip()
    if len(head) > limit or cut:
        return f"{head[:limit]}… ({total} in all)"
    return head


def describe(value: Any) -> str:
    """Describe ``value`` without quoting it, because a secret may have been pasted into the wrong field."""
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def scrub(text: str, secrets: tuple[str, ...]) -> str:
    """Replace each of ``secrets``, and each secret given to :func:`remember`, with ``***``.

    Secrets are also recognized when they are encoded for a URL, JSON, source code, HTML, Base64 (including ``Authorization: Basic``)
    or as hexadecimal digits, in upper or lower case. Anything that looks like a LlamaCloud key, a bearer token or the
    signature of a URL is replaced too.
    """
    # Most texts hold no secret and no notation in which one could hide. Then a search for plain text is enough, which is much faster.
    plain = None if re.search(_NOTATION, text) else text.translate(_ALSO_ASCII).lower()
    for secret in {*secrets, *_known}:
        if secret and (plain is None or not secret.isascii() or any(form in plain for form in _plain_forms(secret))):
            text = _pattern(secret).sub("***", text)
    return re.sub(_SIGNATURES, r"\1***", re.sub(_CREDENTIALS, "***", text))


def printable(text: str) -> str:
    """Return ``text`` with its lines, but without other control characters and without what turns text round."""
    return re.sub(_UNPRINTABLE_IN_LINE, " ", text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return ``text`` without control characters, cut to ``limit``. Calling it twice has no further effect."""
    text = re.sub(_UNPRINTABLE, " ", text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# How one character may be written in another way than by itself.
_NOTATION = r"(?i)%[0-9a-f]{2}|\\u[0-9a-f]|&(?:amp;)?#?\w+;"
# Letters that are an ASCII letter when case is ignored.
_ALSO_ASCII = str.maketrans({"\u0130": "i", "\u0131": "i", "\u017f": "s", "\u212a": "k", "\\": ""})


# Characters that one character of a secret takes at most: ``\\\\u002f``, ``%25252f``, ``&#x2F;``.
_LONGEST = 8


@functools.lru_cache(maxsize=2 * _MAX_KNOWN)
def _plain_forms(secret: str) -> tuple[str, ...]:
    return tuple(form.replace("\\", "").lower() for form in (secret, *_encodings(secret)))


@functools.lru_cache(maxsize=2 * _MAX_KNOWN)
def _pattern(secret: str) -> re.Pattern[str]:
    # Each character by itself may be written in any notation, because programs differ in which ones they leave as they are.
    forms = ["".join(map(_character, secret)), *map(re.escape, _encodings(secret))]
    return re.compile("|".join(forms), re.IGNORECASE)


def _character(char: str) -> str:
    # Backslashes: JSON in JSON, and the representation of bytes in it, escape what was escaped. %25 is an escaped %.
    code = ord(char)
    percent = "".join(f"%(?:25){{0,2}}{byte:02x}" for byte in char.encode("utf-8", "replace"))
    escaped = html.escape(char)
    entity = escaped[1:] if escaped != char else f"#{code};"
    backslashes = "" if char.isalnum() else r"\\{0,15}"
    return rf"(?:{backslashes}{re.escape(char)}|{percent}|\\{{1,15}}u{code:04x}|&(?:amp;)?(?:#0*{code};|#x0*{code:x};|{entity}))"


@functools.lru_cache(maxsize=2 * _MAX_KNOWN)
def _encodings(secret: str) -> tuple[str, ...]:
    raw = secret.encode("utf-8", "replace")
    forms = {raw.hex()}
    for before in range(3):
        # In Base64 the same bytes look different at each of three offsets; the digits that mix with their neighbours are left out.
        digits = base64.b64encode(b"\x00" * before + raw).decode().rstrip("=")
        middle = digits[(0, 2, 3)[before] : len(digits) - (1 if (before + len(raw)) % 3 else 0)]
        if len(middle) >= 8:
            forms |= {middle, middle.replace("+", "-").replace("/", "_")}
    return tuple(sorted(forms, key=len, reverse=True))
