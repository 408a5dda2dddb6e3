"""The retry policy of both clients."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import random
import time
from collections.abc import Iterator

from airflow_provider_llamachat.client import endpoints
from airflow_provider_llamachat.client.config import ClientConfig
from airflow_provider_llamachat.client.endpoints import Call
from airflow_provider_llamachat.exceptions import (
    ConflictError,
    LlamaCloudConnectionError,
    LlamaCloudError,
    NotFoundError,
    ServerError,
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


class Retries:
    """What is known about a call over all its attempts. Waiting for a throttle does not count as its time.

    :param patience: seconds, if less than the ``total_timeout`` of the configuration.
    :ivar is_doubtful: whether an attempt may have succeeded although its response was lost.
    """

    def __init__(self, call: Call, config: ClientConfig, patience: float | None = None) -> None:
        self._call = call
        self._most = config.max_retries + 1
        self._left = config.total_timeout if patience is None else min(config.total_timeout, patience)
        self._failed = 0
        self.is_doubtful = False

    @contextlib.contextmanager
    def spend(self) -> Iterator[float]:
        """Count the time of an attempt. Yields the epoch seconds at which the attempt must end."""
        begin = time.time()
        try:
            yield begin + self._left
        finally:
            self._left -= max(0.0, time.time() - begin)

    def show_success(self, problem: LlamaCloudError) -> bool:
        """Whether this error shows that an earlier attempt succeeded and its response was lost."""
        is_gone = isinstance(problem, NotFoundError) and not problem.is_vague
        is_done = is_gone and self._call.endpoint is endpoints.DELETE_SESSION
        is_begun = isinstance(problem, ConflictError) and self._call.endpoint in {
            endpoints.SYNC_INDEX,
            endpoints.CANCEL_SYNC,
        }
        return self.is_doubtful and (is_done or is_begun)

    def wait_after(self, problem: LlamaCloudError) -> float | None:
        """Count a failed attempt, and return the seconds until the next one. Return None if the call may not be sent again."""
        self._failed += 1
        self.is_doubtful |= isinstance(problem, LlamaCloudConnectionError | ServerError)
        seconds = pause(self._failed, problem.retry_after)
        may_pass = isinstance(problem, LlamaCloudConnectionError) or problem.status in REPLAYED_STATUSES
        if self._failed >= self._most or self._left <= seconds or not may_pass:
            return None
        self._left -= seconds
        log.warning("%s Retrying in %.1f s (attempt %d of %d failed).", problem, seconds, self._failed, self._most)
        return seconds
