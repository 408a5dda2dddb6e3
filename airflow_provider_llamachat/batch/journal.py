"""The durable state of a batch: part files next to the output, or the task state store. Blocking: do not use in an event loop.

Part files are immutable and numbered. A later record of an item overrides an earlier one, and an answer overrides everything.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import json
import logging
import secrets
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_provider_llamachat.batch import claims, records
from airflow_provider_llamachat.batch.items import BatchScope
from airflow_provider_llamachat.batch.records import Past
from airflow_provider_llamachat.batch.storage import Folder, on_local_disk, spool
from airflow_provider_llamachat.exceptions import ChatBatchError, InvalidArgumentError

log = logging.getLogger(__name__)

COMPACT_PARTS = 50
"""Number of small part files that are merged into one, because reading opens each file."""
COMPACT_BYTES = 1024 * 1024
"""Maximum size of the records that are kept in memory for the next compaction."""

LONGEST = 16 * 1024 * 1024
"""Maximum number of bytes in which the first line of earlier results is looked for. Another file may have no line break."""

COMPLETE = "complete.json"
"""Marks that the results are in place while the parts are removed, so that a retry after a kill does not ask again."""

REMEMBERED = "batch.complete"
"""The same mark in the task's memory, for an attempt that is killed after the parts were removed and before it succeeded."""

Line = dict[str, Any]


