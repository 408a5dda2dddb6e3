"""A small byte-level fuzzer: mutates good answers, deterministically for a seed.

Hypothesis makes structures; this breaks bytes, which finds other things: decoders, state between chunks, lengths that lie.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator, Sequence

SECONDS = float(os.environ.get("HOSTILE_SECONDS", "0"))
"""How long each fuzzing test goes on, beyond the fixed number of rounds that CI runs: ``HOSTILE_SECONDS=600 make test``."""

SEED = int(os.environ.get("HOSTILE_SEED", "20260801"))

INTERESTING = (
    b"",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\n\n",
    b":",
    b": \n\n",
    b"data:",
    b"data: ",
    b"event: message\n",
    b"id: \x00\n",
    b"retry: 9999999999999999999999\n",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\\u0000",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[" * 300,
    b'{"a":' * 300,
    b"null",
    b"true",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-0.0",
    b"9" * 30,
    b"9" * 5000,
    b'"stop"',
    b'"user_input"',
    b'"tool_result"',
    b'"is_error"',
    "\u2028\u202e\U0010ffff".encode(),
)


def rounds(count: int) -> Iterator[random.Random]:
    """Sources of randomness, one for each round: ``count`` of them, and more while :data:`SECONDS` last."""
    end = time.monotonic() + SECONDS
    number = 0
    while number < count or time.monotonic() < end:
        yield random.Random(f"{SEED}/{number}")
        number += 1


def mutated(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    """One of the corpus, broken in one to eight places."""
    data = bytearray(source.choice(corpus))
    for _ in range(source.randint(1, 8)):
        at = source.randint(0, len(data))
        to = min(len(data), at + source.choice((1, 1, 2, 4, 16, 64)))
        match source.randrange(8):
            case 0:
                data[at:at] = source.choice(INTERESTING)
            case 1:
                data[at:to] = source.choice(INTERESTING)
            case 2:
                del data[at:to]
            case 3 if data:
                data[source.randrange(len(data))] ^= 1 << source.randrange(8)
            case 4:
                data[at:at] = data[at:to] * source.randint(1, 5)
            case 5:
                del data[at:]
            case 6:
                other = source.choice(corpus)
                begin = source.randint(0, len(other))
                data[at:at] = other[begin : begin + 64]
            case _:
                data[at:to] = source.randbytes(to - at)
    return bytes(data)


def cut(source: random.Random, data: bytes) -> list[bytes]:
    """The same bytes in random pieces."""
    edges = sorted({0, len(data), *(source.randint(0, len(data)) for _ in range(source.randint(0, 6)))})
    return [data[a:b] for a, b in itertools.pairwise(edges)]
