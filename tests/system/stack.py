"""A whole Airflow for a test: real processes, a home and a database of its own, ended whatever happens.

    with AirflowStack(dags=[Path("dags/trivial.py")]) as stack:
        run = stack.trigger("trivial")
        assert stack.wait(run) == "success"

``python`` chooses the Airflow: the interpreter of an environment that has one (2.11 or newer).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from tests.system.celery_workers import CeleryWorkers
from tests.system.processes import MARKER, Child, clean_environment, end_marked, free_port
from tests.system.rest import AirflowApi
from tests.system.settings import StackSettings

Found = TypeVar("Found")
HERE = Path(__file__).resolve().parent
RUN_ENDS = frozenset({"success", "failed"})
SERVERS = frozenset({"api-server", "webserver"})


class AirflowStack:
    """Runs Airflow's components as child processes.

    :param python: interpreter of the environment to run.
    :param dags: files (copied) that make up the Dags folder; :meth:`add_dag` brings more.
    :param database_url: SQLAlchemy URL of an empty database; None: SQLite (write-ahead log) in the stack's home.
    :param environment: variables for all components, connections (``AIRFLOW_CONN_...``) and options (``AIRFLOW__...``) included.
    :param heartbeat_timeout: seconds after which a silent task or triggerer counts as dead.
    :param parallelism: tasks at once.
    :param executor: class name; None: LocalExecutor, or on Airflow 2 with SQLite the only one that works there.
    :param celery: the workers of a CeleryExecutor, as further components.
    :param keep: leave home, with all logs, when the stack ends.
    """

    def __init__(
        self,
        *,
        python: str | Path = sys.executable,
        dags: Iterable[Path] = (),
        database_url: str | None = None,
        environment: Mapping[str, str] | None = None,
        heartbeat_timeout: int = 10,
        parallelism: int = 4,
        executor: str | None = None,
        celery: CeleryWorkers | None = None,
        keep: bool = False,
    ) -> None:
        self.python = str(python)
        self.home = Path(tempfile.mkdtemp(prefix="llamachat-airflow-"))
        self.mark = uuid.uuid4().hex
        self._keep = keep
        self._children: dict[str, Child] = {}
        self._runs: dict[str, str] = {}
        self._environment = dict(environment or {})
        try:
            self.version_text = self._version_of(self.python)
            version = tuple(int(part) for part in self.version_text.split(".")[:2])
            self.database_url = database_url or f"sqlite:///{self.home / 'airflow.db'}"
            self.settings = StackSettings(
                home=self.home,
                version=version,
                port=free_port(),
                database_url=self.database_url,
                dags_folder=self.home / "dags",
                heartbeat_timeout=heartbeat_timeout,
                parallelism=parallelism,
                executor=executor,
                celery=celery,
            )
            self.settings.write_files()
            # Once: the configuration holds secrets that all components have to share.
            self._configuration = self.settings.environment()
            self.url = f"http://127.0.0.1:{self.settings.port}"
            self.api = AirflowApi(self.url, version)
            self._migrated = False
            for file in dags:
                self.add_dag(file)
        except BaseException:
            shutil.rmtree(self.home, ignore_errors=True)
            raise

    # --- life ---

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def environment(self) -> dict[str, str]:
        """Return the environment that a component, or a command beside it, gets."""
        # Airflow 2 starts its tasks as `airflow`, wherever that is found.
        path = os.pathsep.join([str(Path(self.python).parent), os.environ.get("PATH", os.defpath)])
        return clean_environment({"PATH": path, **self._configuration, **self._environment, MARKER: self.mark})

    def start(self, components: Iterable[str] | None = None, *, timeout: float = 120.0) -> None:
        """Start components (default: all that this Airflow consists of) and wait until each was heard of.

        :raises RuntimeError: one of them ended, or was not heard of in time; with the end of its log.
        """
        wanted = [name for name in self.settings.components if components is None or name in set(components)]
        if not self._migrated:
            self.run("db", "migrate", timeout=timeout)
            self._use_write_ahead_log()
            self._migrated = True
        new = [name for name in wanted if not self.running(name)]
        # A scheduler that is up before the API server starts tasks that cannot report to it, and fail.
        self._start([name for name in new if name in SERVERS], timeout)
        self._start([name for name in new if name not in SERVERS], timeout)

    def stop(self) -> None:
        """End every process of the stack, orphans included, and remove its home."""
        try:
            self.api.close()
            end_marked(self.mark)
            for child in self._children.values():
                child.stop()
            self._children.clear()
        finally:
            if not self._keep:
                shutil.rmtree(self.home, ignore_errors=True)

    def running(self, component: str) -> bool:
        """Whether a component runs."""
        return component in self._children and self._children[component].running

    def kill(self, component: str, sig: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a component and all its children; after SIGKILL none of them is left."""
        self._children[component].signal(sig)
        if sig in {signal.SIGKILL, signal.SIGTERM, signal.SIGINT}:
            # A component that ends is a failure from now on only if nobody asked it to.
            del self._children[component]

    def restart(self, component: str, *, timeout: float = 60.0) -> None:
        """End a component in good order, if it runs, and start it again."""
        if self.running(component):
            self._children.pop(component).stop()
        self.start([component], timeout=timeout)

    def pid(self, component: str) -> int:
        """Return a component's process id."""
        return self._children[component].pid

    def run(self, *arguments: str, timeout: float = 120.0) -> str:
        """Run an ``airflow`` command in this installation and return what it printed.

        :raises RuntimeError: it failed; with its output.
        """
        done = subprocess.run(
            [self.python, "-m", "airflow", *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=self.home,
        )
        if done.returncode:
            raise RuntimeError(
                f"airflow {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    # --- what a user does ---

    def add_dag(self, file: Path) -> None:
        """Copy a Dag file into the Dags folder; a running Dag processor finds it in seconds."""
        shutil.copy(file, self.settings.dags_folder / file.name)

    def set_connection(self, conn_id: str, value: str) -> None:
        """Define a connection by its JSON: in the environment before the start, in the metadata database after it."""
        variable = f"AIRFLOW_CONN_{conn_id.upper()}"
        if not self._children:
            self._environment[variable] = value
        elif variable in self._environment:
            raise ValueError(f"{conn_id} was defined in the environment, which wins over the database")
        else:
            self.api.put_connection(conn_id, json.loads(value))

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, *, timeout: float = 60.0) -> str:
        """Start a run as soon as the Dag is parsed; return its run id."""
        self._wait_for(lambda: self.api.dag_exists(dag_id), timeout, f"Dag {dag_id} to be parsed")
        run_id = f"test_{len(self._runs)}_{uuid.uuid4().hex[:8]}"
        self._runs[run_id] = dag_id
        self.api.trigger(dag_id, run_id, conf or {})
        return run_id

    def wait(self, run_id: str, timeout: float = 120.0) -> str:
        """Wait for the end of a run; return ``success`` or ``failed``.

        :raises RuntimeError: it did not end in time; with the state of each task and the ends of the logs.
        """
        self._wait_for(
            lambda: self.state(run_id) in RUN_ENDS, timeout, lambda: f"{run_id} to end: {self.task_states(run_id)}"
        )
        return self.state(run_id)

    def wait_for_task(
        self, run_id: str, task_id: str, *states: str, timeout: float = 60.0, map_index: int = -1, try_number: int = 0
    ) -> str:
        """Wait until a task is in one of the states, in that try or a later one; return which."""

        def there() -> str:
            task = self.task(run_id, task_id, map_index)
            state = str(task["state"])
            return state if state in states and task["try_number"] >= try_number else ""

        return self._wait_for(there, timeout, lambda: f"{task_id} to be {states}: {self.task_states(run_id)}")

    def clear(self, run_id: str, *task_ids: str, downstream: bool = False) -> None:
        """Clear tasks of a run as a user does, so that they run again."""
        self.api.clear(self._runs[run_id], run_id, list(task_ids), downstream=downstream)

    def mark_task(self, run_id: str, task_id: str, state: str) -> None:
        """Mark a task ``failed`` or ``success`` as a user does, running or not."""
        self.api.set_task_state(self._runs[run_id], run_id, task_id, state)

    # --- what a user sees ---

    def state(self, run_id: str) -> str:
        """Return the state of a run."""
        return self.api.run_state(self._runs[run_id], run_id)

    def task(self, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return a task instance as the API describes it.

        :raises KeyError: there is none.
        """
        for task in self.api.task_instances(self._runs[run_id], run_id):
            if task["task_id"] == task_id and task["map_index"] == map_index:
                return task
        raise KeyError(f"{task_id} (map index {map_index})")

    def task_states(self, run_id: str) -> dict[str, str]:
        """Return each task's state, ``task_id`` or ``task_id[map_index]`` being the key."""
        return {
            task["task_id"] + ("" if task["map_index"] < 0 else f"[{task['map_index']}]"): str(task["state"])
            for task in self.api.task_instances(self._runs[run_id], run_id)
        }

    def xcom(self, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Return the value of an XCom.

        :raises KeyError: there is none.
        """
        return self.api.xcom(self._runs[run_id], run_id, task_id, key, map_index)

    def xcoms(self, run_id: str, task_id: str) -> dict[str, Any]:
        """Return all XComs of an unmapped task by key."""
        keys = sorted(key for key, index in self.api.xcom_keys(self._runs[run_id], run_id, task_id) if index == -1)
        return {key: self.xcom(run_id, task_id, key) for key in keys}

    def task_log(self, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Return the log of one try, the triggerer's part included, one message a line."""
        folder = self.home / "logs" / f"dag_id={self._runs[run_id]}" / f"run_id={run_id}" / f"task_id={task_id}"
        if map_index >= 0:
            folder /= f"map_index={map_index}"
        files = sorted(folder.glob(f"attempt={try_number}.log*"))
        return "\n".join(_message(line) for file in files for line in file.read_text(errors="replace").splitlines())

    def logs(self) -> str:
        """Return everything that any component or task logged, as it was written."""
        files = sorted(path for path in (self.home / "logs").rglob("*") if path.is_file())
        return "\n".join(f"--- {path.relative_to(self.home)}\n{path.read_text(errors='replace')}" for path in files)

    def metadata_dump(self) -> str:
        """Return all rows of all tables of the metadata database as text."""
        command = [self.python, str(HERE / "dump_metadata.py"), self.database_url]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    # --- the processes that do the work ---

    def worker_pids(self, run_id: str, task_id: str, map_index: int = -1) -> list[int]:
        """Return the processes that run a task at this moment: its own, what it started, and those above it, up to the scheduler.

        Killing all of them is what a lost worker machine looks like: nobody is left to report the end.
        """
        pid = self.task(run_id, task_id, map_index)["pid"]
        if not pid or not psutil.pid_exists(pid):
            return []
        process = psutil.Process(pid)
        roots = {child.pid for child in self._children.values()}
        above = [parent.pid for parent in process.parents()]
        own = above[: next((index for index, parent in enumerate(above) if parent in roots), 0)]
        return [process.pid, *(child.pid for child in process.children(recursive=True)), *own]

    def kill_worker(
        self, run_id: str, task_id: str, map_index: int = -1, sig: signal.Signals = signal.SIGKILL
    ) -> list[int]:
        """Send a signal to all processes that run a task, those above first; return their ids.

        :raises RuntimeError: no process came to run it in 20 seconds.
        """
        pids = self._wait_for(
            lambda: self.worker_pids(run_id, task_id, map_index), 20, f"a process that runs {task_id}"
        )
        for pid in reversed(pids):
            os.kill(pid, sig)
        return pids

    # --- inside ---

    @staticmethod
    def _version_of(python: str) -> str:
        code = "from importlib.metadata import version; print(version('apache-airflow'))"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{python} has no Airflow: {done.stderr.strip()}")
        return done.stdout.strip()

    def _start(self, names: list[str], timeout: float) -> None:
        for name in names:
            command = [self.python, "-m", "airflow", *self.settings.command(name)]
            self._children[name] = Child(name, command, environment=self.environment(), logs=self.home / "logs")
        if names:
            self._wait_for(lambda: self._heard(names), timeout, f"{', '.join(names)} to start")

    def _use_write_ahead_log(self) -> None:
        if self.database_url.startswith("sqlite"):
            import sqlite3

            # Readers and the one writer do not block each other then, and several processes use this file.
            database = sqlite3.connect(self.home / "airflow.db")
            database.execute("PRAGMA journal_mode=WAL")
            database.close()

    def _heard(self, names: list[str]) -> bool:
        heartbeats = self.api.heartbeats()
        workers = self.settings.celery

        def up(name: str) -> bool:
            child = self._children[name]
            if workers and name in workers.components:
                return workers.ready(child.said())
            heard = heartbeats.get(name)
            return name in SERVERS or (heard is not None and heard.timestamp() > child.started)

        return bool(heartbeats) and all(up(name) for name in names)

    def _wait_for(self, check: Callable[[], Found], timeout: float, what: str | Callable[[], str]) -> Found:
        """Poll until ``check`` returns something true, and return that."""
        deadline = time.monotonic() + timeout
        while not (found := check()):
            dead = [child.name for child in self._children.values() if not child.running]
            if dead or time.monotonic() > deadline:
                told = what if isinstance(what, str) else what()
                errors = {} if dead else self.api.import_errors()
                tails = "\n".join(
                    f"--- {child.name} (running: {child.running})\n{child.tail()}" for child in self._children.values()
                )
                raise RuntimeError(f"Waited for {told}; ended unasked: {dead}; import errors: {errors}\n{tails}")
            time.sleep(0.2)
        return found


def _message(line: str) -> str:
    """Turn a line of a structured log into text; other lines stay."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict) or "event" not in entry:
        return line
    rest = {key: value for key, value in entry.items() if key not in {"timestamp", "level", "event", "logger"}}
    told = "".join(f" {key}={value}" for key, value in rest.items())
    return f"{entry.get('timestamp', '')} {entry.get('level', '')} {entry['event']}{told}".strip()
