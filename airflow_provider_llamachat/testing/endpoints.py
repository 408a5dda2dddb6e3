"""What each endpoint does and answers. Nothing here knows of keys, limits, faults of requests or the control API.

Imported once the server is listening: pydantic and what turns need would make the start slower. Queries and bodies are checked as
FastAPI checks them, and pydantic's errors are its 422 (https://fastapi.tiangolo.com/tutorial/handling-errors/).
"""

from __future__ import annotations

import base64
import functools
import json
import math
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError, create_model

from airflow_provider_llamachat.testing import DEFAULT_ORGANIZATION_ID
from airflow_provider_llamachat.testing.records import STREAM_KINDS
from airflow_provider_llamachat.testing.state import ServiceState, StoredIndex, StoredSession
from airflow_provider_llamachat.testing.turns import AcceptedPrompt, TurnRun, TurnStream
from airflow_provider_llamachat.testing.wire import STREAM_HEADERS, ApiError, as_json

M = TypeVar("M", bound=BaseModel)


class ProjectQuery(BaseModel):
    """Where a call works."""

    project_id: UUID | None = None
    organization_id: UUID | None = None


class ListQuery(ProjectQuery):
    """Which page of a list, and of what."""

    page_size: Annotated[int, Field(ge=1)] | None = None
    page_token: str | None = None
    source_directory_id: str | None = None


class SessionBody(BaseModel):
    """A session to create."""

    index_ids: list[str] | None = None
    shared_access: Literal["query", "read_only"] | None = None


class PromptBody(BaseModel):
    """A prompt to answer."""

    index_ids: list[str] = Field(min_length=1)
    prompt: str
    require_all_indexes: bool = False


@functools.cache
def _session_body(max_indexes: int) -> type[SessionBody]:
    limited = Annotated[list[str], Field(max_length=max_indexes)]
    return create_model("SessionBody", __base__=SessionBody, index_ids=(limited | None, None))


@functools.cache
def _prompt_body(max_prompt: int) -> type[PromptBody]:
    limited = Annotated[str, Field(max_length=max_prompt)]
    return create_model("PromptBody", __base__=PromptBody, prompt=(limited, ...))