@dataclass(slots=True)
class Results:
    """Counts of the results that were handed over.

    :ivar counts: items by outcome.
    :ivar errors: items without an answer, by error class.
    :ivar lines: the results, if they were not written to a file.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(records.OUTCOMES, 0))
    errors: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    lines: list[Line] | None = None

    def add(self, line: Line) -> None:
        """Count one result."""
        self.counts[line["outcome"]] += 1
        if error := line.get("error"):
            self.errors[error["type"]] += 1
        usage = line.get("usage") or {}
        self.input_tokens += usage.get("total_input_tokens") or 0
        self.output_tokens += usage.get("total_output_tokens") or 0


class Journal(abc.ABC):
    """Stores records for later attempts."""

    output: str | None = None
    """The path of the results, or None if they are returned."""

    @property
    def remembers(self) -> bool:
        """Whether a retry can read what this attempt writes."""
        return True

    def claimed(self) -> contextlib.AbstractContextManager[object]:
        """Prevent other batches from writing to the same path during the block.

        :raises InvalidArgumentError: the path is a folder, or belongs to another task of this run.
        :raises ChatBatchError: another batch is writing to the path, or it is not writable.
        """
        return contextlib.nullcontext()

    @abc.abstractmethod
    def load(self, positions: dict[str, int]) -> Past:
        """Read the records of earlier attempts. Called once, before anything else."""

    @abc.abstractmethod
    def write(self, batch: list[dict[str, Any]]) -> None:
        """Make records durable. If the process dies, some of them may be lost."""

    @abc.abstractmethod
    def records(self) -> Iterator[dict[str, Any] | None]:
        """Yield all records, oldest first, and None for a damaged one."""

    def past(self, positions: dict[str, int]) -> Past:
        """Return the current state of all items."""
        return Past.of(self.records(), positions)

    def opened_sessions(self) -> Iterator[str]:
        """Yield the ids of all sessions that this batch opened, in earlier attempts too. An id may occur more than once."""
        for record in self.records():
            if record is not None and (
                record["kind"] == "session" or (record["kind"] == "intent" and record.get("opened"))
            ):
                yield record["session_id"]

    def results(self, positions: dict[str, int]) -> Iterator[tuple[int, Line]]:
        """Yield the position and the line of each result. A later one of an item replaces an earlier one, and none follows an answer."""
        answered = bytearray(len(positions))
        for record in self.records():
            if record is None or record["kind"] != "result":
                continue
            n = positions.get(record["key"])
            if n is not None and not answered[n]:
                answered[n] = record["line"]["outcome"] == records.ANSWERED
                yield n, records.ADDED_LATER | record["line"]

    @abc.abstractmethod
    def hand_over(self, positions: dict[str, int], missing: Callable[[int], Line]) -> Results:
        """Write or return the results in the order of the prompts.

        :param missing: makes the line of an item that has no result.
        """

    @abc.abstractmethod
    def forget(self, stopped_by: str | None = None) -> None:
        """Remove all records, because the batch is complete. Clearing its task asks again.

        :param stopped_by: name of the limit because of which prompts were not asked.
        """


class PartsJournal(Journal):
    """Part files in ``<output_path>.parts/<batch>/``; at the end they become ``output_path``.

    :param output_path: a path object (``ObjectStoragePath``, ``pathlib.Path``) of the results.
    :param scope: the task instance. Another run with the same ``output_path`` has its own parts.
    :param memory: a :class:`~..airflow_support.task_state.TaskMemory`, or None. It tells a retry that the batch is complete when the
        parts are already removed.
    """

    def __init__(self, output_path: Any, scope: BatchScope, memory: Any = None) -> None:
        self._memory = memory
        self.output = str(output_path)
        self._name = output_path.name
        self._scope = scope
        self._beside = Folder.around(output_path)
        self._above = self._beside.below(f"{output_path.name}.parts")
        self._folder = self._above.below(scope.digest)
        real, name = self._beside.target(self._name)
        self._claim = claims.Claim(real.below(f"{name}.parts"), scope)
        self._nonce = secrets.token_hex(4)
        self._number = 0
        self._small: dict[str, bytes] = {}
        self._complete = False
        self._mark = b""

    @property
    def url(self) -> str:
        """The folder of the parts, for messages."""
        return self._folder.url

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """See :meth:`Journal.claimed`. This also checks, before anything is asked, that the results can be written."""
        if self._beside.is_folder(self._name):
            raise InvalidArgumentError(
                f"output_path must be the path of a file, but it is a folder. Nothing was asked in this attempt. "
                f"Path: {self._beside.url}/{self._name}"
            )
        self._claim.take()
        try:
            self._check_origin()
            yield
        finally:
            self._claim.release()

    def _check_origin(self) -> None:
        try:
            first_line = (self._beside.head(self._name, LONGEST) or b"null").partition(b"\n")[0]
            origin = json.loads(first_line)["batch"]
        except (ValueError, KeyError, TypeError):
            return  # no results, or their origin is unknown
        if isinstance(origin, dict) and claims.is_same_run(origin, self._scope) and origin != asdict(self._scope):
            raise InvalidArgumentError(
                f"output_path already contains the results of another task of this run. {claims.REMEDY} "
                f"Written by: {claims.written_by(origin)}. File: {self._beside.url}/{self._name}"
            )

    def load(self, positions: dict[str, int]) -> Past:
        """Read the existing parts. Damaged records are logged and skipped."""
        if others := [name for name in self._above.names() if name != self._scope.digest]:
            log.warning(
                "%d other batches with the same output_path are unfinished. The batch that ends last replaces the results of the "
                "others. Give each run its own path. Folder: %s",
                len(others),
                self._above.url,
            )
        if (past := self._complete_past(positions)) is not None:
            return past
        self._number = max((int(name.split("-")[1]) for name in self._parts()), default=0)
        past = self.past(positions)
        if past.damaged:
            log.warning(
                "Skipped %d damaged records. Their prompts may be asked again. Folder: %s",
                past.damaged,
                self.url,
            )
        if past.foreign:
            log.warning(
                "Skipped %d records of prompts that are no longer in this batch. Folder: %s", past.foreign, self.url
            )
        return past

    def _complete_past(self, positions: dict[str, int]) -> Past | None:
        if marked := COMPLETE in self._folder.names():
            mark = b"".join(self._folder.lines(COMPLETE))
        else:
            mark = str(self._memory.recall_unfinished(REMEMBERED) or "").encode() if self._memory is not None else b""
        batch, _, stopped_by = mark.partition(b" ")
        if _is_mark(batch, positions) and self._beside.has(self._name):
            log.info("A previous attempt completed this batch. Its results are in place.")
            self._complete = True
            return Past(set(positions.values()), is_complete=True, stopped_by=stopped_by.decode() or None)
        if marked:
            self._folder.remove_self()
        return None

    def _parts(self) -> list[str]:
        ours = []
        for name in self._folder.names():
            pieces = name.removesuffix(".jsonl").split("-")
            if name.endswith(".jsonl") and len(pieces) == 3 and pieces[0] == "part" and pieces[1].isdecimal():
                ours.append(name)
            elif not name.startswith(".") and name != COMPLETE:
                log.warning("Skipped a file that is not a part of this batch: %s/%s", self.url, name)
        return ours

    def records(self) -> Iterator[dict[str, Any] | None]:
        """See :meth:`Journal.records`."""
        for name in self._parts():
            for line in self._folder.lines(name):
                if line:
                    yield records.decode(line)

    def write(self, batch: list[dict[str, Any]]) -> None:
        """Write the records as another part."""
        content = b"".join(records.encode(record) for record in batch)
        self._number += 1
        name = f"part-{self._number:08d}-{self._nonce}.jsonl"
        self._folder.write(name, content)
        self._small[name] = content
        if len(self._small) < COMPACT_PARTS and sum(map(len, self._small.values())) < COMPACT_BYTES:
            return
        if len(self._small) > 1:
            # Its name sorts after the parts that it replaces. After a kill in between, records exist twice, and the later ones win.
            name = f"part-{self._number:08d}-{self._nonce}z.jsonl"
            self._folder.write(name, b"".join(self._small.values()))
            self._folder.remove(list(self._small))
        self._small.clear()

    def hand_over(self, positions: dict[str, int], missing: Callable[[int], Line]) -> Results:
        """Write the results to the output path atomically, one line per item. Memory use does not depend on the answers."""
        results = Results()
        if self._complete:
            try:
                for line in self._beside.lines(self._name):
                    results.add(json.loads(line))
            except (ValueError, KeyError, TypeError) as problem:
                raise ChatBatchError(
                    "The results of this complete batch were changed and cannot be read. Remove the file to ask all prompts again. "
                    f"File: {self._beside.url}/{self._name}"
                ) from problem
            return results
        self._mark = _mark(sorted(positions))
        offsets, end = array("q", [-1]) * len(positions), 0
        origin = {"batch": asdict(self._scope)}
        with on_local_disk("write the results to"), spool() as lines:
            for n, values in self.results(positions):
                offsets[n] = end
                end += lines.write(records.encode(values | origin))
            lines.flush()
            with self._beside.replacing(self._name, self._scope.digest) as output:
                for n, offset in enumerate(offsets):
                    if offset < 0:
                        line = records.encode(missing(n) | origin)
                    else:
                        lines.seek(offset)
                        line = lines.readline()
                    results.add(json.loads(line))
                    output.write(line)
        return results

    def forget(self, stopped_by: str | None = None) -> None:
        """Remove the parts of this batch, but not those of other runs."""
        if not self._complete:
            mark = f"{self._mark.decode()} {stopped_by or ''}".rstrip()
            self._folder.write(COMPLETE, mark.encode())
            if self._memory is not None:
                self._memory.set_in_round(REMEMBERED, mark)
        # Otherwise it would be written again to the removed folder.
        self._claim.release()
        self._folder.remove([name for name in self._folder.names() if name != COMPLETE])
        self._folder.remove_self()
        self._above.remove_if_empty()


def _mark(keys: Iterable[str]) -> bytes:
    """Identify the items of a complete batch. A Dag that asks other prompts has another batch."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest().encode()


