"""From a seed to a schedule: what a Dag asks, how the server behaves, what goes wrong and who is killed when. No I/O, no clock.

The same seed gives the same schedule, whatever machine it runs on; what differs from run to run is only how the processes'
steps fall into each other in time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal

from airflow_provider_llamachat.testing import Fault

INDEX = "idx-vaults"
VAULTS = 24

Shape = Literal["worker", "trigger", "batch", "mixed"]
"""Where the questions of a schedule are asked: on the worker, in the triggerer, in a batch, or in two of these in one session."""


def prompt(number: int) -> str:
    """A question whose answer no other question has."""
    return f"Tell about vault{number}x."


def code(number: int) -> str:
    """What only the right answer contains."""
    return f"code-{number * 7919 % 99991:05d}-"


def documents(count: int = VAULTS) -> list[dict[str, Any]]:
    """The passages of the index that is asked."""
    return [{"text": f"{code(number)} opens vault{number}x.", "document": "vaults"} for number in range(count)]


@dataclass(frozen=True, slots=True)
class Kill:
    """The end of a process before its time.

    :ivar signal: ``KILL`` as a lost machine or the OOM killer ends it; ``TERM`` as Airflow does when a user stops a task, followed
        by ``KILL`` a second later.
    :ivar seconds: when, counted from the process's start; None: at ``point``.
    :ivar point: ``send``, ``recv`` (on a socket), ``store``, ``xcom``, ``fsync``; the process dies by itself before (``before``) or
        after the ``number``-th of these.
    """

    signal: Literal["KILL", "TERM"]
    seconds: float | None = None
    point: str = ""
    number: int = 0
    before: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One task of the Dag.

    :ivar vaults: the questions, by their vaults' numbers: one for an ``ask``, several for a ``batch``.
    :ivar own_session: for a batch, how many of its first questions are asked in the session that ``create`` made.
    :ivar again: a user clears the task once it has succeeded, so it runs a second time.
    """

    name: str
    kind: Literal["create", "ask", "batch", "delete"]
    retries: int
    arguments: dict[str, Any] = field(default_factory=dict)
    vaults: tuple[int, ...] = ()
    own_session: int = 0
    again: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """A whole run of a Dag.

    :ivar store: whether Airflow has a task state store (3.3 and later).
    :ivar connection: the connection's extra fields.
    :ivar kill_rate: how likely a process is killed.
    :ivar backoff: whether the clients pause between their attempts as they do in production.
    """

    seed: int
    shape: Shape
    settings: dict[str, Any]
    faults: tuple[Fault, ...]
    tasks: tuple[Task, ...]
    store: bool
    connection: dict[str, Any]
    kill_rate: float
    backoff: bool
    debug: bool

    def kill(self, task: str, process: int, *, last: bool) -> Kill | None:
        """Say whether and when the ``process``-th process of a task is killed.

        :param last: the task has no retry left; such a process lives, or nothing would be learned.
        """
        if last:
            return None
        dice = random.Random(f"{self.seed} {task} {process}")
        if dice.random() > self.kill_rate:
            return None
        signal: Literal["KILL", "TERM"] = "TERM" if dice.random() < 0.2 else "KILL"
        if signal == "TERM" or dice.random() < 0.3:
            return Kill(signal, seconds=dice.uniform(0.0, 1.0))
        point = dice.choices(("send", "recv", "store", "xcom", "fsync"), (8, 8, 3, 2, 4))[0]
        return Kill("KILL", point=point, number=dice.choice((1, 1, 1, 2, 2, 3, 4, 6, 9)), before=dice.random() < 0.5)


def schedule(seed: int) -> Schedule:
    """Make the schedule of a seed."""
    dice = random.Random(seed)
    shape: Shape = dice.choices(("worker", "trigger", "batch", "mixed"), (30, 30, 25, 15))[0]
    store = dice.random() < 0.65
    settings = _settings(dice) | _records(dice, shape, store=store)
    # A task cannot know the position of its turn if the history does not show an earlier task's yet (docs/RELIABILITY.md). Then the
    # text has to tell the turns apart. A batch knows its own turns.
    is_late = settings["history_lag"] or settings["records"] == "end"
    if is_late and shape != "batch" and settings.get("recorded_as") in _ALL_ALIKE:
        settings["recorded_as"] = "suffix"
    return Schedule(
        seed=seed,
        shape=shape,
        settings=settings,
        faults=tuple(_fault(dice) for _ in range(dice.choice((0, 1, 1, 2, 2, 3, 4, 6)))),
        # Both are limits that docs/RELIABILITY.md states for the same question twice in a session.
        tasks=tuple(
            _tasks(dice, shape, store, shows_all="history_window" not in settings and not settings["history_lag"])
        ),
        store=store,
        connection={
            "timeout": round(dice.uniform(0.3, 0.7), 2),
            "max_retries": dice.choice((0, 1, 2, 2, 3)),
            "history_lag": _lag_to_expect(settings),
        },
        kill_rate=dice.choice((0.0, 0.2, 0.4, 0.6)),
        backoff=dice.random() < 0.1,
        debug=dice.random() < 0.5,
    )


