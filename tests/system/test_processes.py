"""Child processes end with all that came of them, whatever became of their environment and their parents."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.processes import Child, clean_environment, tree

# A grandchild without the environment that it could be recognized by, as Celery's processes are when they have changed their titles.
SCRIPT = "env -i sleep 60 & echo started; exec sleep 60"


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    started = Child("parent", ["sh", "-c", SCRIPT], environment=clean_environment(), logs=tmp_path)
    deadline = time.monotonic() + 20
    while "sleep" not in [process.name() for process in tree(started.pid)[1:]]:
        assert time.monotonic() < deadline, "no grandchild came"
        time.sleep(0.05)
    yield started
    started.stop(grace=0.5)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_kill_ends_the_whole_process_tree(child: Child) -> None:
    pids = [process.pid for process in tree(child.pid)]
    assert len(pids) == 2
    child.signal(signal.SIGKILL)
    assert not [pid for pid in pids if alive(pid)]


def test_an_orphan_is_found_and_ended(child: Child) -> None:
    (orphan,) = (process.pid for process in tree(child.pid)[1:])
    os.kill(child.pid, signal.SIGKILL)
    while child.running:
        time.sleep(0.05)
    assert [process.pid for process in tree(child.pid)] == [orphan]
    child.stop(grace=0.5)
    assert not alive(orphan)


def test_output_after_a_restart_is_separated_from_earlier_output(child: Child, tmp_path: Path) -> None:
    again = Child("parent", ["echo", "said again"], environment=clean_environment(), logs=tmp_path)
    while again.running:
        time.sleep(0.05)
    assert (again.said(), "started" in again.tail()) == ("said again\n", True)
