"""Lets a batch live through its attempts: the engine is the real one, the rest is simulated."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from airflow_provider_llamachat.airflow_support.task_state import TaskMemory
from airflow_provider_llamachat.batch.engine import Batch
from airflow_provider_llamachat.batch.items import BatchScope, parse
from airflow_provider_llamachat.batch.journal import MemoryJournal
from airflow_provider_llamachat.batch.progress import Meter
from airflow_provider_llamachat.batch.report import Report
from airflow_provider_llamachat.batch.sessions import Options
from airflow_provider_llamachat.client import ClientConfig
from airflow_provider_llamachat.exceptions import LlamaCloudError
from tests.batch.simulation import loop
from tests.batch.simulation.client import Faults, SimulatedClient
from tests.batch.simulation.plans import EXISTING, Attempt, Plan, plan
from tests.batch.simulation.server import Server

SCOPE = BatchScope("dag", "task", "run")
LOG = logging.getLogger("tests.simulation")


class Store(dict[str, Any]):
    """A task state store.

    :ivar is_deaf: whether the process that writes was killed.
    """

    is_deaf = False

    def set(self, key: str, value: Any) -> None:
        """Keep a value as JSON does."""
        if not self.is_deaf:
            self[key] = json.loads(json.dumps(value))


@dataclass
class Lived:
    """What one attempt did.

    :ivar end: how it ended: ``reported``, ``killed``, ``failed`` with a typed error, or a violation.
    :ivar told: outcomes that were told one by one.
    :ivar is_violation: whether no attempt may end like this.
    :ivar meter: the engine's own count.
    :ivar has_finished: whether the journal says that the batch is complete, which it may also say if the attempt was killed then.
    """

    attempt: Attempt
    prompts: list[str]
    end: str = "reported"
    is_violation: bool = False
    report: Report | None = None
    told: list[str] = field(default_factory=list)
    meter: Meter | None = None
    has_finished: bool = False

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The results."""
        return (self.report.results.lines or []) if self.report else []

    @property
    def is_complete(self) -> bool:
        """Whether the batch succeeded."""
        return self.report is not None and self.report.failure is None


@dataclass
class Life:
    """A batch with all its attempts.

    :ivar store: what the attempts left in the task state store.
    """

    plan: Plan
    server: Server
    store: Store = field(default_factory=Store)
    attempts: list[Lived] = field(default_factory=list)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The journal."""
        return [record for part in self.store.values() if isinstance(part, list) for record in part]

    def describe(self) -> str:
        """Say what happened, for a reader who looks for the cause of a violation."""
        blocks: dict[str, list[Any]] = {
            "Attempts": [f"{lived.attempt}: {lived.end}; told: {lived.told}" for lived in self.attempts],
            "Posts": [*self.server.posts],
            "Turns": [*self.server.turns],
            "Busy posts": [f"{post.turn} while {post.running}" for post in self.server.busy],
            "Records": self.records,
            "Results": self.attempts[-1].lines,
        }
        parts = [f"{name}:\n" + "".join(f"    {entry}\n" for entry in entries) for name, entries in blocks.items()]
        return f"{self.plan}\n{''.join(parts)}"


def _options(chosen: Plan, attempt: Attempt) -> Options:
    return Options(
        index_ids=["idx-1"],
        max_concurrency=chosen.max_concurrency,
        session_mode=chosen.session_mode,
        fail_fast=chosen.fail_fast and not attempt.is_clean,
        ask_again=attempt.ask_again,
        turn_timeout=60.0 if attempt.is_clean else chosen.turn_timeout,
        min_answered=len(chosen.sessions) if chosen.needs_all else 1,
        max_total_tokens=chosen.max_total_tokens,
        max_turns=chosen.max_turns,
    )


def _rows(chosen: Plan, order: tuple[int, ...], existing: list[str]) -> list[dict[str, str]]:
    rows = []
    for number in order:
        row = {"id": f"item-{number}", "prompt": chosen.prompts[number]}
        if (session := chosen.sessions[number]) is not None:
            row["session_id"] = existing[session]
        rows.append(row)
    return rows


def _attempt(life: Life, attempt: Attempt, existing: list[str], rng: random.Random) -> Lived:
    chosen, server, store = life.plan, life.server, life.store
    server.may_repeat = attempt.ask_again
    rows = _rows(chosen, attempt.order, existing)
    lived = Lived(attempt, [row["prompt"] for row in rows])
    items = parse(rows, index_ids=["idx-1"], session_mode=chosen.session_mode)
    config = ClientConfig(
        api_key="llx-of-a-simulation", history_lag=chosen.lag, timeout=1.0, max_retries=chosen.max_retries
    )
    client = SimulatedClient(config, server, Faults() if attempt.is_clean else chosen.faults, rng)
    context: Any = {"task_state_store": store, "ti": SimpleNamespace(max_tries=len(chosen.attempts))}
    journal = MemoryJournal(TaskMemory(context, LOG))
    store.is_deaf = False

    def kill() -> None:
        client.is_dead = store.is_deaf = True

    with loop.virtual_time(server.clock, rng) as meters:
        batch = Batch(
            client,
            items,
            SCOPE,
            _options(chosen, attempt),
            journal,
            LOG,
            on_result=lambda outcome, _usage: lived.told.append(outcome),
            commit_interval=0.02,
        )
        try:
            lived.report = loop.run(batch.run(), server.clock, attempt.kill_at, kill)
        except loop.KilledError:
            lived.end = "killed"
        except LlamaCloudError as problem:
            lived.end = f"failed: {type(problem).__name__}: {problem}"
        except (loop.DeadlockError, loop.EndlessError, Exception) as problem:  # noqa: BLE001  # a finding
            lived.end, lived.is_violation = f"{type(problem).__name__} {problem}", True
    lived.meter = meters[-1] if meters else None
    lived.has_finished = not store.get("batch", {"open": True})["open"]
    server.clock.now += attempt.gap
    return lived


def live(chosen: Plan | int) -> Life:
    """Run the attempts of a plan, or of a seed's plan, until the batch succeeds."""
    chosen = plan(chosen) if isinstance(chosen, int) else chosen
    server = Server(loop.Clock(), chosen.record, chosen.late)
    life = Life(chosen, server)
    existing = [server.open(chosen.earlier) for _ in range(EXISTING)]
    rng = random.Random(f"within {chosen.seed}")
    for number, attempt in enumerate(chosen.attempts):
        server.attempt = number
        life.attempts.append(_attempt(life, attempt, existing, rng))
        if life.attempts[-1].is_complete or life.attempts[-1].is_violation:
            break
    return life
