"""Bytes that somebody else wrote become data, in bounded memory: decompression and JSON.

httpx decompresses whatever a server claims to have compressed, as often as it claims, a whole chunk at once: 64 kB may
become gigabytes. So the clients read raw bytes, say that they take gzip, and unpack that here, piece by piece.
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
"""Bytes that are unpacked at once; between two pieces the readers compare what they have with their bounds."""

MAX_ELEMENTS = 2_000_000
"""Values in one JSON document at most: three bytes of it can cost two hundred of memory."""

_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"|[,\[{]')
_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


class Unpacker:
    """Undoes a body's ``Content-Encoding``, if it has one.

    :raises httpx.DecodingError: the encoding is not one that was asked for.
    """

    def __init__(self, encoding: str | None) -> None:
        name = (encoding or "").strip().lower()
        self._zlib: Any = None
        if name in {"gzip", "x-gzip"}:
            self._zlib = zlib.decompressobj(wbits=31)
        elif name not in {"", "identity"}:
            raise httpx.DecodingError("its content encoding was not asked for")

    def feed(self, raw: bytes) -> Iterator[bytes]:
        """Yield what the next raw bytes stand for, in pieces of at most :data:`PIECE` bytes.

        :raises httpx.DecodingError: they are not what the encoding promises.
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
            raise httpx.DecodingError("its gzip data are broken") from None

    def end(self) -> None:
        """Tell that there are no more bytes.

        :raises httpx.DecodingError: there should have been.
        """
        if self._zlib is not None and not self._zlib.eof:
            raise httpx.DecodingError("its gzip data are cut off")


def parse_json(data: bytes | str) -> Any:
    """Read JSON: at most 200 levels deep, with at most :data:`MAX_ELEMENTS` values.

    Invalid UTF-8 and halves of surrogate pairs, which nothing after us could store or send, become replacement characters.

    :raises ValueError: it is not JSON, or beyond these bounds.
    """
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if _is_intricate(raw):
        raise ValueError(f"it has more than {MAX_ELEMENTS} values")
    try:
        return from_json(raw)
    except ValueError:
        return from_json(_repaired(raw))


def _is_intricate(raw: bytes) -> bool:
    # Every value but the first follows one of three characters. Those in texts are told apart only when there are many in all.
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
