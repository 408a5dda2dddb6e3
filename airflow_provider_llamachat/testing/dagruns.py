"""Runs a Dag to its end on the Airflow of this interpreter (``dag.test()``), on a database that is thrown away.

The pytest plugin loads this when a test asks for ``llamacloud_run_dag``. Only functions import Airflow.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import io
import json
import logging
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_llamachat.testing.control import Control
from airflow_provider_llamachat.testing.faults import TurnRecord

_NOT_OURS = ("AIRFLOW__DATABASE__", "AIRFLOW__LOGGING__", "AIRFLOW__CORE__XCOM_BACKEND", "AIRFLOW_CONFIG")
_XCOMS = ("airflow.sdk.execution_time.xcom", "airflow.models.xcom")
_BUNDLE = "dags-folder"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class DagRunResult:
    """The end of a Dag run.

    The keys of ``tasks`` and ``tries`` are task ids; a mapped task has one for each of its instances: ``ask[0]``, ``ask[1]``.

    :ivar state: of the run: ``success`` or ``failed``.
    :ivar tasks: the state of each task.
    :ivar tries: how often each task was tried.
    :ivar xcoms: every XCom, by task, key and map index (-1 for a task that is not mapped).
    :ivar logs: what the tasks logged and printed.
    :ivar prompts: prompts that reached the emulator during the run, in order, whatever became of them.
    :ivar turns: turns that began during the run, in order.
    """

    state: str
    tasks: dict[str, str]
    tries: dict[str, int]
    xcoms: dict[tuple[str, str, int], Any]
    logs: str
    prompts: list[str] = field(default_factory=list)
    turns: list[TurnRecord] = field(default_factory=list)

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """One XCom.

        :raises KeyError: there is none; the message names those that there are.
        """
        if (task_id, key, map_index) not in self.xcoms:
            raise KeyError(f"{(task_id, key, map_index)} is not among {sorted(self.xcoms)}")
        return self.xcoms[task_id, key, map_index]


class DagRunner:
    """The fixture ``llamacloud_run_dag``: call it with a Dag, or with the file of one."""

    def __init__(self, emulator: Control) -> None:
        self._emulator = emulator

    def __call__(
        self,
        dag: Any,
        dag_id: str | None = None,
        *,
        conf: Mapping[str, Any] | None = None,
        dags_folder: str | os.PathLike[str] | None = None,
    ) -> DagRunResult:
        """Run a Dag once, to its end, in this process. Retries do not wait, and triggers run in line.

        :param dag: a Dag, or the path of a file that defines Dags.
        :param dag_id: which Dag of the file; None: the only one.
        :param conf: the run's configuration (``dag_run.conf``, and ``params``).
        :param dags_folder: folder from which the Dag file imports other modules; None: the file's own.
        :raises ValueError: the file cannot be imported, or ``dag_id`` does not name one of its Dags.
        """
        posted, begun = len(self._emulator.prompts), len(self._emulator.turns)
        with contextlib.ExitStack() as stack:
            if isinstance(dag, str | os.PathLike):
                file = Path(dag).resolve()
                stack.enter_context(_importing(Path(dags_folder or file.parent).resolve()))
                dag = choose(load(file), dag_id, file)
            ended = run(dag, conf)
        return replace(ended, prompts=self._emulator.prompts[posted:], turns=self._emulator.turns[begun:])


def run(dag: Any, conf: Mapping[str, Any] | None = None) -> DagRunResult:
    """Run a Dag once, to its end, in this process. Retries do not wait, and triggers run in line."""
    with pytest.MonkeyPatch.context() as patch, logged() as logs:
        for task in dag.tasks:
            patch.setattr(task, "retry_delay", timedelta(0))
            patch.setattr(task, "retry_exponential_backoff", False)
        _share_api_server(patch)
        store(dag)
        made = dag.test(run_conf=dict(conf or {}))
    tis = {_name(ti): ti for ti in sorted(made.get_task_instances(), key=lambda ti: (ti.task_id, ti.map_index))}
    return DagRunResult(
        state=_text(made.state),
        tasks={name: _text(ti.state) for name, ti in tis.items()},
        tries={name: ti.try_number for name, ti in tis.items()},
        xcoms=dict(_xcoms(dag.dag_id, made.run_id)),
        logs=logs(),
    )


@contextlib.contextmanager
def _importing(folder: Path) -> Iterator[None]:
    """Let a Dag import the modules of ``folder``, and forget them afterwards: the next Dag may have others of the same names."""
    before = set(sys.modules)
    known = str(folder) in sys.path  # then the test can import them too, and must not get them twice
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        try:
            yield
        finally:
            for name in set(sys.modules) - before:
                if not known and _is_of(folder, name):
                    del sys.modules[name]


def _is_of(folder: Path, name: str) -> bool:
    """Whether the module was found in the folder itself, not in a virtual environment below it."""
    module = sys.modules[name]
    top = folder / name.partition(".")[0]
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(place and (Path(place).is_relative_to(top) or Path(place) == top.with_suffix(".py")) for place in places)


def _name(ti: Any) -> str:
    return ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]"


def _text(state: Any) -> str:
    return str(getattr(state, "value", state))


def load(file: Path) -> dict[str, Any]:
    """Return the Dags in a file, parsed by Airflow itself, by id.

    :raises ValueError: Airflow cannot import the file; with what it says.
    """
    bag = _bag(str(file))
    if bag.import_errors:
        raise ValueError(f"Airflow cannot import {file}:\n" + "\n".join(bag.import_errors.values()))
    return dict(bag.dags)


def choose(dags: Mapping[str, Any], dag_id: str | None, file: Path) -> Any:
    """Return the Dag with this id, or the only one."""
    if dag_id is None and len(dags) == 1:
        return next(iter(dags.values()))
    if dag_id is None or dag_id not in dags:
        what = f"defines {len(dags)} Dags" if dag_id is None else f"has no Dag {dag_id!r}"
        raise ValueError(f"{file} {what}. Name one of its Dags: {sorted(dags)}")
    return dags[dag_id]


def _bag(folder: str) -> Any:
    return _first("airflow.dag_processing.dagbag", "airflow.models.dagbag", name="DagBag")(folder)


def _first(*modules: str, name: str) -> Any:
    """The object of that name from the first module that has it: Airflow moved it."""
    for module in modules:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), name)
    return None


def store(dag: Any) -> None:
    """Let the database know the Dag, as a Dag processor would: Airflow 3 runs only what it finds there."""
    manager = _first("airflow.dag_processing.bundles.manager", name="DagBundlesManager")
    bag = _bag(os.devnull)
    bag.dags[dag.dag_id] = dag
    if manager is None:
        bag.sync_to_db()  # Airflow 2
        return
    manager().sync_bundles_to_db()
    dag.relative_fileloc = dag.relative_fileloc or Path(dag.fileloc).name
    sync = _first("airflow.dag_processing.dagbag", "airflow.models.dagbag", name="sync_bag_to_db")
    if sync is None:
        bag.sync_to_db(_BUNDLE, None)  # Airflow 3.0
    else:
        sync(bag, _BUNDLE, None)


def _share_api_server(patch: pytest.MonkeyPatch) -> None:
    """Airflow 3.0 to 3.2 make an API server for each attempt of a task, which takes seconds; 3.3 makes one for all."""
    with contextlib.suppress(ImportError):
        supervisor = importlib.import_module("airflow.sdk.execution_time.supervisor")
        if not hasattr(supervisor.in_process_api_server, "cache_info"):
            patch.setattr(supervisor, "in_process_api_server", _api_server)


@functools.cache
def _api_server() -> Any:
    return importlib.import_module("airflow.api_fastapi.execution_api.app").InProcessExecutionAPI()


def _xcoms(dag_id: str, run_id: str) -> Iterator[tuple[tuple[str, str, int], Any]]:
    from airflow.utils.session import create_session

    model = _first("airflow.models.xcom", name="XComModel") or _first("airflow.models.xcom", name="XCom")
    with create_session() as session:
        for row in session.query(model).filter(model.run_id == run_id, model.dag_id == dag_id):
            value = row.value.decode() if isinstance(row.value, bytes) else row.value
            if isinstance(value, str):
                with contextlib.suppress(ValueError):
                    value = json.loads(value)
            yield (row.task_id, row.key, row.map_index), value


@contextlib.contextmanager
def logged() -> Iterator[Callable[[], str]]:
    """Collect what is logged and printed, without keeping it from anybody else."""
    text = io.StringIO()
    handler = _Once(text)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in (None, "airflow.task")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(_Tee(sys.stdout, text)), contextlib.redirect_stderr(_Tee(sys.stderr, text)):
            yield lambda: _COLOURS.sub("", text.getvalue())
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


class _Once(logging.StreamHandler[io.StringIO]):
    """Whether ``airflow.task`` passes its records on to the root depends on Airflow's version and configuration."""

    _last: logging.LogRecord | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record is not self._last:
            self._last = record
            super().emit(record)


