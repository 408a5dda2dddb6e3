"""What the emulated service holds in memory. All of it belongs to the event loop's thread."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_llamachat.testing import DEFAULT_ORGANIZATION_ID, corpus
from airflow_provider_llamachat.testing.faults import Fault, FaultPlan
from airflow_provider_llamachat.testing.ledger import RequestRecord, TurnRecord
from airflow_provider_llamachat.testing.settings import Settings

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from airflow_provider_llamachat.testing.turn_run import TurnRun


class ApiError(Exception):
    """An answer with an error status; ``detail`` is what its body says."""

    def __init__(self, status: int, detail: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.headers = headers


def utc(epoch: float) -> str:
    """A date-time with zone, as projects and indexes have it."""
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass
class StoredIndex:
    """An index: its build state, its schedule of states to come, and what it knows."""

    number: int
    id: str
    project_id: str
    name: str
    description: str | None
    status: str
    error_message: str | None
    snippets: list[corpus.Snippet]
    created: str = field(default_factory=lambda: utc(time.time()))
    last_synced_at: str | None = None
    sync_in_progress: bool = False
    sync_ends: float | None = None
    schedule: deque[dict[str, Any]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if self.status == "ready":
            self.last_synced_at = self.created

    def syncing(self) -> bool:
        """Whether a sync runs, by its clock or because a test says so; one whose time is over ends now."""
        if self.sync_ends is not None and time.time() >= self.sync_ends:
            self.last_synced_at = utc(self.sync_ends)
            self.sync_ends = None
        return self.sync_in_progress or self.sync_ends is not None

    def change(self, values: Mapping[str, Any]) -> None:
        """Set what a test gives; ``ValueError`` for a name that cannot be set."""
        for name, value in values.items():
            if name not in ("status", "error_message", "sync_in_progress", "last_synced_at"):
                raise ValueError(f"An index has no {name!r} to set")
            setattr(self, name, utc(value.timestamp()) if isinstance(value, datetime) else value)
            if name == "sync_in_progress" and not value:
                self.sync_ends = None

    def named(self, kind: str) -> str:
        """Id of something that belongs to the index."""
        return f"{kind}-{self.id.removeprefix('idx-')}"

    def to_json(self, settings: Settings, *, expand: bool = False) -> dict[str, Any]:
        """The index as the API answers it."""
        syncing = self.syncing()
        status = settings.sync_status if syncing and settings.sync_status is not None else self.status
        error = {} if self.error_message is None else {"error_message": self.error_message}
        return {
            "id": self.id,
            "created_at": self.created,
            "updated_at": self.last_synced_at or self.created,
            "name": self.name,
            "description": self.description,
            "project_id": self.project_id,
            "source_directory_id": self.named("dir-source"),
            "output_directory_id": self.named("dir-output"),
            "sync_config_id": self.named("sync"),
            "export_config_id": self.named("export"),
            "last_synced_at": self.last_synced_at,
            "last_exported_at": self.last_synced_at,
            "metadata": {"status": status, **error},
            "sync_in_progress": syncing if expand else None,
        }


class RecordedEvent(NamedTuple):
    """An event of a history; what somebody else put there is ``foreign`` and does not lag."""

    event: dict[str, Any]
    time: float
    foreign: bool

    def shown_from(self, lag: float) -> float:
        """When the event is first to be seen."""
        return self.time if self.foreign else self.time + lag


@dataclass
class StoredSession:
    """A chat session.

    :ivar number: order of creation.
    :ivar events: the whole history; :meth:`shown` says what of it is to be seen.
    :ivar prompts: prompts of these events as they were sent, in order.
    :ivar intruders: what somebody else is about to put into the history, with the time when that happens.
    :ivar running: turns under way; more than one only where the settings allow it.
    :ivar waiting: turns that were accepted and wait for the session to be free.
    """

    number: int
    id: str
    project_id: str
    index_ids: list[str] | None
    shared_access: str | None
    updated: float = field(default_factory=time.time)
    job: dict[str, Any] | None = None
    job_since: float = 0.0
    events: list[RecordedEvent] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    intruders: list[tuple[float, list[dict[str, Any]]]] = field(default_factory=list)
    locked: bool = False
    running: set[TurnRun] = field(default_factory=set)
    waiting: deque[TurnRun] = field(default_factory=deque)

    def record(self, event: dict[str, Any], prompt: str | None = None, *, foreign: bool = False) -> None:
        """Put an event into the history; ``prompt`` is what a ``user_input`` was before it was recorded, if that differs."""
        self.updated = time.time()
        self.events.append(RecordedEvent(event, self.updated, foreign))
        if event["type"] == "user_input":
            self.prompts.append(event["content"] if prompt is None else prompt)

    def end_job(self, job: dict[str, Any]) -> None:
        """Set what the turn that has just ended leaves in the summary."""
        self.job_since = self.job_since or time.time()
        self.job = job

    def intrude(self, prompt: str, after: float) -> None:
        """Let somebody else's turn enter the history ``after`` seconds from now."""
        usage = {"total_input_tokens": 1, "total_output_tokens": 1, "turns": 1, "duration_ms": 1.0}
        turn: list[dict[str, Any]] = [
            {"type": "user_input", "content": prompt},
            {"type": "text", "content": "This was for somebody else."},
            {"type": "stop", "usage": usage, "is_error": False, "error": None, "skipped_index_ids": []},
        ]
        self.intruders.append((time.time() + after, turn))

    def settle(self) -> None:
        """Let somebody else's turns whose time has come enter the history."""
        for intruder in [intruder for intruder in self.intruders if intruder[0] <= time.time()]:
            self.intruders.remove(intruder)
            for event in intruder[1]:
                self.record(event, foreign=True)

    def shown(self, lag: float) -> list[dict[str, Any]]:
        """The history that is to be seen: events in the order in which they came to be seen."""
        self.settle()
        if not lag:
            return [recorded.event for recorded in self.events]
        now = time.time()
        there = [recorded for recorded in self.events if recorded.shown_from(lag) <= now]
        return [recorded.event for recorded in sorted(there, key=lambda recorded: recorded.shown_from(lag))]

    def to_json(self, settings: Settings, *, full: bool = False) -> dict[str, Any]:
        """The session as the API answers it, with its history if ``full``."""
        events = self.shown(settings.history_lag)
        title = next((event["content"] for event in events if event["type"] == "user_input"), None)
        updated = datetime.fromtimestamp(self.updated, UTC).replace(tzinfo=None)
        data: dict[str, Any] = {
            "session_id": self.id,
            "generated_title": title if title is None or len(title) <= 60 else title[:60] + "...",
            "last_updated_at": updated.isoformat(timespec="microseconds"),
            "job_metadata": self.job if self.job_since + settings.history_lag <= time.time() else None,
            "index_ids": self.index_ids,
        }
        if not settings.omit_shared_access:
            data["shared_access"] = self.shared_access or settings.default_shared_access
        if full:
            window = settings.history_window
            data["events"] = events if window is None else events[max(0, len(events) - window) :]
        return data


