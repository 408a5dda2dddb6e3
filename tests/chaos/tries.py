"""One try of a task as a process of its own, with as much of Airflow around it as the operators can see, and able to die anywhere.

A whole Airflow takes seconds for a task; hundreds of schedules need milliseconds. So a forked process stands for a task process,
and what is behind it (XComs, the task state store, retries, deferral) is modelled after Airflow 3: values are JSON, an XCom is
there as soon as it was pushed, the store outlives the try. What runs in between is the operators, the trigger and the hook as
they are. ``test_system.py`` runs schedules on a real Airflow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_llamachat.client import no_backoff
from airflow_provider_llamachat.exceptions import LlamaCloudError
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SendChatMessageOperator,
)
from airflow_provider_llamachat.triggers.chat import ChatTurnTrigger
from tests.chaos.plans import Kill

OPERATORS: dict[str, Callable[..., Any]] = {
    "create": CreateChatSessionOperator,
    "ask": SendChatMessageOperator,
    "batch": ChatBatchOperator,
    "delete": DeleteChatSessionOperator,
}


ASIDE = "(aside)"
"""Begins a line of the log that Airflow would not write, and where only the key is looked for."""


@dataclass(frozen=True)
class Order:
    """What a process runs.

    :ivar step: ``execute`` and ``resume`` are a worker's, ``trigger`` is the triggerer's.
    :ivar folder: where the task's XComs, store, log and result are.
    :ivar payload: for ``trigger`` its class path and arguments, for ``resume`` method, arguments and event; as JSON values.
    """

    step: Literal["execute", "trigger", "resume"]
    task: str
    kind: str
    arguments: dict[str, Any]
    folder: Path
    try_number: int
    max_tries: int
    retries: int
    store: bool
    debug: bool
    backoff: bool
    payload: dict[str, Any] = field(default_factory=dict)
    kill: Kill | None = None


class Store:
    """Airflow 3.3's task state store as a task sees it, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _all(self) -> dict[str, Any]:
        return dict(json.loads(self._path.read_text())) if self._path.exists() else {}

    def get(self, key: str, default: Any = None) -> Any:
        return self._all().get(key, default)

    def set(self, key: str, value: Any) -> None:
        fate.pass_by("store", before=True)
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps({**self._all(), key: value}))
        beside.replace(self._path)
        fate.pass_by("store", before=False)


def push(order: Order, key: str, value: Any) -> None:
    """Push an XCom."""
    fate.pass_by("xcom", before=True)
    with (order.folder / "xcoms.jsonl").open("a") as file:
        file.write(json.dumps([key, value]) + "\n")
    fate.pass_by("xcom", before=False)


def xcoms(folder: Path) -> dict[str, Any]:
    """The XComs of the task that has this folder."""
    path = folder / "xcoms.jsonl"
    return dict(json.loads(line) for line in path.read_text().splitlines()) if path.exists() else {}


