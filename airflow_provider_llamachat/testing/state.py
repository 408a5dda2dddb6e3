"""What the emulated service holds in memory: projects, indexes, sessions, and the record of turns."""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.testing import corpus
from airflow_provider_llamachat.testing.corpus import Passage, SeededProject
from airflow_provider_llamachat.testing.errors import ApiError
from airflow_provider_llamachat.testing.records import TurnRecord
from airflow_provider_llamachat.testing.settings import Settings

if TYPE_CHECKING:
    from airflow_provider_llamachat.testing.turns import Turn


def utc_text(epoch: float) -> str:
    """A date-time with zone, as projects and indexes have it."""
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(slots=True)
class Index:
    """An index: its build state, its schedule of states to come, and what it knows."""

    id: str
    project_id: str
    name: str
    description: str | None
    status: str
    error_message: str | None
    passages: tuple[Passage, ...]
    created: float
    last_synced_at: str | None
    sync_in_progress: bool = False
    sync_ends: float | None = None
    schedule: deque[dict[str, Any]] = field(default_factory=deque)

    def settle(self, now: float) -> None:
        """Let a sync end whose time is over."""
        if self.sync_ends is not None and now >= self.sync_ends:
            self.last_synced_at = utc_text(self.sync_ends)
            self.sync_ends = None

    @property
    def syncing(self) -> bool:
        """Whether a sync runs, by its clock or because a test says so."""
        return self.sync_in_progress or self.sync_ends is not None

    def change(self, values: dict[str, Any]) -> None:
        """Set what a test gives: status, error_message, sync_in_progress, last_synced_at.

        :raises ValueError: another name.
        """
        for name, value in values.items():
            if name not in ("status", "error_message", "sync_in_progress", "last_synced_at"):
                raise ValueError(f"An index has no {name!r} to set")
            setattr(self, name, utc_text(value.timestamp()) if isinstance(value, datetime) else value)
            if name == "sync_in_progress" and not value:
                self.sync_ends = None

    def step(self) -> None:
        """Move one step on in the schedule; its last entry stays."""
        if self.schedule:
            self.change(self.schedule.popleft())

    def to_json(self, settings: Settings, *, expand: bool = False) -> dict[str, Any]:
        """The index as the API answers it."""
        status = settings.sync_status if self.syncing and settings.sync_status is not None else self.status
        metadata: dict[str, Any] = {"status": status}
        if self.error_message is not None:
            metadata["error_message"] = self.error_message
        suffix = self.id.removeprefix("idx-")
        return {
            "id": self.id,
            "created_at": utc_text(self.created),
            "updated_at": self.last_synced_at or utc_text(self.created),
            "name": self.name,
            "description": self.description,
            "project_id": self.project_id,
            "source_directory_id": f"dir-source-{suffix}",
            "output_directory_id": f"dir-output-{suffix}",
            "sync_config_id": f"sync-{suffix}",
            "export_config_id": f"export-{suffix}",
            "last_synced_at": self.last_synced_at,
            "last_exported_at": self.last_synced_at,
            "metadata": metadata,
            "sync_in_progress": self.syncing if expand else None,
        }


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event of a history; what somebody else put there is ``foreign`` and does not lag."""

    event: dict[str, Any]
    time: float
    foreign: bool

    def shown_from(self, lag: float) -> float:
        """When the event is first to be seen."""
        return self.time if self.foreign else self.time + lag


@dataclass(slots=True)
class Session:
    """A chat session.

    :ivar number: order of creation.
    :ivar events: the whole history; :meth:`shown` says what of it is to be seen.
    :ivar prompts: prompts of these events as they were sent, in order.
    :ivar intruders: what somebody else is about to put into the history, with the time when that happens.
    :ivar running: turns under way; more than one only where the settings allow it.
    :ivar waiting: turns that were accepted and wait for the session to be free.
    """

    id: str
    number: int
    project_id: str
    index_ids: list[str] | None
    shared_access: str | None
    updated: float
    job: dict[str, Any] | None = None
    job_since: float = 0.0
    events: list[Recorded] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    intruders: list[tuple[float, list[dict[str, Any]]]] = field(default_factory=list)
    locked: bool = False
    running: set[Turn] = field(default_factory=set)
    waiting: deque[Turn] = field(default_factory=deque)

    def record(self, event: dict[str, Any], prompt: str | None = None, *, foreign: bool = False) -> None:
        """Put an event into the history.

        :param prompt: what a ``user_input`` was before it was recorded; None for one that reads as it was sent.
        """
        self.updated = time.time()
        self.events.append(Recorded(event, self.updated, foreign))
        if event["type"] == "user_input":
            self.prompts.append(event["content"] if prompt is None else prompt)

    def end_job(self, job: dict[str, Any]) -> None:
        """Set what the turn that has just ended leaves in the summary."""
        self.job_since = self.job_since or time.time()
        self.job = job

    def settle(self) -> None:
        """Let somebody else's turns whose time has come enter the history."""
        now = time.time()
        for due, events in [intruder for intruder in self.intruders if intruder[0] <= now]:
            self.intruders.remove((due, events))
            for event in events:
                self.record(event, foreign=True)

    def intrude(self, prompt: str, after: float) -> None:
        """Let somebody else's turn enter the history ``after`` seconds from now."""
        text = "This was for somebody else."
        usage = {"total_input_tokens": 1, "total_output_tokens": 1, "turns": 1, "duration_ms": 1.0}
        stop: dict[str, Any] = {
            "type": "stop",
            "usage": usage,
            "is_error": False,
            "error": None,
            "skipped_index_ids": [],
        }
        turn: list[dict[str, Any]] = [
            {"type": "user_input", "content": prompt},
            {"type": "text", "content": text},
            stop,
        ]
        self.intruders.append((time.time() + after, turn))

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
        data: dict[str, Any] = {
            "session_id": self.id,
            "generated_title": title if title is None or len(title) <= 60 else title[:60] + "...",
            "last_updated_at": datetime.fromtimestamp(self.updated, UTC)
            .replace(tzinfo=None)
            .isoformat(timespec="microseconds"),
            "job_metadata": self.job if self.job_since + settings.history_lag <= time.time() else None,
            "index_ids": self.index_ids,
        }
        if not settings.omit_shared_access:
            data["shared_access"] = self.shared_access or settings.default_shared_access
        if full:
            window = settings.history_window
            data["events"] = events if window is None else events[max(0, len(events) - window) :]
        return data


