"""What each endpoint does and answers. Nothing here knows of keys, limits, faults of requests or the control API.

Imported once the server listens, because pydantic would slow down the start. Queries and bodies are checked as FastAPI checks them:
pydantic's errors become its 422 (https://fastapi.tiangolo.com/tutorial/handling-errors/).
"""

import functools
import json
import math
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from airflow_provider_llamachat.testing.corpus import attachment
from airflow_provider_llamachat.testing.faults import STREAM_KINDS
from airflow_provider_llamachat.testing.state import Exchange, ServiceState, StoredIndex, StoredSession, utc
from airflow_provider_llamachat.testing.turn_run import TurnRun, stream
from airflow_provider_llamachat.testing.wire import STREAM_HEADERS, ApiError, as_json

M = TypeVar("M", bound=BaseModel)
S = TypeVar("S", StoredIndex, StoredSession)


class _ProjectQuery(BaseModel):
    project_id: UUID | None = None
    organization_id: UUID | None = None


class _ListQuery(_ProjectQuery):
    page_size: Annotated[int, Field(ge=1)] | None = None
    page_token: str | None = None
    source_directory_id: str | None = None


class _AttachmentQuery(_ProjectQuery):
    source_id: str


@functools.cache
def _bodies(max_indexes: int, max_prompt: int) -> tuple[type[Any], type[Any]]:
    """The bodies that create a session and ask a question, with the limits of the settings."""

    class SessionBody(BaseModel):
        index_ids: Annotated[list[str], Field(max_length=max_indexes)] | None = None
        shared_access: Literal["query", "read_only"] | None = None

    class PromptBody(BaseModel):
        index_ids: list[str] = Field(min_length=1)
        prompt: str = Field(max_length=max_prompt)
        require_all_indexes: bool = False

    return SessionBody, PromptBody


