"""The batch's durable memory: part files beside the output, or the task's own state store. Blocking: not for an event loop.

Part files are immutable and numbered; a later record of an item wins over an earlier one, and an answer wins over everything.
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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_provider_llamachat.batch import claiming, records
from airflow_provider_llamachat.batch.items import Scope
from airflow_provider_llamachat.batch.records import Past
from airflow_provider_llamachat.batch.storage import Folder, spool
from airflow_provider_llamachat.exceptions import ChatBatchError, InvalidArgumentError

log = logging.getLogger(__name__)

COMPACT_PARTS = 50
"""Small part files that may lie there before they are written as one: a merge has to open each of them."""
COMPACT_BYTES = 1024 * 1024
"""Bytes of records since the last compaction that are kept in memory for the next one."""

COMPLETE = "complete.json"
"""Says that the results are in place and the parts on their way out: a kill in between must not make a retry ask again."""

REMEMBERED = "batch.complete"
"""The same in the task's memory, for a try that is lost after the parts are gone and before Airflow knows of its success."""

Line = dict[str, Any]


@dataclass(slots=True)
class Results:
    """The results as they were handed over.

    :ivar counts: items by outcome.
    :ivar errors: items without an answer, by the kind of their error.
    :ivar lines: the results themselves, when they were not written to a file.
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
    """Where records go, and where a later try finds them."""

    @property
    def remembers(self) -> bool:
        """Whether a retry finds what this try writes."""
        return True

    def claimed(self) -> contextlib.AbstractContextManager[object]:
        """While the block runs, no other batch writes where this one does.

        :raises InvalidArgumentError: the place is a folder, or belongs to another task of this run.
        :raises ChatBatchError: another batch writes there now, or nobody can.
        """
        return contextlib.nullcontext()

    @abc.abstractmethod
    def load(self, positions: dict[str, int]) -> Past:
        """Read what earlier tries left. Called once, first."""

    @abc.abstractmethod
    def write(self, batch: list[dict[str, Any]]) -> None:
        """Make records durable, all of them or (when the process dies) some of them."""

    @abc.abstractmethod
    def records(self) -> Iterator[dict[str, Any] | None]:
        """All records, oldest first; None stands for a damaged one."""

    def past(self, positions: dict[str, int]) -> Past:
        """What the records say at present."""
        return Past.of(self.records(), positions)

    def opened_sessions(self) -> Iterator[str]:
        """Ids of the sessions that this batch opened, in earlier tries too; an id may come more than once."""
        for record in self.records():
            if record is not None and (
                record["kind"] == "session" or (record["kind"] == "intent" and record.get("opened"))
            ):
                yield record["session_id"]

    @abc.abstractmethod
    def hand_over(self, positions: dict[str, int], missing: Callable[[int], Line]) -> Results:
        """Put the results where they belong, in the order of the prompts.

        :param missing: makes the line of an item that has no result.
        """

    @abc.abstractmethod
    def forget(self) -> None:
        """Remove everything: the batch is complete, and clearing its task asks anew."""


class PartsJournal(Journal):
    """Part files in ``<output_path>.parts/<batch>/``; at the end they become ``output_path``.

    :param output_path: a path object (``ObjectStoragePath``, ``pathlib.Path``) of the results.
    :param scope: the task instance; another run with the same ``output_path`` keeps its parts apart.
    :param memory: ``get_in_round(key)`` and ``set_in_round(key, value)`` of :class:`~..operators.base.TaskMemory`, or None. Between the
        removal of the parts and the task's success only it tells a retry that the batch is complete.
    """

    def __init__(self, output_path: Any, scope: Scope, memory: Any = None) -> None:
        self._memory = memory
        self._name = output_path.name
        self._digest = scope.digest
        self._scope = scope
        self._beside = Folder.around(output_path)
        self._above = self._beside.below(f"{output_path.name}.parts")
        self._folder = self._above.below(scope.digest)
        self._claim = claiming.Claim(self._above, scope)
        self._nonce = secrets.token_hex(4)
        self._number = 0
        self._small: list[str] = []
        self._recent: list[bytes] = []
        self._recent_size = 0
        self._complete = False
        self._mark = b""

    @property
    def url(self) -> str:
        """Where the parts are, for messages."""
        return self._folder.url

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """See :meth:`Journal.claimed`. It also shows, before anything is asked, that the results can be written."""
        if self._beside.is_folder(self._name):
            raise InvalidArgumentError(
                f"output_path has to be the path of a file, and this is a folder: {self._beside.url}/{self._name}. Nothing was asked."
            )
        self._claim.take()
        try:
            self._check_origin()
            yield
        finally:
            self._claim.release()

    def _check_origin(self) -> None:
        try:
            origin = json.loads(self._beside.first_line(self._name) or b"null")["batch"]
        except (ValueError, KeyError, TypeError):
            return  # no results, or nobody knows whose
        if isinstance(origin, dict) and claiming.is_same_run(origin, self._scope) and origin != asdict(self._scope):
            raise InvalidArgumentError(
                f"output_path holds the results of another batch of this run: {claiming.written_by(origin)}. Writing there would lose "
                f"them. {claiming.REMEDY} File: {self._beside.url}/{self._name}"
            )

    def load(self, positions: dict[str, int]) -> Past:
        """Read the parts that are there; what is damaged is reported and passed over."""
        if others := [name for name in self._above.names() if name != self._digest]:
            log.warning(
                "%d other batch(es) are unfinished at the same output path (%s). What they were answered stays there for their retries, "
                "and the results of the one that ends last replace the others'. Give each run a path of its own.",
                len(others),
                self._above.url,
            )
        if self._is_complete(positions):
            return Past(answered=set(positions.values()))
        self._number = max((int(name.split("-")[1]) for name in self._parts()), default=0)
        past = self.past(positions)
        if past.damaged:
            log.warning(
                "%s: passed over %d damaged line(s); the items concerned are asked as if the line was not there.",
                self.url,
                past.damaged,
            )
        if past.foreign:
            log.warning(
                "%s: passed over %d record(s) of prompts that this batch does not have.", self.url, past.foreign
            )
        return past

    def _is_complete(self, positions: dict[str, int]) -> bool:
        if marked := COMPLETE in self._folder.names():
            mark = b"".join(self._folder.lines(COMPLETE))
        else:
            mark = str(self._memory.recall_unfinished(REMEMBERED) or "").encode() if self._memory is not None else b""
        if mark == _mark(positions) and self._beside.has(self._name):
            log.info("An earlier try completed this batch: its results are in place.")
            self._complete = True
            return True
        if marked:
            self._folder.remove_self()
        return False

    def _parts(self) -> list[str]:
        ours = []
        for name in self._folder.names():
            pieces = name.removesuffix(".jsonl").split("-")
            if name.endswith(".jsonl") and len(pieces) == 3 and pieces[0] == "part" and pieces[1].isdecimal():
                ours.append(name)
            elif not name.startswith(".") and name != COMPLETE:
                log.warning("%s: passed over the file %s, which is not a part of this batch.", self.url, name)
        return ours

    def records(self) -> Iterator[dict[str, Any] | None]:
        """See :meth:`Journal.records`."""
        for name in self._parts():
            for line in self._folder.lines(name):
                if line:
                    yield records.decode(line)

    def write(self, batch: list[dict[str, Any]]) -> None:
        """Write the records as one more part."""
        content = b"".join(records.encode(record) for record in batch)
        self._number += 1
        name = f"part-{self._number:08d}-{self._nonce}.jsonl"
        self._folder.write(name, content)
        self._small.append(name)
        self._recent.append(content)
        self._recent_size += len(content)
        if len(self._small) >= COMPACT_PARTS or self._recent_size >= COMPACT_BYTES:
            self._compact()

    def _compact(self) -> None:
        if len(self._small) > 1:
            # Sorts after the parts that it replaces; a kill in between leaves records twice, and the later one wins.
            name = f"part-{self._number:08d}-{self._nonce}z.jsonl"
            self._folder.write(name, b"".join(self._recent))
            self._folder.remove(self._small)
        self._small.clear()
        self._recent.clear()
        self._recent_size = 0

    def hand_over(self, positions: dict[str, int], missing: Callable[[int], Line]) -> Results:
        """Write the results to the output path at once, one line per item. Memory does not grow with the answers."""
        results = Results()
        if self._complete:
            try:
                for line in self._beside.lines(self._name):
                    results.add(json.loads(line))
            except (ValueError, KeyError, TypeError) as problem:
                raise ChatBatchError(
                    "An earlier try completed this batch, but its results were changed since and cannot be read. Remove them to have "
                    f"everything asked again: {self._beside.url}/{self._name}"
                ) from problem
            return results
        self._mark = _mark(positions)
        offsets, sizes, answered = (
            array("q", [-1]) * len(positions),
            array("q", [0]) * len(positions),
            bytearray(len(positions)),
        )
        origin = {"batch": asdict(self._scope)}
        with self._beside.replacing(self._name, self._digest) as output, spool() as lines:
            end = 0
            for record in self.records():
                if (
                    record is None
                    or record["kind"] != "result"
                    or (n := positions.get(record["key"])) is None
                    or answered[n]
                ):
                    continue
                line = records.encode(record["line"] | origin)
                lines.write(line)
                offsets[n], sizes[n], answered[n] = end, len(line), record["line"]["outcome"] == records.ANSWERED
                end += len(line)
            for n, offset in enumerate(offsets):
                if offset < 0:
                    line = records.encode(missing(n) | origin)
                else:
                    lines.seek(offset)
                    line = lines.read(sizes[n])
                results.add(json.loads(line))
                output.write(line)
        return results

    def forget(self) -> None:
        """Remove this batch's parts; those of other runs are left alone."""
        if not self._complete:
            self._folder.write(COMPLETE, self._mark)
            if self._memory is not None:
                self._memory.set_in_round(REMEMBERED, self._mark.decode())
        # It would be written again into a folder that is gone.
        self._claim.release()
        self._folder.remove([name for name in self._folder.names() if name != COMPLETE])
        self._folder.remove_self()
        self._above.remove_if_empty()


