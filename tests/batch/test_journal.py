"""The journal: what it keeps, in which order, in every kind of storage, and how it reads what a kill left."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec  # type: ignore[import-untyped]  # it ships no types
import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_llamachat.airflow_support.task_state import TaskMemory
from airflow_provider_llamachat.batch import journal as journals
from airflow_provider_llamachat.batch import records, storage
from airflow_provider_llamachat.batch.items import BatchScope, Item
from airflow_provider_llamachat.batch.journal import MemoryJournal, PartsJournal
from airflow_provider_llamachat.batch.records import Past
from airflow_provider_llamachat.conversation.question import Trace
from airflow_provider_llamachat.exceptions import ChatBatchError
from tests.batch.conftest import SCOPE

try:
    from airflow.sdk.io import attach as _attach
except ImportError:
    from airflow.io.store import attach as _attach  # type: ignore[no-redef,import-not-found]  # where Airflow 2 has it

ITEMS = [Item(number, f"Question {number}") for number in range(4)]
POSITIONS = {item.key(SCOPE): item.position for item in ITEMS}
KEYS = list(POSITIONS)
TAKEN = Trace(0, intended_at=1.0, accepted=True, recorded="0123")


def line(position: int, outcome: str = "answered", answer: str | None = "Yes.") -> dict[str, Any]:
    usage = {"total_input_tokens": 10, "total_output_tokens": 1}
    return {"position": position, "outcome": outcome, "answer": answer, "usage": usage}


def missing(position: int) -> dict[str, Any]:
    return {"position": position, "outcome": "unasked", "answer": None, "usage": None}


@pytest.fixture(params=["file", "path", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "path":
        yield tmp_path / "deep" / "results.jsonl"
    elif request.param == "file":
        yield ObjectStoragePath(f"file://{tmp_path}/deep/results.jsonl")
    else:
        # Stands for every remote store: the scheme is no local one, and files come to be when they are closed.
        _attach("memory", fs=fsspec.filesystem("memory"))
        path = ObjectStoragePath(f"memory://{tmp_path.name}/deep/results.jsonl")
        yield path
        path.fs.store.clear()


def test_results_come_in_the_order_of_the_prompts_and_the_parts_go(output: Any) -> None:
    journal = PartsJournal(output, SCOPE)
    assert journal.load(POSITIONS) == Past()
    journal.write([records.intent(KEYS[2], "s2", Trace(0, intended_at=1.0), opened=True), records.session("s9")])
    journal.write([records.result(KEYS[2], line(2), trace=Trace(0))])
    journal.write([records.result(KEYS[0], line(0, answer="Ünïcode \u2028 and half \ud800"), trace=Trace(0))])
    journal.write([records.result(KEYS[3], line(3, "failed", None), trace=Trace(0))])
    assert set(journal.opened_sessions()) == {"s2", "s9"}
    results = journal.hand_over(POSITIONS, missing)
    journal.forget()
    text = output.read_bytes()
    lines = [json.loads(piece) for piece in text.split(b"\n") if piece]
    assert [item["position"] for item in lines] == [0, 1, 2, 3]
    assert lines[0]["answer"] == "Ünïcode \u2028 and half \ud800"
    assert text.endswith(b"\n")
    assert results.counts == {"answered": 2, "failed": 1, "interrupted": 0, "unasked": 1}
    assert (results.input_tokens, results.output_tokens) == (30, 3)
    assert storage.Folder.around(output).names() == [output.name]


def test_a_later_try_sees_what_earlier_ones_left(output: Any) -> None:
    first = PartsJournal(output, SCOPE)
    first.load(POSITIONS)
    first.write([records.intent(key, f"s{key}", Trace(0, intended_at=1.0), opened=True) for key in KEYS])
    first.write(
        [records.result(KEYS[0], line(0), trace=Trace(0)), records.result(KEYS[1], line(1, "failed"), trace=Trace(0))]
    )
    first.write([records.release(KEYS[2]), records.acceptance(KEYS[2], TAKEN), records.acceptance(KEYS[3], TAKEN)])
    second = PartsJournal(output, SCOPE)
    past = second.load(POSITIONS)
    assert past.answered == {0}
    assert set(past.intents) == {1, 3}
    assert past.intents[3] == records.Intent(f"s{KEYS[3]}", TAKEN, opened=True)
    assert not past.intents[1].trace.is_open
    second.write([records.result(KEYS[1], line(1, answer="Now."), trace=Trace(1))])
    # A process that was thought dead may still write: an answer is not replaced by anything.
    first.write([records.result(KEYS[0], line(0, "failed", None), trace=Trace(0))])
    second.hand_over(POSITIONS, missing)
    lines = [json.loads(piece) for piece in output.read_bytes().split(b"\n") if piece]
    assert [item["outcome"] for item in lines] == ["answered", "answered", "unasked", "unasked"]
    assert lines[1]["answer"] == "Now."


def test_small_parts_become_one(output: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "COMPACT_PARTS", 3)
    journal = PartsJournal(output, SCOPE)
    journal.load(POSITIONS)
    for number in range(7):
        journal.write([records.result(KEYS[0], line(0, "failed", f"{number}"), trace=Trace(0))])
    folder = storage.Folder.around(output).below(f"{output.name}.parts", SCOPE.digest)
    assert len(folder.names()) == 3
    answers = [record["line"]["answer"] for record in journal.records() if record]
    assert answers == [f"{number}" for number in range(7)]
    journal.write([records.result(KEYS[0], line(0, answer="last"), trace=Trace(0))])
    journal.hand_over(POSITIONS, missing)
    assert b'"last"' in output.read_bytes()


def test_much_content_becomes_one_part_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "COMPACT_BYTES", 1000)
    journal = PartsJournal(tmp_path / "o.jsonl", SCOPE)
    for _ in range(4):
        journal.write([records.result(KEYS[0], line(0, "failed", "x" * 600), trace=Trace(0))])
    folder = tmp_path / "o.jsonl.parts"
    assert [path.name[-7:] for path in sorted(folder.glob("*/part-*"))] == ["z.jsonl", "z.jsonl"]
    journal.write([records.result(KEYS[0], line(0, "failed", "x" * 2000), trace=Trace(0))])
    assert len(list(folder.glob("*/part-*"))) == 3
    assert sum(1 for _ in journal.records()) == 5


def test_truncated_or_foreign_journal_parts_are_reported_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "results.jsonl"
    journal = PartsJournal(output, SCOPE)
    journal.load(POSITIONS)
    good = records.encode(records.result(KEYS[0], line(0), trace=Trace(0)))
    journal.write([records.intent("a key of no item", "s", Trace(0, intended_at=1.0), opened=False)])
    folder = Path(journal.url)
    damaged = [
        good[: len(good) // 2],
        b"\xff\xfe",
        b"[]",
        b'{"v": 2, "kind": "intent"}',
        b'{"v": 1, "kind": "intent", "key": "k", "session_id": 7, "baseline": 0}',
        b'{"v": 1, "kind": "result", "key": "k", "line": {"outcome": "odd"}}',
        b'{"v": 1, "kind": "unheard of"}',
    ]
    (folder / "part-00000009-abcd.jsonl").write_bytes(b"\n".join([*damaged, b"", good]))
    (folder / "notes.txt").write_text("what is this?")
    (folder / ".part-00000010-abcd.jsonl").write_bytes(good[:10])
    (folder.parent / "another-run").mkdir()
    again = PartsJournal(output, SCOPE)
    past = again.load(POSITIONS)
    assert past.answered == {0}
    assert past.damaged == len(damaged)
    assert past.foreign == 1
    assert "Skipped a file that is not a part of this batch" in caplog.text
    assert "damaged records" in caplog.text
    assert "1 records of prompts that are no longer in this batch" in caplog.text
    assert "1 other batches with the same output_path are unfinished" in caplog.text
    again.write([])
    assert len(list(folder.glob("part-00000010-*.jsonl"))) == 1
    again.hand_over(POSITIONS, missing)
    again.forget()
    assert [path.name for path in folder.parent.iterdir()] == ["another-run"]


@pytest.mark.parametrize(("is_old", "is_reversed"), [(False, False), (False, True), (True, False)])
def test_a_complete_batch_with_half_of_its_parts_deleted_is_not_asked_again(
    is_old: bool, is_reversed: bool, output: Any
) -> None:
    first = dict(reversed(POSITIONS.items())) if is_reversed else POSITIONS
    journal = PartsJournal(output, SCOPE)
    journal.load(first)
    journal.write([records.result(key, line(position), trace=Trace(0)) for key, position in first.items()])
    journal.hand_over(first, missing)
    # 1.0.0 marked the items in their order.
    old = hashlib.sha256("\n".join(first).encode()).hexdigest().encode()
    mark = old if is_old else journal._mark  # noqa: SLF001  # what a kill in the middle of handing over leaves
    journal._folder.write(journals.COMPLETE, mark)  # noqa: SLF001  # as above
    again = PartsJournal(output, SCOPE)
    assert again.load(POSITIONS).answered == {0, 1, 2, 3}
    assert again.hand_over(POSITIONS, missing).counts["answered"] == 4
    again.forget()
    assert storage.Folder.around(output).names() == [output.name]


@pytest.mark.parametrize("why", ["other prompts", "no results"])
def test_the_marker_of_another_batch_is_ignored(why: str, output: Any) -> None:
    journal = PartsJournal(output, SCOPE)
    journal.write([records.result(KEYS[0], line(0), trace=Trace(0))])
    journal.hand_over(POSITIONS, missing)
    journal._folder.write(journals.COMPLETE, journal._mark)  # noqa: SLF001  # what a kill in the middle of handing over leaves
    positions = dict(list(POSITIONS.items())[:3]) if why == "other prompts" else POSITIONS
    if why == "no results":
        output.unlink()
    again = PartsJournal(output, SCOPE)
    assert again.load(positions) == Past()
    assert list(again.records()) == []


def test_on_an_error_the_old_results_stay(output: Any) -> None:
    folder = storage.Folder.around(output)
    folder.write(output.name, b"old\n")

    def fail() -> None:
        with folder.replacing(output.name, "me") as file:
            file.write(b"half of the n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert output.read_bytes() == b"old\n"
    with folder.replacing(output.name, "me") as file:
        file.write(b"new\n")
    assert output.read_bytes() == b"new\n"
    assert folder.names() == [output.name]
    folder.remove(["not there"])


def test_a_transient_storage_error_is_retried_and_then_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    folder = storage.Folder.around(tmp_path / "file" / "below" / "x")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ChatBatchError, match=r"Could not write to .*below: (NotADirectory|FileExists)Error"):
        folder.write("x", b"")
    calls = 0

    def flaky() -> int:
        nonlocal calls
        calls += 1
        if calls < storage.ATTEMPTS:
            raise OSError("for a moment")
        return calls

    assert folder._trying("read", flaky) == storage.ATTEMPTS  # noqa: SLF001  # every access goes this way; no store here fails by itself


class Store(dict[str, Any]):
    """A task state store: keeps JSON values."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


