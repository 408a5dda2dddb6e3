"""Projects, indexes, and the URL of an attachment."""

# Without "from __future__ import annotations": pydantic would evaluate the text of each annotation when this is imported.
from typing import Annotated, ClassVar

from pydantic import FailFast, Field

from airflow_provider_llamachat.models.api_model import (
    ApiModel,
    Fields,
    Object,
    OptionalVerdict,
    Reason,
    Text,
    TextOrEmpty,
    Verdict,
)


class Project(ApiModel):
    """A LlamaCloud project."""

    id: str
    name: TextOrEmpty = ""
    organization_id: str | None = None
    is_default: Verdict = False


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
    metadata: Annotated[IndexMetadata, Fields] = Field(default_factory=IndexMetadata)
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
    form_fields: Annotated[Object, Field(repr=False)] = None
