"""A client that reaches the simulated server without a network, over which anything may get lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Literal, Unpack

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import AsyncLlamaCloudClient, ClientConfig
from airflow_provider_llamachat.conversation.question import Question, Scope
from airflow_provider_llamachat.models import Event, Session, SessionSummary
from tests.batch.simulation.server import Server, Turn

REFUSED: dict[str, Callable[[], errors.LlamaCloudError]] = {
    "lost": lambda: errors.LlamaCloudConnectionError("The request was lost."),
    "422": lambda: errors.UnprocessableError("The prompt was refused.", status=422),
    "429": lambda: errors.RateLimitError("Too many requests.", status=429, retry_after=0.1),
    "503": lambda: errors.ServerError("The service is unavailable.", status=503),
}
"""Faults of a post that becomes no turn, and their errors."""
FAULTS = ("lost", "422", "429", "503", "hang", "hang after", "lost after", "cut", "error", "error", "error", "dies")
"""What may happen to a post. A turn that ends with an error is the one that moves the places of others in a session."""


def refusal(fault: str) -> errors.LlamaCloudError:
    """The error of a fault."""
    return REFUSED[fault]()


@dataclass(frozen=True)
class Faults:
    """How often something goes wrong, from 0 to 1."""

    post: float = 0.0
    other: float = 0.0


class SimulatedClient(AsyncLlamaCloudClient):
    """The client of one attempt.

    :ivar is_dead: whether the process was killed. Nothing has an effect any more.
    """

    def __init__(self, config: ClientConfig, server: Server, faults: Faults, rng: random.Random) -> None:
        super().__init__(config)
        self._server = server
        self._clock = server.clock
        self._faults = faults
        self._rng = rng
        self.is_dead = False

    async def _travel(self, seconds: float | None = None) -> None:
        await asyncio.sleep(self._rng.uniform(0.01, 0.06) if seconds is None else seconds)
        if self.is_dead:
            raise asyncio.CancelledError

    async def _wait_until(self, moment: float, deadline: float) -> bool:
        await self._travel(max(0.0, min(moment, deadline) - self._clock.now) + 0.001)
        return self._clock.now >= moment

    def _fails(self) -> bool:
        return self._rng.random() < self._faults.other

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await self._travel(seconds)

    async def create_session(
        self,
        index_ids: list[str] | None = None,
        *,
        shared_access: Literal["query", "read_only"] | None = None,
        **scope: Unpack[Scope],
    ) -> SessionSummary:
        """Open a session, or fail before."""
        await self._travel()
        if self._fails():
            raise refusal("503")
        session_id = self._server.open()
        await self._travel()
        return SessionSummary(session_id=session_id, index_ids=index_ids or [])

    async def get_session(self, session_id: str, **scope: Unpack[Scope]) -> Session:
        """Read a session, or fail."""
        await self._travel()
        if self._fails():
            raise errors.LlamaCloudConnectionError("The answer was lost.", session_id=session_id)
        session = self._server.read(session_id)
        await self._travel()
        return session

    async def get_known_session(
        self, session_id: str, *, patience: float | None = None, **scope: Unpack[Scope]
    ) -> Session:
        """Read a session, or fail."""
        return await self.get_session(session_id)

    async def read_history(self, question: Question, deadline: float, *, is_in_doubt: bool) -> Session:
        """Read the session of a question."""
        return await self.get_session(question.session_id)

    async def stream(
        self, question: Question, deadline: float, on_lost: Callable[[], None] | None = None
    ) -> AsyncGenerator[Event, None]:
        """Post a prompt and yield the events of its turn, unless something goes wrong."""
        fault = self._rng.choice(FAULTS) if self._rng.random() < self._faults.post else "none"
        server = self._server
        server.posts.append(
            f"{self._clock.now:.2f} attempt {server.attempt}: {question.session_id} {question.prompt[-2:]}, fault: {fault}"
        )
        turn = await self._post(question, fault, deadline)
        try:
            if fault == "hang after":
                await self._hang(deadline)
            if fault == "lost after":
                raise errors.LlamaCloudConnectionError("The answer was lost.")
            if not await self._wait_until(turn.starts, deadline):
                raise errors.LlamaCloudTimeoutError("The deadline has passed.", accepted=True)
            yield server.beginning(turn)
            if fault == "cut" or not await self._wait_until(turn.ends, deadline) or fault == "dies":
                raise errors.LlamaCloudConnectionError("The stream was cut.", accepted=True)
            turn.is_seen = True
            for event in turn.end():
                yield event
        finally:
            turn.is_watched = False

    async def _post(self, question: Question, fault: str, deadline: float) -> Turn:
        """Send a prompt. It may be taken before a kill that happens on its way."""
        is_early, delay = self._rng.random() < 0.5, self._rng.uniform(0.01, 0.05)
        seconds = self._rng.choice([0.05, 0.05, 0.3, 1.0, 5.0])
        kind = fault if fault in {"error", "dies"} else "ok"
        turn = None
        if is_early and fault not in REFUSED and fault != "hang":
            turn = self._server.take(question.session_id, question.prompt, self._clock.now + delay, kind, seconds)
        await self._travel(delay)
        if fault in REFUSED:
            raise refusal(fault)
        if fault == "hang":
            await self._hang(deadline)
        return turn or self._server.take(question.session_id, question.prompt, self._clock.now, kind, seconds)

    async def _hang(self, deadline: float) -> None:
        await self._travel(max(0.0, min(deadline - self._clock.now, self.config.timeout)))
        raise errors.LlamaCloudTimeoutError("The server does not respond.")
