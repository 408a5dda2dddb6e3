"""Query and body as FastAPI checks them: pydantic's models, and its errors as a 422 lists them.

Imported when the server listens already: pydantic would make up a fifth of the time that takes to start.
Bodies follow https://fastapi.tiangolo.com/tutorial/handling-errors/: ``{"detail": "text"}``, or for 422 a list of
``{"type", "loc", "msg", "input"}``.
"""

from __future__ import annotations

import functools
import json
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError, create_model

from airflow_provider_llamachat.testing.state import ApiError

M = TypeVar("M", bound=BaseModel)


class ProjectQuery(BaseModel):
    """Where a call works."""

    project_id: UUID | None = None
    organization_id: UUID | None = None


class ListQuery(BaseModel):
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


class RequestCheck:
    """Collects every problem of one request, as FastAPI does, before any of it is acted upon."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._problems: list[dict[str, Any]] = []

    def raise_if_any(self) -> None:
        """:raises ApiError: 422 when something was wrong."""
        if self._problems:
            raise ApiError(422, self._problems)

    def scope(self) -> tuple[str | None, str | None]:
        """Ids of project and organization in the query."""
        found = self._validate(ProjectQuery, self._query(), "query")
        return _text(found.project_id), _text(found.organization_id)

    def page(self) -> ListQuery:
        """Which page of a list the query asks for."""
        return self._validate(ListQuery, self._query(), "query")

    def path_project(self) -> str | None:
        """The id in the path, which has to be a project's."""
        return _text(self._validate(ProjectQuery, {"project_id": self._request.match_info["id"]}, "path").project_id)

    def _query(self) -> dict[str, str]:
        # Of a parameter that was repeated the last value counts.
        return {name: self._request.query.getall(name)[-1] for name in self._request.query}

    async def session_body(self, max_indexes: int) -> SessionBody:
        """Body of a call that creates a session; it can be left out."""
        return await self._body(_session_body(max_indexes), required=False)

    async def prompt_body(self, max_prompt: int) -> PromptBody:
        """Body of a call that asks."""
        return await self._body(_prompt_body(max_prompt), required=True)

    async def _body(self, model: type[M], *, required: bool) -> M:
        raw = await self._request.read()
        if not raw and required:
            return self._wrong(model, "missing", ["body"], "Field required", None)
        # FastAPI hands a body of another content type on as bytes, which then is no object.
        kind = self._request.headers.get("content-type", "").partition(";")[0].strip().lower()
        value: Any = None
        if raw and (kind in ("", "application/json") or kind.endswith("+json")):
            try:
                value = json.loads(raw)
            except json.JSONDecodeError as error:
                loc = ["body", error.pos]
                return self._wrong(model, "json_invalid", loc, "JSON decode error", {}, ctx={"error": error.msg})
            except (ValueError, RecursionError):
                raise ApiError(400, "There was an error parsing the body") from None
        left_out = not required and (not raw or raw.strip() == b"null")
        return self._validate(model, {} if left_out else value, "body")

    def _validate(self, model: type[M], value: Any, where: str) -> M:
        try:
            return model.model_validate(value, from_attributes=True)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                self._problems.append({**problem, "loc": [where, *problem["loc"]]})
            return model.model_construct()

    def _wrong(self, model: type[M], kind: str, loc: list[Any], msg: str, value: Any, **more: Any) -> M:
        self._problems.append({"type": kind, "loc": loc, "msg": msg, "input": value, **more})
        return model.model_construct()


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)
