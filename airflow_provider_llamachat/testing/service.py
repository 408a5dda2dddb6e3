"""The emulated service as a whole: log, key, limit, faults, endpoints, in the order in which a request meets them."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.web_request import BaseRequest

from airflow_provider_llamachat.testing import wire
from airflow_provider_llamachat.testing.errors import ApiError
from airflow_provider_llamachat.testing.faults import PROCESSED_KINDS, REQUEST_KINDS, STREAM_KINDS, Fault, FaultPlan
from airflow_provider_llamachat.testing.records import Headers, RequestRecord, TurnRecord
from airflow_provider_llamachat.testing.routes import Call, RateLimit, Reply, Routes, find
from airflow_provider_llamachat.testing.settings import Settings
from airflow_provider_llamachat.testing.state import State
from airflow_provider_llamachat.testing.streaming import stream_turn

_SECRET_HEADERS = ("proxy-authorization", "cookie", "x-api-key")


class Service:
    """One emulated LlamaCloud. Everything here belongs to the event loop's thread."""

    def __init__(self, settings: Settings | None, api_keys: Sequence[str]) -> None:
        self.settings = settings if settings is not None else Settings()
        self._initial = self.settings.to_json()
        self._keys = [key.encode() for key in api_keys]
        self._busy: dict[asyncio.Task[Any], BaseRequest] = {}
        self._fresh()

    def _fresh(self) -> None:
        self.state = State(self.settings)
        self.requests: list[RequestRecord] = []
        self.plan = FaultPlan()
        self._routes = Routes(self.state)
        self._limit = RateLimit(self.state)

    # What tests do to it

    def reset(self) -> None:
        """State, log, faults and settings back to the start; requests and turns under way are broken off."""
        self.break_off()
        self.settings.update(**self._initial)
        self._fresh()

    def break_off(self) -> None:
        """Abandon every turn and break every request that is under way."""
        # Of deleted sessions as well, and those that wait first: they would begin when the others end.
        for turn in sorted(self.state.live, key=lambda turn: turn.begun):
            turn.abandon()
        for task, request in list(self._busy.items()):
            if request.transport is not None:
                request.transport.abort()
            task.cancel()

    def inject(self, faults: Iterable[Fault]) -> None:
        """Arm faults."""
        self.plan.add(faults)

    def posts(self, session_id: str | None = None, prompt: str | None = None) -> int:
        """Prompts that reached the server, whatever became of them."""
        return sum(
            record.endpoint == "stream" and session_id in (None, record.session_id) and prompt in (None, record.prompt)
            for record in self.requests
        )

    def completed(self, session_id: str | None = None, prompt: str | None = None) -> int:
        """Turns that ran to a good end."""
        return sum(
            turn.state == "completed" and session_id in (None, turn.session_id) and prompt in (None, turn.prompt)
            for turn in self.state.turns
        )

    def turns(self) -> list[TurnRecord]:
        """All turns that began."""
        return list(self.state.turns)

    def sessions(self) -> dict[str, dict[str, Any]]:
        """Full sessions, each with its whole history."""
        return {
            session.id: {**session.to_json(self.settings), "events": session.shown(0.0)}
            for session in self.state.sessions.values()
        }

    def projects(self) -> dict[str, dict[str, Any]]:
        """Projects, as the API answers them."""
        return {project.id: self.state.project_json(project) for project in self.state.projects.values()}

    def indexes(self) -> dict[str, dict[str, Any]]:
        """Indexes of all projects, as the API answers them."""
        for index in self.state.indexes.values():
            index.settle(time.time())
        return {index.id: index.to_json(self.settings, expand=True) for index in self.state.indexes.values()}

    def set_index(self, index_id: str, values: Mapping[str, Any]) -> None:
        """Change an index at once; what was scheduled for it is forgotten."""
        index = self.state.known_index(index_id)
        index.schedule.clear()
        index.change(dict(values))

    def index_schedule(self, index_id: str, steps: Sequence[str | Mapping[str, Any]]) -> None:
        """Let each GET of the index move it one step on."""
        index = self.state.known_index(index_id)
        index.schedule.clear()
        index.schedule.extend({"status": step} if isinstance(step, str) else dict(step) for step in steps)

    # What clients do to it

    async def handle(self, request: BaseRequest, path: str, query: str) -> web.StreamResponse:
        """Log a request, and let key, limit, faults and endpoint have their say."""
        task = asyncio.current_task()
        if task is not None:
            self._busy[task] = request
        try:
            record, key = self._log(request, path, query)
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge:
                return self._send(Reply(413, {"detail": "Request body too large."}), record)
            except ConnectionError:
                return await wire.park()
            if body:
                record.body = _parsed(body)
            return await self._answer(request, record, key, body)
        finally:
            if task is not None:
                self._busy.pop(task, None)

    def _log(self, request: BaseRequest, path: str, query: str) -> tuple[RequestRecord, str | None]:
        headers = Headers(request.headers)
        key = self._accepted(headers.get("authorization"))
        if "authorization" in headers:
            headers["authorization"] = "Bearer <refused>" if key is None else "Bearer <accepted>"
        for name in _SECRET_HEADERS:
            if name in headers:
                headers[name] = "<withheld>"
        parameters: dict[str, str | list[str]] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            known = parameters.get(name)
            if known is None:
                parameters[name] = value
            else:
                parameters[name] = [*(known if isinstance(known, list) else [known]), value]
        number = len(self.requests) + 1
        record = RequestRecord(number, time.time(), request.method, path, parameters, headers)
        record.request_id = f"req-{number:08d}"
        self.requests.append(record)
        return record, key

    def _accepted(self, header: str | None) -> str | None:
        if header is None:
            return None
        scheme, _, given = header.partition(" ")
        match: bytes | None = None
        # Every key is compared in full, so that the time taken tells nothing of how near a guess was.
        for key in self._keys:
            if hmac.compare_digest(key, given.strip().encode("utf-8", "surrogateescape")):
                match = key
        return match.decode() if match is not None and scheme.lower() == "bearer" else None

    def _send(self, reply: Reply, record: RequestRecord) -> web.Response:
        record.status = reply.status
        return wire.response(reply, record.request_id)

    async def _answer(
        self, request: BaseRequest, record: RequestRecord, key: str | None, body: bytes
    ) -> web.StreamResponse:
        refusal: ApiError | None = None
        ident = ""
        try:
            record.endpoint, ident = find(record.method, record.path)
        except ApiError as error:
            refusal = error
        if record.path.startswith("/api/v1/chat/"):
            record.session_id = ident or None
        fault = self._take(REQUEST_KINDS, record)
        if fault is not None:
            if fault.delay:
                await asyncio.sleep(fault.delay)
            if fault.kind != "delay" and fault.kind not in PROCESSED_KINDS:
                return await self._unprocessed(request, record, fault)
        try:
            if refusal is not None:
                raise refusal
            call = Call(record.endpoint or "", ident, record.query, body, record.headers.get("content-type", ""))
            self._admit(key, call.endpoint)
            if call.endpoint == "stream":
                return await self._turn(request, record, call, fault)
            reply = self._routes.answer(call)
        except ApiError as error:
            reply = Reply(error.status, {"detail": error.detail}, error.headers)
        if fault is None or fault.kind == "delay":
            return self._send(reply, record)
        return await self._mistreated(request, record, fault, reply.status, "application/json", wire.body_of(reply))

    def _take(self, kinds: frozenset[str], record: RequestRecord) -> Fault | None:
        fault = self.plan.take(kinds, record.endpoint, record.method, record.path, record.session_id, record.prompt)
        if fault is not None:
            record.fault = fault.kind
        return fault

    def _admit(self, key: str | None, endpoint: str) -> None:
        if key is None:
            raise ApiError(401, "Invalid or missing API key.", {"WWW-Authenticate": "Bearer"})
        wait = self._limit.admit(key, endpoint)
        if wait is not None:
            seconds = max(1, math.ceil(wait))
            style = self.settings.retry_after_style
            headers = {}
            if style != "none":
                # A date has whole seconds only: rounded up, so that who waits until then is let in.
                date = formatdate(math.ceil(time.time() + wait), usegmt=True)
                headers["Retry-After"] = str(seconds) if style == "seconds" else date
            raise ApiError(429, "Rate limit exceeded. Please retry later.", headers)

    async def _turn(
        self, request: BaseRequest, record: RequestRecord, call: Call, fault: Fault | None
    ) -> web.StreamResponse:
        make = self._routes.open_turn(call)
        in_stream = self._take(STREAM_KINDS, record)
        failing = in_stream is not None and in_stream.kind == "error_stop"
        if in_stream is not None and failing:
            turn = make(str(in_stream.detail or "The turn failed."), in_stream.after_events)
        else:
            turn = make(None, 1)
        turn.submit()
        if fault is None or fault.kind == "delay":
            record.status = 200
            return await stream_turn(request, turn, in_stream, self.settings, record.request_id)
        try:
            if fault.kind == "status_after":
                turn.run_alone()
            elif fault.kind not in ("hang_after", "reset_after"):
                await turn.finished()
            body = b"".join(turn.frames)
            return await self._mistreated(request, record, fault, 200, wire.STREAM_HEADERS["content-type"], body)
        finally:
            if fault.kind != "status_after":
                turn.client_left()

    async def _unprocessed(self, request: BaseRequest, record: RequestRecord, fault: Fault) -> web.StreamResponse:
        retry_after = _retry_after(fault)
        if fault.kind == "status":
            return self._send(_refusal(fault, 500), record)
        if fault.kind == "html":
            record.status = fault.status or 500
            return wire.html_page(record.status, record.request_id, retry_after)
        if fault.kind == "redirect":
            return self._send(Reply(fault.status or 307, None, {"Location": fault.location or ""}), record)
        if fault.kind == "huge":
            record.status = fault.status or 200
            stream = record.endpoint == "stream" and record.status < 300
            return await wire.huge(request, record.status, record.request_id, stream=stream)
        if fault.kind == "reset_before":
            wire.reset(request)
        return await wire.park()

    async def _mistreated(
        self, request: BaseRequest, record: RequestRecord, fault: Fault, status: int, content_type: str, body: bytes
    ) -> web.StreamResponse:
        if fault.kind == "status_after":
            return self._send(_refusal(fault, 429), record)
        headers = {"content-type": content_type, "x-request-id": record.request_id}
        if fault.kind == "truncated_body":
            record.status = status
            return await wire.truncated(request, status, headers, body)
        if fault.kind == "malformed_json":
            # A stream has many JSON values to break; its answer is one that is none, as a gateway gone wrong would give it.
            broken = (
                body[: max(1, len(body) // 2)]
                if content_type == "application/json" and body
                else b'{"session_id": "ses-'
            )
            headers["content-type"] = "application/json"
            record.status = 200 if status == 204 else status
            return web.Response(status=record.status, body=broken, headers=headers)
        if fault.kind == "reset_after":
            wire.reset(request)
        return await wire.park()


def _retry_after(fault: Fault) -> dict[str, str]:
    return {} if fault.retry_after is None else {"Retry-After": fault.retry_after}


def _refusal(fault: Fault, default: int) -> Reply:
    status = fault.status or default
    detail = fault.detail if fault.detail is not None else wire.reason(status) or "Error"
    return Reply(status, {"detail": detail}, _retry_after(fault))


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
