"""The objects of the API as pydantic models.

Every model keeps unknown fields (``extra="allow"``), so that a new field of the API neither breaks a Dag nor gets lost in XCom.
Reference: https://developers.llamaindex.ai/reference/ (chat, projects, indexes).
"""

# Without "from __future__ import annotations": pydantic would evaluate the text of each annotation when this is imported.
import json
import logging
import threading
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError

from airflow_provider_llamachat import evidence
from airflow_provider_llamachat.arguments import MAX_ID
from airflow_provider_llamachat.evidence import MAX_NUMBER, plain

log = logging.getLogger(__name__)

MAX_EVENTS = 250_000
"""Maximum number of events of a history, and of complete events of a turn."""


_building = threading.RLock()


class ApiModel(BaseModel):
    """Base of all models: immutable, keeps unknown fields."""

    # A task uses few of the models, and building all of them takes longer than its first call.
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=(), defer_build=True)

    @classmethod
    def model_rebuild(cls, **options: Any) -> bool | None:
        """Build the model, which pydantic does when it is first used. Before pydantic 2.14, only one thread may do so at a time."""
        with _building:
            return super().model_rebuild(**options)

    def as_json(self) -> dict[str, Any]:
        """Return all fields, including unknown ones, as values that every JSON store accepts: no NaN and no very large numbers."""
        fields: dict[str, Any] = plain(self.model_dump(mode="json"))
        return fields


# An invalid value must not make a turn fail that was paid for, so it is read as None.


def _number(value: Any) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if abs(number) < MAX_NUMBER and not isinstance(value, bool) else None


def _count(value: Any) -> int | None:
    return None if (number := _number(value)) is None else int(float(number) if isinstance(number, str) else number)


def _texts(value: Any) -> list[str] | None:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else None


