# Generated from client/sender.py by `make sync`; do not edit by hand.
"""How calls travel: connections, retries, deadlines and size limits."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any, Self

import httpx

from airflow_provider_llamachat import exceptions
from airflow_provider_llamachat.client import endpoints, http, responses, retry
from airflow_provider_llamachat.client.config import ClientConfig
from airflow_provider_llamachat.client.deadlines import Gate, StoppedError, obey, sleep, until
from airflow_provider_llamachat.client.decoding import Unpacker
from airflow_provider_llamachat.client.throttle import Passage


class Sender:
    """The part of a client that sends calls and reads their responses."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.throttle = None
        self._gate = Gate()
        self._http = self._made(httpx.Limits(max_connections=100, max_keepalive_connections=20))
        self._fresh: httpx.Client | None = None

    def _made(self, limits: httpx.Limits) -> httpx.Client:
        hooks = {"response": [http.hide_location]}
        made = http.http_client(httpx.Client, self.config, event_hooks=hooks, limits=limits)
        obey(made, self._gate)
        return made

    def __del__(self) -> None:
        # Nothing else closes a hook that is used for one call (`LlamaCloudHook().create_session()`).
        if hasattr(self, "_fresh"):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.config.base_url}>"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        if self._fresh is not None:
            self._fresh.close()

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

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until :meth:`stop` is called."""
        sleep(seconds, self._gate)

    def _send(self, call: endpoints.Call, patience: float | None = None) -> Any:
        retries = retry.Retries(call, self.config, patience)
        while True:
            try:
                return responses.decode(call, self._attempt(call, retries), self.config)
            except exceptions.LlamaCloudError as problem:
                if retries.show_success(problem):
                    return None
                if self.is_stopped or (seconds := retries.wait_after(problem)) is None:
                    raise
            self.pause(seconds)

    def _attempt(self, call: endpoints.Call, retries: retry.Retries) -> responses.Reply:
        # Waiting for the rate limit does not count as waiting for the server.
        with Passage(self.throttle) as passage:
            try:
                with retries.spend() as deadline:
                    connecting = http.Connecting()
                    try:
                        reply = self._exchange(self._http, call, deadline, trace=connecting.trace)
                    except responses.DISCONNECTS:
                        # The server had closed an idle connection, or closes it after the request. This is not a failed attempt.
                        if connecting.is_new or self.is_stopped:
                            raise
                        retries.is_doubtful = True
                        reply = self._exchange(self._for_one_request(), call, deadline)
            except responses.TRANSPORT_PROBLEMS as problem:
                raise responses.connection_error(call, problem, self.config) from None
            passage.answered(reply.status, responses.retry_after(reply.headers))
            return reply

    def _for_one_request(self) -> httpx.Client:
        """Return a client that opens a connection for each request. A prompt must not be sent on one that the server has closed."""
        if self._fresh is None:
            self._fresh = self._made(httpx.Limits(max_connections=None, max_keepalive_connections=0))
        return self._fresh

    def _exchange(
        self, client: httpx.Client, call: endpoints.Call, deadline: float, **extensions: Any
    ) -> responses.Reply:
        with closing(self._begin(client, call, deadline, **extensions)) as response:
            return responses.Reply(response.status_code, response.headers, self._read(call, response, deadline))

    def _begin(self, client: httpx.Client, call: endpoints.Call, deadline: float, **extensions: Any) -> httpx.Response:
        if self.is_stopped:
            raise StoppedError
        request = client.build_request(**http.request(call, self.config, deadline), extensions=extensions)
        with until(deadline):
            return client.send(request, stream=True)

    def _chunks(self, response: httpx.Response, deadline: float) -> Generator[bytes, None, None]:
        unpacker = Unpacker(response.headers.get("content-encoding"))
        raw = iter(response.iter_raw())
        while True:
            # A chunk can arrive byte by byte, so the deadline applies to each chunk as a whole.
            with until(deadline):
                chunk = next(raw, None)
            if chunk is None:
                break
            for piece in unpacker.feed(chunk):
                yield piece
        unpacker.end()

    def _read(self, call: endpoints.Call, response: httpx.Response, deadline: float) -> bytes:
        body = bytearray()
        with closing(self._chunks(response, deadline)) as chunks:
            for chunk in chunks:
                body += chunk
                if len(body) > responses.MAX_BODY:
                    raise responses.too_large(call, self.config)
        return bytes(body)
