"""A chat session: its summary, and its history."""

# Without "from __future__ import annotations": pydantic would evaluate the text of each annotation when this is imported.
import logging
from typing import Annotated, Any

from pydantic import BeforeValidator, FailFast, Field

from airflow_provider_llamachat.arguments import MAX_ID
from airflow_provider_llamachat.models.base import (
    ApiModel,
    Count,
    Number,
    OptionalFields,
    OptionalVerdict,
    Reason,
    Text,
    Texts,
)

log = logging.getLogger(__name__)

MAX_EVENTS = 250_000
"""Maximum number of events of a history, and of complete events of a turn."""


class Usage(ApiModel):
    """Usage of a turn: input and output tokens, model calls (``turns``) and milliseconds."""

    total_input_tokens: Count = None
    total_output_tokens: Count = None
    turns: Count = None
    duration_ms: Number = None


class JobMetadata(Usage):
    """Usage and outcome of a session's most recent turn."""

    is_error: OptionalVerdict = None
    error: Reason = None
    export_config_ids: Texts = None


def _tolerant_events(value: Any) -> Any:
    from airflow_provider_llamachat.models.turn import MALFORMED, Event, parse_event

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
    job_metadata: Annotated[JobMetadata | None, OptionalFields] = None
    shared_access: Text = None


class Session(SessionSummary):
    """A chat session with its complete, ordered history."""

    # parse_event selects the class of each event. Otherwise model_validate would only use the fields of the base class.
    # No default: a response without a history must not be read as an unused session.
    events: Annotated[list[Any], BeforeValidator(_tolerant_events)]

    @property
    def total_tokens(self) -> int:
        """Input and output tokens of the turns in the history, as far as it shows their usage."""
        from airflow_provider_llamachat.models.turn import StopEvent

        usages = [event.usage for event in self.events if isinstance(event, StopEvent)]
        return sum((usage.total_input_tokens or 0) + (usage.total_output_tokens or 0) for usage in usages)


class SessionPage(ApiModel):
    """One page of :meth:`list_sessions`."""

    items: Annotated[list[SessionSummary], FailFast()]
    next_page_token: str | None = None