class Operation:
    """One request to an endpoint."""

    def __init__(self, state: ServiceState, exchange: Exchange) -> None:
        self._state, self._settings = state, state.settings
        self._exchange, self._request = exchange, exchange.request

    async def answer(self) -> web.StreamResponse:
        """Call the method that is named after the endpoint. A refused request raises ``ApiError``."""
        answer: web.StreamResponse = await getattr(self, f"_do_{self._exchange.record.endpoint}")()
        return answer

    def _validate(self, model: type[M], value: Any, where: str) -> M:
        try:
            return model.model_validate(value, from_attributes=True)
        except ValidationError as error:
            problems = error.errors(include_url=False)
            raise ApiError(422, [{**problem, "loc": [where, *problem["loc"]]} for problem in problems]) from None

    def _query(self, model: type[M]) -> M:
        # Of a repeated parameter, the last value counts.
        return self._validate(model, dict(self._request.query.items()), "query")

    async def _body(self, model: type[M], *, required: bool) -> M:
        raw = await self._request.read()
        if not required and raw.strip() in (b"", b"null"):
            return model()
        if not raw:
            raise _refusal("missing", "Field required", None)
        # FastAPI passes on a body of another content type as bytes, which are not an object.
        is_json = "content-type" not in self._request.headers or self._request.content_type.endswith(("/json", "+json"))
        try:
            value = json.loads(raw) if is_json else None
        except json.JSONDecodeError as error:
            raise _refusal("json_invalid", "JSON decode error", {}, error.pos, ctx={"error": error.msg}) from None
        except (ValueError, RecursionError):
            raise ApiError(400, "There was an error parsing the body") from None
        return self._validate(model, value, "body")

    @functools.cached_property
    def _project_id(self) -> str:
        return str(self._project(self._query(_ProjectQuery))["id"])

    def _project(self, scope: _ProjectQuery) -> dict[str, Any]:
        for project in self._projects(id=scope.project_id, organization_id=scope.organization_id):
            # The first default project is that of the default organization.
            if scope.project_id or project["is_default"]:
                return project
        missing = f"Project {scope.project_id}" if scope.project_id else f"Organization {scope.organization_id}"
        raise ApiError(404, f"{missing} not found.")

    def _projects(self, **wanted: UUID | str | None) -> list[dict[str, Any]]:
        values = {name: str(value) for name, value in wanted.items() if value is not None}
        return [project for project in self._state.projects.values() if values.items() <= project.items()]

    def _found(self, kind: str, items: Mapping[str, S], key: str | None = None) -> S:
        project_id, key = self._project_id, self._request.match_info["id"] if key is None else key
        if key not in items or items[key].project_id != project_id:
            raise ApiError(404, f"{kind} {key} not found.")
        return items[key]

    def _check_running(self, session: StoredSession, policy: str) -> None:
        if policy == "refuse" and any(turn.session is session for turn in self._state.live):
            raise ApiError(409, f"Session {session.id} has a turn in progress.")

    async def _do_create(self) -> web.Response:
        body = await self._body(_bodies(self._settings.max_indexes, self._settings.max_prompt)[0], required=False)
        for index_id in body.index_ids or ():
            self._found("Index", self._state.indexes, index_id)
        project_id, session_id = self._project_id, f"ses-{secrets.token_hex(8)}"
        session = StoredSession(-next(self._state.numbers), session_id, project_id, body.index_ids, body.shared_access)
        self._state.sessions[session_id] = session
        return as_json(session.to_json(self._settings), 201)

    async def _do_list(self) -> web.Response:
        return self._page(reversed(self._state.sessions.values()))

    async def _do_get(self) -> web.Response:
        return as_json(self._found("Session", self._state.sessions).to_json(self._settings, full=True))

    async def _do_summary(self) -> web.Response:
        return as_json(self._found("Session", self._state.sessions).to_json(self._settings))

    async def _do_delete(self) -> web.Response:
        session = self._found("Session", self._state.sessions)
        self._check_running(session, self._settings.delete_while_running)
        del self._state.sessions[session.id]
        self._state.deleted.append(session.id)
        return web.Response(status=204)

    def _page(self, items: Iterable[StoredSession | StoredIndex]) -> web.Response:
        """A page of the project's items, which are in the order of their places: changes between two pages repeat or hide no other item."""
        query, project_id = self._query(_ListQuery), self._project_id
        try:
            after = -math.inf if query.page_token is None else int(query.page_token)
        except ValueError:
            raise ApiError(400, "Invalid page token.") from None
        size = min(query.page_size or self._settings.default_page_size, self._settings.max_page_size)
        rest = [item for item in items if item.place > after and item.project_id == project_id]
        for item in rest[:size]:
            if isinstance(item, StoredIndex):
                item.change(next(item.schedule, {}))
        page: dict[str, Any] = {"items": [item.to_json(self._settings) for item in rest[:size]]}
        if len(rest) > size or self._settings.page_end == "null":
            page["next_page_token"] = str(rest[size - 1].place) if len(rest) > size else None
        return as_json(page)

    async def _do_stream(self) -> web.StreamResponse:
        settings, exchange, spoils = self._settings, self._exchange, self._exchange.record.fault
        body = await self._body(_bodies(settings.max_indexes, settings.max_prompt)[1], required=True)
        session = self._found("Session", self._state.sessions)
        self._check_running(session, settings.concurrent_turns)
        bound = session.index_ids
        policy = settings.mismatch if session.locked else settings.unlocked_mismatch
        if bound is not None and set(bound) != set(body.index_ids) and policy == "refuse":
            why = f"Session {session.id} is bound to other indexes: {', '.join(bound)}"
            raise _refusal("value_error", why, body.index_ids, "index_ids")
        turn = TurnRun(self._state, session, body.prompt, body.index_ids)
        self._give_sources(turn, required=body.require_all_indexes)
        if settings.binds_unbound if bound is None else not session.locked:
            session.index_ids = body.index_ids
        fault = self._state.take_fault(STREAM_KINDS, exchange)
        if fault is not None and fault.kind == "error_stop" and turn.error is None:
            turn.error, turn.error_after = str(fault.detail or "The turn failed."), fault.after_events
        turn.start()
        if spoils == "status_after":
            turn.run_alone()
        else:
            exchange.turn = turn
        if spoils in (None, "delay"):
            return await stream(turn, self._request, settings, fault)
        while spoils in ("truncated_body", "malformed_json") and turn.record.ended is None:
            await turn.more()
        body_so_far = b"".join(turn.frames).replace(b"\n", settings.newline.encode())
        return web.Response(body=body_so_far, headers=STREAM_HEADERS)

    def _give_sources(self, turn: TurnRun, *, required: bool) -> None:
        """Give the turn the indexes that it can search, or a reason to fail."""
        asked = dict.fromkeys(turn.record.index_ids)
        for index_id in asked if self._settings.unknown_index == "refuse" else ():
            self._found("Index", self._state.indexes, index_id)
        mine = [index for index in self._state.indexes.values() if index.project_id == self._project_id]
        ready = {index.id: index for index in mine if index.status == "ready"}
        turn.sources = {index_id: ready[index_id] for index_id in asked if index_id in ready}
        skipped = turn.record.skipped_index_ids = [index_id for index_id in asked if index_id not in ready]
        if skipped and required:
            turn.error = f"Indexes that cannot be queried: {', '.join(skipped)}"
            if self._settings.unready_required == "refuse":
                raise _refusal("value_error", turn.error, turn.record.index_ids, "index_ids")
        elif not turn.sources and self._settings.nothing_to_query == "error_stop":
            turn.error = "None of the requested indexes can be queried."

    async def _do_projects(self) -> web.Response:
        organization_id, name = self._query(_ProjectQuery).organization_id, self._request.query.get("project_name")
        return as_json(self._projects(organization_id=organization_id, name=name))

    async def _do_project(self) -> web.Response:
        named = self._validate(_ProjectQuery, {"project_id": self._request.match_info["id"]}, "path")
        named.organization_id = self._query(_ProjectQuery).organization_id
        return as_json(self._project(named))

    async def _do_indexes(self) -> web.Response:
        directory, indexes = self._query(_ListQuery).source_directory_id, self._state.indexes.values()
        return self._page(index for index in indexes if directory in (None, index.named("dir-source")))

    async def _do_index(self) -> web.Response:
        index = self._found("Index", self._state.indexes)
        index.change(next(index.schedule, {}))
        # SDKs spell a repeated parameter in both ways.
        expand = [*self._request.query.getall("expand", []), *self._request.query.getall("expand[]", [])]
        return as_json(index.to_json(self._settings, expand="sync_in_progress" in expand))

    async def _do_sync(self) -> web.Response:
        index = self._found("Index", self._state.indexes)
        if index.syncing():
            raise ApiError(409, f"A sync of index {index.id} is already in progress.")
        index.sync_ends = time.time() + self._settings.sync_seconds
        return as_json({"message": "Sync started."}, 202)

    async def _do_cancel_sync(self) -> web.Response:
        index = self._found("Index", self._state.indexes)
        if not index.syncing():
            raise ApiError(409, f"No sync of index {index.id} is in progress.")
        index.change({"sync_in_progress": False})
        return as_json({"message": "Sync cancelled."})

    async def _do_attachment(self) -> web.Response:
        query, name = self._query(_AttachmentQuery), self._request.match_info["id"]
        wanted = {"attachment_name": name, "source_id": query.source_id, "type": "screenshot"}
        mine = [index for index in self._state.indexes.values() if index.project_id == self._project_id]
        if wanted not in [attachment(snippet) for index in mine for snippet in index.snippets]:
            raise ApiError(404, "Attachment not found.")
        url = f"https://attachments.invalid/{query.source_id}/{name}?X-Amz-Expires=3600&X-Amz-Signature={secrets.token_hex(32)}"
        return as_json({"url": url, "expires_at": utc(time.time() + 3600), "form_fields": None})


def _refusal(kind: str, why: str, given: Any, *loc: str | int, **more: Any) -> ApiError:
    return ApiError(422, [{"type": kind, "loc": ["body", *loc], "msg": why, "input": given, **more}])