def run(order: Order) -> None:
    """Run the try in this process, a fork made for it, and leave its result; never returns."""
    try:
        log = os.open(order.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  # this process's output for all its life
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115  # as above
        logging.basicConfig(
            level=logging.DEBUG if order.debug else logging.INFO,
            stream=sys.stderr,
            force=True,
            format="%(name)s %(message)s",
        )
        print(f"--- {order.task} try {order.try_number} {order.step} {order.kill or ''}")
        if order.kill is not None and order.kill.point:
            fate.arm(order.kill)
        with contextlib.nullcontext() if order.backoff else no_backoff():
            result = _outcome(order)
        # Results, and what a deferred task and its trigger hand to each other, lie in a database for all to see.
        print(ASIDE, json.dumps(result))
        beside = order.folder / "result.new"
        beside.write_text(json.dumps(result))
        beside.replace(order.folder / "result.json")
        os._exit(0)
    except BaseException:  # noqa: BLE001  # nothing may run on in the copy of the test that a fork is
        traceback.print_exc()
        os._exit(70)


def _outcome(order: Order) -> dict[str, Any]:
    try:
        if order.step == "trigger":
            return {"state": "fired", "event": asyncio.run(_trigger(order.payload))}
        value = _work(order)
    except TaskDeferred as deferral:
        path, arguments = deferral.trigger.serialize()
        resume = {"method": deferral.method_name, "kwargs": deferral.kwargs or {}}
        return {"state": "deferred", "trigger": {"path": path, "arguments": arguments}, "resume": resume}
    except Exception as problem:  # noqa: BLE001  # whatever a task raises is Airflow's to handle
        traceback.print_exc()
        # Executors and triggerers move exceptions between processes: what travels is searched for the key like any output.
        print(ASIDE, repr(problem), pickle.dumps(problem), repr(pickle.loads(pickle.dumps(problem)).__dict__))
        return {
            "state": "failed",
            "error": type(problem).__name__,
            "message": str(problem),
            "typed": isinstance(problem, LlamaCloudError),
            "final": isinstance(problem, AirflowFailException),
            "accepted": getattr(problem, "accepted", None) is True,
        }
    if value is not None:
        push(order, "return_value", value)
    return {"state": "success"}


def _work(order: Order) -> Any:
    operator = OPERATORS[order.kind](task_id=order.task, retries=order.retries, **order.arguments)
    signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())
    ti = SimpleNamespace(
        dag_id="chaos",
        task_id=order.task,
        run_id="run",
        map_index=-1,
        try_number=order.try_number,
        max_tries=order.max_tries,
        xcom_push=lambda key, value: push(order, key, value),
    )
    context: dict[str, Any] = {"ti": ti, "task": operator}
    if order.store:
        context["task_state_store"] = Store(order.folder / "store.json")
    if order.step == "resume":
        payload = order.payload
        return getattr(operator, payload["method"])(context, event=payload["event"], **payload["kwargs"])
    # Airflow guards `execute` against calls from outside its task runner, which this process stands for.
    return type(operator).execute.__wrapped__(operator, context)


async def _trigger(payload: dict[str, Any]) -> Any:
    assert payload["path"] == f"{ChatTurnTrigger.__module__}.{ChatTurnTrigger.__qualname__}"
    running = asyncio.current_task()
    assert running is not None
    # A triggerer that is told to stop cancels its triggers.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    async for event in ChatTurnTrigger(**payload["arguments"]).run():
        return event.payload
    raise AssertionError("the trigger ended without an event")


# Dying ----------------------------------------------------------------------------------------------------------------


class Fate:
    """Where this process dies by itself, if it does."""

    def __init__(self) -> None:
        self._kill: Kill | None = None
        self._passed = 0

    def pass_by(self, point: str, *, before: bool) -> None:
        """Die, if this process is to die here."""
        kill = self._kill
        if kill is not None and (kill.point, kill.before) == (point, before):
            self._passed += 1
            if self._passed == kill.number:
                os.kill(os.getpid(), signal.SIGKILL)

    def arm(self, kill: Kill) -> None:
        """Watch for the point in this process, which is made for that."""
        self._kill = kill
        if kill.point in {"send", "recv"}:
            names = ("send", "sendall", "sendmsg") if kill.point == "send" else ("recv", "recv_into")
            for name in names:
                setattr(socket.socket, name, self._watched(getattr(socket.socket, name), kill.point))
        elif kill.point == "fsync":
            fsync = os.fsync

            def sync(file: Any) -> None:
                self.pass_by("fsync", before=True)
                fsync(file)
                self.pass_by("fsync", before=False)

            setattr(os, "fsync", sync)  # noqa: B010  # a plain assignment is not what mypy allows

    def _watched(self, method: Callable[..., Any], point: str) -> Callable[..., Any]:
        def watched(sock: socket.socket, *arguments: Any) -> Any:
            # Event loops wake themselves through a socket pair, which is no network.
            if sock.family != socket.AF_INET:
                return method(sock, *arguments)
            self.pass_by(point, before=True)
            result = method(sock, *arguments)
            self.pass_by(point, before=False)
            return result

        return watched


fate = Fate()