class State:
    """Everything that one life of the emulator, from start or reset to the next reset, remembers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sessions: dict[str, Session] = {}
        self.deleted: list[str] = []
        self.turns: list[TurnRecord] = []
        self.live: set[Turn] = set()
        self.projects: dict[str, SeededProject] = {project.id: project for project in corpus.PROJECTS}
        self.indexes: dict[str, Index] = {}
        self.created = time.time()
        self._number = 0
        for seed in corpus.INDEXES:
            self.indexes[seed.id] = Index(
                seed.id,
                seed.project_id,
                seed.name,
                seed.description,
                seed.status,
                seed.error_message,
                seed.passages,
                self.created,
                utc_text(self.created) if seed.status == "ready" else None,
            )

    # Projects

    def project(self, project_id: str | None, organization_id: str | None) -> SeededProject:
        """The project that a request works in.

        :raises ApiError: 404 for one that does not exist (in that organization).
        """
        if project_id is None:
            for project in self.projects.values():
                if project.is_default and project.organization_id == (
                    organization_id or corpus.DEFAULT_ORGANIZATION_ID
                ):
                    return project
            raise ApiError(404, f"Organization {organization_id} not found.")
        found = self.projects.get(project_id)
        if found is None or organization_id not in (None, found.organization_id):
            raise ApiError(404, f"Project {project_id} not found.")
        return found

    def project_json(self, project: SeededProject) -> dict[str, Any]:
        """A project as the API answers it."""
        return {
            "name": project.name,
            "id": project.id,
            "created_at": utc_text(self.created),
            "updated_at": utc_text(self.created),
            "organization_id": project.organization_id,
            "is_default": project.is_default,
        }

    # Indexes

    def index(self, index_id: str, project_id: str) -> Index:
        """An index of the project, settled.

        :raises ApiError: 404 when it is not there, or in another project.
        """
        index = self.indexes.get(index_id)
        if index is None or index.project_id != project_id:
            raise ApiError(404, f"Index {index_id} not found.")
        index.settle(time.time())
        return index

    def add_index(
        self,
        index_id: str,
        *,
        project_id: str = corpus.DEFAULT_PROJECT_ID,
        name: str | None = None,
        status: str = "ready",
        error_message: str | None = None,
        documents: Sequence[Any] = (),
    ) -> None:
        """Add an index, or replace the one of that id."""
        if project_id not in self.projects:
            raise ValueError(f"There is no project {project_id!r}")
        now = time.time()
        passages = corpus.passages_from(documents)
        synced = utc_text(now) if status == "ready" else None
        self.indexes[index_id] = Index(
            index_id, project_id, name or index_id, None, status, error_message, passages, now, synced
        )

    def known_index(self, index_id: str) -> Index:
        """An index of any project, for tests.

        :raises ValueError: it does not exist.
        """
        if index_id not in self.indexes:
            raise ValueError(f"There is no index {index_id!r}")
        return self.indexes[index_id]

    # Sessions

    def create_session(self, project_id: str, index_ids: list[str] | None, shared_access: str | None) -> Session:
        """Create a session."""
        self._number += 1
        session = Session(
            f"ses-{secrets.token_hex(8)}", self._number, project_id, index_ids, shared_access, time.time()
        )
        self.sessions[session.id] = session
        return session

    def session(self, session_id: str, project_id: str) -> Session:
        """A session of the project.

        :raises ApiError: 404 when it is not there, or in another project.
        """
        session = self.sessions.get(session_id)
        if session is None or session.project_id != project_id:
            raise ApiError(404, f"Session {session_id} not found.")
        return session

    def intrude(self, session_id: str, prompt: str, after: float = 0.0) -> None:
        """Let somebody else's turn enter a session's history.

        :raises ValueError: the session does not exist, or ``after`` is negative.
        """
        if session_id not in self.sessions:
            raise ValueError(f"There is no session {session_id!r}")
        if after < 0:
            raise ValueError("after cannot be negative")
        self.sessions[session_id].intrude(prompt, after)

    def delete_session(self, session: Session) -> None:
        """Forget a session and its history."""
        del self.sessions[session.id]
        self.deleted.append(session.id)


def page_token(place: object) -> str:
    """An opaque token for the place after which the next page begins."""
    return base64.urlsafe_b64encode(f"after:{place}".encode()).decode()


def page_place(token: str) -> str:
    """The place in a token.

    :raises ApiError: 400 for text that is no token of ours.
    """
    try:
        kind, _, place = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
    except (binascii.Error, ValueError):
        kind = place = ""
    if kind != "after" or not place:
        raise ApiError(400, "Invalid page token.")
    return place


def page_of(items: list[dict[str, Any]], token: str | None, settings: Settings) -> dict[str, Any]:
    """One page of a list."""
    page: dict[str, Any] = {"items": items}
    if token is not None or settings.page_end == "null":
        page["next_page_token"] = token
    return page
