"""What the emulated service holds in memory. All of it belongs to the event loop's thread."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_llamachat.testing.corpus import Scripted, Snippet, snippets_from
from airflow_provider_llamachat.testing.records import Fault, RequestRecord, TurnRecord
from airflow_provider_llamachat.testing.settings import Settings

if TYPE_CHECKING:
    from aiohttp import web

    from airflow_provider_llamachat.testing.turns import TurnRun


def utc(epoch: float) -> str:
    """A date-time with zone, as projects and indexes have it."""
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass
class StoredIndex:
    """An index: its build state, its schedule of states to come, and its documents."""

    number: int
    snippets: list[Snippet]
    id: str
    project_id: str
    name: str
    status: str
    description: str | None = None
    error_message: str | None = None
    sync_in_progress: bool = False
    sync_ends: float | None = None
    schedule: deque[dict[str, Any]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.created = utc(time.time())
        self.last_synced_at = self.created if self.status == "ready" else None

    def syncing(self) -> bool:
        """Whether a sync is running, by its clock or because a test says so; one whose time is over ends now."""
        if self.sync_ends is not None and time.time() >= self.sync_ends:
            self.last_synced_at, self.sync_ends = utc(self.sync_ends), None
        return self.sync_in_progress or self.sync_ends is not None

    def change(self, values: Mapping[str, Any]) -> None:
        """Set what a test gives; ``ValueError`` for a name that cannot be set."""
        for name, value in values.items():
            if name not in ("status", "error_message", "sync_in_progress", "last_synced_at"):
                raise ValueError(f"An index has no {name!r} to set")
            setattr(self, name, utc(value.timestamp()) if isinstance(value, datetime) else value)
            if name == "sync_in_progress" and not value:
                self.sync_ends = None

    def advance(self) -> None:
        """Come to the next state of the schedule, if there is one."""
        if self.schedule:
            self.change(self.schedule.popleft())

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


class StoredEvent(NamedTuple):
    """An event of a history, with the prompt of its turn as it was sent.

    :ivar time: when it is shown, but for the lag; this can be in the future for an event of another client.
    :ivar foreign: it is another client's event, which does not lag.
    """

    time: float
    event: dict[str, Any]
    prompt: str
    foreign: bool


@dataclass
class StoredSession:
    """A chat session. Its ``number`` is its place in the order of creation.

    :ivar job: ``job_metadata``, which the last turn left.
    :ivar locked: a turn was accepted: the indexes can no longer be changed.
    """

    number: int
    id: str
    project_id: str
    index_ids: list[str] | None
    shared_access: str | None
    created: float = field(default_factory=time.time)
    job: dict[str, Any] | None = None
    locked: bool = False
    _events: list[StoredEvent] = field(default_factory=list)

    def record(self, event: dict[str, Any], prompt: str, *, foreign: bool = False, after: float = 0.0) -> None:
        """Let an event enter the history, ``after`` seconds from now."""
        self._events.append(StoredEvent(time.time() + after, event, prompt, foreign))

    def shown(self, lag: float = 0.0) -> list[StoredEvent]:
        """What a reader is shown of the history, in the order in which it came to be shown."""
        now = time.time()
        late = [event if event.foreign else event._replace(time=event.time + lag) for event in self._events]
        return sorted((event for event in late if event.time <= now), key=lambda event: event.time)

    def to_json(self, settings: Settings, *, full: bool = False) -> dict[str, Any]:
        """The session as the API answers it, with its history if ``full``."""
        shown = self.shown(settings.history_lag)
        events = [stored.event for stored in shown]
        title = next((event["content"] for event in events if event["type"] == "user_input"), None)
        has_job = any(stored.event["type"] == "stop" and not stored.foreign for stored in shown)
        updated = datetime.fromtimestamp(max([self.created, *(stored.time for stored in self.shown())]), UTC)
        data: dict[str, Any] = {
            "session_id": self.id,
            "generated_title": title if title is None or len(title) <= 60 else title[:60] + "...",
            "last_updated_at": updated.replace(tzinfo=None).isoformat(timespec="microseconds"),
            "job_metadata": self.job if has_job else None,
            "index_ids": self.index_ids,
        }
        if not settings.omit_shared_access:
            data["shared_access"] = self.shared_access or settings.default_shared_access
        if full:
            window = len(events) if settings.history_window is None else settings.history_window
            data["events"] = events[max(0, len(events) - window) :]
        return data


@dataclass
class Exchange:
    """A request under way: its log entry, its API key if that is accepted, the fault that will spoil the answer, and its turn."""

    request: web.Request
    record: RequestRecord
    key: str | None
    fault: Fault | None = None
    turn: TurnRun | None = None


class ServiceState:
    """Everything that the emulator remembers.

    :ivar armed: the injected faults in order of injection, each with a count of the matching requests.
    :ivar scripted: answers that a test prescribed, the latest first.
    :ivar live: turns that were accepted and have not ended, in that order, those of deleted sessions included.
    :ivar busy: requests under way, by the task that answers them.
    """

    def __init__(self, settings: Settings | None) -> None:
        self.settings = settings if settings is not None else Settings()
        self.live: list[TurnRun] = []
        self.busy: dict[asyncio.Task[Any] | None, Exchange] = {}
        self._initial = self.settings.to_json()
        self.start()

    def start(self) -> None:
        """Know nothing but the projects and indexes of the start, and behave as at the start."""
        self.settings.update(**self._initial)
        self.sessions: dict[str, StoredSession] = {}
        self.deleted: list[str] = []
        self.requests: list[RequestRecord] = []
        self.turns: list[TurnRecord] = []
        self.armed: list[tuple[Fault, itertools.count[int]]] = []
        self.scripted: list[Scripted] = []
        self.indexes: dict[str, StoredIndex] = {}
        self._admitted: dict[str, deque[float]] = {}
        self.numbers = itertools.count(1)
        seed = json.loads(Path(__file__).with_name("corpus.json").read_text(encoding="utf-8"))
        made = dict.fromkeys(("created_at", "updated_at"), utc(time.time()))
        self.projects: dict[str, dict[str, Any]] = {project["id"]: project | made for project in seed["projects"]}
        for index in seed["indexes"]:
            self.add_index(**index)

    def break_off(self) -> None:
        """Abandon every turn and break the connection of every request under way."""
        for turn in list(self.live):
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

    def take_fault(self, kinds: frozenset[str], record: RequestRecord) -> Fault | None:
        """The first fault among ``kinds`` that is due for this request. It is used up by one, and noted in the request's record."""
        for armed in self.armed:
            fault, counter = armed
            if fault.kind in kinds and fault.meets(record) and (seen := next(counter)) >= fault.skip:
                if fault.times is not None and seen + 1 == fault.skip + fault.times:
                    self.armed.remove(armed)
                record.fault = fault.kind
                return fault
        return None

    def admit(self, key: str, endpoint: str) -> float | None:
        """None when a request of this key is within the rate limit; else the seconds until one is."""
        limit, window = self.settings.requests_per_minute, self.settings.rate_window
        if limit is None or (self.settings.rate_limits == "turns" and endpoint != "stream"):
            return None
        now, seen = time.monotonic(), self._admitted.setdefault(key, deque())
        while seen and seen[0] <= now - window:
            seen.popleft()
        if len(seen) >= limit:
            return seen[0] + window - now if seen else window
        seen.append(now)
        return None

    def add_index(self, *, documents: Any, **values: Any) -> None:
        """Add an index, or replace the one with that id; ``values`` as :class:`StoredIndex` takes them."""
        if values["project_id"] not in self.projects:
            raise ValueError(f"There is no project {values['project_id']!r}")
        snippets, replaced = snippets_from(documents), self.indexes.get(values["id"])
        number = next(self.numbers) if replaced is None else replaced.number
        self.indexes[values["id"]] = StoredIndex(number, snippets, **values)

    def running(self, session: StoredSession) -> list[TurnRun]:
        """The session's turns that have not ended."""
        return [turn for turn in self.live if turn.session is session]
