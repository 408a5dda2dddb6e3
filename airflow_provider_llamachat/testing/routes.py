"""The endpoints: what each call does to the state and answers. Nothing here knows of sockets, faults or the log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from airflow_provider_llamachat.testing.answers import Source
from airflow_provider_llamachat.testing.errors import ApiError, Checker, Query, problem, refuse
from airflow_provider_llamachat.testing.state import Session, State, page_of, page_place, page_token
from airflow_provider_llamachat.testing.turns import Turn

_TREE: dict[tuple[str, ...], dict[str, str]] = {
    ("chat",): {"POST": "create", "GET": "list"},
    ("chat", "*"): {"GET": "get", "DELETE": "delete"},
    ("chat", "*", "summary"): {"GET": "summary"},
    ("chat", "*", "messages", "stream"): {"POST": "stream"},
    ("projects",): {"GET": "projects"},
    ("projects", "*"): {"GET": "project"},
    ("indexes",): {"GET": "indexes"},
    ("indexes", "*"): {"GET": "index"},
    ("indexes", "*", "sync"): {"POST": "sync"},
}
_UNABLE = "None of the requested indexes can be queried."


@dataclass(slots=True)
class Call:
    """A request, understood so far as its path, query and headers go."""

    endpoint: str
    id: str
    query: Query
    raw_body: bytes = b""
    content_type: str = ""


@dataclass(slots=True)
class Reply:
    """An answer with a JSON body (none for 204)."""

    status: int
    payload: Any = None
    headers: dict[str, str] = field(default_factory=dict)


def find(method: str, path: str) -> tuple[str, str]:
    """Endpoint name and the id in the path.

    :param path: percent-encoded; an encoded slash belongs to the id.
    :raises ApiError: 404 or 405.
    """
    parts = path.split("/")
    if parts[:3] == ["", "api", "v1"]:
        here = parts[3:]
        ident = here[1] if len(here) > 1 else ""
        shape = tuple(here) if len(here) < 2 else (here[0], "*", *here[2:])
        methods = _TREE.get(shape)
        if methods is not None and (len(here) < 2 or ident):
            if method in methods:
                return methods[method], unquote(ident)
            raise ApiError(405, "Method Not Allowed", {"Allow": ", ".join(methods)})
    raise ApiError(404, "Not Found")


class RateLimit:
    """A sliding window over the requests of each key."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._seen: dict[str, deque[float]] = {}

    def admit(self, key: str, endpoint: str) -> float | None:
        """None when the request may pass; else the seconds until one may."""
        settings = self._state.settings
        limit = settings.requests_per_minute
        if limit is None or (settings.rate_limits == "turns" and endpoint != "stream"):
            return None
        now = time.monotonic()
        seen = self._seen.setdefault(key, deque())
        while seen and seen[0] <= now - settings.rate_window:
            seen.popleft()
        if len(seen) >= limit:
            return seen[0] + settings.rate_window - now if seen else settings.rate_window
        seen.append(now)
        return None


