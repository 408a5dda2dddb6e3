"""What each endpoint does and answers. Nothing here knows of keys, limits, faults of requests or the control API.

Imported once the server is listening: pydantic and what turns need would make the start slower. Queries and bodies are checked as
FastAPI checks them, and pydantic's errors are its 422 (https://fastapi.tiangolo.com/tutorial/handling-errors/).
"""

from __future__ import annotations

import functools
import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError, create_model

from airflow_provider_llamachat.testing import DEFAULT_ORGANIZATION_ID
from airflow_provider_llamachat.testing.corpus import attachment
from airflow_provider_llamachat.testing.records import STREAM_KINDS
from airflow_provider_llamachat.testing.state import ServiceState, StoredIndex, StoredSession, utc
from airflow_provider_llamachat.testing.turns import TurnRun, TurnStream
from airflow_provider_llamachat.testing.wire import STREAM_HEADERS, ApiError, as_json

M = TypeVar("M", bound=BaseModel)
S = TypeVar("S", StoredIndex, StoredSession)

_INDEX_IDS = ["body", "index_ids"]


class _ProjectQuery(BaseModel):
    project_id: UUID | None = None
    organization_id: UUID | None = None


class _ListQuery(_ProjectQuery):
    page_size: Annotated[int, Field(ge=1)] | None = None
    page_token: str | None = None
    source_directory_id: str | None = None


class _AttachmentQuery(_ProjectQuery):
    source_id: str


class _SessionBody(BaseModel):
    index_ids: list[str] | None = None
    shared_access: Literal["query", "read_only"] | None = None


class _PromptBody(BaseModel):
    index_ids: list[str] = Field(min_length=1)
    prompt: str
    require_all_indexes: bool = False


@functools.cache
def _session_body(max_indexes: int) -> type[_SessionBody]:
    limited = Annotated[list[str], Field(max_length=max_indexes)]
    return create_model("SessionBody", __base__=_SessionBody, index_ids=(limited | None, None))


@functools.cache
def _prompt_body(max_prompt: int) -> type[_PromptBody]:
    limited = Annotated[str, Field(max_length=max_prompt)]
    return create_model("PromptBody", __base__=_PromptBody, prompt=(limited, ...))


