"""The asynchronous client: the same calls and the same life of a turn on an event loop, without a thread per turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, cast

import httpx
from tenacity import AsyncRetrying

from airflow_provider_llamachat import endpoints, exceptions, models
from airflow_provider_llamachat.arguments import seconds
from airflow_provider_llamachat.asking import Asking, Outcome, Pause, Post, Question, ReadHistory, Reply, ask
from airflow_provider_llamachat.client import calls, replaying, replies
from airflow_provider_llamachat.client.config import ClientConfig, ssl_context, ssl_context_is_ready
from airflow_provider_llamachat.client.decoding import Unpacker
from airflow_provider_llamachat.client.streaming import aread_events
from airflow_provider_llamachat.client.sync import Observer
from airflow_provider_llamachat.client.throttle import Throttle, passing
from airflow_provider_llamachat.turns import TurnFolder

LARGE = 512 * 1024
"""Bytes of an answer from which on it is decoded in a thread: a history of some megabytes would stop the event loop."""


class AsyncLlamaCloudClient:
    """LlamaCloud's chat API for asynchronous code; method by method the same as :class:`~.sync.LlamaCloudClient`.

    Make it with :meth:`open` on an event loop: the constructor builds the process' TLS context if nothing has done so yet,
    which takes tens of milliseconds.
    """

    def __init__(self, config: ClientConfig, *, throttle: Throttle | None = None) -> None:
        self.config = config
        self.throttle = throttle
        self._calls = calls.Calls(config)
        self._http = calls.http_client(
            httpx.AsyncClient,
            config,
            event_hooks={"response": [calls.ahide_location]},
            # The callers bound their own concurrency; a pool that makes a turn wait would look like a silent server.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        )

    @classmethod
    async def open(cls, config: ClientConfig, *, throttle: Throttle | None = None) -> Self:
        """Make a client without blocking the event loop.

        :param throttle: a gate that every request of this client passes; None lets them pass freely.
        """
        if not ssl_context_is_ready():
            await asyncio.to_thread(ssl_context)
        return cls(config, throttle=throttle)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.config.base_url}>"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def create_session(
        self,
        index_ids: list[str] | None = None,
        *,
        shared_access: str | None = None,
        project_id: str | None = None,
        organization_id: str | None = None,
    ) -> models.SessionSummary:
        """Create a chat session (POST /api/v1/chat)."""
        call = self._calls.create(index_ids, shared_access, project_id, organization_id)
        return cast("models.SessionSummary", await self._send(call))

    async def get_session(
        self, session_id: str, *, project_id: str | None = None, organization_id: str | None = None
    ) -> models.Session:
        """Read a session with its whole history (GET /api/v1/chat/{session_id})."""
        call = self._calls.session(endpoints.GET_SESSION, session_id, project_id, organization_id)
        return cast("models.Session", await self._send(call))

    async def get_session_summary(
        self, session_id: str, *, project_id: str | None = None, organization_id: str | None = None
    ) -> models.SessionSummary:
        """Read a session without its history (GET /api/v1/chat/{session_id}/summary)."""
        call = self._calls.session(endpoints.GET_SESSION_SUMMARY, session_id, project_id, organization_id)
        return cast("models.SessionSummary", await self._send(call))

    async def list_sessions(
        self, *, page_size: int | None = None, project_id: str | None = None, organization_id: str | None = None
    ) -> AsyncIterator[models.SessionSummary]:
        """Iterate over the project's sessions, page by page (GET /api/v1/chat)."""
        async for item in self._pages(endpoints.LIST_SESSIONS, page_size, project_id, organization_id):
            yield item

    async def delete_session(
        self, session_id: str, *, project_id: str | None = None, organization_id: str | None = None
    ) -> None:
        """Delete a session (DELETE /api/v1/chat/{session_id})."""
        await self._send(self._calls.session(endpoints.DELETE_SESSION, session_id, project_id, organization_id))

    async def list_projects(
        self, *, project_name: str | None = None, organization_id: str | None = None
    ) -> list[models.Project]:
        """List the projects the key can see (GET /api/v1/projects)."""
        return cast("list[models.Project]", await self._send(self._calls.projects(project_name, organization_id)))

    async def get_project(self, project_id: str, *, organization_id: str | None = None) -> models.Project:
        """Read a project (GET /api/v1/projects/{project_id})."""
        return cast("models.Project", await self._send(self._calls.project(project_id, organization_id)))

    async def list_indexes(
        self, *, page_size: int | None = None, project_id: str | None = None, organization_id: str | None = None
    ) -> AsyncIterator[models.Index]:
        """Iterate over the project's indexes, page by page (GET /api/v1/indexes)."""
        async for item in self._pages(endpoints.LIST_INDEXES, page_size, project_id, organization_id):
            yield item

    async def get_index(
        self,
        index_id: str,
        *,
        expand_sync: bool = False,
        project_id: str | None = None,
        organization_id: str | None = None,
    ) -> models.Index:
        """Read an index (GET /api/v1/indexes/{index_id})."""
        call = self._calls.index(endpoints.GET_INDEX, index_id, project_id, organization_id, expand=expand_sync)
        return cast("models.Index", await self._send(call))

    async def sync_index(
        self, index_id: str, *, project_id: str | None = None, organization_id: str | None = None
    ) -> bool:
        """Start a sync of an index; False when one was running already (POST /api/v1/indexes/{index_id}/sync)."""
        call = self._calls.index(endpoints.SYNC_INDEX, index_id, project_id, organization_id, expand=False)
        try:
            await self._send(call)
        except exceptions.ConflictError:
            return False
        return True

    def stream_message(
        self,
        session_id: str,
        prompt: str,
        *,
        index_ids: list[str] | None = None,
        require_all_indexes: bool = False,
        turn_timeout: float | timedelta = calls.DEFAULT_TURN_TIMEOUT,
        project_id: str | None = None,
        organization_id: str | None = None,
    ) -> AsyncIterator[models.Event]:
        """Post a prompt once and iterate over its events; see :meth:`.sync.LlamaCloudClient.stream_message`."""
        asked = calls.question(
            session_id,
            prompt,
            index_ids,
            require_all_indexes=require_all_indexes,
            project_id=project_id,
            organization_id=organization_id,
        )
        return self._events(asked, seconds(turn_timeout, "turn_timeout"))

    async def _events(self, asked: Question, patience: float) -> AsyncGenerator[models.Event, None]:
        deadline = time.time() + patience
        if not asked.index_ids:
            asked, _ = calls.completed(asked, 0, await self._send(self._calls.history(asked)))
        async with aclosing(self._stream(asked, deadline)) as events:
            async for event in events:
                yield event
                if isinstance(event, models.StopEvent):
                    return
        raise calls.ended_early(asked.session_id)

    async def send_message(
        self,
        session_id: str,
        prompt: str,
        *,
        index_ids: list[str] | None = None,
        require_all_indexes: bool = False,
        baseline: int | None = None,
        resume: bool = False,
        accepted: bool = False,
        ask_again: bool = False,
        turn_timeout: float | timedelta = calls.DEFAULT_TURN_TIMEOUT,
        deadline: float | None = None,
        on_event: Observer | None = None,
        project_id: str | None = None,
        organization_id: str | None = None,
    ) -> models.ChatTurn:
        """Ask and return the finished turn, paid for once; see :meth:`.sync.LlamaCloudClient.send_message`."""
        asked = calls.question(
            session_id,
            prompt,
            index_ids,
            require_all_indexes=require_all_indexes,
            project_id=project_id,
            organization_id=organization_id,
        )
        limits = calls.limits(self.config, deadline, turn_timeout)
        try:
            if baseline is None or not asked.index_ids:
                asked, baseline = calls.completed(asked, baseline, await self._send(self._calls.history(asked)))
            steps = ask(asked, limits, baseline=baseline, resume=resume, accepted=accepted, ask_again=ask_again)
            return await self._carry_out(steps, asked, limits.deadline, on_event)
        except exceptions.LlamaCloudError as problem:
            raise replies.redacted(problem, self.config)  # noqa: B904  # it is the same error

    async def _carry_out(
        self, steps: Asking, asked: Question, deadline: float, on_event: Observer | None
    ) -> models.ChatTurn:
        reply: Reply = None
        with closing(steps):
            while True:
                try:
                    step = steps.send(reply)
                except StopIteration as end:
                    return cast("models.ChatTurn", end.value)
                match step:
                    case ReadHistory():
                        try:
                            reply = await self._send(self._calls.history(asked), calls.patience(deadline))
                        except exceptions.LlamaCloudError as problem:
                            reply = problem
                    case Post():
                        reply = await self._post(asked, step.position, deadline, on_event)
                    case Pause():
                        await asyncio.sleep(step.seconds)
                        reply = None

    async def _post(self, asked: Question, position: int, deadline: float, on_event: Observer | None) -> Outcome:
        folder = TurnFolder(asked.session_id, asked.prompt, index_ids=asked.index_ids, position=position)
        try:
            async with aclosing(self._stream(asked, deadline)) as events:
                async for event in events:
                    folder.add(calls.checked(event, asked))
                    if on_event is not None:
                        on_event(event)
                    if folder.finished:
                        break
        except exceptions.LlamaCloudError as problem:
            return calls.outcome(folder, problem)
        return calls.outcome(folder, calls.cut_stream(asked.session_id))

    async def _stream(self, asked: Question, deadline: float) -> AsyncGenerator[models.Event, None]:
        call = self._calls.stream(asked)
        accepted: bool | None = None
        try:
            async with (
                passing(self.throttle, deadline) as passage,
                self._answer(call, deadline) as response,
            ):
                passage.answered(response.status_code, replies.retry_after(response.headers))
                if not calls.is_event_stream(response):
                    reply = replies.Reply(
                        response.status_code, response.headers, await self._read(call, response, deadline)
                    )
                    replies.raise_for_status(call, reply, self.config)
                    raise replies.not_a_stream(call, reply, self.config)
                accepted = True
                async with (
                    aclosing(self._chunks(response, deadline)) as chunks,
                    aclosing(aread_events(chunks, asked.session_id, (self.config.api_key,))) as events,
                ):
                    async for event in events:
                        yield event
        except replies.TRANSPORT_PROBLEMS as problem:
            raise replies.connection_error(call, problem, self.config, accepted=accepted) from None

    async def _pages(
        self, endpoint: endpoints.Endpoint, page_size: int | None, project_id: str | None, organization_id: str | None
    ) -> AsyncIterator[Any]:
        pages = calls.Pages(endpoint)
        while pages.more:
            call = self._calls.page(endpoint, page_size, pages.token, project_id, organization_id)
            page = await self._send(call)
            for item in page.items:
                yield item
            pages.turn(page.next_page_token)

    async def _send(self, call: endpoints.Call, patience: float | None = None) -> Any:
        doubtful = False
        budget = replaying.Budget(self.config, patience)
        async for attempt in AsyncRetrying(**replaying.policy(call, self.config, budget)):
            with attempt:
                try:
                    reply = await self._attempt(call, budget)
                    if len(reply.body) < LARGE:
                        return replies.decode(call, reply, self.config)
                    return await asyncio.to_thread(replies.decode, call, reply, self.config)
                except exceptions.RequestRefusedError as problem:
                    if doubtful and replaying.shows_success(call, problem):
                        return None
                    raise
                except (exceptions.LlamaCloudConnectionError, exceptions.ServerError):
                    doubtful = True
                    raise
        raise AssertionError("tenacity returns or raises")  # pragma: no cover  # for the type checker only

    async def _attempt(self, call: endpoints.Call, budget: replaying.Budget) -> replies.Reply:
        # The gate comes before the clock: waiting for it is not the server's silence.
        async with passing(self.throttle) as passage:
            try:
                with budget.spend() as deadline:
                    async with self._answer(call, deadline) as response:
                        passage.answered(response.status_code, replies.retry_after(response.headers))
                        body = await self._read(call, response, deadline)
                        return replies.Reply(response.status_code, response.headers, body)
            except replies.TRANSPORT_PROBLEMS as problem:
                raise replies.connection_error(call, problem, self.config) from None

    @asynccontextmanager
    async def _answer(self, call: endpoints.Call, deadline: float) -> AsyncIterator[httpx.Response]:
        request = self._http.build_request(**calls.request(call, self.config, deadline))
        async with asyncio.timeout(calls.left(deadline)):
            response = await self._http.send(request, stream=True)
        async with aclosing(response):
            yield response

    async def _chunks(self, response: httpx.Response, deadline: float) -> AsyncGenerator[bytes, None]:
        unpacker = Unpacker(response.headers.get("content-encoding"))
        raw = aiter(response.aiter_raw())
        while True:
            # One chunk may hide any number of waits: the head of a chunk can be dripped byte by byte.
            async with asyncio.timeout(calls.left(deadline)):
                chunk = await anext(raw, None)
            if chunk is None:
                break
            for piece in unpacker.feed(chunk):
                yield piece
        unpacker.end()

    async def _read(self, call: endpoints.Call, response: httpx.Response, deadline: float) -> bytes:
        body = bytearray()
        async with aclosing(self._chunks(response, deadline)) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > replies.MAX_BODY:
                    raise replies.too_large(call, self.config)
        return bytes(body)
