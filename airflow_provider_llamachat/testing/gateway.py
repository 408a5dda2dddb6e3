"""What a request meets, in order, before the endpoints; and the commands of a test, beside the API."""

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
from airflow_provider_llamachat.testing.control import COMMANDS, PREFIX, Control, to_json
from airflow_provider_llamachat.testing.faults import PROCESSED_KINDS, REQUEST_KINDS, Fault
from airflow_provider_llamachat.testing.handlers import Handlers
from airflow_provider_llamachat.testing.ledger import Headers, RequestRecord
from airflow_provider_llamachat.testing.state import ApiError, Exchange, ServiceState

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CONTROL_BODY = 256 * 1024 * 1024
_SECRET_HEADERS = ("proxy-authorization", "cookie", "x-api-key")


class Gateway:
    """Everything between the socket and the endpoints: log, faults, errors, keys and limits, from the outside in."""

    def __init__(self, state: ServiceState, keys: Sequence[str], control: Control) -> None:
        self._state = state
        self._keys = keys
        self._control = control

    def application(self) -> web.Application:
        """The service as aiohttp runs it."""
        app = web.Application(middlewares=[self._recorded, _answered, self._faulted, _answered, self._admitted])
        Handlers(self._state).add_to(app.router)
        app.on_response_prepare.append(self._sign)
        app.on_shutdown.append(self._break_off)
        return app

    async def _break_off(self, _: web.Application) -> None:
        self._state.break_off()

    @web.middleware
    async def _recorded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Log the request, and see to what becomes of its turn in the end."""
        path = request.raw_path.partition("?")[0]
        if path == PREFIX or path.startswith(PREFIX + "/"):
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
        if "authorization" in headers:
            headers["authorization"] = "Bearer <refused>" if key is None else "Bearer <accepted>"
        for name in _SECRET_HEADERS:
            if name in headers:
                headers[name] = "<withheld>"
        parameters = {name: request.query.getall(name) for name in request.query}
        query = {name: values if len(values) > 1 else values[0] for name, values in parameters.items()}
        number = len(self._state.requests) + 1
        record = RequestRecord(number, time.time(), request.method, path, query, headers)
        record.request_id = f"req-{number:08d}"
        # A whole URL is what a proxy is asked for; the service is none.
        record.endpoint = request.match_info.route.name if path.startswith("/") else None
        if path.startswith("/api/v1/chat/"):
            record.session_id = request.match_info.get("id")
        self._state.requests.append(record)
        return Exchange(request, record, key)

    @web.middleware
    async def _faulted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the fault that meets the request act before, instead of or after what is asked for."""
        exchange = self._state.current
        exchange.record.body = _parsed(await request.read())
        fault = self._state.plan.take(REQUEST_KINDS, exchange.record)
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
        exchange = self._state.current
        if request.match_info.http_exception is not None:
            return await handler(request)
        if exchange.record.endpoint is None:
            raise ApiError(404, "Not Found")
        if exchange.key is None:
            raise ApiError(401, "Invalid or missing API key.", {"WWW-Authenticate": "Bearer"})
        wait = self._state.admit(exchange.key, exchange.record.endpoint)
        if wait is None:
            return await handler(request)
        # A date has whole seconds only: rounded up, so that who waits until then is let in.
        until = {
            "seconds": {"Retry-After": str(max(1, math.ceil(wait)))},
            "date": {"Retry-After": formatdate(math.ceil(time.time() + wait), usegmt=True)},
            "none": {},
        }
        raise ApiError(429, "Rate limit exceeded. Please retry later.", until[self._state.settings.retry_after_style])

    async def _sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Give the answer its id, and note that it is sent."""
        exchange = self._state.busy.get(asyncio.current_task())
        if exchange is not None:
            response.headers["x-request-id"] = exchange.record.request_id
            exchange.record.status = response.status

    async def _command(self, request: web.Request, name: str) -> web.Response:
        if not ipaddress.ip_address(request.remote or "0.0.0.0").is_loopback:
            return as_json({"detail": "The control routes answer loopback clients only."}, 403)
        if request.method == "POST" and name == "faults":
            name = "inject"
        read = isinstance(COMMANDS.get(name), property)
        if name not in COMMANDS or request.method != ("GET" if read else "POST"):
            return as_json({"detail": f"There is no control {request.method} {PREFIX}/{name}"}, 404)
        try:
            if read:
                return as_json(getattr(self._control, name), default=to_json)
            # Documents for an index may be larger than what the API takes in one request.
            given = json.loads(await request.clone(client_max_size=_CONTROL_BODY).read() or b"[]")
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
