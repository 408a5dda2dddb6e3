"""Reads the prompts of a batch from a file row by row, and keeps them on the local disk. Blocking, except for reading a kept item."""

from __future__ import annotations

import csv
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NoReturn

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.batch.items import FIELDS, Item, validated
from airflow_provider_llamachat.batch.storage import Folder, on_local_disk, spool
from airflow_provider_llamachat.exceptions import ChatBatchError, InvalidArgumentError
from airflow_provider_llamachat.redaction import excerpt

LONGEST = 1024 * 1024
"""Maximum size of a line in bytes. A file without line breaks would otherwise be read into memory."""
PLACE = "prompts_path, line {}".format
BOM = b"\xef\xbb\xbf"

Line = tuple[int, str]
Rows = Iterator[tuple[int, Any]]


class StoredItems(Sequence[Item]):
    """Items in a temporary file, of which only the offsets are in memory. Use it like a list, and close it."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._file = spool()
        self._ends = array("q", [0])
        try:
            for item in items:
                values = (item.prompt, item.id, item.index_ids, item.session_id, item.asked_of, item.extra)
                self._ends.append(self._ends[-1] + self._file.write(json.dumps(values).encode()))
            self._file.flush()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> Item:  # type: ignore[override]  # nobody takes a slice
        begin, end = self._ends[position], self._ends[position + 1]
        # Not seek and read: the event loop and the thread of the journal may read at the same time.
        values = json.loads(os.pread(self._file.fileno(), end - begin, begin))
        prompt, item_id, index_ids, session_id, asked_of, extra = values
        return Item(position, prompt, item_id, index_ids, session_id, tuple(asked_of), extra)

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()


def read(path: Any, *, index_ids: list[str] | None = None, session_mode: str = "per_prompt") -> StoredItems:
    """Read and validate all prompts of a file.

    :param path: a path object (``ObjectStoragePath``, ``pathlib.Path``) of a CSV file, or of a file with JSON Lines.
    :raises InvalidArgumentError: the file or one of its rows is invalid; the message names the line.
    :raises ChatBatchError: the file could not be read, or not be copied to the local disk.
    """
    try:
        with on_local_disk("copy the prompts to"):
            return StoredItems(_items(path, index_ids, session_mode))
    except (InvalidArgumentError, ChatBatchError) as problem:
        raise type(problem)(
            f"{str(problem).removesuffix('.')}. Nothing was asked in this attempt. File: {path}"
        ) from problem.__cause__


def _items(path: Any, index_ids: list[str] | None, session_mode: str) -> Iterator[Item]:
    rows_of = FORMATS.get(PurePosixPath(path.name).suffix.lower())
    if rows_of is None:
        raise InvalidArgumentError(f"prompts_path must end in {', '.join(FORMATS)}, so that its format is known.")
    folder = Folder.around(path)
    if folder.is_folder(path.name):
        raise InvalidArgumentError("prompts_path must be the path of a file, but it is a folder.")
    if not folder.has(path.name):
        raise InvalidArgumentError("prompts_path does not exist.")
    rows = rows_of(_lines(folder.chunks(path.name)))
    return validated(rows, PLACE, index_ids=index_ids, session_mode=session_mode)


def _refuse(number: int, what: str) -> NoReturn:
    raise InvalidArgumentError(f"{PLACE(number)} {what}")


def _lines(chunks: Iterable[bytes]) -> Iterator[Line]:
    rest, number = b"", 0
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            number += 1
            yield number, _text(line + b"\n", number)
        if len(rest) > LONGEST:
            _refuse(number + 1, f"is longer than {LONGEST} bytes.")
    if rest:
        yield number + 1, _text(rest, number + 1)


def _text(line: bytes, number: int) -> str:
    if number == 1:
        line = line.removeprefix(BOM)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as problem:
        _refuse(number, f"is not UTF-8 (byte 0x{line[problem.start]:02x}). Save the file as UTF-8.")
    if "\0" in text:
        _refuse(number, "has a zero byte, as text in UTF-16 has. Save the file as UTF-8.")
    return text


def _json_lines(lines: Iterator[Line]) -> Rows:
    for number, text in lines:
        if not text.strip():
            continue
        try:
            value = json.loads(text, object_pairs_hook=_object)
        except _NamedTwiceError as problem:
            _refuse(number, f"names the field {problem} twice. Name each field of a prompt once.")
        except (ValueError, RecursionError) as problem:
            whole = " The file looks like one JSON list." if number == 1 and text.lstrip().startswith("[") else ""
            cause = excerpt(str(problem), limit=100)
            _refuse(number, f"is not JSON.{whole} Write one object with a prompt in each line. Cause: {cause}.")
        yield number, value


class _NamedTwiceError(ValueError):
    """An object has a field twice. Of two prompts, one would be lost."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _NamedTwiceError(excerpt(repr(name), limit=80))
        fields[name] = value
    return fields


def _csv(lines: Iterator[Line]) -> Rows:
    # Strict, because a question that is cut or merged with the next one would be paid for.
    reader = csv.reader((text for _, text in lines), strict=True)
    columns: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            _refuse(number, f"is not CSV, for example because a quotation mark is not closed. Cause: {problem}.")
        if not cells:
            continue
        if columns is None:
            columns = _columns(cells, number)
        elif len(cells) != len(columns):
            _refuse(
                number,
                f"has {len(cells)} cells, but the first line has {len(columns)}. Put cells that contain commas in quotation marks.",
            )
        else:
            row: dict[str, Any] = dict(zip(columns, cells, strict=True))
            optional = [name for name in FIELDS if name != "prompt" and name in row]
            yield number, row | {name: None for name in optional if arguments.is_nothing(row[name])}


def _columns(cells: list[str], number: int) -> list[str]:
    columns = [cell.strip() for cell in cells]
    found = f"Columns: {excerpt(', '.join(columns), limit=200)}."
    if "prompt" not in columns:
        separated = len(columns) == 1 and any(mark in columns[0] for mark in ";\t|")
        why = " They seem not to be separated by commas." if separated else ""
        _refuse(number, f"names no column prompt.{why} Name the column of the questions prompt, in lower case. {found}")
    if len(set(columns)) < len(columns) or "" in columns:
        _refuse(number, f"names a column twice, or leaves out a name. {found}")
    return columns


FORMATS: dict[str, Callable[[Iterator[Line]], Rows]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
"""How a file is read, by the end of its name."""