def _settings(dice: random.Random) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "survives_disconnect": dice.random() < 0.65,
        "records": "end" if dice.random() < 0.2 else "start",
        "concurrent_turns": dice.choice(("queue", "queue", "refuse", "allow")),
        "delete_while_running": dice.choice(("finish", "finish", "refuse")),
        "binds_unbound": dice.random() < 0.5,
        "mismatch": dice.choice(("refuse", "accept")),
        "omit_shared_access": dice.random() < 0.5,
        "turn_latency": dice.choice((0.0, 0.05, 0.2, 0.4, 0.8)),
        "events_per_turn": dice.choice((None, 6, 12, 40)),
        "keepalive_interval": dice.choice((15.0, 0.1, 0.03)),
        "newline": dice.choice(("\n", "\n", "\r\n", "\r")),
    }
    if dice.random() < 0.15:
        chosen |= {
            "requests_per_minute": dice.choice((4, 8, 16)),
            "rate_window": 1.0,
            "rate_limits": dice.choice(("all", "turns")),
            "retry_after_style": dice.choice(("seconds", "date", "none")),
        }
    return chosen


def _lag_to_expect(settings: dict[str, Any]) -> float:
    """What the connection says of this server's history: docs/RELIABILITY.md asks for the turn as well, where it is written at the end."""
    is_at_end = settings["records"] == "end"
    if not settings["history_lag"] and not is_at_end:
        return 0.0
    # A machine that is busy is slow to answer as well.
    return float(settings["history_lag"] + (settings["turn_latency"] if is_at_end else 0.0) + 0.6)


# Without a task state store a retry knows its turn by the text of the last prompt, and by nothing else (docs/RELIABILITY.md).
_LIKE_THE_PROMPT = ("trimmed", "nfc", "nfkc", "html", "lower", "quotes", "no_zero_width", "no_control")
_UNLIKE_THE_PROMPT = ("prefix", "suffix", "cut", "empty")
_ALL_ALIKE = ("cut", "empty")


def _records(dice: random.Random, shape: Shape, *, store: bool) -> dict[str, Any]:
    """How the server records what it is asked, and how late."""
    knows = store or shape == "batch"
    chosen: dict[str, Any] = {"history_lag": dice.choice((0.0, 0.0, 0.0, 0.3, 0.8))}
    if dice.random() < 0.4:
        chosen["recorded_as"] = dice.choice(_LIKE_THE_PROMPT + (_UNLIKE_THE_PROMPT if knows else ()))
    if dice.random() < 0.15:
        chosen["text_in"] = "history"
    elif dice.random() < 0.2:
        chosen["malformed_text"] = dice.choice(("broken_json", "null", "list"))
    # A prompt of somebody else's that is recorded in a form of no information cannot be told from ours.
    if knows and dice.random() < 0.15 and chosen.get("recorded_as") not in _UNLIKE_THE_PROMPT:
        chosen["foreign_first"] = "Who let the llamas out?"
    if knows and dice.random() < 0.1:
        chosen["history_window"] = dice.choice((9, 16, 40))
    return chosen


_REQUEST_FAULTS = {
    "status": 8,
    "status_after": 4,
    "delay": 2,
    "hang": 3,
    "hang_after": 3,
    "reset_before": 4,
    "reset_after": 4,
    "truncated_body": 3,
    "malformed_json": 2,
    "redirect": 1,
    "html": 2,
    "huge": 0.1,
}
_STREAM_FAULTS = {
    "stall": 5,
    "stream_reset": 5,
    "cut": 4,
    "error_stop": 4,
    "garbage": 2,
    "unknown_event": 1,
    "slow": 1,
    "invalid_utf8": 2,
}
_PASSING = (500, 500, 502, 503, 503, 504, 429, 429)
_REFUSING = (401, 402, 403, 404, 409, 422)


