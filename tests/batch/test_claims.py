"""Two batches with one output path: one of them asks, the other one does not; and nothing that is dead stands in anybody's way."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_llamachat.batch import storage
from airflow_provider_llamachat.batch.claims import NAME, STALE, Claim
from airflow_provider_llamachat.batch.items import BatchScope
from airflow_provider_llamachat.batch.journal import PartsJournal
from airflow_provider_llamachat.batch.storage import Folder
from airflow_provider_llamachat.exceptions import ChatBatchError, InvalidArgumentError
from airflow_provider_llamachat.testing import LlamaCloudEmulator
from tests.batch.conftest import Runner
from tests.batch.stores import Buckets
from tests.batch.test_operator import go, read

ONE, TWO = sorted(
    (BatchScope("dag", "task", "run", 0), BatchScope("dag", "task", "run", 1)), key=lambda scope: scope.digest
)
ANOTHER_RUN = BatchScope("dag", "task", "another run", 0)


@pytest.fixture
def above(tmp_path: Path) -> Folder:
    return Folder.around(tmp_path / "results.jsonl").below("results.jsonl.parts")


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.rglob("*")]


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_of_two_mapped_batches_with_the_same_path_only_one_asks(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    output = tmp_path / "results.jsonl"
    result = go("one_path", output_path=str(output))
    assert sorted(result.tasks["batch"]) == ["failed", "success"]
    assert result.tries["batch"] == 1
    assert llamacloud_emulator.posts() == len(read(output)) == 2
    first, second = (line["batch"] for line in read(output))
    assert first == second
    assert (first["dag_id"], first["task_id"]) == ("one_path", "batch")
    assert first["map_index"] in {0, 1}  # dag.test() of Airflow 3.0 does not begin with the first
    # Another run replaces them, and so does this one's own task.
    assert sorted(go("one_path", output_path=str(output)).tasks["batch"]) == ["failed", "success"]
    assert llamacloud_emulator.posts() == 4


def test_a_second_batch_is_refused_only_while_the_first_one_writes(above: Folder, tmp_path: Path) -> None:
    for first, second in ((ONE, TWO), (TWO, ONE)):
        claim = Claim(above, first)
        claim.take()
        with pytest.raises(InvalidArgumentError, match=rf"task task, map index {first.map_index}, run run, seen \d+ s"):
            Claim(above, second).take()
        with pytest.raises(ChatBatchError, match="A retry succeeds after it has ended"):
            Claim(above, ANOTHER_RUN).take()
        again = Claim(above, first)
        again.take()
        again.release()
        claim.release()
        claim.release()
        assert left(tmp_path) == []


def test_a_link_to_a_path_is_the_same_path(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link, real = tmp_path / "link.jsonl", tmp_path / "far" / "results.jsonl"
    link.symlink_to(real)
    with PartsJournal(link, ONE).claimed():
        for same in (real, ObjectStoragePath(f"file://{real}")):
            with (
                pytest.raises(InvalidArgumentError, match="Another batch is writing"),
                PartsJournal(same, TWO).claimed(),
            ):
                pass
    with PartsJournal(real, ONE).claimed(), pytest.raises(InvalidArgumentError), PartsJournal(link, TWO).claimed():
        pass
    assert sorted(left(tmp_path)) == ["far", "link.jsonl"]


@pytest.mark.parametrize("kind", ["missing", "read-only"])
def test_a_link_into_a_folder_that_takes_no_files_is_a_path_of_its_own(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, far = tmp_path / "link.jsonl", tmp_path / "far"
    link.symlink_to(far / "results.jsonl")
    if kind == "read-only":
        far.mkdir()
        allowed = os.access  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda path, *mode: Path(path) != far and allowed(path, *mode))
    with PartsJournal(link, ONE).claimed():
        assert (tmp_path / "link.jsonl.parts" / ONE.digest / ".writer").exists()
        assert not far.exists() or list(far.iterdir()) == []
        with pytest.raises(InvalidArgumentError, match="Another batch is writing"), PartsJournal(link, TWO).claimed():
            pass
    assert far.exists() is (kind == "read-only")


def test_two_batches_that_begin_together_do_not_both_continue(above: Folder, tmp_path: Path) -> None:
    for _ in range(10):
        ends: list[str] = []
        barrier = threading.Barrier(2)

        def take(claim: Claim, barrier: threading.Barrier = barrier, ends: list[str] = ends) -> None:
            barrier.wait()
            try:
                claim.take()
                ends.append("taken")
            except InvalidArgumentError:
                ends.append("refused")

        claims = [Claim(above, scope, sleep=lambda _: time.sleep(0.01)) for scope in (ONE, TWO)]
        threads = [threading.Thread(target=take, args=(claim,)) for claim in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ends) == ["refused", "taken"]
        for claim in claims:
            claim.release()
        assert left(tmp_path) == []


def test_a_batch_waits_until_a_competing_claim_has_decided(above: Folder) -> None:
    steps: list[Callable[[], None]] = []
    claim = Claim(above, ONE, sleep=lambda _: steps.pop(0)())
    later = above.below(TWO.digest)

    def says(state: str) -> Callable[[], None]:
        content = {"state": state, "at": time.time(), **vars_of(TWO)}
        return lambda: later.write(NAME, json.dumps(content).encode())

    says("waiting")()
    steps[:] = [says("waiting"), says("ended")]
    claim.take()
    assert steps == []
    claim.release()
    says("waiting")()
    steps[:] = [says("writing")]
    with pytest.raises(InvalidArgumentError):
        Claim(above, ONE, sleep=lambda _: steps.pop(0)()).take()


def vars_of(scope: BatchScope) -> dict[str, Any]:
    return {name: getattr(scope, name) for name in ("dag_id", "task_id", "run_id", "map_index")}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"state": "writing"}',
        b'{"state": "writing", "at": "then"}',
        b'{"state": "writing", "at": 1}',
    ],
    ids=repr,
)
def test_an_expired_or_damaged_claim_is_ignored(content: bytes, above: Folder) -> None:
    above.below(TWO.digest).write(NAME, content)
    claim = Claim(above, ONE)
    claim.take()
    claim.release()


def test_a_killed_batch_blocks_its_path_briefly_but_not_its_own_retry(above: Folder) -> None:
    now = [1000.0]

    def clock() -> float:
        return now[0]

    killed = Claim(above, TWO, now=clock)
    killed.take()
    retry = Claim(above, TWO, now=clock)
    retry.take()
    with pytest.raises(InvalidArgumentError):
        Claim(above, ONE, now=clock).take()
    now[0] += STALE
    other = Claim(above, ONE, now=clock)
    other.take()
    for claim in (killed, retry, other):
        claim.release()


def test_a_claim_is_renewed_while_the_batch_runs(above: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_llamachat.batch.claims.BEAT", 0.02)
    now = [1000.0]
    claim = Claim(above, ONE, now=lambda: now[0])
    claim.take()
    now[0] += STALE * 2
    folder, deadline = above.below(ONE.digest), time.monotonic() + 20
    while json.loads(folder.read(NAME) or b"{}").get("at") != now[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(InvalidArgumentError):
        Claim(above, TWO, now=lambda: now[0]).take()
    claim.release()
    assert folder.read(NAME) is None


def test_files_that_a_retry_needs_are_kept_after_the_claim(
    runner: Runner, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with PartsJournal(runner.output, runner.scope).claimed():
        journal = PartsJournal(runner.output, runner.scope)
        journal.load({})
        journal.write([{"v": 1, "kind": "session", "session_id": "s"}])
    assert [path.suffix for path in runner.parts] == [".jsonl"]
    with PartsJournal(runner.output, runner.scope).claimed():
        assert list(PartsJournal(runner.output, runner.scope).opened_sessions()) == ["s"]


@pytest.mark.parametrize("content", [b"", b"\n", b"{}", b"[1]", b'{"batch": 7}', b"not JSON\n"], ids=repr)
def test_results_of_unknown_origin_are_replaced(content: bytes, runner: Runner) -> None:
    runner.output.write_bytes(content)
    with PartsJournal(runner.output, runner.scope).claimed():
        runner.run()
    assert len(runner.lines) == 6


@pytest.mark.parametrize(
    ("reason", "is_refusal"), [("Forbidden: answers/results.jsonl\nno access", True), ("reset", False)]
)
def test_results_that_may_not_be_read_are_of_unknown_origin(
    reason: str, is_refusal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Buckets("answers")
    path = store.at("answers/results.jsonl")
    path.write_bytes(b"{}")
    opened = store.open

    def forbidden(at: str, mode: str = "rb", **options: Any) -> Any:
        if at.endswith("results.jsonl") and mode == "rb":
            raise OSError(reason)  # gcsfs has no class of its own for it
        return opened(at, mode, **options)

    monkeypatch.setattr(store, "open", forbidden)
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    told = contextlib.nullcontext() if is_refusal else pytest.raises(ChatBatchError, match=r"Could not read .*reset")
    with told, PartsJournal(path, ONE).claimed():
        pass
    assert not store.find("answers/results.jsonl.parts")  # the claim is released


def test_little_is_read_of_a_file_without_line_breaks(runner: Runner) -> None:
    with runner.output.open("wb") as file:
        file.truncate(200 * 2**20)
    tracemalloc.start()
    with PartsJournal(runner.output, runner.scope).claimed():
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 2**20


@pytest.mark.parametrize(
    ("content", "most", "length"),
    [
        (b"short", 3 * storage.CHUNK, 5),
        (b"a line\n" + b"x" * 2 * storage.CHUNK, 3 * storage.CHUNK, storage.CHUNK),
        (b"x" * storage.CHUNK + b"\n" + b"y" * 2 * storage.CHUNK, 4 * storage.CHUNK, 2 * storage.CHUNK),
        (b"x" * 3 * storage.CHUNK, 2 * storage.CHUNK, 2 * storage.CHUNK),
    ],
    ids=["a short file", "a short line", "a long line", "no line break"],
)
def test_of_earlier_results_no_more_is_read_than_the_first_line_needs(
    content: bytes, most: int, length: int, tmp_path: Path
) -> None:
    (tmp_path / "results.jsonl").write_bytes(content)
    assert Folder.around(tmp_path / "results.jsonl").head("results.jsonl", most) == content[:length]