def _is_mark(mark: bytes, positions: dict[str, int]) -> bool:
    """Whether a complete batch had these items, in any order. Version 1.0.0 marked them in the order of the Dag."""
    return mark in {_mark(sorted(positions)), _mark(positions)}


class MemoryJournal(Journal):
    """Keeps records in memory for a batch that returns its results, and in the task state store if there is one.

    Clearing a complete batch asks again. A retry does not, if the attempt that completed the batch was killed before it succeeded.

    :param store: :class:`~..airflow_support.task_state.TaskMemory` with Airflow 3.3's task state store, or None.
    """

    def __init__(self, store: Any = None) -> None:
        self._store = store
        self._records: list[dict[str, Any]] = []
        self._written = 0
        self._mark = b""

    @property
    def remembers(self) -> bool:
        """Whether there is a store."""
        return self._store is not None and bool(self._store.exists)

    def load(self, positions: dict[str, int]) -> Past:
        """Read the store if it contains a batch that is not known to be complete."""
        self._mark = _mark(sorted(positions))
        head = self._store.get("batch", required=True) if self.remembers else None
        if (
            isinstance(head, dict)
            and isinstance(head.get("parts"), int)
            and (head.get("open") or _is_mark(str(self._store.recall_unfinished(REMEMBERED)).encode(), positions))
        ):
            self._written = head["parts"]
            for number in range(self._written):
                values = self._store.get(f"batch.{number}", required=True)
                if isinstance(values, list):
                    self._records.extend(filter(None, map(records.checked, values)))
        return self.past(positions)

    def write(self, batch: list[dict[str, Any]]) -> None:
        """Store the records. A part is valid once the head counts it."""
        self._records.extend(batch)
        if self.remembers:
            self._store.set(f"batch.{self._written}", batch, required=True)
            self._written += 1
            self._store.set("batch", {"open": True, "parts": self._written}, required=True)

    def records(self) -> Iterator[dict[str, Any] | None]:
        """See :meth:`Journal.records`."""
        yield from self._records

    def hand_over(self, positions: dict[str, int], missing: Callable[[int], Line]) -> Results:
        """Return the results as ``lines``."""
        best = dict(self.results(positions))
        results = Results(lines=[best[n] if n in best else missing(n) for n in range(len(positions))])
        for line in results.lines or []:
            results.add(line)
        return results

    def forget(self, stopped_by: str | None = None) -> None:
        """Mark the batch as complete. Its records tell a later attempt what was spent."""
        if self.remembers:
            self._store.set_in_round(REMEMBERED, self._mark.decode())
            self._store.set("batch", {"open": False, "parts": self._written})