class _Tee(io.TextIOBase):
    """Writes to those of its streams that are open: Airflow's loggers keep it, and pytest closes its own stream after a test."""

    def __init__(self, *streams: Any) -> None:
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._open():
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._open():
            stream.flush()

    def _open(self) -> list[Any]:
        return [stream for stream in self._streams if not getattr(stream, "closed", False)]


@contextlib.contextmanager
def own_airflow(home: Path, database: Path) -> Iterator[None]:
    """Let this process's Airflow use ``database`` and no folder but ``home``, even if it was imported before."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_NOT_OURS):
                patch.delenv(name)
        bundle = {"name": _BUNDLE, "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": {}}
        own = {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__DAGS_FOLDER": home / "dags",
            "AIRFLOW__CORE__LOAD_EXAMPLES": False,
            "AIRFLOW__CORE__PLUGINS_FOLDER": home / "plugins",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
            "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": False,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{database}",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": f"sqlite+aiosqlite:///{database}",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": home / "logs",
            "AIRFLOW__LOGGING__REMOTE_LOGGING": False,
            "AIRFLOW__METRICS__OTEL_ON": False,
            "AIRFLOW__METRICS__STATSD_DATADOG_ENABLED": False,
            "AIRFLOW__METRICS__STATSD_ON": False,
            "AIRFLOW__OPENLINEAGE__DISABLED": True,
            "AIRFLOW__TRACES__OTEL_ON": False,
        }
        for name, value in own.items():
            patch.setenv(name, str(value))
        (home / "dags").mkdir(parents=True, exist_ok=True)
        settings: Any = importlib.import_module("airflow.settings")
        _store_xcoms_in_the_database(patch)
        before = dict(vars(settings))
        settings.configure_vars()
        settings.configure_orm()
        try:
            yield
        finally:
            settings.Session.remove()
            settings.engine.dispose()
            vars(settings).update(before)


def _store_xcoms_in_the_database(patch: pytest.MonkeyPatch) -> None:
    """Airflow chooses the XCom class when it is imported, so the configuration alone comes too late."""
    configuration: Any = importlib.import_module("airflow.configuration")
    patch.setenv("AIRFLOW__CORE__XCOM_BACKEND", configuration.conf.get_default_value("core", "xcom_backend"))
    for xcoms in (vars(sys.modules[name]) for name in _XCOMS if name in sys.modules):
        chosen, base = xcoms.get("XCom"), xcoms.get("BaseXCom")
        if chosen is not None and chosen is not base:
            for module in list(sys.modules.values()):
                if getattr(module, "__dict__", {}).get("XCom") is chosen:
                    patch.setattr(module, "XCom", base)


def migrated(home: Path, made: Path) -> Path:
    """Return ``made``, a migrated database; processes that share the folder share the migration."""
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            fresh = made.with_suffix(".new")
            with own_airflow(home, fresh):
                from airflow.utils.db import initdb

                initdb()
            copy_database(fresh, made)
    return made


def copy_database(source: Path, target: Path) -> None:
    """Copy an SQLite database, with what still lies in SQLite's log beside it."""
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)
