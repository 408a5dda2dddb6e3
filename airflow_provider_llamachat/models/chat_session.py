"""A chat session without its history."""

# Without "from __future__ import annotations": pydantic would evaluate the text of each annotation when this is imported.
from typing import Annotated

from pydantic import FailFast, Field

from airflow_provider_llamachat.arguments import MAX_ID
from airflow_provider_llamachat.models.api_model import (
    ApiModel,
    Count,
    Number,
    OptionalFields,
    OptionalVerdict,
    Reason,
    Text,
    Texts,
)


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


class SessionPage(ApiModel):
    """One page of :meth:`list_sessions`."""

    items: Annotated[list[SessionSummary], FailFast()]
    next_page_token: str | None = None
