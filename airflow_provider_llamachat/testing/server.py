"""The emulator in the process of a test: an HTTP server with a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import json
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from email.utils import formatdate
from typing import Any, Self

from aiohttp import web

from airflow_provider_llamachat.testing.control import COMMANDS, PREFIX, Control
from airflow_provider_llamachat.testing.records import ENDPOINTS, REQUEST_KINDS, Fault, Headers, RequestRecord
from airflow_provider_llamachat.testing.settings import Settings
from airflow_provider_llamachat.testing.state import Exchange, ServiceState
from airflow_provider_llamachat.testing.wire import ApiError, Handler, answer_with, as_json

DEFAULT_API_KEY = "llx-emulator-0000"
"""Key that is accepted when none is given."""

_TIMEOUT = 30.0
_CONTROL_BODY = 256 * 1024 * 1024
_WITHHELD = dict.fromkeys(("proxy-authorization", "cookie", "x-api-key"), "<withheld>")


class LlamaCloudEmulator(Control):
    """A LlamaCloud on this machine, for tests.

    A context manager; :meth:`start` and :meth:`stop` do the same. After a stop, a start listens at the same port and nothing is
    forgotten, like a service that was down for a while. All attributes and methods can be used from any thread, whether or not the
    emulator is running.

    :param settings: behaviour; :meth:`reset` goes back to these.
    :param host: address to listen at. The control API answers only loopback clients, whatever the address.
    :param port: 0 takes a free one.
    :param api_keys: keys that are accepted; :attr:`api_key` is the first.
    :raises ValueError: unusable keys, or a port that cannot be one.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_keys: Sequence[str] | None = None,
    ) -> None:
        self._keys = [DEFAULT_API_KEY] if api_keys is None else list(api_keys)
        if not self._keys or not all(re.fullmatch("[!-~]([ -~]*[!-~])?", key) for key in self._keys):
            raise ValueError("API keys are one or more texts of printable ASCII characters, without space around them")
        if not 0 <= port <= 65535:
            raise ValueError(f"The port is a number from 0 to 65535, not {port}")
        self._state, self._api_key = ServiceState(settings), self._keys[0]
        self._host, self._port = host, port
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end. The port is known once the emulator has been started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def start(self) -> Self:
        """Listen.

        :raises OSError: the port is taken, or the host is not an address of this machine.
        """
        if self._thread is None:
            ready: Future[None] = Future()
            serve = functools.partial(asyncio.run, self._serve(ready))
            self._thread = threading.Thread(target=serve, name="llamacloud-emulator", daemon=True)
            self._thread.start()
            try:
                ready.result(_TIMEOUT)
            except BaseException:
                self._thread = None
                raise
        return self

    async def _serve(self, ready: Future[None]) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(middlewares=[self._recorded, _answered, self._faulted, _answered])
        for name, (method, path) in ENDPOINTS.items():
            app.router.add_route(method, "/api/v1" + path, self._endpoint, name=name)
        app.on_response_prepare.append(self._sign)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port, backlog=4096, reuse_address=True)
            await site.start()
        except (OSError, UnicodeError) as error:
            await runner.cleanup()
            # Without what asyncio says about the address, which is said here.
            reason = str(getattr(error, "strerror", None) or error).rpartition(": ")[2]
            ready.set_exception(OSError(f"Cannot listen at {self._host}, port {self._port}: {reason}"))
            return
        self._port = runner.addresses[0][1]
        ready.set_result(None)
        await self._stopping.wait()
        await site.stop()
        self._state.break_off()
        await runner.cleanup()
        # Whatever an open connection asked for in the meantime.
        self._state.break_off()

    def stop(self) -> None:
        """Break every connection and end the thread; records stay readable."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            thread.join(_TIMEOUT)

    __enter__ = start

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _do(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do something while nothing else happens: in the loop's thread, if there is one."""

        async def done() -> Any:
            return work(self, *args, **kwargs)

        if self._thread in (None, threading.current_thread()):
            return work(self, *args, **kwargs)
        try:
            return asyncio.run_coroutine_threadsafe(done(), self._loop).result(_TIMEOUT)
        except TimeoutError:
            raise TimeoutError(f"The emulator's thread did not answer within {_TIMEOUT:.0f} s") from None

    # Everything between the socket and the endpoints, from the outside in: control API, log, faults, errors, keys and limits

    @web.middleware
    async def _recorded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Log the request, and in the end decide what becomes of its turn."""
        path = request.raw_path.partition("?")[0]
        if path.startswith(PREFIX + "/"):
            return await self._command(request, path[len(PREFIX) + 1 :])
        task = asyncio.current_task()
        exchange = self._state.busy[task] = self._log(request, path)
        try:
            answer = await handler(request)
            if not answer.prepared:
                await self._sign(request, answer)
            return answer
        finally:
            del self._state.busy[task]
            if exchange.turn is not None:
                exchange.turn.client_left()

    def _log(self, request: web.Request, path: str) -> Exchange:
        headers = Headers(request.headers)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip() if scheme.lower() == "bearer" and given.strip() in self._keys else None
        shown = {"authorization": "Bearer <refused>" if key is None else "Bearer <accepted>", **_WITHHELD}
        headers.update({name: text for name, text in shown.items() if name in headers})
        parameters = {name: request.query.getall(name) for name in request.query}
        query = {name: values if len(values) > 1 else values[0] for name, values in parameters.items()}
        number = len(self._state.requests) + 1
        record = RequestRecord(number, time.time(), request.method, path, query, headers)
        record.request_id = f"req-{number:08d}"
        # A whole URL is what a proxy is asked for; the service is not one.
        record.endpoint = request.match_info.route.name if path.startswith("/") else None
        record.session_id = request.match_info.get("id") if path.startswith("/api/v1/chat/") else None
        self._state.requests.append(record)
        return Exchange(request, record, key)

    @web.middleware
    async def _faulted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the fault that meets the request act before, instead of or after what is asked for."""
        exchange = self._state.current
        with contextlib.suppress(ValueError, RecursionError):
            exchange.record.body = json.loads(await request.read())
        exchange.fault = self._state.take_fault(REQUEST_KINDS, exchange.record)
        return await (handler(request) if exchange.fault is None else answer_with(exchange.fault, request, handler))

    async def _endpoint(self, request: web.Request) -> web.StreamResponse:
        """Let in requests with a key and within its rate limit."""
        from airflow_provider_llamachat.testing.endpoints import Call

        exchange = self._state.current
        if exchange.record.endpoint is None:
            raise ApiError(404, "Not Found")
        if exchange.key is None:
            raise ApiError(401, "Invalid or missing API key.", {"WWW-Authenticate": "Bearer"})
        if (wait := self._state.admit(exchange.key, exchange.record.endpoint)) is None:
            return await Call(self._state, request).answer()
        # Whole seconds, rounded up, so that a client that waits as long is let in.
        seconds, date = str(max(1, math.ceil(wait))), formatdate(math.ceil(time.time() + wait), usegmt=True)
        form = {"seconds": {"Retry-After": seconds}, "date": {"Retry-After": date}}
        headers = form.get(self._state.settings.retry_after_style)
        raise ApiError(429, "Rate limit exceeded. Please retry later.", headers)

    async def _sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Give the answer its id, and note that it is sent."""
        if (exchange := self._state.busy.get(asyncio.current_task())) is not None:
            response.headers["x-request-id"] = exchange.record.request_id
            exchange.record.status = response.status

    async def _command(self, request: web.Request, name: str) -> web.Response:
        if not ipaddress.ip_address(request.remote or "0.0.0.0").is_loopback:
            return as_json({"detail": "The control API answers only clients on this machine's loopback address."}, 403)
        if request.method == "POST" and name == "faults":
            name = "inject"
        read = isinstance(COMMANDS.get(name), property)
        if name not in COMMANDS or request.method != ("GET" if read else "POST"):
            return as_json({"detail": f"There is no control {request.method} {PREFIX}/{name}"}, 404)
        try:
            if read:
                return as_json(getattr(self, name))
            # Documents for an index may be larger than what the API takes in one request.
            given = json.loads(await request.clone(client_max_size=_CONTROL_BODY).read() or b"[]")
            if name == "inject":
                given = [Fault(**item) for item in given]
            args, kwargs = ([], given) if isinstance(given, dict) else (given, {})
            return as_json(getattr(self, name)(*args, **kwargs))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return as_json({"detail": str(error)}, 400)


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors as the API words them."""
    try:
        return await handler(request)
    except ApiError as error:
        return error.answer
    except web.HTTPException as error:
        allow = error.headers.get("Allow", "")
        headers = {"Allow": ", ".join(sorted(allow.split(","), reverse=True))} if allow else {}
        return as_json({"detail": error.reason}, error.status, headers)
