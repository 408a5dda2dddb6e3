"""The history of a session: events, and the turns that they make. Not imported for calls that read none."""

# Without "from __future__ import annotations": pydantic would evaluate the text of each annotation when this is imported.
import logging
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from airflow_provider_llamachat import evidence
from airflow_provider_llamachat.models.api_model import ApiModel, Fields, Object, Reason, Texts, Verdict
from airflow_provider_llamachat.models.chat_session import SessionSummary, Usage

log = logging.getLogger(__name__)

MAX_EVENTS = 250_000
"""Maximum number of events of a history, and of complete events of a turn."""


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
    image_attachment: Object = None


class StopEvent(Event):
    """The end of a turn. ``is_error`` tells whether it failed; the HTTP status does not."""

    usage: Annotated[Usage, Fields] = Field(default_factory=Usage)
    is_error: Verdict = False
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
