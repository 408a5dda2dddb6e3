"""A task that is killed sends nothing more, ends soon, and leaves its answer to the retry."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.testing import Fault, LlamaCloudEmulator
from tests.doubt.lives import Mode
from tests.doubt.test_whatever_is_recorded import Begin, is_right


def asked(emulator: LlamaCloudEmulator, endpoint: str) -> bool:
    return any(request.endpoint == endpoint for request in emulator.requests)


def kill_when(condition: Callable[[], bool], task: Any) -> None:
    """Kill a task as soon as something has come about."""

    def watch() -> None:
        while not condition():
            time.sleep(0.01)
        task.on_kill()

    threading.Thread(target=watch, daemon=True).start()


def test_nothing_is_sent_after_a_kill_and_the_task_ends_soon(
    life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    one = life(extra={"timeout": 120})
    llamacloud_emulator.inject(Fault("delay", endpoint="get", delay=60.0))
    task = one.task()
    one.task = lambda: task  # type: ignore[method-assign]  # the one that is killed
    kill_when(lambda: asked(llamacloud_emulator, "get"), task)
    began = time.monotonic()
    assert one.attempt() is None
    assert time.monotonic() - began < 30.0
    assert llamacloud_emulator.posts() == 0


def test_a_kill_in_mid_turn_ends_the_task_soon_and_the_retry_takes_the_answer(
    mode: Mode, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    if mode != "worker":
        pytest.skip("a batch and a trigger are cancelled on their event loop")
    llamacloud_emulator.settings.update(turn_latency=600.0, keepalive_interval=None)
    one = life(extra={"timeout": 120})
    task = one.task()
    made, one.task = one.task, lambda: task  # type: ignore[method-assign]  # the one that is killed
    kill_when(lambda: bool(llamacloud_emulator.turns), task)
    assert one.attempt() is None
    assert llamacloud_emulator.turns[0].state == "running"
    assert getattr(one.errors[0], "reason", "") == "killed"
    llamacloud_emulator.settings.turn_latency = 0.0
    one.task = made  # type: ignore[method-assign]  # the retry's own
    assert is_right(one.attempt())
    assert one.paid == 1


def test_a_kill_while_the_connection_is_read_prevents_the_prompt(
    mode: Mode, life: Begin, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "batch":
        pytest.skip("a batch looks when it begins whether it was killed")
    one = life()
    task = one.task()
    one.task = lambda: task  # type: ignore[method-assign]  # the one that is killed
    get_conn = LlamaCloudHook.get_conn

    def slow(hook: LlamaCloudHook) -> Any:
        task.on_kill()
        return get_conn(hook)

    monkeypatch.setattr(LlamaCloudHook, "get_conn", slow)
    assert one.attempt() is None
    assert llamacloud_emulator.posts() == 0


def test_a_batch_stops_although_its_log_is_in_use_when_the_signal_comes(
    mode: Mode, life: Begin, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode != "batch":
        pytest.skip("only a batch says what it stops before it does")
    one = life(extra={"timeout": 120})
    llamacloud_emulator.inject(Fault("delay", endpoint="get", delay=60.0))
    task = one.task()
    one.task = lambda: task  # type: ignore[method-assign]  # the one that is killed

    def tell(*_values: Any, **_known: Any) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter>")

    monkeypatch.setattr(task, "_tell_kill", tell)  # what a log in use when the signal comes does
    kill_when(lambda: asked(llamacloud_emulator, "get"), task)
    assert one.attempt() is None
    assert llamacloud_emulator.posts() == 0