class Call:
    """One request to an endpoint."""

    def __init__(self, state: ServiceState, request: web.Request) -> None:
        self._state = state
        self._settings = state.settings
        self._request = request

    async def answer(self) -> web.StreamResponse:
        """Carry out the method that bears the name of the endpoint; ``ApiError`` when the request is refused."""
        answer: web.StreamResponse = await getattr(self, f"_do_{self._request.match_info.route.name}")()
        return answer

    def _validate(self, model: type[M], value: Any, where: str) -> M:
        try:
            return model.model_validate(value, from_attributes=True)
        except ValidationError as error:
            problems = error.errors(include_url=False)
            raise ApiError(422, [{**problem, "loc": [where, *problem["loc"]]} for problem in problems]) from None

    def _query(self, model: type[M]) -> M:
        # The last value of a repeated parameter counts.
        return self._validate(model, dict(self._request.query.items()), "query")

    async def _body(self, model: type[M], *, required: bool) -> M:
        raw = await self._request.read()
        if not required and raw.strip() in (b"", b"null"):
            return model()
        if not raw:
            raise _refusal(["body"], "missing", "Field required", None)
        # FastAPI passes a body of another content type on as bytes, which is not an object.
        is_json = "content-type" not in self._request.headers or self._request.content_type.endswith(("/json", "+json"))
        try:
            value = json.loads(raw) if is_json else None
        except json.JSONDecodeError as error:
            ctx = {"error": error.msg}
            raise _refusal(["body", error.pos], "json_invalid", "JSON decode error", {}, ctx=ctx) from None
        except (ValueError, RecursionError):
            raise ApiError(400, "There was an error parsing the body") from None
        return self._validate(model, value, "body")

    # What a request is about: 404 when it is not there, or in another project

    def _project(self, query: _ProjectQuery | None = None) -> str:
        scope = query or self._query(_ProjectQuery)
        wanted: dict[str, Any] = {"organization_id": DEFAULT_ORGANIZATION_ID, "is_default": True}
        if scope.project_id is not None:
            wanted = {"id": str(scope.project_id)}
        if scope.organization_id is not None:
            wanted["organization_id"] = str(scope.organization_id)
        for project in self._projects(wanted):
            return str(project["id"])
        missing = f"Project {scope.project_id}" if scope.project_id else f"Organization {scope.organization_id}"
        raise ApiError(404, f"{missing} not found.")

    def _projects(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        return [project for project in self._state.projects.values() if wanted.items() <= project.items()]

    def _found(self, kind: str, items: Mapping[str, S], project_id: str, key: str | None = None) -> S:
        key = self._request.match_info["id"] if key is None else key
        found = items.get(key)
        if found is None or found.project_id != project_id:
            raise ApiError(404, f"{kind} {key} not found.")
        return found

    def _index(self) -> StoredIndex:
        return self._found("Index", self._state.indexes, self._project())

    def _session(self) -> StoredSession:
        return self._found("Session", self._state.sessions, self._project())

    def _check_running(self, session: StoredSession, policy: str) -> None:
        if policy == "refuse" and self._state.running(session):
            raise ApiError(409, f"Session {session.id} has a turn in progress.")

    # Sessions

    async def _do_create(self) -> web.Response:
        body = await self._body(_session_body(self._settings.max_indexes), required=False)
        project_id = self._project()
        for index_id in body.index_ids or ():
            self._found("Index", self._state.indexes, project_id, index_id)
        number, session_id = next(self._state.numbers), f"ses-{secrets.token_hex(8)}"
        session = StoredSession(number, session_id, project_id, body.index_ids, body.shared_access)
        self._state.sessions[session_id] = session
        return as_json(session.to_json(self._settings), 201)

    async def _do_list(self) -> web.Response:
        query = self._query(_ListQuery)
        return self._page([(-session.number, session) for session in reversed(self._state.sessions.values())], query)

    async def _do_get(self) -> web.Response:
        return as_json(self._session().to_json(self._settings, full=True))

    async def _do_summary(self) -> web.Response:
        return as_json(self._session().to_json(self._settings))

    async def _do_delete(self) -> web.Response:
        session = self._session()
        self._check_running(session, self._settings.delete_while_running)
        del self._state.sessions[session.id]
        self._state.deleted.append(session.id)
        return web.Response(status=204)

    def _page(self, items: Sequence[tuple[int, StoredSession | StoredIndex]], query: _ListQuery) -> web.Response:
        """A page of the project's items, which come with their place in ascending order: what comes between two pages is in neither."""
        project_id = self._project(query)
        try:
            after = -math.inf if query.page_token is None else int(query.page_token)
        except ValueError:
            raise ApiError(400, "Invalid page token.") from None
        size = min(query.page_size or self._settings.default_page_size, self._settings.max_page_size)
        rest = [(place, item) for place, item in items if place > after and item.project_id == project_id]
        for _, item in rest[:size]:
            if isinstance(item, StoredIndex):
                item.advance()
        token = str(rest[size - 1][0]) if len(rest) > size else None
        page: dict[str, Any] = {"items": [item.to_json(self._settings) for _, item in rest[:size]]}
        if token is not None or self._settings.page_end == "null":
            page["next_page_token"] = token
        return as_json(page)

    # A turn

    async def _do_stream(self) -> web.StreamResponse:
        settings, request = self._settings, self._request
        body = await self._body(_prompt_body(settings.max_prompt), required=True)
        session = self._session()
        self._check_running(session, settings.concurrent_turns)
        bound = session.index_ids
        policy = settings.mismatch if session.locked else settings.unlocked_mismatch
        if bound is not None and set(bound) != set(body.index_ids) and policy == "refuse":
            why = f"Session {session.id} is bound to other indexes: {', '.join(bound)}"
            raise _refusal(_INDEX_IDS, "value_error", why, body.index_ids)
        turn = TurnRun(self._state, session, body.prompt, body.index_ids)
        self._give_sources(turn, required=body.require_all_indexes)
        if settings.binds_unbound if bound is None else not session.locked:
            session.index_ids = body.index_ids
        exchange = self._state.current
        fault = self._state.take_fault(STREAM_KINDS, exchange.record)
        if fault is not None and fault.kind == "error_stop" and turn.error is None:
            turn.error, turn.error_after = str(fault.detail or "The turn failed."), fault.after_events
        exchange.turn = turn
        turn.start()
        spoils = exchange.fault
        if spoils is None or spoils.kind == "delay":
            return await TurnStream(request, turn, settings).answer(fault)
        if spoils.kind == "status_after":
            turn.run_alone()
        while spoils.kind in ("truncated_body", "malformed_json") and not turn.ended:
            await turn.more()
        return web.Response(body=b"".join(turn.frames), headers=STREAM_HEADERS)

    def _give_sources(self, turn: TurnRun, *, required: bool) -> None:
        """Give the turn what it can search, or a reason to fail."""
        project_id = turn.session.project_id
        asked, skipped = turn.record.index_ids, turn.record.skipped_index_ids
        for index_id in dict.fromkeys(asked):
            index = self._state.indexes.get(index_id)
            if self._settings.unknown_index == "refuse":
                index = self._found("Index", self._state.indexes, project_id, index_id)
            if index is not None and index.project_id == project_id and index.status == "ready":
                turn.sources[index_id] = index
            else:
                skipped.append(index_id)
        if skipped and required:
            turn.error = f"Indexes that cannot be queried: {', '.join(skipped)}"
            if self._settings.unready_required == "refuse":
                raise _refusal(_INDEX_IDS, "value_error", turn.error, asked)
        elif not turn.sources and self._settings.nothing_to_query == "error_stop":
            turn.error = "None of the requested indexes can be queried."

    # Projects and indexes

    async def _do_projects(self) -> web.Response:
        organization_id = self._query(_ProjectQuery).organization_id
        asked = {"organization_id": organization_id, "name": self._request.query.get("project_name")}
        return as_json(self._projects({name: str(value) for name, value in asked.items() if value is not None}))

    async def _do_project(self) -> web.Response:
        named = self._validate(_ProjectQuery, {"project_id": self._request.match_info["id"]}, "path")
        named.organization_id = self._query(_ProjectQuery).organization_id
        return as_json(self._state.projects[self._project(named)])

    async def _do_indexes(self) -> web.Response:
        query = self._query(_ListQuery)
        directory, indexes = query.source_directory_id, self._state.indexes.values()
        chosen = [index for index in indexes if directory in (None, index.named("dir-source"))]
        return self._page([(index.number, index) for index in chosen], query)

    async def _do_index(self) -> web.Response:
        index = self._index()
        index.advance()
        # SDKs spell a repeated parameter either way.
        expand = [*self._request.query.getall("expand", []), *self._request.query.getall("expand[]", [])]
        return as_json(index.to_json(self._settings, expand="sync_in_progress" in expand))

    async def _do_sync(self) -> web.Response:
        index = self._index()
        if index.syncing():
            raise ApiError(409, f"A sync of index {index.id} is already in progress.")
        index.sync_ends = time.time() + self._settings.sync_seconds
        return as_json({"message": "Sync started."}, 202)

    async def _do_cancel_sync(self) -> web.Response:
        index = self._index()
        if not index.syncing():
            raise ApiError(409, f"No sync of index {index.id} is in progress.")
        index.sync_in_progress, index.sync_ends = False, None
        return as_json({"message": "Sync cancelled."})

    async def _do_attachment(self) -> web.Response:
        query = self._query(_AttachmentQuery)
        project_id = self._project(query)
        name = self._request.match_info["id"]
        wanted = {"attachment_name": name, "source_id": query.source_id, "type": "screenshot"}
        mine = [index for index in self._state.indexes.values() if index.project_id == project_id]
        if wanted not in [attachment(snippet) for index in mine for snippet in index.snippets]:
            raise ApiError(404, "Attachment not found.")
        signature = f"X-Amz-Expires=3600&X-Amz-Signature={secrets.token_hex(32)}"
        url = f"https://attachments.invalid/{query.source_id}/{name}?{signature}"
        return as_json({"url": url, "expires_at": utc(time.time() + 3600), "form_fields": None})


def _refusal(loc: list[Any], kind: str, why: str, given: Any, **more: Any) -> ApiError:
    return ApiError(422, [{"type": kind, "loc": loc, "msg": why, "input": given, **more}])