class Call:
    """One request to an endpoint; the methods without an underscore are the endpoints, by their names in ``ENDPOINTS``.

    As in FastAPI, every problem of a request is collected before any part of it is acted upon.
    """

    def __init__(self, state: ServiceState, request: web.Request) -> None:
        self._state = state
        self._settings = state.settings
        self._request = request
        self._problems: list[dict[str, Any]] = []

    def _validate(self, model: type[M], value: Any, where: str) -> M:
        """``value`` as a model; when it does not fit, an empty model, and its problems are noted."""
        try:
            return model.model_validate(value, from_attributes=True)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                self._problems.append({**problem, "loc": [where, *problem["loc"]]})
            return model.model_construct()

    def _query(self, model: type[M]) -> M:
        # The last value of a repeated parameter counts.
        return self._validate(
            model, {name: self._request.query.getall(name)[-1] for name in self._request.query}, "query"
        )

    async def _body(self, model: type[M], *, required: bool) -> M:
        raw = await self._request.read()
        # FastAPI passes a body of another content type on as bytes, which is not an object.
        kind = self._request.headers.get("content-type", "").partition(";")[0].strip().lower()
        value: Any = None
        problem: dict[str, Any] = {}
        if not raw and required:
            problem = {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}
        elif raw and (kind in ("", "application/json") or kind.endswith("+json")):
            try:
                value = json.loads(raw)
            except json.JSONDecodeError as error:
                problem = {"type": "json_invalid", "loc": ["body", error.pos], "msg": "JSON decode error", "input": {}}
                problem["ctx"] = {"error": error.msg}
            except (ValueError, RecursionError):
                raise ApiError(400, "There was an error parsing the body") from None
        if problem:
            self._problems.append(problem)
            return model.model_construct()
        left_out = not required and (not raw or raw.strip() == b"null")
        return self._validate(model, {} if left_out else value, "body")

    def _raise_problems(self) -> None:
        if self._problems:
            raise ApiError(422, self._problems)

    # What a request is about: 404 when it is not there, or in another project

    def _project(self, query: ProjectQuery | None = None) -> dict[str, Any]:
        scope = query or self._query(ProjectQuery)
        self._raise_problems()
        wanted: dict[str, Any] = {"organization_id": DEFAULT_ORGANIZATION_ID, "is_default": True}
        if scope.project_id is not None:
            wanted = {"id": str(scope.project_id)}
        if scope.organization_id is not None:
            wanted["organization_id"] = str(scope.organization_id)
        for project in self._state.projects.values():
            if wanted.items() <= project.items():
                return project
        missing = f"Project {scope.project_id}" if scope.project_id else f"Organization {scope.organization_id}"
        raise ApiError(404, f"{missing} not found.")

    def _project_id(self, query: ProjectQuery | None = None) -> str:
        return str(self._project(query)["id"])

    def _index(self, project_id: str, index_id: str | None = None) -> StoredIndex:
        index_id = index_id or self._request.match_info["id"]
        index = self._state.indexes.get(index_id)
        if index is None or index.project_id != project_id:
            raise ApiError(404, f"Index {index_id} not found.")
        return index

    def _session(self) -> StoredSession:
        project_id, session_id = self._project_id(), self._request.match_info["id"]
        session = self._state.sessions.get(session_id)
        if session is None or session.project_id != project_id:
            raise ApiError(404, f"Session {session_id} not found.")
        return session

    def _refuse_if_running(self, session: StoredSession) -> None:
        if self._state.running(session):
            raise ApiError(409, f"Session {session.id} has a turn in progress.")

    # Sessions

    async def create(self) -> web.Response:
        """Create a session."""
        body = await self._body(_session_body(self._settings.max_indexes), required=False)
        project_id = self._project_id()
        for index_id in body.index_ids or ():
            self._index(project_id, index_id)
        session = self._state.add_session(project_id, body.index_ids, body.shared_access)
        return as_json(session.to_json(self._settings), 201)

    async def list(self) -> web.Response:
        """Sessions of the project, the newest first."""
        query = self._query(ListQuery)
        project_id = self._project_id(query)
        mine = [each for each in reversed(self._state.sessions.values()) if each.project_id == project_id]
        return self._page([(-session.number, session) for session in mine], query)

    async def get(self) -> web.Response:
        """The session with its history."""
        return as_json(self._session().to_json(self._settings, full=True))

    async def summary(self) -> web.Response:
        """The session."""
        return as_json(self._session().to_json(self._settings))

    async def delete(self) -> web.Response:
        """Delete the session."""
        session = self._session()
        if self._settings.delete_while_running == "refuse":
            self._refuse_if_running(session)
        del self._state.sessions[session.id]
        self._state.deleted.append(session.id)
        return web.Response(status=204)

    def _page(self, items: Sequence[tuple[int, StoredSession | StoredIndex]], query: ListQuery) -> web.Response:
        """One page of ``items``, which come with their place in ascending order: what comes between two pages is in neither."""
        after = -math.inf if query.page_token is None else _place(query.page_token)
        size = min(query.page_size or self._settings.default_page_size, self._settings.max_page_size)
        rest = [(place, item) for place, item in items if place > after]
        token = base64.urlsafe_b64encode(b"after:%d" % rest[size - 1][0]).decode() if len(rest) > size else None
        page: dict[str, Any] = {"items": [item.to_json(self._settings) for _, item in rest[:size]]}
        if token is not None or self._settings.page_end == "null":
            page["next_page_token"] = token
        return as_json(page)

    # A turn

    async def stream(self) -> web.StreamResponse:
        """Answer a prompt."""
        settings, request = self._settings, self._request
        body = await self._body(_prompt_body(settings.max_prompt), required=True)
        session = self._session()
        if settings.concurrent_turns == "refuse":
            self._refuse_if_running(session)
        bound = session.index_ids
        policy = settings.mismatch if session.locked else settings.unlocked_mismatch
        if bound is not None and set(bound) != set(body.index_ids) and policy == "refuse":
            raise _wrong_indexes(f"Session {session.id} is bound to other indexes: {', '.join(bound)}", body)
        prompt = self._accepted(session, body)
        if settings.binds_unbound if bound is None else not session.locked:
            session.index_ids = body.index_ids
        exchange = self._state.current
        fault = self._state.take_fault(STREAM_KINDS, exchange.record)
        if fault is not None and fault.kind == "error_stop" and prompt.error is None:
            prompt.error, prompt.error_after = str(fault.detail or "The turn failed."), fault.after_events
        turn = exchange.turn = TurnRun(self._state, session, prompt)
        spoils = exchange.fault
        if spoils is None:
            return await TurnStream(request, turn, settings).answer(fault)
        if spoils.kind == "status_after":
            turn.run_alone()
        while spoils.kind in ("truncated_body", "malformed_json") and not turn.ended:
            await turn.more()
        return web.Response(body=b"".join(turn.frames), headers=STREAM_HEADERS)

    def _accepted(self, session: StoredSession, body: PromptBody) -> AcceptedPrompt:
        """The prompt with its sources, or as one that is to fail for want of them."""
        prompt = AcceptedPrompt(body.prompt, body.index_ids)
        for index_id in dict.fromkeys(body.index_ids):
            index = self._state.indexes.get(index_id)
            if self._settings.unknown_index == "refuse":
                index = self._index(session.project_id, index_id)
            if index is not None and index.project_id == session.project_id and index.status == "ready":
                prompt.sources[index_id] = index.snippets
            else:
                prompt.skipped.append(index_id)
        if prompt.skipped and body.require_all_indexes:
            prompt.error = f"Indexes that cannot be queried: {', '.join(prompt.skipped)}"
            if self._settings.unready_required == "refuse":
                raise _wrong_indexes(prompt.error, body)
        elif not prompt.sources and self._settings.nothing_to_query == "error_stop":
            prompt.error = "None of the requested indexes can be queried."
        return prompt

    # Projects and indexes

    async def projects(self) -> web.Response:
        """All projects, or those of an organization or a name."""
        organization_id = self._query(ProjectQuery).organization_id
        self._raise_problems()
        wanted = {
            "organization_id": organization_id and str(organization_id),
            "name": self._request.query.get("project_name"),
        }
        wanted = {name: value for name, value in wanted.items() if value is not None}
        return as_json([project for project in self._state.projects.values() if wanted.items() <= project.items()])

    async def project(self) -> web.Response:
        """One project."""
        named = self._validate(ProjectQuery, {"project_id": self._request.match_info["id"]}, "path")
        named.organization_id = self._query(ProjectQuery).organization_id
        return as_json(self._project(named))

    async def indexes(self) -> web.Response:
        """Indexes of the project, the oldest first."""
        query = self._query(ListQuery)
        project_id, directory = self._project_id(query), query.source_directory_id
        mine = [each for each in self._state.indexes.values() if each.project_id == project_id]
        return self._page(
            [(each.number, each) for each in mine if directory in (None, each.named("dir-source"))], query
        )

    async def index(self) -> web.Response:
        """One index, which its schedule moves on."""
        index = self._index(self._project_id())
        if index.schedule:
            index.change(index.schedule.popleft())
        # SDKs spell a repeated parameter either way.
        expand = [*self._request.query.getall("expand", []), *self._request.query.getall("expand[]", [])]
        return as_json(index.to_json(self._settings, expand="sync_in_progress" in expand))

    async def sync(self) -> web.Response:
        """Start a sync of the index."""
        index = self._index(self._project_id())
        if index.syncing():
            raise ApiError(409, f"A sync of index {index.id} is already in progress.")
        index.sync_ends = time.time() + self._settings.sync_seconds
        return as_json({"message": "Sync started."}, 202)


def _wrong_indexes(why: str, body: PromptBody) -> ApiError:
    entry = {"type": "value_error", "loc": ["body", "index_ids"], "msg": why, "input": body.index_ids}
    return ApiError(422, [entry])


def _place(token: str) -> int:
    try:
        kind, _, place = base64.urlsafe_b64decode(token).decode().partition(":")
        if kind == "after":
            return int(place)
    except ValueError:
        pass
    raise ApiError(400, "Invalid page token.")