def _fault(dice: random.Random) -> Fault:
    endpoint = dice.choices(("stream", "get", "create", "delete", "summary"), (55, 18, 10, 12, 5))[0]
    kinds = {**_REQUEST_FAULTS, **(_STREAM_FAULTS if endpoint == "stream" else {})}
    kind = dice.choices(tuple(kinds), tuple(kinds.values()))[0]
    extra: dict[str, Any] = {}
    if kind == "status_after":
        extra["status"] = dice.choice((429, 502, 503, 504))
        extra["retry_after"] = dice.choice((None, "0", "1"))
    elif kind == "status":
        status = dice.choice(_REFUSING if dice.random() < 0.12 else _PASSING)
        # A server that denies a session which it has is lying: nothing of what was asked in it could be known.
        extra["status"] = 403 if status == 404 and endpoint == "get" else status
        extra["retry_after"] = dice.choice((None, "0", "1", "soon")) if status in (429, 503) else None
    elif kind == "html":
        extra["status"] = dice.choice((200, 502, 503))
    elif kind == "redirect":
        extra["location"] = "http://127.0.0.1:9/elsewhere"
    elif kind == "delay":
        extra["delay"] = dice.uniform(0.05, 0.9)
    elif kind == "slow":
        extra["delay"] = dice.uniform(0.0001, 0.0006)
    if kind in _STREAM_FAULTS:
        extra["after_events"] = dice.choice((0, 0, 1, 2, 3, 5, 8, 13))
    # A batch that is refused again and again slows down to a request every few seconds, as it should, and keeps a lane busy.
    times = 1 if extra.get("status") == 429 else dice.choice((1, 1, 1, 2, 3))
    return Fault(kind, endpoint=endpoint, times=times, skip=dice.choice((0, 0, 0, 1, 2)), **extra)


def _tasks(dice: random.Random, shape: Shape, store: bool, *, shows_all: bool) -> list[Task]:
    vaults = iter(dice.sample(range(VAULTS), VAULTS))
    if shape == "batch":
        return [_batch(dice, vaults, store, own_session=0)]
    bound = dice.random() < 0.7
    tasks = [Task("create", "create", _retries(dice), {"index_ids": [INDEX] if bound else None})]
    asks = dice.choice((1, 1, 2, 3))
    for number in range(1 if shape == "mixed" else asks):
        # The same question twice in a session can be told apart only by what was remembered of the first.
        repeated = store and shows_all and number > 0 and dice.random() < 0.2
        vault = tasks[-1].vaults[0] if repeated else next(vaults)
        arguments: dict[str, Any] = {
            "deferrable": shape == "trigger" or (shape == "mixed" and dice.random() < 0.5),
            "on_interrupted": "ask_again" if dice.random() < 0.25 else "fail",
            "turn_timeout": dice.choice((15.0, 15.0, 15.0, 1.0, 0.3)),
            "log_answer": dice.random() < 0.8,
        }
        if not bound or dice.random() < 0.3:
            arguments["index_ids"] = [INDEX]
        again = store and dice.random() < 0.1
        tasks.append(Task(f"ask_{number}", "ask", _retries(dice), arguments, (vault,), again=again))
    if shape == "mixed":
        tasks.append(_batch(dice, vaults, store, own_session=dice.choice((1, 2))))
    tasks.append(Task("delete", "delete", _retries(dice), {"ignore_missing": dice.random() < 0.8}))
    return tasks


def _batch(dice: random.Random, vaults: Any, store: bool, *, own_session: int) -> Task:
    arguments: dict[str, Any] = {
        "index_ids": [INDEX],
        "max_concurrency": dice.choice((1, 2, 4)),
        "session_mode": "shared" if own_session == 0 and dice.random() < 0.3 else "per_prompt",
        "on_item_error": dice.choice(("collect", "collect", "fail_fast")),
        "on_interrupted": "ask_again" if dice.random() < 0.25 else "fail",
        "delete_sessions": own_session > 0 or dice.random() < 0.8,
        "turn_timeout": dice.choice((15.0, 15.0, 1.0)),
        "requests_per_minute": dice.choice((None, None, None, 3000)),
        # Without a file and without a store a retry asks everything again, as it says.
        "output_path": None if store and dice.random() < 0.25 else "results.jsonl",
    }
    asked = tuple(next(vaults) for _ in range(dice.choice((2, 4, 6))))
    return Task("batch", "batch", _retries(dice), arguments, asked, own_session)


def _retries(dice: random.Random) -> int:
    return dice.choice((1, 2, 2, 3))
