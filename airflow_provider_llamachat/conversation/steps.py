"""The steps that :func:`~.ask.ask` yields, what it is sent back, and the limits it keeps to."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from airflow_provider_llamachat.conversation.question import Trace
from airflow_provider_llamachat.exceptions import LlamaCloudError
from airflow_provider_llamachat.models import ChatTurn, Session


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of time and number.

    :param deadline: epoch seconds at which waiting ends.
    :param stall_after: a turn that has not grown in the history for this many seconds counts as cut off.
    :param max_posts: maximum number of posts, each of them only if no earlier one was accepted.
    :param lag: seconds that a history may take to show an accepted prompt.
    :param poll: seconds between two reads of the history. They grow up to ``poll_max``.
    :param pause: seconds to wait after the n-th failed post, given the server's ``Retry-After``.
    :param now: the clock, in epoch seconds.
    """

    deadline: float
    stall_after: float
    max_posts: int
    lag: float = 0.0
    poll: float = 1.0
    poll_max: float = 5.0
    pause: Callable[[int, float | None], float] = lambda _attempt, _retry_after: 0.0
    now: Callable[[], float] = time.time

    @property
    def are_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.now() >= self.deadline

    def between_reads(self, reads: int) -> float:
        """Return the seconds to wait after the n-th read of the history."""
        return min(self.poll * 1.5 ** min(reads - 1, 10), self.poll_max)

    def wait(self, seconds: float) -> Pause:
        """Return the step that waits, but not longer than until the deadline."""
        return Pause(max(0.0, min(seconds, self.deadline - self.now())))


@dataclass(frozen=True, slots=True)
class Remember:
    """Step: store what is known about the turn for later attempts. Send nothing back.

    :param is_intent: a post follows, and must not leave if this could not be stored.
    """

    trace: Trace
    is_intent: bool = False


@dataclass(frozen=True, slots=True)
class ReadHistory:
    """Step: read the whole session. Send back a :class:`~..models.Session`, or the error."""


@dataclass(frozen=True, slots=True)
class Post:
    """Step: post the prompt and read the stream. Send back an :class:`Outcome`.

    :param position: number of turns in the session before this one.
    """

    trace: Trace
    position: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Step: wait. Send nothing back."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a post.

    :param trace: what is now known about the turn.
    :param turn: the turn in the stream, finished or not. None if there was no stream.
    :param problem: why there is no finished turn.
    :param is_damaged: events of the stream, or parts of their text, were lost.
    """

    trace: Trace
    turn: ChatTurn | None = None
    problem: LlamaCloudError | None = None
    is_damaged: bool = False


Step = Remember | ReadHistory | Post | Pause
Result = Session | LlamaCloudError | Outcome | None
Steps = Generator[Step, Result, ChatTurn]
