"""The emulator in the process of a test: an HTTP server with its own thread and event loop."""

import asyncio
import contextlib
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

from airflow_provider_llamachat.testing.control import COMMANDS, PREFIX, Control, checked_port
from airflow_provider_llamachat.testing.faults import ENDPOINTS, REQUEST_KINDS, Fault, Headers, RequestRecord
from airflow_provider_llamachat.testing.settings import Settings
from airflow_provider_llamachat.testing.state import Exchange, ServiceState
from airflow_provider_llamachat.testing.wire import ApiError, Handler, answer_with, as_json

DEFAULT_API_KEY = "llx-emulator-0000"
"""The accepted key, if none is given."""

_TIMEOUT = 30.0
_MAX_COMMAND = 256 * 1024 * 1024  # documents for an index may be larger
_TOO_LARGE = Fault("status", status=413)
_WITHHELD = dict.fromkeys(("proxy-authorization", "cookie", "x-api-key"), "<withheld>")


class LlamaCloudEmulator(Control):
    """A LlamaCloud on this machine, for tests.

    It is a context manager; :meth:`start` and :meth:`stop` do the same. After a stop, a start listens at the same port and forgets
    nothing, like a service after an outage. All attributes and methods work from any thread, whether or not the emulator is running.

    :param settings: behaviour; :meth:`reset` restores it.
    :param host: address to listen on. Whatever it is, the control API answers only loopback clients.
    :param port: 0 takes a free one.
    :param api_keys: keys that are accepted; :attr:`api_key` is the first.
    :raises ValueError: an unusable key or host, or a port that is not a number from 0 to 65535.
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
            raise ValueError("Give at least one API key. A key is printable ASCII text without surrounding spaces")
        # asyncio takes an empty host for every address of the machine.
        if not isinstance(host, str) or not host.strip():  # type: ignore[redundant-expr]  # callers are not always typed
            raise ValueError(f"host must be a host name or an IP address, not {host!r}")
        self._state, self._api_key = ServiceState(settings), self._keys[0]
        self._host, self._port = host, checked_port(port)
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._thread: threading.Thread | None = None
        self._running = False
        self._switching = threading.RLock()  # a signal handler may stop what its own thread starts

    def start(self) -> Self:
        """Listen, unless it listens already.

        :raises OSError: the port is taken, or the host is not an address of this machine.
        """
        with self._switching:
            if not self._running:
                ready: Future[None] = Future()
                run = self._serve(ready)
                self._thread = threading.Thread(target=asyncio.run, args=[run], name="llamacloud-emulator", daemon=True)
                self._thread.start()
                ready.result(_TIMEOUT)
                self._running = True
        return self

    async def _serve(self, ready: Future[None]) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(middlewares=[_answered, self._exchanged, _answered])
        for name, (method, path) in ENDPOINTS.items():
            app.router.add_route(method, "/api/v1" + path, self._endpoint, name=name)
        app.on_response_prepare.append(self._sign)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=4096, reuse_address=True).start()
        except (OSError, UnicodeError) as error:
            await runner.cleanup()
            # Without the address, which asyncio words in another way.
            reason = str(getattr(error, "strerror", None) or error).rpartition(": ")[2]
            ready.set_exception(OSError(f"Cannot listen on {self._host}, port {self._port}: {reason}"))
            return
        self._port = runner.addresses[0][1]
        self._url = f"{self._url.rpartition(':')[0]}:{self._port}"
        ready.set_result(None)
        await self._stopping.wait()
        self._state.break_off()
        await runner.cleanup()
        # Whatever open connections have requested since.
        self._state.break_off()

    def stop(self) -> None:
        """Break every connection and end the thread. Records stay readable."""
        with self._switching:
            if self._running and self._thread is not None:
                self._running = False
                self._loop.call_soon_threadsafe(self._stopping.set)
                self._thread.join(_TIMEOUT)

    __enter__ = start

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _do(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do the work while nothing else happens: in the loop's thread, if there is one."""

        async def done() -> Any:
            return work(self, *args, **kwargs)

        if self._thread is threading.current_thread():
            return work(self, *args, **kwargs)
        with self._switching:
            if not self._running:
                return work(self, *args, **kwargs)
            doing = asyncio.run_coroutine_threadsafe(done(), self._loop)
        try:
            return doing.result(_TIMEOUT)
        except TimeoutError:
            raise TimeoutError(f"The emulator's thread did not answer within {_TIMEOUT:.0f} s") from None

    @web.middleware
    async def _exchanged(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Log the request, let its fault act before, instead of or after the handler, and decide what happens to its turn."""
        path = request.raw_path.partition("?")[0]
        if path.startswith(PREFIX + "/"):
            return await self._command(request, path[len(PREFIX) + 1 :])
        task = asyncio.current_task()
        exchange = self._state.busy[task] = self._log(request, path)
        try:
            try:
                with contextlib.suppress(ValueError, RecursionError):
                    exchange.record.body = json.loads(await request.read())
                fault = self._state.take_fault(REQUEST_KINDS, exchange)
            except web.HTTPRequestEntityTooLarge:
                fault = _TOO_LARGE
            answer = await (handler(request) if fault is None else answer_with(fault, request, handler))
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
        query = {name: many if many[1:] else many[0] for name in request.query if (many := request.query.getall(name))}
        record = RequestRecord(len(self._state.requests) + 1, time.time(), request.method, path, query, headers)
        record.request_id = f"req-{record.number:08d}"
        # A whole URL is a request to a proxy, which the service is not.
        record.endpoint = request.match_info.route.name if path.startswith("/") else None
        record.session_id = request.match_info.get("id") if path.startswith("/api/v1/chat/") else None
        self._state.requests.append(record)
        return Exchange(request, record, key)

    async def _endpoint(self, request: web.Request) -> web.StreamResponse:
        """Let in requests that have a key and are within its rate limit."""
        from airflow_provider_llamachat.testing.answers import Operation

        exchange = self._state.busy[asyncio.current_task()]
        if exchange.record.endpoint is None:
            raise ApiError(404, "Not Found")
        if exchange.key is None:
            raise ApiError(401, "Invalid or missing API key.", {"WWW-Authenticate": "Bearer"})
        if (wait := self._state.admit(exchange.key, exchange.record.endpoint)) is None:
            return await Operation(self._state, exchange).answer()
        # Whole seconds, rounded up, so that a client that waits as long as told is let in.
        seconds, date = str(max(1, math.ceil(wait))), formatdate(math.ceil(time.time() + wait), usegmt=True)
        told = {"seconds": seconds, "date": date}.get(self._state.settings.retry_after_style)
        raise ApiError(429, "Rate limit exceeded. Please retry later.", {"Retry-After": told} if told else None)

    async def _sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the request's id to the response, and record its status."""
        if (exchange := self._state.busy.get(asyncio.current_task())) is not None:
            response.headers["x-request-id"] = exchange.record.request_id
            exchange.record.status = response.status

    async def _command(self, request: web.Request, name: str) -> web.Response:
        if not ipaddress.ip_address(request.remote or "0.0.0.0").is_loopback:
            return as_json({"detail": "The control API answers only clients on this machine's loopback address."}, 403)
        name = "inject" if (request.method, name) == ("POST", "faults") else name
        read = isinstance(COMMANDS.get(name), property)
        if name not in COMMANDS or request.method != ("GET" if read else "POST"):
            return as_json({"detail": f"There is no control {request.method} {PREFIX}/{name}"}, 404)
        try:
            if read:
                return as_json(getattr(self, name))
            given = json.loads(await request.clone(client_max_size=_MAX_COMMAND).read() or b"[]")
            if not isinstance(given, (dict, list)):
                raise ValueError(f"The arguments must be a JSON array or object, not {given!r}")
            args, kwargs = ([], given) if isinstance(given, dict) else (given, {})
            return as_json(getattr(self, name)(*args, **kwargs))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return as_json({"detail": str(error)}, 400)


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Word errors as the API does."""
    try:
        return await handler(request)
    except ApiError as error:
        return error.answer
    except web.HTTPException as error:
        allow = error.headers.get("Allow", "")
        headers = {"Allow": ", ".join(sorted(allow.split(","), reverse=True))} if allow else {}
        return as_json({"detail": error.reason}, error.status, headers)