def memory(store: Store | None, max_tries: int = 2) -> Any:
    """The task's memory in a round of tries; clearing a task raises ``max_tries``."""
    context: Any = {"task_state_store": store, "ti": SimpleNamespace(max_tries=max_tries)}
    return TaskMemory(context, logging.getLogger("tests.memory"))


def test_with_a_store_a_retry_finds_the_records_and_a_cleared_task_asks_again() -> None:
    store = Store()
    first = MemoryJournal(memory(store))
    assert first.remembers
    assert first.load(POSITIONS) == Past()
    first.write(
        [
            records.intent(KEYS[0], "s0", Trace(0, intended_at=1.0), opened=True),
            records.intent(KEYS[1], "s1", Trace(0, intended_at=1.0), opened=True),
        ]
    )
    first.write([records.result(KEYS[0], line(0), trace=Trace(0)), records.session("s9")])
    # Cleared before the batch was complete, it goes on all the same.
    second = MemoryJournal(memory(store, max_tries=5))
    past = second.load(POSITIONS)
    assert (past.answered, set(past.intents), past.shared_session) == ({0}, {1}, "s9")
    assert set(second.opened_sessions()) == {"s0", "s1", "s9"}
    second.write([records.result(KEYS[1], line(1), trace=Trace(0))])
    results = second.hand_over(POSITIONS, missing)
    assert results.lines is not None
    assert [item["outcome"] for item in results.lines] == ["answered", "answered", "unasked", "unasked"]
    second.forget()
    lost = MemoryJournal(memory(store, max_tries=5))
    assert lost.load(POSITIONS).answered == {0, 1}
    assert lost.hand_over(POSITIONS, missing).lines == results.lines
    assert MemoryJournal(memory(store, max_tries=8)).load(POSITIONS) == Past()
    assert MemoryJournal(memory(store, max_tries=5)).load({"other prompts": 0}) == Past()