def _verdict(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().lower() not in {"", "0", "false", "no", "none", "null"}
    return bool(value)


def _reason(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return None if isinstance(value, bool) or not isinstance(value, int | float) else str(value)


def _fields(value: Any) -> Any:
    return value if isinstance(value, dict | BaseModel) else {}


def _object(value: Any) -> Any:
    return value if isinstance(value, dict) else None


def _optional_verdict(value: Any) -> bool | None:
    return None if value is None else _verdict(value)


Count = Annotated[int | None, BeforeValidator(_count)]
Texts = Annotated[list[str] | None, BeforeValidator(_texts)]
Reason = Annotated[str | None, BeforeValidator(_reason)]
Text = Annotated[str | None, BeforeValidator(_text)]
OptionalVerdict = Annotated[bool | None, BeforeValidator(_optional_verdict)]


class Usage(ApiModel):
    """Usage of a turn: input and output tokens, model calls (``turns``) and milliseconds."""

    total_input_tokens: Count = None
    total_output_tokens: Count = None
    turns: Count = None
    duration_ms: Annotated[float | None, BeforeValidator(_number)] = None


class JobMetadata(Usage):
    """Usage and outcome of a session's most recent turn."""

    is_error: OptionalVerdict = None
    error: Reason = None
    export_config_ids: Texts = None


class Event(ApiModel):
    """An event of a turn. Also used for event types that this release does not know; their fields are kept."""

    type: str


class UserInputEvent(Event):
    """The prompt as the server recorded it."""

    content: str


class TextDeltaEvent(Event):
    """A part of the answer, used only to show progress."""

    content: str


class ThinkingDeltaEvent(Event):
    """A part of the model's reasoning, used only to show progress."""

    content: str


class ThinkingEvent(Event):
    """A complete block of the model's reasoning."""

    content: str


class TextEvent(Event):
    """A complete block of the answer."""

    content: str


class ToolCallEvent(Event):
    """A tool call of the model, for example for retrieval."""

    name: str
    call_id: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class ToolResultEvent(Event):
    """The result of a tool call."""

    name: str
    call_id: str
    result: Any = None
    image_attachment: Annotated[dict[str, Any] | None, BeforeValidator(_object)] = None


class StopEvent(Event):
    """The end of a turn. ``is_error`` tells whether it failed; the HTTP status does not."""

    usage: Annotated[Usage, BeforeValidator(_fields)] = Field(default_factory=Usage)
    is_error: Annotated[bool, BeforeValidator(_verdict)] = False
    error: Reason = None
    skipped_index_ids: Texts = None


MALFORMED = "malformed"
"""The type that stands in a history for an event that could not be read."""

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
    """Convert the JSON value of an event to a model. This never raises, so that no answer is lost because of an invalid event.

    :returns: the typed event; a plain :class:`Event` for an unknown type; None for an invalid event. An invalid ``user_input``
        becomes one without content, because it still begins a turn. A turn that is not counted could be asked twice.
    """
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        return None
    try:
        return EVENT_TYPES.get(data["type"], Event).model_validate(data)
    except (ValidationError, RecursionError):
        return UserInputEvent(type="user_input", content="") if data["type"] == "user_input" else None


def _tolerant_events(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) > MAX_EVENTS:
        raise ValueError(f"{len(value)} events exceed the maximum of {MAX_EVENTS}")
    parsed = (item if isinstance(item, Event) else parse_event(item) for item in value)
    events = [event or Event(type=MALFORMED) for event in parsed]
    if lost := sum(event.type == MALFORMED for event in events):
        log.warning("Skipped %d of %d events of the session's history, because they are malformed.", lost, len(events))
    return events


class SessionSummary(ApiModel):
    """A chat session without its history.

    ``index_ids`` is None for an unbound session; ``job_metadata`` is None until the first turn; ``last_updated_at`` is ISO
    text without a time zone, as the server sends it.
    """

    session_id: Annotated[str, Field(min_length=1, max_length=MAX_ID)]
    last_updated_at: Text = None
    generated_title: Text = None
    index_ids: Annotated[list[str] | None, Field(fail_fast=True)] = None
    # If it is set, whatever its value, the session has been used.
    job_metadata: Annotated[
        JobMetadata | None, BeforeValidator(lambda value: None if value is None else _fields(value))
    ] = None
    shared_access: Text = None


class Session(SessionSummary):
    """A chat session with its complete, ordered history."""

    # parse_event selects the class of each event. Otherwise model_validate would only use the fields of the base class.
    # No default: a response without a history must not be read as an unused session.
    events: Annotated[list[Any], BeforeValidator(_tolerant_events)]

    @property
    def total_tokens(self) -> int:
        """Input and output tokens of the turns in the history, as far as it shows their usage."""
        usages = [event.usage for event in self.events if isinstance(event, StopEvent)]
        return sum((usage.total_input_tokens or 0) + (usage.total_output_tokens or 0) for usage in usages)


class SessionPage(ApiModel):
    """One page of :meth:`list_sessions`."""

    items: Annotated[list[SessionSummary], FailFast()]
    next_page_token: str | None = None


class Project(ApiModel):
    """A LlamaCloud project."""

    id: str
    name: Annotated[str, BeforeValidator(lambda value: _text(value) or "")] = ""
    organization_id: str | None = None
    is_default: Annotated[bool, BeforeValidator(_verdict)] = False


class IndexMetadata(ApiModel):
    """Build state of an index. Only ``ready`` and ``failed`` are stable values of ``status``."""

    status: Text = None
    error_message: Reason = None


class Index(ApiModel):
    """A searchable index over a directory of documents."""

    READY: ClassVar[str] = "ready"
    FAILED: ClassVar[str] = "failed"

    id: str
    name: Text = None
    project_id: str | None = None
    metadata: Annotated[IndexMetadata, BeforeValidator(_fields)] = Field(default_factory=IndexMetadata)
    last_synced_at: Text = None
    last_exported_at: Text = None
    sync_in_progress: OptionalVerdict = None


class IndexPage(ApiModel):
    """One page of :meth:`list_indexes`."""

    items: Annotated[list[Index], FailFast()]
    next_page_token: str | None = None


class AttachmentUrl(ApiModel):
    """Where an attachment can be downloaded for some time. ``url`` and ``form_fields`` are secrets, and not in the representation.

    :ivar expires_at: ISO text, as the server sends it.
    """

    url: Annotated[str, Field(min_length=1, repr=False)]
    expires_at: Text = None
    form_fields: Annotated[dict[str, Any] | None, BeforeValidator(_object), Field(repr=False)] = None


class ToolUse(ApiModel):
    """A tool call of a turn, and its result if it has arrived.

    :ivar image_attachment: ``source_id`` and ``attachment_name`` of a page's picture; see :meth:`get_attachment_url` of the clients.
    """

    name: str
    call_id: str
    arguments: dict[str, Any]
    result: Any = None
    finished: bool = False
    image_attachment: dict[str, Any] | None = None


class ChatTurn(ApiModel):
    """A question and its answer.

    :ivar answer: text of the answer. Several ``text`` events are joined with a blank line.
    :ivar thinking: the model's reasoning, joined in the same way.
    :ivar finished: whether the ``stop`` event was received. Only then are ``usage`` and ``is_error`` final.
    :ivar position: number of turns in the session before this one, or None if unknown.
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

    @property
    def sources(self) -> list[dict[str, Any]]:
        """What the answer is based on: all sources in the results of its tool calls; see :func:`~.evidence.sources`."""
        return self.first_sources()

    def first_sources(self, most: int | None = None) -> list[dict[str, Any]]:
        """Return :attr:`sources`, of which only the first ``most`` are complete. The others have only ``tool``, and take no time."""
        found: list[dict[str, Any]] = []
        for tool in self.tools:
            if tool.finished:
                left = None if most is None else max(0, most - len(found))
                found += evidence.sources(tool.name, tool.result, tool.arguments, tool.image_attachment, most=left)
        return found

    def usage_as_dict(self) -> dict[str, Any]:
        """Return the usage as JSON values for XCom. It contains only numbers, including unknown ones."""
        figures = {**dict.fromkeys(Usage.model_fields), **self.usage.as_json()}
        return {
            name[:100]: value
            for name, value in list(figures.items())[:50]
            if value is None or isinstance(value, bool | int | float)
        }
