"""The retry policy of both clients."""

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

from airflow_provider_llamachat.client import endpoints
from airflow_provider_llamachat.client.config import ClientConfig
from airflow_provider_llamachat.client.deadlines import Gate
from airflow_provider_llamachat.client.endpoints import Call
from airflow_provider_llamachat.exceptions import (
    ConflictError,
    LlamaCloudConnectionError,
    LlamaCloudStatusError,
    NotFoundError,
)

log = logging.getLogger(__name__)

REPLAYED_STATUSES = frozenset({425, 429, 502, 503, 504})
"""Statuses after which a call that is safe to repeat is retried. 408 is handled as a timeout, and 500 is not retried."""

FIRST_WAIT = 0.5
MAX_WAIT = 20.0
MAX_RETRY_AFTER = 60.0
"""Seconds: the first pause (doubled each time, with jitter), the longest pause, and the longest accepted ``Retry-After``."""

_pauses: contextvars.ContextVar[bool] = contextvars.ContextVar("llamacloud_pauses", default=True)


@contextlib.contextmanager
def no_backoff() -> Iterator[None]:
    """Disable pauses between attempts within the block, for tests."""
    token = _pauses.set(False)
    try:
        yield
    finally:
        _pauses.reset(token)


def pause(attempt: int, retry_after: float | None = None) -> float:
    """Return the seconds to wait after a failed attempt (1 is the first), with jitter over the upper half."""
    if not _pauses.get():
        return 0.0
    longest = min(MAX_WAIT, FIRST_WAIT * 2.0 ** min(attempt - 1, 16))
    seconds = random.uniform(longest / 2, longest)  # noqa: S311  # not used for security
    if retry_after is not None:
        seconds = max(seconds, min(retry_after, MAX_RETRY_AFTER))
    return seconds


def may_replay(call: Call, problem: BaseException) -> bool:
    """Whether the call may be sent again after this failure."""
    if isinstance(problem, LlamaCloudConnectionError):
        return call.endpoint.replay or problem.accepted is False
    if isinstance(problem, LlamaCloudStatusError) and problem.status in REPLAYED_STATUSES:
        return call.endpoint.replay or problem.status == 429
    return False


def shows_success(call: Call, problem: LlamaCloudStatusError) -> bool:
    """Whether this error shows that an earlier attempt of the same call succeeded and its response was lost."""
    if call.endpoint is endpoints.DELETE_SESSION:
        return isinstance(problem, NotFoundError)
    return call.endpoint in {endpoints.SYNC_INDEX, endpoints.CANCEL_SYNC} and isinstance(problem, ConflictError)


class Budget:
    """The remaining time of a call, including its retries and pauses. Waiting for a throttle is not counted.

    :param patience: seconds, if less than the ``total_timeout`` of the configuration.
    """

    def __init__(self, config: ClientConfig, patience: float | None = None) -> None:
        self.seconds = config.total_timeout if patience is None else min(config.total_timeout, patience)
        self.left = self.seconds

    @contextlib.contextmanager
    def spend(self) -> Iterator[float]:
        """Count the time of an attempt. Yields the epoch seconds at which the attempt must end."""
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
    """Arguments for tenacity's ``Retrying`` and ``AsyncRetrying``: attempts and total time are limited, the last error is raised."""

    def wait(state: RetryCallState) -> float:
        problem = state.outcome.exception() if state.outcome else None
        return pause(state.attempt_number, getattr(problem, "retry_after", None))

    def announce(state: RetryCallState) -> None:
        budget.left -= state.upcoming_sleep
        problem = state.outcome.exception() if state.outcome else None
        log.warning(
            "%s Retrying in %.1f s (attempt %d of %d failed).",
            problem,
            state.upcoming_sleep,
            state.attempt_number,
            config.max_retries + 1,
        )

    return {
        "retry": retry_if_exception(lambda problem: may_replay(call, problem)),
        "stop": stop_after_attempt(config.max_retries + 1) | _Over(budget, gate),
        "wait": wait,
        "before_sleep": announce,
        "reraise": True,
    }