@pytest.mark.parametrize("head", [None, 7, {"open": True, "parts": "x"}, {"open": True, "parts": 2}])
def test_a_store_with_foreign_content_counts_as_empty(head: Any) -> None:
    store = Store({"batch": head, "batch.0": "odd", "batch.1": [{"v": 9}, None]})
    assert MemoryJournal(memory(store)).load(POSITIONS) == Past()


def test_a_batch_whose_success_was_not_reported_to_airflow_is_not_asked_again(output: Any) -> None:
    store = Store()
    journal = PartsJournal(output, SCOPE, memory(store))
    journal.load(POSITIONS)
    journal.write([records.result(key, line(position), trace=Trace(0)) for key, position in POSITIONS.items()])
    journal.hand_over(POSITIONS, missing)
    journal.forget()
    assert PartsJournal(output, SCOPE, memory(store)).load(POSITIONS).answered == {0, 1, 2, 3}
    assert PartsJournal(output, SCOPE, memory(store, max_tries=5)).load(POSITIONS) == Past()
    assert PartsJournal(output, SCOPE, memory(None)).load(POSITIONS) == Past()


def test_without_a_store_nothing_is_remembered() -> None:
    journal = MemoryJournal()
    assert not journal.remembers
    journal.write([records.result(KEYS[0], line(0), trace=Trace(0))])
    assert journal.load(POSITIONS).answered == {0}
    journal.forget()
    assert MemoryJournal().load(POSITIONS) == Past()


