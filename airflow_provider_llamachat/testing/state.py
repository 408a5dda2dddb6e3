"""What the emulated service holds in memory. Only the event loop's thread may touch it while the emulator runs."""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_llamachat.testing.corpus import Scripted, Snippet, snippets_from
from airflow_provider_llamachat.testing.faults import Fault, RequestRecord, TurnRecord
from airflow_provider_llamachat.testing.settings import Settings

if TYPE_CHECKING:
    from aiohttp import web

    from airflow_provider_llamachat.testing.turn_run import TurnRun


def utc(epoch: float) -> str:
    """A date-time as projects and indexes have it, with ``Z``. Those of sessions have no zone."""
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass
class StoredIndex:
    """An index, and its ``place`` in lists. A test sets ``sync_in_progress``; a sync that a client starts has an end (``sync_ends``)."""

    place: int
    snippets: list[Snippet]
    id: str
    project_id: str
    name: str
    status: str
    description: str | None = None
    error_message: str | None = None
    sync_in_progress: bool = False
    sync_ends: float | None = None

    def __post_init__(self) -> None:
        self.schedule: Iterator[Mapping[str, Any]] = iter(())
        self.created = utc(time.time())
        self.last_synced_at = self.created if self.status == "ready" else None

    def syncing(self) -> bool:
        """Whether a sync is running. One whose time is over ends now."""
        if self.sync_ends is not None and time.time() >= self.sync_ends:
            self.last_synced_at, self.sync_ends = utc(self.sync_ends), None
        return self.sync_in_progress or self.sync_ends is not None

    def change(self, values: Mapping[str, Any]) -> None:
        """Set what a test gives. A name that cannot be set raises ``ValueError``."""
        for name, value in values.items():
            if name not in ("status", "error_message", "sync_in_progress", "last_synced_at"):
                raise ValueError(f"An index has no {name!r} that can be set")
            setattr(self, name, utc(value.timestamp()) if isinstance(value, datetime) else value)
            if name == "sync_in_progress" and not value:
                self.sync_ends = None

    def named(self, kind: str) -> str:
        """Id of something of that kind that belongs to the index."""
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
    """An event of a history, when it appears, and its turn's prompt as sent. Events of other clients are ``foreign``: they do not lag."""

    time: float
    event: dict[str, Any]
    prompt: str
    foreign: bool


@dataclass
class StoredSession:
    """A chat session, its ``place`` in lists, and the ``job_metadata`` of its last turn. Its first turn ``locked`` its indexes."""

    place: int
    id: str
    project_id: str
    index_ids: list[str] | None
    shared_access: str | None
    created: float = field(default_factory=time.time)
    job: dict[str, Any] | None = None
    locked: bool = False
    _events: list[StoredEvent] = field(default_factory=list)

    def record(self, event: dict[str, Any], prompt: str, *, foreign: bool = False, after: float = 0.0) -> None:
        """Add an event to the history, ``after`` seconds from now."""
        self._events.append(StoredEvent(time.time() + after, event, prompt, foreign))

    def shown(self, lag: float = 0.0) -> list[StoredEvent]:
        """The part of the history that a reader sees, in the order in which it appeared."""
        now = time.time()
        late = [event if event.foreign else event._replace(time=event.time + lag) for event in self._events]
        return sorted((event for event in late if event.time <= now), key=lambda event: event.time)

    def to_json(self, settings: Settings, *, full: bool = False) -> dict[str, Any]:
        """The session as the API answers it; with its history if ``full``."""
        shown = self.shown(settings.history_lag)
        events = [stored.event for stored in shown]
        title = next((event["content"] for event in events if event["type"] == "user_input"), None)
        has_job = any(stored.event["type"] == "stop" and not stored.foreign for stored in shown)
        updated = max([self.created, *(stored.time for stored in self.shown())])
        data: dict[str, Any] = {
            "session_id": self.id,
            "generated_title": title if title is None or len(title) <= 60 else title[:60] + "...",
            "last_updated_at": utc(updated).removesuffix("Z"),
            "job_metadata": self.job if has_job else None,
            "index_ids": self.index_ids,
        }
        if not settings.omit_shared_access:
            data["shared_access"] = self.shared_access or settings.default_shared_access
        if full:
            data["events"] = list(deque(events, settings.history_window))
        return data


@dataclass
class Exchange:
    """A request in progress: its record, its API key if that is accepted, and the turn that it reads."""

    request: web.Request
    record: RequestRecord
    key: str | None
    turn: TurnRun | None = None


class ServiceState:
    """Everything that the emulator remembers.

    :ivar armed: the injected faults in order, each with a count of the matching requests.
    :ivar live: turns that were accepted and have not ended, in that order, including those of deleted sessions.
    :ivar busy: requests in progress, by the task that answers them.
    """

    def __init__(self, settings: Settings | None) -> None:
        self.settings = settings or Settings()
        self.live: list[TurnRun] = []
        self.busy: dict[Any, Exchange] = {}
        self._initial = self.settings.to_json()
        self.start()

    def start(self) -> None:
        """Restore the settings, projects and indexes of the start, and forget everything else."""
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
        """Abandon every turn, and break the connection of every request in progress."""
        for turn in list(self.live):
            turn.abandon()
        for task, exchange in list(self.busy.items()):
            if exchange.request.transport is not None:
                exchange.request.transport.abort()
            task.cancel()

    def take_fault(self, kinds: Collection[str], exchange: Exchange) -> Fault | None:
        """The first fault of these kinds that is due for the request. It counts as used once more, and the record names it."""
        for armed in self.armed:
            fault, counter = armed
            if fault.kind in kinds and fault.meets(exchange.record) and (seen := next(counter)) >= fault.skip:
                if fault.times is not None and seen + 1 == fault.skip + fault.times:
                    self.armed.remove(armed)
                exchange.record.fault = fault.kind
                return fault
        return None

    def admit(self, key: str, endpoint: str) -> float | None:
        """None if a request with this key is within the rate limit, else the seconds until one is."""
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
        """Add an index, or replace the one with that id. ``values`` are fields of :class:`StoredIndex`."""
        if values["project_id"] not in self.projects:
            raise ValueError(f"There is no project {values['project_id']!r}")
        snippets, replaced = snippets_from(documents), self.indexes.get(values["id"])
        place = next(self.numbers) if replaced is None else replaced.place
        self.indexes[values["id"]] = StoredIndex(place, snippets, **values)
