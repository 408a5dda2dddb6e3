"""The vendor's own SDK drives every endpoint and accepts every answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict

import pytest

from airflow_provider_llamachat.testing import (
    DEFAULT_ORGANIZATION_ID,
    DEFAULT_PROJECT_ID,
    INDEX_BUILDING,
    INDEX_FAILED,
    INDEX_FILINGS,
    INDEX_HANDBOOK,
    INDEX_OTHER_PROJECT,
    OTHER_PROJECT_ID,
    Fault,
    LlamaCloudEmulator,
    Settings,
)
from tests.emulator.conftest import WHOLE, events, eventually

pytestmark = pytest.mark.long

if TYPE_CHECKING:
    from llama_cloud import LlamaCloud


class _Where(TypedDict):
    project_id: str
    organization_id: str


@pytest.fixture
def sdk(llamacloud_emulator: LlamaCloudEmulator) -> Iterator[LlamaCloud]:
    from llama_cloud import LlamaCloud

    # Strict validation turns an answer that does not fit the SDK's models into an error; it is lenient otherwise.
    with LlamaCloud(
        api_key=llamacloud_emulator.api_key,
        base_url=llamacloud_emulator.url,
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


def test_sessions(sdk: LlamaCloud, llamacloud_emulator: LlamaCloudEmulator) -> None:
    from llama_cloud import LlamaCloud, NotFoundError

    ids = _Where(project_id=DEFAULT_PROJECT_ID, organization_id=DEFAULT_ORGANIZATION_ID)
    created = sdk.chat.create(index_ids=[INDEX_FILINGS], shared_access="query", **ids)
    assert (created.index_ids, created.shared_access, created.job_metadata) == ([INDEX_FILINGS], "query", None)
    unbound = sdk.chat.create()
    assert unbound.index_ids is None
    # Strict, it would not even take a stream as such.
    with LlamaCloud(api_key=llamacloud_emulator.api_key, base_url=llamacloud_emulator.url) as lenient:
        text = lenient.chat.stream(
            created.session_id,
            index_ids=[INDEX_FILINGS],
            prompt="What was the revenue in Q3?",
            require_all_indexes=True,
            **ids,
        )
    assert isinstance(text, str)
    assert [data["type"] for kind, data in events(text) if kind == "message"] == WHOLE
    full = sdk.chat.retrieve(created.session_id, **ids)
    assert [event.type for event in full.events] == WHOLE
    assert [type(event).__name__ for event in full.events] == [
        "EventUserInputEvent",
        "EventThinkingEvent",
        "EventToolCallEvent",
        "EventToolResultEvent",
        "EventTextEvent",
        "EventStopEvent",
    ]
    summary = sdk.chat.get_summary(created.session_id, **ids)
    assert summary.job_metadata is not None
    assert summary.job_metadata.total_output_tokens == llamacloud_emulator.turns[0].output_tokens
    assert summary.generated_title == "What was the revenue in Q3?"
    more = [sdk.chat.create().session_id for _ in range(5)]
    listed = [item.session_id for item in sdk.chat.list(page_size=2)]
    assert listed == [*reversed(more), unbound.session_id, created.session_id]
    assert [record.endpoint for record in llamacloud_emulator.requests].count("list") == 4
    sdk.chat.delete(created.session_id, **ids)
    with pytest.raises(NotFoundError):
        sdk.chat.retrieve(created.session_id)
    assert all(record.status is not None for record in llamacloud_emulator.requests)


def test_projects(sdk: LlamaCloud) -> None:
    listed = sdk.projects.list()
    assert [project.is_default for project in listed] == [True, False, True]
    assert [project.id for project in sdk.projects.list(project_name="Contracts")] == [OTHER_PROJECT_ID]
    found = sdk.projects.get(OTHER_PROJECT_ID, organization_id=DEFAULT_ORGANIZATION_ID)
    assert found.name == "Contracts"
    assert found.created_at is not None


def test_indexes(sdk: LlamaCloud, llamacloud_emulator: LlamaCloudEmulator) -> None:
    from llama_cloud import ConflictError

    llamacloud_emulator.settings.sync_seconds = 0.2
    assert [index.id for index in sdk.indexes.list(page_size=3)] == [
        INDEX_FILINGS,
        INDEX_HANDBOOK,
        INDEX_BUILDING,
        INDEX_FAILED,
    ]
    assert [index.id for index in sdk.indexes.list(project_id=OTHER_PROJECT_ID)] == [INDEX_OTHER_PROJECT]
    before = sdk.indexes.get(INDEX_FILINGS)
    assert (before.metadata, before.sync_in_progress) == ({"status": "ready"}, None)
    sdk.indexes.sync(INDEX_FILINGS)
    assert sdk.indexes.get(INDEX_FILINGS, expand=["sync_in_progress"]).sync_in_progress is True
    with pytest.raises(ConflictError):
        sdk.indexes.sync(INDEX_FILINGS)
    eventually(lambda: sdk.indexes.get(INDEX_FILINGS, expand=["sync_in_progress"]).sync_in_progress is False)
    after = sdk.indexes.get(INDEX_FILINGS)
    assert before.last_synced_at is not None
    assert after.last_synced_at is not None
    assert after.last_synced_at > before.last_synced_at


def test_retrieval_results_and_attachments(sdk: LlamaCloud) -> None:
    from llama_cloud import NotFoundError, UnprocessableEntityError
    from llama_cloud.types import RetrievalRetrieveResponse
    from llama_cloud.types.chat_retrieve_response import EventToolResultEvent

    session_id = sdk.chat.create(index_ids=[INDEX_FILINGS]).session_id
    with sdk.chat.with_streaming_response.stream(
        session_id, index_ids=[INDEX_FILINGS], prompt="Revenue in Q3?"
    ) as turn:
        turn.read()
    (event,) = [event for event in sdk.chat.retrieve(session_id).events if isinstance(event, EventToolResultEvent)]
    (found,) = RetrievalRetrieveResponse.model_validate({"results": event.result}, strict=True).results
    assert found.static_fields is not None
    assert (found.static_fields.page_range_start, found.score) == (2, 0.8)
    (picture,) = found.static_fields.attachments or []
    url = sdk.beta.attachments.get(picture.attachment_name, source_id=picture.source_id)
    assert url.expires_at.timestamp() > time.time()
    with pytest.raises(NotFoundError):
        sdk.beta.attachments.get("screenshots/page_99.jpg", source_id=picture.source_id)
    with pytest.raises(UnprocessableEntityError, match="source_id"):
        sdk.get("/api/v1/beta/attachments/a", cast_to=object)


def test_refusals(sdk: LlamaCloud, llamacloud_emulator: LlamaCloudEmulator) -> None:
    from llama_cloud import AuthenticationError, NotFoundError, RateLimitError, UnprocessableEntityError

    with pytest.raises(UnprocessableEntityError, match="at most 10 items"):
        sdk.chat.create(index_ids=["i"] * 11)
    session_id = sdk.chat.create().session_id
    with pytest.raises(UnprocessableEntityError, match="at most 1000 characters"):
        sdk.chat.stream(session_id, index_ids=[INDEX_FILINGS], prompt="x" * 1001)
    with pytest.raises(NotFoundError):
        sdk.chat.create(index_ids=[INDEX_FILINGS], project_id=OTHER_PROJECT_ID)
    with pytest.raises(AuthenticationError):
        sdk.with_options(api_key="llx-other").chat.list()
    llamacloud_emulator.settings.requests_per_minute = 0
    with pytest.raises(RateLimitError):
        sdk.chat.create()


def test_faults(sdk: LlamaCloud, llamacloud_emulator: LlamaCloudEmulator) -> None:
    from llama_cloud import APIConnectionError, APITimeoutError

    for kind in ("reset_before", "reset_after"):
        llamacloud_emulator.inject(Fault(kind))
        with pytest.raises(APIConnectionError):
            sdk.chat.create()
    assert len(llamacloud_emulator.sessions) == 1
    llamacloud_emulator.inject(Fault("hang"))
    with pytest.raises(APITimeoutError):
        sdk.chat.create(timeout=0.2)


@pytest.mark.long
@pytest.mark.parametrize("survives", [True, False])
def test_how_often_the_sdk_asks_when_a_stream_stalls(survives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_cloud import APITimeoutError, LlamaCloud

    monkeypatch.setattr("llama_cloud._base_client.INITIAL_RETRY_DELAY", 0.0)  # the SDK has no public switch
    monkeypatch.setattr("llama_cloud._base_client.MAX_RETRY_DELAY", 0.0)  # as above
    with LlamaCloudEmulator(Settings(survives_disconnect=survives)) as emulator:
        emulator.inject(Fault("stall", after_events=3, times=None))
        with LlamaCloud(api_key=emulator.api_key, base_url=emulator.url, max_retries=2) as sdk:
            session_id = sdk.chat.create(index_ids=[INDEX_FILINGS]).session_id
            started = time.monotonic()
            with pytest.raises(APITimeoutError):
                sdk.chat.stream(session_id, index_ids=[INDEX_FILINGS], prompt="x", timeout=0.5)
            assert time.monotonic() - started < 60
        assert emulator.posts(session_id) == 3
        eventually(lambda: all(turn.state != "running" for turn in emulator.turns))
        assert emulator.completed(session_id) == (3 if survives else 0)