_kinds = st.sampled_from(["intent", "answered", "failed", "release"])


@given(st.lists(st.tuples(st.integers(0, 3), _kinds), max_size=30))
def test_an_answer_is_final_whatever_record_follows(steps: list[tuple[int, str]]) -> None:
    made: list[dict[str, Any] | None] = []
    answered: set[int] = set()
    open_intents: dict[int, str] = {}
    for number, (position, kind) in enumerate(steps):
        if kind == "intent":
            made.append(records.intent(KEYS[position], f"s{number}", Trace(number, intended_at=1.0), opened=True))
        elif kind == "release":
            made.append(records.release(KEYS[position]))
        else:
            made.append(records.result(KEYS[position], line(position, kind), trace=Trace(0)))
        if position in answered:
            continue
        if kind == "intent":
            open_intents[position] = f"s{number}"
        elif kind == "release":
            open_intents.pop(position, None)
        elif kind == "answered":
            answered.add(position)
            open_intents.pop(position, None)
    past = Past.of(made, POSITIONS)
    assert past.answered == answered
    assert {position: intent.session_id for position, intent in past.intents.items()} == open_intents


def test_scopes_do_not_share_parts(tmp_path: Path) -> None:
    other = BatchScope("dag", "task", "run", 1)
    PartsJournal(tmp_path / "o.jsonl", other).write([records.result(KEYS[0], line(0), trace=Trace(0))])
    assert PartsJournal(tmp_path / "o.jsonl", SCOPE).load(POSITIONS) == Past()
