"""A question's life as Airflow would make it, in this process: on a worker, deferred, or in a batch, with retries and clears."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_llamachat.client import no_backoff
from airflow_provider_llamachat.exceptions import LlamaCloudError
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, LlamaCloudEmulator
from tests.airflow.tries import Store, a_try

Mode = Literal["worker", "deferred", "batch"]
PROMPT = "What was “the revenue” in Q3 & Q4?\u200b  Name the\u00a0Café too."
"""Something for every server to change."""


class LostError(BaseException):
    """The worker or the triggerer is gone: nothing of ours runs after it."""


@dataclass
class Life:
    """One task, in a session of its own, with the state store of Airflow 3.3 or without one."""

    emulator: LlamaCloudEmulator
    mode: Mode
    folder: Path
    store: Store | None = field(default_factory=Store)
    retries: int = 2
    arguments: dict[str, Any] = field(default_factory=dict)
    session_id: str = ""
    tries: int = 0
    max_tries: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session_id = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id
        self.max_tries = self.retries

    def task(self) -> Any:
        """The operator, made for each attempt as Airflow does."""
        known = {"task_id": "ask", "retries": self.retries, **self.arguments}
        if self.mode == "batch":
            prompts = [{"prompt": PROMPT, "session_id": self.session_id}]
            known = {"output_path": self.folder / "results.jsonl", **known}
            return ChatBatchOperator(prompts=prompts, index_ids=[INDEX_FILINGS], **known)
        return SendChatMessageOperator(
            session_id=self.session_id, prompt=PROMPT, deferrable=self.mode == "deferred", log_answer=False, **known
        )

    def attempt(self, *, late_by: float = 0.0) -> str | None:
        """One try, to its end; the answer, or None when it failed.

        :param late_by: seconds that the trigger seems to have been waited for; then it is not the first start.
        """
        self.tries += 1
        task = self.task()
        context = a_try(task, self.tries, self.max_tries, self.store)
        context["ti"].task = task
        context["ti"].start_date = None
        context["ti"]._ti_context_from_server = self.server  # noqa: SLF001  # as Airflow's task runner has it
        try:
            value = self._run(task, context, late_by)
        except (LlamaCloudError, LostError) as problem:
            self.errors.append(problem)
            return None
        self.server.xcom_keys_to_clear = ["return_value"]
        return value

    @contextlib.contextmanager
    def losing_its_process(self) -> Iterator[None]:
        """Within this block the process of an attempt is lost when the server has taken the prompt and before anything arrives."""
        sync = importlib.import_module("airflow_provider_llamachat.client.sync").LlamaCloudClient
        aio = importlib.import_module("airflow_provider_llamachat.client.aio").AsyncLlamaCloudClient
        kept = sync.stream, aio.stream

        def stream(*values: Any) -> Any:
            for _ in kept[0](*values):
                raise LostError
            yield

        async def astream(*values: Any) -> Any:
            async for _ in kept[1](*values):
                raise LostError
            yield

        sync.stream, aio.stream = stream, astream
        try:
            yield
        finally:
            sync.stream, aio.stream = kept

    def live(self) -> str | None:
        """Attempts until one succeeds or no retry is left."""
        for _ in range(self.retries + 1):
            if (answer := self.attempt()) is not None:
                return answer
        return None

    def clear(self, *, has_result: bool = False) -> None:
        """What Airflow does when somebody clears the task."""
        self.max_tries = self.tries + self.retries
        self.server.xcom_keys_to_clear = ["return_value"] if has_result else []

    def __getattr__(self, name: str) -> Any:
        if name != "server":
            raise AttributeError(name)
        self.server = type("Server", (), {"xcom_keys_to_clear": []})()
        return self.server

    @property
    def paid(self) -> int:
        """Turns that the server began for our prompt."""
        return sum(turn.prompt == PROMPT for turn in self.emulator.turns)

    def _run(self, task: Any, context: Any, late_by: float) -> str:
        try:
            value = type(task).execute.__wrapped__(task, context)
        except TaskDeferred as deferral:
            path, values = deferral.trigger.serialize()
            values = json.loads(json.dumps(values))
            values["deferred_at"] -= late_by
            module, _, name = path.rpartition(".")
            trigger = getattr(importlib.import_module(module), name)(**values)
            event = json.loads(json.dumps(asyncio.run(_first(trigger))))
            resumed = self.task()
            context["task"] = context["ti"].task = resumed
            value = getattr(resumed, deferral.method_name)(context, event=event, **(deferral.kwargs or {}))
        if self.mode != "batch":
            return str(value)
        (line,) = [json.loads(text) for text in (self.folder / "results.jsonl").read_text().splitlines()]
        return str(line["answer"])


async def _first(trigger: Any) -> Any:
    async for event in trigger.run():
        return event.payload
    raise AssertionError("the trigger ended without an event")


def connect(emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    """The connection ``llamacloud_default`` with these extra fields."""
    known = json.loads(emulator.airflow_connection_json)
    # Sets the pace at which a history is looked at too. A silence that ends a stream early is one more doubt, and costs no turn either.
    chosen = {"timeout": 1.0, "max_retries": 2, "history_lag": 0, **extra}
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", json.dumps({**known, "extra": chosen}))


@pytest.fixture(autouse=True)
def without_pauses() -> Iterator[None]:
    """Failures are not paused for; a history that lags is."""
    with no_backoff():
        yield
