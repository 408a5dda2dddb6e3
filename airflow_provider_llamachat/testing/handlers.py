"""The endpoints: what each call does to the state and answers. Nothing here knows of keys, limits, faults of requests or the log."""

from __future__ import annotations

import base64
import math
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web

from airflow_provider_llamachat.testing.answers import retrieved
from airflow_provider_llamachat.testing.broken_answers import STREAM_HEADERS, as_json
from airflow_provider_llamachat.testing.corpus import Snippet
from airflow_provider_llamachat.testing.faults import ENDPOINTS, STREAM_KINDS
from airflow_provider_llamachat.testing.script import AcceptedPrompt
from airflow_provider_llamachat.testing.state import ApiError, ServiceState, StoredIndex, StoredSession, utc
from airflow_provider_llamachat.testing.turn_run import TurnRun
from airflow_provider_llamachat.testing.turn_stream import send_turn

if TYPE_CHECKING:
    from airflow_provider_llamachat.testing.request_models import ListQuery, RequestCheck


class Handlers:
    """The endpoints over one state."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Give each endpoint its route, under its name."""
        for name, (method, path) in ENDPOINTS.items():
            router.add_route(method, "/api/v1" + path, getattr(self, f"_{name}"), name=name)

    def _check(self, request: web.Request) -> RequestCheck:
        from airflow_provider_llamachat.testing.request_models import RequestCheck

        return RequestCheck(request)

    def _project_of(self, check: RequestCheck) -> str:
        scope = check.scope()
        check.raise_if_any()
        return self._state.project(*scope)

    # Sessions

    async def _create(self, request: web.Request) -> web.Response:
        check = self._check(request)
        body = await check.session_body(self._state.settings.max_indexes)
        project_id = self._project_of(check)
        for index_id in body.index_ids or ():
            self._state.index(index_id, project_id)
        session = self._state.create_session(project_id, body.index_ids, body.shared_access)
        return as_json(session.to_json(self._state.settings), 201)

    def _session_of(self, request: web.Request) -> StoredSession:
        return self._state.session(request.match_info["id"], self._project_of(self._check(request)))

    async def _list(self, request: web.Request) -> web.Response:
        check = self._check(request)
        page, project_id = check.page(), self._project_of(check)
        # Newest first: what comes between two pages is no part of them.
        mine = [
            (-session.number, session)
            for session in reversed(self._state.sessions.values())
            if session.project_id == project_id
        ]
        return self._page(mine, page)

    async def _get(self, request: web.Request) -> web.Response:
        return as_json(self._session_of(request).to_json(self._state.settings, full=True))

    async def _summary(self, request: web.Request) -> web.Response:
        return as_json(self._session_of(request).to_json(self._state.settings))

    async def _delete(self, request: web.Request) -> web.Response:
        session = self._session_of(request)
        if session.running and self._state.settings.delete_while_running == "refuse":
            raise ApiError(409, f"Session {session.id} has a turn in progress.")
        del self._state.sessions[session.id]
        self._state.deleted.append(session.id)
        return web.Response(status=204)

    def _page(self, items: Sequence[tuple[int, StoredSession | StoredIndex]], query: ListQuery) -> web.Response:
        """One page of ``items``, which come with their place in ascending order."""
        settings = self._state.settings
        after = -math.inf if query.page_token is None else _place(query.page_token)
        size = min(query.page_size or settings.default_page_size, settings.max_page_size)
        rest = [(place, item) for place, item in items if place > after]
        token = base64.urlsafe_b64encode(b"after:%d" % rest[size - 1][0]).decode() if len(rest) > size else None
        page: dict[str, Any] = {"items": [item.to_json(settings) for _, item in rest[:size]]}
        if token is not None or settings.page_end == "null":
            page["next_page_token"] = token
        return as_json(page)

    # A turn

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        state, settings = self._state, self._state.settings
        check = self._check(request)
        body = await check.prompt_body(settings.max_prompt)
        session = self._session_of_prompt(request, check)
        self._bind(session, body.index_ids)
        sources, skipped = self._sources(session, body.index_ids)
        prompt = AcceptedPrompt(body.prompt, body.index_ids, sources, skipped)
        if skipped and body.require_all_indexes:
            prompt.error = f"Indexes that cannot be queried: {', '.join(skipped)}"
            if settings.unready_required == "refuse":
                raise _wrong_indexes(prompt.error, body.index_ids)
        elif not sources and settings.nothing_to_query == "error_stop":
            prompt.error = "None of the requested indexes can be queried."
        if settings.binds_unbound if session.index_ids is None else not session.locked:
            session.index_ids = body.index_ids
        exchange = state.current
        fault = state.plan.take(STREAM_KINDS, exchange.record)
        if fault is not None and fault.kind == "error_stop" and prompt.error is None:
            prompt.error, prompt.error_after = str(fault.detail or "The turn failed."), fault.after_events
        turn = exchange.turn = TurnRun(state, session, prompt)
        turn.submit()
        spoilt = exchange.fault
        if spoilt is None:
            return await send_turn(request, turn, fault, settings)
        if spoilt.kind == "status_after":
            turn.run_alone()
        while spoilt.kind in ("truncated_body", "malformed_json") and not turn.ended:
            await turn.more()
        return web.Response(body=b"".join(turn.frames), headers=STREAM_HEADERS)

    def _session_of_prompt(self, request: web.Request, check: RequestCheck) -> StoredSession:
        session = self._state.session(request.match_info["id"], self._project_of(check))
        if session.running and self._state.settings.concurrent_turns == "refuse":
            raise ApiError(409, f"Session {session.id} has a turn in progress.")
        return session

    def _bind(self, session: StoredSession, index_ids: list[str]) -> None:
        settings = self._state.settings
        if session.index_ids is None or set(session.index_ids) == set(index_ids):
            return
        if (settings.mismatch if session.locked else settings.unlocked_mismatch) == "refuse":
            bound = ", ".join(session.index_ids)
            raise _wrong_indexes(f"Session {session.id} is bound to other indexes: {bound}", index_ids)

    def _sources(self, session: StoredSession, index_ids: list[str]) -> tuple[dict[str, list[Snippet]], list[str]]:
        sources: dict[str, list[Snippet]] = {}
        skipped: list[str] = []
        for index_id in dict.fromkeys(index_ids):
            index = self._state.indexes.get(index_id)
            if self._state.settings.unknown_index == "refuse":
                index = self._state.index(index_id, session.project_id)
            if index is not None and index.project_id == session.project_id and index.status == "ready":
                sources[index_id] = index.snippets
            else:
                skipped.append(index_id)
        return sources, skipped

    # Projects and indexes

    async def _projects(self, request: web.Request) -> web.Response:
        check = self._check(request)
        _, organization_id = check.scope()
        check.raise_if_any()
        name = request.query.get("project_name")
        return as_json(
            [
                project
                for project in self._state.projects.values()
                if organization_id in (None, project["organization_id"]) and name in (None, project["name"])
            ]
        )

    async def _project(self, request: web.Request) -> web.Response:
        check = self._check(request)
        project_id, (_, organization_id) = check.path_project(), check.scope()
        check.raise_if_any()
        return as_json(self._state.projects[self._state.project(project_id, organization_id)])

    async def _indexes(self, request: web.Request) -> web.Response:
        check = self._check(request)
        page, project_id = check.page(), self._project_of(check)
        directory = page.source_directory_id
        mine = [
            (index.number, index)
            for index in self._state.indexes.values()
            if index.project_id == project_id and directory in (None, index.named("dir-source"))
        ]
        return self._page(mine, page)

    def _index_of(self, request: web.Request) -> StoredIndex:
        return self._state.index(request.match_info["id"], self._project_of(self._check(request)))

    async def _index(self, request: web.Request) -> web.Response:
        index = self._index_of(request)
        if index.schedule:
            index.change(index.schedule.popleft())
        # SDKs spell a repeated parameter either way.
        expand = [*request.query.getall("expand", []), *request.query.getall("expand[]", [])]
        return as_json(index.to_json(self._state.settings, expand="sync_in_progress" in expand))

    async def _sync(self, request: web.Request) -> web.Response:
        index = self._index_of(request)
        if index.syncing():
            raise ApiError(409, f"A sync of index {index.id} is already in progress.")
        index.sync_ends = time.time() + self._state.settings.sync_seconds
        return as_json({"message": "Sync started."}, 202)

    async def _attachment(self, request: web.Request) -> web.Response:
        check = self._check(request)
        project_id = self._project_of(check)
        name, source_id = request.match_info["id"], request.query.get("source_id")
        if source_id is None:
            raise ApiError(
                422, [{"type": "missing", "loc": ["query", "source_id"], "msg": "Field required", "input": None}]
            )
        wanted = {"attachment_name": name, "source_id": source_id, "type": "screenshot"}
        there = (index for index in self._state.indexes.values() if index.project_id == project_id)
        snippets = (snippet for index in there for snippet in index.snippets)
        if not any(wanted in retrieved("", snippet)["static_fields"]["attachments"] for snippet in snippets):
            raise ApiError(404, "Attachment not found.")
        url = (
            f"https://attachments.invalid/{source_id}/{name}?X-Amz-Expires=3600&X-Amz-Signature={secrets.token_hex(32)}"
        )
        return as_json({"url": url, "expires_at": utc(time.time() + 3600), "form_fields": None})


def _wrong_indexes(why: str, index_ids: list[str]) -> ApiError:
    return ApiError(422, [{"type": "value_error", "loc": ["body", "index_ids"], "msg": why, "input": index_ids}])


def _place(token: str) -> int:
    try:
        kind, _, place = base64.urlsafe_b64decode(token).decode().partition(":")
        if kind == "after":
            return int(place)
    except ValueError:
        pass
    raise ApiError(400, "Invalid page token.")
