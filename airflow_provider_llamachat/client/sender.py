"""How calls travel: connections, retries, deadlines and size limits. ``sender_sync.py`` is generated from this file by ``make sync``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Self

import httpx

from airflow_provider_llamachat import exceptions
from airflow_provider_llamachat.client import endpoints, http, responses, retry
from airflow_provider_llamachat.client.config import ClientConfig, ssl_context, ssl_context_is_ready
from airflow_provider_llamachat.client.deadlines import Gate, StoppedError, asleep, auntil
from airflow_provider_llamachat.client.decoding import Unpacker
from airflow_provider_llamachat.client.throttle import Passage, Throttle

# sync| from airflow_provider_llamachat.client.deadlines import obey


class AsyncSender:
    """The part of a client that sends calls and reads their responses."""

    # <async>
    def __init__(self, config: ClientConfig, *, throttle: Throttle | None = None, keep_alive: bool = True) -> None:
        self.config = config
        self.throttle = throttle
        self._gate = Gate()
        # Callers limit their own concurrency. A turn that waits for the pool would look like a server that does not respond.
        self._http = self._made(httpx.Limits(max_connections=None, max_keepalive_connections=100 if keep_alive else 0))
        self._fresh = None if keep_alive else self._http

    def _made(self, limits: httpx.Limits) -> httpx.AsyncClient:
        hooks = {"response": [http.ahide_location]}
        return http.http_client(httpx.AsyncClient, self.config, event_hooks=hooks, limits=limits)

    @classmethod
    async def open(cls, config: ClientConfig, *, throttle: Throttle | None = None, keep_alive: bool = True) -> Self:
        """Create a client without blocking the event loop. The constructor may block, because it creates the TLS context of the process.

        :param throttle: limits the rate of all requests of this client; None means no limit.
        :param keep_alive: whether idle connections are kept open for later requests.
        """
        if not ssl_context_is_ready():
            await asyncio.to_thread(ssl_context)
        return cls(config, throttle=throttle, keep_alive=keep_alive)

    # </async>
    # sync| def __init__(self, config: ClientConfig) -> None:
    # sync|     self.config = config
    # sync|     self.throttle = None
    # sync|     self._gate = Gate()
    # sync|     self._http = self._made(httpx.Limits(max_connections=100, max_keepalive_connections=20))
    # sync|     self._fresh: httpx.Client | None = None
    # sync|
    # sync| def _made(self, limits: httpx.Limits) -> httpx.Client:
    # sync|     hooks = {"response": [http.hide_location]}
    # sync|     made = http.http_client(httpx.Client, self.config, event_hooks=hooks, limits=limits)
    # sync|     obey(made, self._gate)
    # sync|     return made
    # sync|
    # sync| def __del__(self) -> None:
    # sync|     # Nothing else closes a hook that is used for one call (`LlamaCloudHook().create_session()`).
    # sync|     if hasattr(self, "_fresh"):
    # sync|         self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.config.base_url}>"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        if self._fresh is not None:
            await self._fresh.aclose()

    @property
    def is_closed(self) -> bool:
        """Whether the client is closed."""
        return self._http.is_closed

    @property
    def is_stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._gate.is_closed

    def stop(self) -> None:
        """Send nothing more, and stop waiting. May be called from a signal handler."""
        self._gate.is_closed = True

    async def pause(self, seconds: float) -> None:
        """Wait, but not longer than until :meth:`stop` is called."""
        await asleep(seconds, self._gate)

    async def _send(self, call: endpoints.Call, patience: float | None = None) -> Any:
        retries = retry.Retries(call, self.config, patience)
        while True:
            try:
                return await responses.adecode(call, await self._attempt(call, retries), self.config)
            except exceptions.LlamaCloudError as problem:
                if retries.show_success(problem):
                    return None
                if self.is_stopped or (seconds := retries.wait_after(problem)) is None:
                    raise
            await self.pause(seconds)

    async def _attempt(self, call: endpoints.Call, retries: retry.Retries) -> responses.Reply:
        # Waiting for the rate limit does not count as waiting for the server.
        async with Passage(self.throttle) as passage:
            try:
                with retries.spend() as deadline:
                    connecting = http.Connecting()
                    try:
                        reply = await self._exchange(self._http, call, deadline, trace=connecting.atrace)
                    except responses.DISCONNECTS:
                        # The server had closed an idle connection, or closes it after the request. This is not a failed attempt.
                        if connecting.is_new or self.is_stopped:
                            raise
                        retries.is_doubtful = True
                        reply = await self._exchange(self._for_one_request(), call, deadline)
            except responses.TRANSPORT_PROBLEMS as problem:
                raise responses.connection_error(call, problem, self.config) from None
            passage.answered(reply.status, responses.retry_after(reply.headers))
            return reply

    def _for_one_request(self) -> httpx.AsyncClient:
        """Return a client that opens a connection for each request. A prompt must not be sent on one that the server has closed."""
        if self._fresh is None:
            self._fresh = self._made(httpx.Limits(max_connections=None, max_keepalive_connections=0))
        return self._fresh

    async def _exchange(
        self, client: httpx.AsyncClient, call: endpoints.Call, deadline: float, **extensions: Any
    ) -> responses.Reply:
        async with aclosing(await self._begin(client, call, deadline, **extensions)) as response:
            return responses.Reply(response.status_code, response.headers, await self._read(call, response, deadline))

    async def _begin(
        self, client: httpx.AsyncClient, call: endpoints.Call, deadline: float, **extensions: Any
    ) -> httpx.Response:
        if self.is_stopped:
            raise StoppedError
        request = client.build_request(**http.request(call, self.config, deadline), extensions=extensions)
        async with auntil(deadline):
            return await client.send(request, stream=True)

    async def _chunks(self, response: httpx.Response, deadline: float) -> AsyncGenerator[bytes, None]:
        unpacker = Unpacker(response.headers.get("content-encoding"))
        raw = aiter(response.aiter_raw())
        while True:
            # A chunk can arrive byte by byte, so the deadline applies to each chunk as a whole.
            async with auntil(deadline):
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
                if len(body) > responses.MAX_BODY:
                    raise responses.too_large(call, self.config)
        return bytes(body)
