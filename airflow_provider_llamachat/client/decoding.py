"""Decompresses and parses responses in bounded memory.

httpx decompresses each chunk as a whole and supports nested encodings, so that 64 kB can become gigabytes. The clients
therefore accept only gzip, read raw bytes, and decompress them here piece by piece.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
from pydantic_core import from_json

ACCEPTED = "gzip"
"""``Accept-Encoding`` of every request."""

PIECE = 1024 * 1024
"""Maximum size of a decompressed piece. Readers check their limits after each piece."""

MAX_ELEMENTS = 2_000_000
"""Maximum number of values in a JSON document. A value of three bytes can use 200 bytes of memory."""

_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"|[,\[{]')
_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


class Unpacker:
    """Decodes the ``Content-Encoding`` of a body.

    :raises httpx.DecodingError: the encoding was not requested.
    """

    def __init__(self, encoding: str | None) -> None:
        name = (encoding or "").strip().lower()
        self._zlib: Any = None
        if name in {"gzip", "x-gzip"}:
            self._zlib = zlib.decompressobj(wbits=31)
        elif name not in {"", "identity"}:
            raise httpx.DecodingError("its content encoding was not requested")

    def feed(self, raw: bytes) -> Iterator[bytes]:
        """Decode the next raw bytes, and yield pieces of at most :data:`PIECE` bytes.

        :raises httpx.DecodingError: the data are invalid.
        """
        if self._zlib is None:
            if raw:
                yield raw
            return
        try:
            while raw and not self._zlib.eof:
                if piece := self._zlib.decompress(raw, PIECE):
                    yield piece
                raw = self._zlib.unconsumed_tail
        except zlib.error:
            raise httpx.DecodingError("its gzip data are invalid") from None

    def end(self) -> None:
        """Finish decoding.

        :raises httpx.DecodingError: the data are incomplete.
        """
        if self._zlib is not None and not self._zlib.eof:
            raise httpx.DecodingError("its gzip data are incomplete")


def parse_json(data: bytes | str) -> Any:
    """Parse JSON with at most 200 levels and :data:`MAX_ELEMENTS` values.

    Invalid UTF-8 and halves of surrogate pairs, which cannot be stored, become replacement characters.

    :raises ValueError: the data are not JSON, or exceed these limits.
    """
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if _is_intricate(raw):
        raise ValueError(f"it has more than {MAX_ELEMENTS} values")
    try:
        return from_json(raw)
    except ValueError:
        return from_json(_repaired(raw))


def _is_intricate(raw: bytes) -> bool:
    # Every value except the first follows one of these characters. Strings are excluded only if the count is too high.
    if len(raw) <= MAX_ELEMENTS or sum(raw.count(mark) for mark in (b",", b"[", b"{")) <= MAX_ELEMENTS:
        return False
    values = 0
    for found in _STRUCTURE.finditer(raw):
        values += raw[found.start()] != 0x22
        if values > MAX_ELEMENTS:
            return True
    return False


def _repaired(raw: bytes) -> bytes:
    text = raw.decode("utf-8-sig", errors="replace")
    if "\\u" in text:
        text = _ESCAPES.sub(lambda found: "\\ufffd" if found[1] else found[0], text)
    return text.encode()