class Routes:
    """The endpoints over one state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._plain: dict[str, Callable[[Call, Checker], Reply]] = {
            "create": self._create,
            "list": self._list,
            "get": self._get,
            "summary": self._summary,
            "delete": self._delete,
            "projects": self._projects,
            "project": self._project,
            "indexes": self._indexes,
            "index": self._index,
            "sync": self._sync,
        }

    def answer(self, call: Call) -> Reply:
        """Do what a call other than ``stream`` asks.

        :raises ApiError: anything but success.
        """
        return self._plain[call.endpoint](call, Checker(call.query))

    def _project_of(self, checker: Checker) -> str:
        project_id, organization_id = checker.uuid("project_id"), checker.uuid("organization_id")
        checker.raise_if_any()
        return self._state.project(project_id, organization_id).id

    # Sessions

    def _create(self, call: Call, checker: Checker) -> Reply:
        settings = self._state.settings
        body = checker.body(call.raw_body, call.content_type, required=False) or {}
        index_ids = checker.strings(body, "index_ids", required=False, most=settings.max_indexes)
        shared_access = checker.choice(body, "shared_access", ("query", "read_only"))
        project_id = self._project_of(checker)
        for index_id in index_ids or ():
            self._state.index(index_id, project_id)
        session = self._state.create_session(project_id, index_ids, shared_access)
        return Reply(201, session.to_json(settings))

    def _session(self, call: Call, checker: Checker) -> Session:
        return self._state.session(call.id, self._project_of(checker))

    def _list(self, call: Call, checker: Checker) -> Reply:
        settings = self._state.settings
        size = checker.page_size(settings.default_page_size, settings.max_page_size)
        project_id = self._project_of(checker)
        token = checker.text("page_token")
        before: float = float("inf")
        if token is not None:
            place = page_place(token)
            if not place.isdecimal():
                raise ApiError(400, "Invalid page token.")
            before = int(place)
        page: list[Session] = []
        more = False
        for session in reversed(self._state.sessions.values()):
            if session.number < before and session.project_id == project_id:
                if len(page) == size:
                    more = True
                    break
                page.append(session)
        items = [session.to_json(settings) for session in page]
        return Reply(200, page_of(items, page_token(page[-1].number) if more else None, settings))

    def _get(self, call: Call, checker: Checker) -> Reply:
        return Reply(200, self._session(call, checker).to_json(self._state.settings, full=True))

    def _summary(self, call: Call, checker: Checker) -> Reply:
        return Reply(200, self._session(call, checker).to_json(self._state.settings))

    def _delete(self, call: Call, checker: Checker) -> Reply:
        session = self._session(call, checker)
        if session.running and self._state.settings.delete_while_running == "refuse":
            raise ApiError(409, f"Session {session.id} has a turn in progress.")
        self._state.delete_session(session)
        return Reply(204)

    # A turn

    def open_turn(self, call: Call) -> Callable[[str | None, int], Turn]:
        """Check a prompt and accept it.

        :returns: what makes the turn, given the error it is to fail with (or None) and after how many events; not yet submitted.
        :raises ApiError: the prompt is refused.
        """
        state, settings = self._state, self._state.settings
        checker = Checker(call.query)
        body = checker.body(call.raw_body, call.content_type, required=True)
        index_ids: list[str] | None = None
        prompt: str | None = None
        require_all = False
        if body is not None:
            index_ids = checker.strings(body, "index_ids", required=True, least=1)
            prompt = checker.string(body, "prompt", most=settings.max_prompt)
            require_all = checker.flag(body, "require_all_indexes")
        session = self._session(call, checker)
        if index_ids is None or prompt is None:
            raise refuse(*checker.problems)
        if session.running and settings.concurrent_turns == "refuse":
            raise ApiError(409, f"Session {session.id} has a turn in progress.")
        self._bind(session, index_ids)
        sources, skipped = self._sources(session, index_ids)
        reason = f"Indexes that can not be queried: {', '.join(skipped)}" if skipped and require_all else None
        if reason is not None and settings.unready_required == "refuse":
            raise refuse(problem("value_error", ("body", "index_ids"), reason, index_ids))
        if reason is None and not sources and settings.nothing_to_query == "error_stop":
            reason = _UNABLE
        if settings.binds_unbound if session.index_ids is None else not session.locked:
            session.index_ids = index_ids
        named, text = index_ids, prompt

        def make(error: str | None, error_after: int) -> Turn:
            if reason is not None:
                return Turn(state, session, text, named, sources, skipped, error=reason)
            return Turn(state, session, text, named, sources, skipped, error=error, error_after=error_after)

        return make

    def _bind(self, session: Session, index_ids: list[str]) -> None:
        settings = self._state.settings
        if session.index_ids is None or set(session.index_ids) == set(index_ids):
            return
        policy = settings.mismatch if session.locked else settings.unlocked_mismatch
        if policy == "refuse":
            bound = ", ".join(session.index_ids)
            msg = f"Session {session.id} is bound to other indexes: {bound}"
            raise refuse(problem("value_error", ("body", "index_ids"), msg, index_ids))

    def _sources(self, session: Session, index_ids: list[str]) -> tuple[list[Source], list[str]]:
        sources: list[Source] = []
        skipped: list[str] = []
        for index_id in dict.fromkeys(index_ids):
            try:
                index = self._state.index(index_id, session.project_id)
            except ApiError:
                if self._state.settings.unknown_index == "refuse":
                    raise
                skipped.append(index_id)
                continue
            if index.status == "ready":
                sources.append(Source(index_id, index.passages))
            else:
                skipped.append(index_id)
        return sources, skipped

    # Projects and indexes

    def _projects(self, call: Call, checker: Checker) -> Reply:
        organization_id, name = checker.uuid("organization_id"), checker.text("project_name")
        checker.raise_if_any()
        found = [
            self._state.project_json(project)
            for project in self._state.projects.values()
            if organization_id in (None, project.organization_id) and name in (None, project.name)
        ]
        return Reply(200, found)

    def _project(self, call: Call, checker: Checker) -> Reply:
        project_id, organization_id = checker.uuid("project_id", path=call.id), checker.uuid("organization_id")
        checker.raise_if_any()
        return Reply(200, self._state.project_json(self._state.project(project_id, organization_id)))

    def _indexes(self, call: Call, checker: Checker) -> Reply:
        settings = self._state.settings
        size = checker.page_size(settings.default_page_size, settings.max_page_size)
        source = checker.text("source_directory_id")
        project_id = self._project_of(checker)
        token = checker.text("page_token")
        found = []
        for index in self._state.indexes.values():
            index.settle(time.time())
            data = index.to_json(settings)
            if index.project_id == project_id and source in (None, data["source_directory_id"]):
                found.append(data)
        start = 0
        if token is not None:
            place = page_place(token)
            start = next((number for number, data in enumerate(found, start=1) if data["id"] == place), -1)
            if start < 0:
                raise ApiError(400, "Invalid page token.")
        items = found[start : start + size]
        return Reply(200, page_of(items, page_token(items[-1]["id"]) if len(found) > start + size else None, settings))

    def _index(self, call: Call, checker: Checker) -> Reply:
        index = self._state.index(call.id, self._project_of(checker))
        index.step()
        # SDKs spell a repeated parameter either way.
        expand = {*checker.values("expand"), *checker.values("expand[]")}
        return Reply(200, index.to_json(self._state.settings, expand="sync_in_progress" in expand))

    def _sync(self, call: Call, checker: Checker) -> Reply:
        index = self._state.index(call.id, self._project_of(checker))
        if index.syncing:
            raise ApiError(409, f"A sync of index {index.id} is already in progress.")
        index.sync_ends = time.time() + self._state.settings.sync_seconds
        return Reply(202, {"message": "Sync started."})