def _mark(positions: dict[str, int]) -> bytes:
    """Which items a complete batch had: a Dag that asks others now has another batch."""
    return hashlib.sha256("\n".join(positions).encode()).hexdigest().encode()


class MemoryJournal(Journal):
    """Records in memory, for a batch that returns its results; with a store, a retry finds them there.

    Clearing a complete batch asks anew; a retry of the try that completed it, lost before Airflow knew of its success, does not.

    :param store: :class:`~..operators.base.TaskMemory` over Airflow 3.3's task state store, or None.
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
        """Read the store, if an earlier try left a batch there that was not complete, or not known to be."""
        self._mark = _mark(positions)
        head = self._store.get("batch", required=True) if self.remembers else None
        if isinstance(head, dict) and isinstance(head.get("parts"), int) and (head.get("open") or self._is_complete()):
            self._written = head["parts"]
            for number in range(self._written):
                values = self._store.get(f"batch.{number}", required=True)
                kept = [records.checked(value) for value in values] if isinstance(values, list) else [None]
                self._records.extend(record for record in kept if record is not None)
        return self.past(positions)

    def _is_complete(self) -> bool:
        return bool(self._store.recall_unfinished(REMEMBERED) == self._mark.decode())

    def write(self, batch: list[dict[str, Any]]) -> None:
        """Keep the records; a part counts from the moment the head says so."""
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
        best: dict[int, Line] = {}
        for record in self._records:
            n = positions.get(record["key"]) if record["kind"] == "result" else None
            if n is not None and best.get(n, {}).get("outcome") != records.ANSWERED:
                best[n] = record["line"]
        results = Results(lines=[best[n] if n in best else missing(n) for n in range(len(positions))])
        for line in results.lines or []:
            results.add(line)
        return results

    def forget(self) -> None:
        """Mark the batch as complete."""
        if self.remembers:
            self._store.set_in_round(REMEMBERED, self._mark.decode())
            self._store.set("batch", {"open": False, "parts": self._written})
