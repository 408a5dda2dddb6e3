"""Child processes that always end: started in a group of their own, logged to a file, ended by process id with their children."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

# Set in the environment of every process of one owner, so that orphans are found too.
MARKER = "LLAMACHAT_HARNESS"


def free_port() -> int:
    """Return a port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what would reach into an Airflow or measure its processes, plus ``extra``."""
    # Without byte code on disk, each of Airflow's processes would compile the same thousand files.
    drop = ("AIRFLOW_", "COVERAGE_", "COV_CORE_", "PYTEST_", "LLAMA_CLOUD_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return {**kept, "NO_PROXY": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1", **(extra or {})}


def tree(pid: int) -> list[psutil.Process]:
    """Return a process, all below it, and the orphans of the session that it leads (or led), as far as they exist."""
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        found |= {process.pid: process for process in (root, *root.children(recursive=True))}
    # A process that changes its title, as Celery's do, may lose its environment with that, and the mark in there.
    for other in psutil.pids():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if other not in found and os.getsid(other) == pid:
                orphan = psutil.Process(other)
                if orphan.status() != psutil.STATUS_ZOMBIE:
                    found[other] = orphan
    return list(found.values())


def freeze(pid: int) -> list[psutil.Process]:
    """Stop a process and all below it where they are, until nothing new appears; return them."""
    frozen: dict[int, psutil.Process] = {}
    while new := [process for process in tree(pid) if process.pid not in frozen]:
        for process in new:
            frozen[process.pid] = process
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
    return list(frozen.values())


def end(processes: Iterable[psutil.Process], *, grace: float = 3.0) -> None:
    """Ask processes to stop, and kill those that have not after ``grace`` seconds."""
    found = list(processes)
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(found, timeout=grace)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def marked(mark: str) -> list[psutil.Process]:
    """Return every process whose environment carries this mark, orphans included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARKER) == mark:
                found.append(process)
    return found


def end_marked(mark: str) -> None:
    """End every process that carries this mark, those too that start while the others end.

    :raises RuntimeError: some are still there.
    """
    for grace in (2.0, 0.0, 0.0, 0.0, 0.0):
        found = marked(mark)
        if not found:
            return
        end(found, grace=grace)
    if found := marked(mark):
        raise RuntimeError(f"These processes do not end: {found}")


class Child:
    """One component: a command, its log file, and its end.

    :param name: names the log file, ``<name>.log`` in ``logs``; a restart appends to it.
    :param user: who it runs as, for a program that refuses to run as root; None: as this process.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        logs: Path,
        user: str | None = None,
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self.started = time.time()
        self._said_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                list(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=logs,
                start_new_session=True,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether the component's own process still exists."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the component and everything below it; SIGKILL is waited for."""
        # What a process forks off between being found and being killed would outlive it.
        processes = freeze(self.pid) if number == signal.SIGKILL else tree(self.pid)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(10)
            psutil.wait_procs(processes, timeout=10)

    def stop(self, grace: float = 3.0) -> None:
        """End the component and everything below it."""
        end(tree(self.pid), grace=grace)
        self._process.wait(10)

    def said(self) -> str:
        """Return what it wrote to its log since its start."""
        with self.log.open("rb") as file:
            file.seek(self._said_before)
            return file.read().decode(errors="replace")

    def tail(self, lines: int = 30) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
