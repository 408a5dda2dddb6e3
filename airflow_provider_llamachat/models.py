"""The API's objects as pydantic models.

Every model keeps fields it does not know (``extra="allow"``): the API grows, and a new field must neither break a Dag nor be
lost on its way to XCom. Reference: https://developers.llamaindex.ai/reference/ (chat, projects, indexes).
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

log = logging.getLogger(__name__)

SharedAccess = Literal["query", "read_only"]
"""What a session's share link grants: reading the transcript only, or asking new questions as well."""


class ApiModel(BaseModel):
    """Base of all models: immutable, keeps unknown fields."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Usage(ApiModel):
    """What one turn cost: tokens read and written, model calls (``turns``) and milliseconds."""

    total_input_tokens: int | None = None
    total_output_tokens: int | None = None
    turns: int | None = None
    duration_ms: float | None = None


class JobMetadata(Usage):
    """Usage and outcome of a session's most recent turn."""

    is_error: bool | None = None
    error: str | None = None
    export_config_ids: list[str] | None = None


class Event(ApiModel):
    """One event of a turn; also stands for event types that this release does not know (their fields are kept)."""

    type: str


class UserInputEvent(Event):
    """The prompt, as the server recorded it."""

    content: str


class TextDeltaEvent(Event):
    """An increment of the answer, for showing progress only."""

    content: str


class ThinkingDeltaEvent(Event):
    """An increment of the model's reasoning, for showing progress only."""

    content: str


class ThinkingEvent(Event):
    """A whole piece of the model's reasoning."""

    content: str


class TextEvent(Event):
    """A whole piece of the answer."""

    content: str


class ToolCallEvent(Event):
    """The model calls a tool (retrieval, for instance)."""

    name: str
    call_id: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class ToolResultEvent(Event):
    """What a tool call gave."""

    name: str
    call_id: str
    result: Any = None
    image_attachment: dict[str, Any] | None = None


class StopEvent(Event):
    """The end of a turn. ``is_error`` is the verdict: HTTP 200 alone says nothing."""

    usage: Usage = Field(default_factory=Usage)
    is_error: bool = False
    error: str | None = None
    skipped_index_ids: list[str] | None = None


EVENT_TYPES: dict[str, type[Event]] = {
    "user_input": UserInputEvent,
    "text_delta": TextDeltaEvent,
    "thinking_delta": ThinkingDeltaEvent,
    "thinking": ThinkingEvent,
    "text": TextEvent,
    "tool_call": ToolCallEvent,
    "tool_result": ToolResultEvent,
    "stop": StopEvent,
}


def parse_event(data: Any) -> Event | None:
    """Turn one event's JSON value into a model.

    :returns: the typed event; a plain :class:`Event` for a type this release does not know; None for what is no event at
        all or lacks what its type needs. An answer that was paid for is not lost to one bad event, so this never raises.
    """
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        return None
    try:
        return EVENT_TYPES.get(data["type"], Event).model_validate(data)
    except (ValidationError, RecursionError):
        return None


def _tolerant_events(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    events = [item if isinstance(item, Event) else parse_event(item) for item in value]
    if lost := sum(event is None for event in events):
        log.warning("Left out %d of %d events of the session's history: they are malformed.", lost, len(events))
    return [event for event in events if event is not None]


class SessionSummary(ApiModel):
    """A chat session without its history.

    ``index_ids`` is None for an unbound session; ``job_metadata`` is None until the first turn; ``last_updated_at`` is ISO
    text without a zone, as the server sends it.
    """

    session_id: Annotated[str, Field(min_length=1)]
    last_updated_at: str | None = None
    generated_title: str | None = None
    index_ids: list[str] | None = None
    job_metadata: JobMetadata | None = None
    shared_access: str | None = None


class Session(SessionSummary):
    """A chat session with its whole ordered history."""

    # model_validate would rebuild each event from its base class' fields without this: the union is resolved by parse_event.
    events: Annotated[list[Any], BeforeValidator(_tolerant_events)] = Field(default_factory=list)


class SessionPage(ApiModel):
    """One page of :meth:`list_sessions`."""

    items: list[SessionSummary]
    next_page_token: str | None = None


class Project(ApiModel):
    """A LlamaCloud project."""

    id: str
    name: str
    organization_id: str | None = None
    is_default: bool = False


class IndexMetadata(ApiModel):
    """Build state of an index. Only ``ready`` and ``failed`` are stable values of ``status``."""

    status: str | None = None
    error_message: str | None = None


class Index(ApiModel):
    """A searchable index over a directory of documents."""

    READY: ClassVar[str] = "ready"
    FAILED: ClassVar[str] = "failed"

    id: str
    name: str | None = None
    project_id: str | None = None
    metadata: IndexMetadata = Field(default_factory=IndexMetadata)
    last_synced_at: str | None = None
    last_exported_at: str | None = None
    sync_in_progress: bool | None = None


class IndexPage(ApiModel):
    """One page of :meth:`list_indexes`."""

    items: list[Index]
    next_page_token: str | None = None


class ToolUse(ApiModel):
    """A tool call of a turn and, once it came, its result."""

    name: str
    call_id: str
    arguments: dict[str, Any]
    result: Any = None
    finished: bool = False


class ChatTurn(ApiModel):
    """One question and what came of it.

    :ivar answer: the answer's text; several ``text`` events are joined by a blank line.
    :ivar thinking: the model's reasoning, joined likewise.
    :ivar finished: whether the ``stop`` event was seen; only then are ``usage`` and ``is_error`` final.
    :ivar position: how many turns the session had before this one, None when not known.
    """

    session_id: str
    prompt: str
    answer: str = ""
    thinking: str = ""
    tools: list[ToolUse] = Field(default_factory=list)
    usage: Usage = Field(default_factory=Usage)
    skipped_index_ids: list[str] = Field(default_factory=list)
    index_ids: list[str] | None = None
    finished: bool = False
    is_error: bool = False
    error: str | None = None
    position: int | None = None

    def usage_as_dict(self) -> dict[str, Any]:
        """The usage as plain JSON values, as it goes to XCom."""
        return self.usage.model_dump(mode="json")
