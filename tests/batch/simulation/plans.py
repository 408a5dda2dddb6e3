"""From a seed to a plan: the prompts of a batch, how the server behaves, and the attempts with their kills. No clock.

Plans leave out what the engine does not promise: ``session_mode`` stays the same in all attempts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.batch.simulation.client import Faults
from tests.unit.services import RECORDS

ALIKE = {"cut", "empty"}
"""Forms in which the prompts of a plan cannot be told from each other."""
EXISTING = 2
"""Number of sessions that exist before the batch."""
CLEAN = 4
"""Number of attempts without faults and kills at the end, so that everything can be found."""


def prompt(number: int) -> str:
    """A prompt that begins like all others."""
    return f"Tell me all about the revenue of company number {number:02d}"


@dataclass(frozen=True)
class Attempt:
    """One attempt.

    :ivar order: the numbers of the prompts, as the Dag gives them.
    :ivar kill_at: the step of the event loop before which it is killed. None means never.
    :ivar gap: seconds until the next attempt.
    :ivar is_clean: whether nothing goes wrong.
    """

    order: tuple[int, ...]
    kill_at: int | None = None
    ask_again: bool = False
    gap: float = 100.0
    is_clean: bool = False


@dataclass(frozen=True)
class Plan:
    """All that happens in a simulation, apart from chance within the attempts.

    :ivar sessions: for each prompt, the number of an existing session, or None.
    :ivar record: how the server records prompts, as in :data:`~tests.unit.services.RECORDS`.
    :ivar lag: the connection's ``history_lag``.
    :ivar late: seconds that histories are late.
    :ivar earlier: turns that the existing sessions have.
    :ivar needs_all: whether the batch succeeds only if all prompts are answered.
    """

    seed: int
    sessions: tuple[int | None, ...]
    session_mode: str
    record: str
    lag: float
    late: float
    earlier: int
    faults: Faults
    max_concurrency: int
    max_retries: int
    turn_timeout: float
    fail_fast: bool
    needs_all: bool
    max_turns: int | None
    max_total_tokens: int | None
    attempts: tuple[Attempt, ...]

    @property
    def prompts(self) -> list[str]:
        """The prompts, by their numbers."""
        return [prompt(number) for number in range(len(self.sessions))]

    @property
    def is_limited(self) -> bool:
        """Whether there is a budget."""
        return self.max_turns is not None or self.max_total_tokens is not None


def _sessions(rng: random.Random, count: int) -> tuple[str, tuple[int | None, ...]]:
    match rng.choice(["shared", "shared", "shared", "existing", "mixed", "per_prompt"]):
        case "existing":
            return "per_prompt", tuple(number % EXISTING if count > 3 else 0 for number in range(count))
        case "mixed":
            existing = [rng.randrange(EXISTING) if rng.random() < 0.6 else None for _ in range(count)]
            return rng.choice(["shared", "per_prompt"]), tuple(existing)
        case mode:
            return mode, (None,) * count


def _attempts(rng: random.Random, count: int) -> tuple[Attempt, ...]:
    kills, repeats, shuffles = rng.choice([0.3, 0.8, 1.0]), rng.choice([0.0, 0.0, 0.0, 0.5]), rng.random() < 0.15
    order = tuple(range(count))
    attempts = [
        Attempt(
            tuple(rng.sample(order, count)) if shuffles and number else order,
            rng.randint(1, rng.choice([60, 200, 500])) if rng.random() < kills else None,
            ask_again=rng.random() < repeats,
            gap=rng.choice([0.0, 0.05, 0.5, 20.0]),
        )
        for number in range(rng.choice([2, 3, 4]))
    ]
    return (*attempts, *[Attempt(order, is_clean=True)] * CLEAN)


def plan(seed: int) -> Plan:
    """Draw a plan. The same seed gives the same plan."""
    rng = random.Random(seed)
    count = rng.choice([2, 3, 3, 4, 5])
    session_mode, sessions = _sessions(rng, count)
    lag = rng.choice([0.0, 0.0, 2.0, 10.0])
    return Plan(
        seed,
        sessions,
        session_mode,
        record=rng.choice(["verbatim", "cut", "empty", rng.choice(sorted(RECORDS))]),
        lag=lag,
        late=rng.choice([0.0, lag * 0.8]),
        earlier=rng.choice([0, 0, 1]),
        faults=Faults(post=rng.choice([0.0, 0.3, 0.6]), other=rng.choice([0.0, 0.0, 0.1])),
        max_concurrency=rng.choice([1, 2, 4]),
        max_retries=rng.choice([0, 1, 2]),
        turn_timeout=rng.choice([2.0, 60.0]),
        fail_fast=rng.random() < 0.15,
        needs_all=rng.random() < 0.75,
        max_turns=rng.choice([1, 2, 3, 4, 6]) if rng.random() < 0.25 else None,
        max_total_tokens=rng.choice([10, 20, 30]) if rng.random() < 0.1 else None,
        attempts=_attempts(rng, count),
    )
