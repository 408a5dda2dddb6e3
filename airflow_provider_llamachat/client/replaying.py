"""What is sent again, how often, and after how long; one policy for both clients."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import random
import time
from collections.abc import Iterator
from typing import Any

from tenacity import RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.stop import stop_base

from airflow_provider_llamachat import endpoints
from airflow_provider_llamachat.client.config import ClientConfig
from airflow_provider_llamachat.client.deadlines import Gate
from airflow_provider_llamachat.endpoints import Call
from airflow_provider_llamachat.exceptions import (
    ConflictError,
    LlamaCloudConnectionError,
    LlamaCloudStatusError,
    NotFoundError,
)

log = logging.getLogger(__name__)

REPLAYED_STATUSES = frozenset({425, 429, 502, 503, 504})
"""Statuses after which a replayable call is sent again; 408 counts as a time-out. 500 is not one: it is the server's own bug."""

FIRST_WAIT = 0.5
MAX_WAIT = 20.0
MAX_RETRY_AFTER = 60.0
"""Seconds: the first pause (doubled each time, jittered), the longest one, and the most that ``Retry-After`` is obeyed."""

_pauses: contextvars.ContextVar[bool] = contextvars.ContextVar("llamacloud_pauses", default=True)


@contextlib.contextmanager
def no_backoff() -> Iterator[None]:
    """Within this block nothing pauses between attempts: for tests, so that they exercise every attempt without waiting."""
    token = _pauses.set(False)
    try:
        yield
    finally:
        _pauses.reset(token)


def pause(attempt: int, retry_after: float | None = None) -> float:
    """Seconds to wait after the given failed attempt (1 = the first), with full jitter over the upper half."""
    if not _pauses.get():
        return 0.0
    longest = min(MAX_WAIT, FIRST_WAIT * 2.0 ** min(attempt - 1, 16))
    seconds = random.uniform(longest / 2, longest)  # noqa: S311  # spreads load, protects nothing
    if retry_after is not None:
        seconds = max(seconds, min(retry_after, MAX_RETRY_AFTER))
    return seconds


def may_replay(call: Call, problem: BaseException) -> bool:
    """Whether this failure of this call may be answered by sending it again, without asking anybody."""
    if isinstance(problem, LlamaCloudConnectionError):
        return call.endpoint.replay or problem.accepted is False
    if isinstance(problem, LlamaCloudStatusError) and problem.status in REPLAYED_STATUSES:
        return call.endpoint.replay or problem.status == 429
    return False


def shows_success(call: Call, problem: LlamaCloudStatusError) -> bool:
    """Whether this refusal tells that an earlier attempt of the same call had worked, and its answer was lost."""
    if call.endpoint is endpoints.DELETE_SESSION:
        return isinstance(problem, NotFoundError)
    return call.endpoint is endpoints.SYNC_INDEX and isinstance(problem, ConflictError)


class Budget:
    """The time that a call may take in all its attempts and pauses; waiting at the gate of a throttle is not counted.

    :param patience: seconds, when they are to be fewer than the configuration's ``total_timeout``.
    """

    def __init__(self, config: ClientConfig, patience: float | None = None) -> None:
        self.seconds = config.total_timeout if patience is None else min(config.total_timeout, patience)
        self.left = self.seconds

    @contextlib.contextmanager
    def spend(self) -> Iterator[float]:
        """Count an attempt's time; gives the epoch seconds at which the attempt has to end."""
        begin = time.time()
        try:
            yield begin + self.left
        finally:
            self.left -= max(0.0, time.time() - begin)


class _Over(stop_base):
    def __init__(self, budget: Budget, gate: Gate) -> None:
        self._budget = budget
        self._gate = gate

    def __call__(self, retry_state: RetryCallState) -> bool:
        return self._gate.is_closed or self._budget.left <= retry_state.upcoming_sleep


def policy(call: Call, config: ClientConfig, budget: Budget, gate: Gate) -> dict[str, Any]:
    """Arguments for tenacity's ``Retrying`` and ``AsyncRetrying``: attempts and a total budget bound it, the last error is raised."""

    def wait(state: RetryCallState) -> float:
        problem = state.outcome.exception() if state.outcome else None
        return pause(state.attempt_number, getattr(problem, "retry_after", None))

    def announce(state: RetryCallState) -> None:
        budget.left -= state.upcoming_sleep
        problem = state.outcome.exception() if state.outcome else None
        log.warning(
            "Attempt %d of %d failed; trying again in %.1f s. %s",
            state.attempt_number,
            config.max_retries + 1,
            state.upcoming_sleep,
            problem,
        )

    return {
        "retry": retry_if_exception(lambda problem: may_replay(call, problem)),
        "stop": stop_after_attempt(config.max_retries + 1) | _Over(budget, gate),
        "wait": wait,
        "before_sleep": announce,
        "reraise": True,
    }