@dataclass
class Exchange:
    """A request under way: its log entry, and what is known of it so far."""

    request: BaseRequest
    record: RequestRecord
    key: str | None
    fault: Fault | None = None
    turn: TurnRun | None = None


class ServiceState:
    """Everything that the emulator remembers.

    :ivar live: turns that were accepted and have not ended, of deleted sessions as well.
    :ivar busy: requests under way, by the task that answers them.
    """

    def __init__(self, settings: Settings | None) -> None:
        self.settings = settings if settings is not None else Settings()
        self.live: set[TurnRun] = set()
        self.busy: dict[asyncio.Task[Any] | None, Exchange] = {}
        self._initial = self.settings.to_json()
        self._forget()

    def _forget(self) -> None:
        self.sessions: dict[str, StoredSession] = {}
        self.deleted: list[str] = []
        self.requests: list[RequestRecord] = []
        self.turns: list[TurnRecord] = []
        self.plan = FaultPlan()
        self.indexes: dict[str, StoredIndex] = {}
        self._admitted: dict[str, deque[float]] = {}
        self._numbers = itertools.count(1)
        now = utc(time.time())
        self.projects: dict[str, dict[str, Any]] = {
            str(item["id"]): {**item, "created_at": now, "updated_at": now} for item in corpus.PROJECTS
        }
        for *values, content in corpus.INDEXES:
            self.store_index(*values, corpus.snippets_of(content))

    def reset(self) -> None:
        """Go back to the start, settings included; requests and turns under way are broken off."""
        self.break_off()
        self.settings.update(**self._initial)
        self._forget()

    def break_off(self) -> None:
        """Abandon every turn and break every request that is under way."""
        # Those that wait first: they would begin when the others end.
        for turn in sorted(self.live, key=lambda turn: turn.begun):
            turn.abandon()
        for task, exchange in list(self.busy.items()):
            if exchange.request.transport is not None:
                exchange.request.transport.abort()
            if task is not None:
                task.cancel()

    @property
    def current(self) -> Exchange:
        """The request that the running task answers."""
        return self.busy[asyncio.current_task()]

    def project(self, project_id: str | None, organization_id: str | None) -> str:
        """Id of the project that a request works in; 404 for one that does not exist (in that organization)."""
        organization = organization_id or DEFAULT_ORGANIZATION_ID
        for project in self.projects.values():
            if project_id is None and project["is_default"] and project["organization_id"] == organization:
                return str(project["id"])
            if project["id"] == project_id and organization_id in (None, project["organization_id"]):
                return str(project_id)
        missing = f"Organization {organization_id}" if project_id is None else f"Project {project_id}"
        raise ApiError(404, f"{missing} not found.")

    def index(self, index_id: str, project_id: str) -> StoredIndex:
        """An index of the project; 404 when it is not there, or in another project."""
        index = self.indexes.get(index_id)
        if index is None or index.project_id != project_id:
            raise ApiError(404, f"Index {index_id} not found.")
        return index

    def store_index(self, index_id: str, *values: Any) -> None:
        """Add an index, or put it in the place of the one of that id."""
        known = self.indexes.get(index_id)
        number = next(self._numbers) if known is None else known.number
        self.indexes[index_id] = StoredIndex(number, index_id, *values)

    def scheduled(self, index_id: str) -> deque[dict[str, Any]]:
        """The states to come of an index of any project, for tests; ``ValueError`` when it does not exist."""
        if index_id not in self.indexes:
            raise ValueError(f"There is no index {index_id!r}")
        return self.indexes[index_id].schedule

    def create_session(self, project_id: str, index_ids: list[str] | None, shared_access: str | None) -> StoredSession:
        """Create a session."""
        session_id = f"ses-{secrets.token_hex(8)}"
        session = StoredSession(next(self._numbers), session_id, project_id, index_ids, shared_access)
        self.sessions[session_id] = session
        return session

    def session(self, session_id: str, project_id: str) -> StoredSession:
        """A session of the project; 404 when it is not there, or in another project."""
        session = self.sessions.get(session_id)
        if session is None or session.project_id != project_id:
            raise ApiError(404, f"Session {session_id} not found.")
        return session

    def admit(self, key: str, endpoint: str | None) -> float | None:
        """None when a request of this key may pass the rate limit; else the seconds until one may."""
        limit, window = self.settings.requests_per_minute, self.settings.rate_window
        if limit is None or (self.settings.rate_limits == "turns" and endpoint != "stream"):
            return None
        now = time.monotonic()
        seen = self._admitted.setdefault(key, deque())
        while seen and seen[0] <= now - window:
            seen.popleft()
        if len(seen) >= limit:
            return seen[0] + window - now if seen else window
        seen.append(now)
        return None
