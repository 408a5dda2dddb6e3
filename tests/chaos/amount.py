"""How much chaos, from the environment.

``CHAOS_SCHEDULES``: how many schedules; ``CHAOS_LANES``: how many side by side; ``CHAOS_SYSTEM``: how many on a whole Airflow;
``CHAOS_PROMPTS``: how many prompts in a night; ``CHAOS_SEED``: this schedule alone, as its seed was printed; ``CHAOS_FIRST``: the first
seed, for the same schedules each time; ``CHAOS_SIMULATIONS``: how many simulations; ``CHAOS_SIMULATION_SEED``: this simulation alone.
"""

from __future__ import annotations

import os
import random


def number(name: str, default: int) -> int:
    """A number from the environment."""
    return int(os.environ.get(name) or default)


def seeds(name: str, default: int, *, prefix: str = "") -> list[int]:
    """Seeds to run: as many as ``name`` says, from anywhere, or the one of ``CHAOS_SEED`` if it has this prefix.

    :param prefix: what tells the seeds of one kind of schedule from those of another.
    """
    wanted = os.environ.get("CHAOS_SEED", "")
    if wanted:
        text = wanted.removeprefix(prefix)
        return [int(text)] if wanted.startswith(prefix) and text.isdecimal() else []
    first = number("CHAOS_FIRST", random.SystemRandom().randrange(10**6) * 1000)
    return list(range(first, first + number(name, default)))
