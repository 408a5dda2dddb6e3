"""The emulator's HTTP server: what a request meets, in order, and the commands of a test beside the API."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from typing import Any

from aiohttp import web

from airflow_provider_llamachat.testing.broken_answers import as_json, spoilt, unprocessed
from airflow_provider_llamachat.testing.control import PREFIX, Control, to_json
from airflow_provider_llamachat.testing.faults import PROCESSED_KINDS, REQUEST_KINDS, Fault
from airflow_provider_llamachat.testing.handlers import Handlers
from airflow_provider_llamachat.testing.ledger import Headers, RequestRecord
from airflow_provider_llamachat.testing.settings import Settings
from airflow_provider_llamachat.testing.state import ApiError, Exchange, ServiceState

DEFAULT_API_KEY = "llx-emulator-0000"
"""Key that is accepted when none is given."""

CONTROL_BODY = 256 * 1024 * 1024
"""Bytes of one control request at most."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_SECRET_HEADERS = ("proxy-authorization", "cookie", "x-api-key")


class EmulatorServer:
    """Listens in the running event loop; :class:`~.emulator.LlamaCloudEmulator` gives it a thread of its own.

    :param settings: behaviour; a reset goes back to what they are now.
    :param host: address to listen at. Commands of loopback clients only are taken, whatever it is.
    :param port: 0 takes a free one, kept over a stop and a new start.
    :param api_keys: keys that are accepted.
    :raises ValueError: an empty list of keys, a key that is empty or not printable ASCII, a port that cannot be one.
    """

    def __init__(self, settings: Settings | None, host: str, port: int, api_keys: Sequence[str] | None) -> None:
        self._keys = [DEFAULT_API_KEY] if api_keys is None else list(api_keys)
        if not self._keys or not all(
            key and key.isascii() and key.isprintable() and key == key.strip() for key in self._keys
        ):
            raise ValueError("API keys are one or more texts of printable ASCII characters, without space around them")
        if not 0 <= port <= 65535:
            raise ValueError(f"The port is a number from 0 to 65535, not {port}")
        self.state = ServiceState(settings)
        self.api_key = self._keys[0]
        self.host = host
        self.port = port
        self._control = Control(self.state, self.api_key)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listen.

        :raises OSError: the port is taken, or the host is not one of this machine.
        """
        app = web.Application(middlewares=[self._recorded, _answered, self._faulted, _answered, self._admitted])
        Handlers(self.state).add_to(app.router)
        app.on_response_prepare.append(self._sign)
        app.on_shutdown.append(self._break_off)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self.port, backlog=4096, reuse_address=True).start()
        except (OSError, UnicodeError) as error:
            await runner.cleanup()
            # Past what asyncio says about the address, which is said here.
            reason = str(getattr(error, "strerror", error)).rpartition(": ")[2]
            raise OSError(f"Cannot listen at {self.host}, port {self.port}: {reason}") from None
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Abandon what is under way and close every connection; what was recorded stays."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _break_off(self, _: web.Application) -> None:
        self.state.break_off()

    # What a request meets, from the outside in

    @web.middleware
    async def _recorded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Log the request, and see to what becomes of its turn in the end."""
        path = request.raw_path.partition("?")[0]
        if path == PREFIX or path.startswith(PREFIX + "/"):
            return await self._command(request, path[len(PREFIX) + 1 :])
        task = asyncio.current_task()
        exchange = self.state.busy[task] = self._log(request, path)
        try:
            answer = await handler(request)
            if not answer.prepared:
                await self._sign(request, answer)
            return answer
        finally:
            del self.state.busy[task]
            if exchange.turn is not None:
                exchange.turn.client_left()

    def _log(self, request: web.Request, path: str) -> Exchange:
        headers = Headers(request.headers)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip() if scheme.lower() == "bearer" and given.strip() in self._keys else None
        if "authorization" in headers:
            headers["authorization"] = "Bearer <refused>" if key is None else "Bearer <accepted>"
        for name in _SECRET_HEADERS:
            if name in headers:
                headers[name] = "<withheld>"
        parameters = {name: request.query.getall(name) for name in request.query}
        query = {name: values if len(values) > 1 else values[0] for name, values in parameters.items()}
        number = len(self.state.requests) + 1
        record = RequestRecord(number, time.time(), request.method, path, query, headers)
        record.request_id = f"req-{number:08d}"
        record.endpoint = request.match_info.route.name
        if path.startswith("/api/v1/chat/"):
            record.session_id = request.match_info.get("id")
        self.state.requests.append(record)
        return Exchange(request, record, key)

    @web.middleware
    async def _faulted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the fault that meets the request act before, instead of or after what is asked for."""
        exchange = self.state.current
        exchange.record.body = _parsed(await request.read())
        fault = self.state.plan.take(REQUEST_KINDS, exchange.record)
        if fault is None:
            return await handler(request)
        await asyncio.sleep(fault.delay)
        if fault.kind == "delay":
            return await handler(request)
        if fault.kind not in PROCESSED_KINDS:
            return await unprocessed(request, exchange.record, fault)
        exchange.fault = fault
        good = await handler(request)
        assert isinstance(good, web.Response)
        return await spoilt(request, exchange.record, fault, good)

    @web.middleware
    async def _admitted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who has a key and has not asked too often; what does not exist is told to everybody."""
        exchange = self.state.current
        if request.match_info.http_exception is not None:
            return await handler(request)
        if exchange.key is None:
            raise ApiError(401, "Invalid or missing API key.", {"WWW-Authenticate": "Bearer"})
        wait = self.state.admit(exchange.key, exchange.record.endpoint)
        if wait is None:
            return await handler(request)
        # A date has whole seconds only: rounded up, so that who waits until then is let in.
        until = {
            "seconds": {"Retry-After": str(max(1, math.ceil(wait)))},
            "date": {"Retry-After": formatdate(math.ceil(time.time() + wait), usegmt=True)},
            "none": {},
        }
        raise ApiError(429, "Rate limit exceeded. Please retry later.", until[self.state.settings.retry_after_style])

    async def _sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Give the answer its id, and note that it is sent."""
        exchange = self.state.busy.get(asyncio.current_task())
        if exchange is not None:
            response.headers["x-request-id"] = exchange.record.request_id
            exchange.record.status = response.status

    # What a test wants

    async def _command(self, request: web.Request, name: str) -> web.Response:
        if not ipaddress.ip_address(request.remote or "0.0.0.0").is_loopback:
            return as_json({"detail": "The control routes answer loopback clients only."}, 403)
        if request.method == "POST" and name == "faults":
            name = "inject"
        command = getattr(Control, name, None) if name and not name.startswith("_") else None
        read = isinstance(command, property)
        if command is None or request.method != ("GET" if read else "POST"):
            return as_json({"detail": f"There is no control {request.method} {PREFIX}/{name}"}, 404)
        try:
            if read:
                return as_json(getattr(self._control, name), default=to_json)
            # Documents for an index may be larger than what the API takes in one request.
            given = json.loads(await request.clone(client_max_size=CONTROL_BODY).read() or b"[]")
            if name == "inject":
                given = [Fault(**item) for item in given]
            args, kwargs = ([], given) if isinstance(given, dict) else (given, {})
            return as_json(getattr(self._control, name)(*args, **kwargs), default=to_json)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return as_json({"detail": str(error)}, 400)


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors as the API words them."""
    try:
        return await handler(request)
    except ApiError as error:
        return as_json({"detail": error.detail}, error.status, error.headers)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods, reverse=True))
        return as_json({"detail": error.reason}, error.status, {"Allow": allowed})
    except web.HTTPException as error:
        return as_json({"detail": error.reason}, error.status)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except (ValueError, RecursionError):
        return None
