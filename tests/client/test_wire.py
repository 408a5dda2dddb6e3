"""What goes over the wire is what the official SDK sends, and what comes back is understood."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_llamachat.client import AsyncLlamaCloudClient, ClientConfig, LlamaCloudClient
from airflow_provider_llamachat.testing import (
    DEFAULT_ORGANIZATION_ID,
    DEFAULT_PROJECT_ID,
    INDEX_FILINGS,
    LlamaCloudEmulator,
)

if TYPE_CHECKING:
    from llama_cloud import LlamaCloud

SCOPE = {"project_id": DEFAULT_PROJECT_ID, "organization_id": DEFAULT_ORGANIZATION_ID}

OTHER = "7b2f0c4e-9a51-4d3e-8c67-1f2a3b4c5d6e"

PICTURE = ("dfl-bfddaf13", "screenshots/page_2.jpg")

Call = Callable[[Any, str], Any]

# name: (our call, the SDK's call); both get a client and the id of a session that exists.
PAIRS: dict[str, tuple[Call, Call]] = {
    "create": (
        lambda c, _s: c.create_session([INDEX_FILINGS], **SCOPE),
        lambda c, _s: c.chat.create(index_ids=[INDEX_FILINGS], **SCOPE),
    ),
    "create unbound": (lambda c, _s: c.create_session(), lambda c, _s: c.chat.create()),
    "create shared": (
        lambda c, _s: c.create_session([INDEX_FILINGS], shared_access="query"),
        lambda c, _s: c.chat.create(index_ids=[INDEX_FILINGS], shared_access="query"),
    ),
    "get": (lambda c, s: c.get_session(s, **SCOPE), lambda c, s: c.chat.retrieve(s, **SCOPE)),
    "summary": (lambda c, s: c.get_session_summary(s, **SCOPE), lambda c, s: c.chat.get_summary(s, **SCOPE)),
    "list": (
        lambda c, _s: list(c.list_sessions(page_size=2, **SCOPE)),
        lambda c, _s: list(c.chat.list(page_size=2, **SCOPE)),
    ),
    "delete": (lambda c, s: c.delete_session(s, **SCOPE), lambda c, s: c.chat.delete(s, **SCOPE)),
    "stream": (
        lambda c, s: list(c.stream_message(s, "What was the revenue?", index_ids=[INDEX_FILINGS], **SCOPE)),
        lambda c, s: c.chat.stream(s, prompt="What was the revenue?", index_ids=[INDEX_FILINGS], **SCOPE),
    ),
    "stream, all indexes": (
        lambda c, s: list(c.stream_message(s, "q", index_ids=[INDEX_FILINGS], require_all_indexes=True)),
        lambda c, s: c.chat.stream(s, prompt="q", index_ids=[INDEX_FILINGS], require_all_indexes=True),
    ),
    "projects": (
        lambda c, _s: c.list_projects(organization_id=DEFAULT_ORGANIZATION_ID),
        lambda c, _s: c.projects.list(organization_id=DEFAULT_ORGANIZATION_ID),
    ),
    "project": (lambda c, _s: c.get_project(DEFAULT_PROJECT_ID), lambda c, _s: c.projects.get(DEFAULT_PROJECT_ID)),
    "indexes": (
        lambda c, _s: list(c.list_indexes(page_size=3, **SCOPE)),
        lambda c, _s: list(c.indexes.list(page_size=3, **SCOPE)),
    ),
    "index": (
        lambda c, _s: c.get_index(INDEX_FILINGS, expand_sync=True, **SCOPE),
        lambda c, _s: c.indexes.get(INDEX_FILINGS, expand=["sync_in_progress"], **SCOPE),
    ),
    "attachment": (
        lambda c, _s: c.get_attachment_url(*PICTURE, **SCOPE),
        lambda c, _s: c.beta.attachments.get(PICTURE[1], source_id=PICTURE[0], **SCOPE),
    ),
    "sync": (lambda c, _s: c.sync_index(INDEX_FILINGS, **SCOPE), lambda c, _s: c.indexes.sync(INDEX_FILINGS, **SCOPE)),
    "cancel a sync": (
        lambda c, _s: c.cancel_sync(INDEX_FILINGS, **SCOPE),
        lambda c, _s: c.indexes.cancel_sync(INDEX_FILINGS, **SCOPE),
    ),
}


def sdk(emulator: LlamaCloudEmulator) -> LlamaCloud:
    from llama_cloud import LlamaCloud

    return LlamaCloud(api_key=emulator.api_key, base_url=emulator.url, max_retries=0)


def wire(emulator: LlamaCloudEmulator, since: int, session_id: str) -> list[tuple[str, str, Any, Any]]:
    return [(r.method, r.path.replace(session_id, "SESSION"), r.query, r.body) for r in emulator.requests[since:]]


@pytest.mark.long
@pytest.mark.parametrize("name", PAIRS)
def test_our_request_equals_the_sdks_request(
    name: str, client: LlamaCloudClient, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    sent = []
    for ours, one in ((True, client), (False, sdk(llamacloud_emulator))):
        llamacloud_emulator.reset()
        llamacloud_emulator.set_index(INDEX_FILINGS, sync_in_progress=name == "cancel a sync")
        sessions = [client.create_session([INDEX_FILINGS]).session_id for _ in range(5)]
        since = len(llamacloud_emulator.requests)
        result = PAIRS[name][0 if ours else 1](one, sessions[0])
        sent.append(wire(llamacloud_emulator, since, sessions[0]))
        assert result is not None or name == "delete"
    assert sent[0], "no request was logged"
    if name in {"list", "indexes"}:
        for request in [*sent[0], *sent[1]]:
            if "page_token" in request[2]:
                request[2]["page_token"] = "a token"  # opaque, and of another run
    assert sent[0] == sent[1]


@pytest.mark.parametrize("name", PAIRS)
def test_the_asynchronous_client_sends_what_the_synchronous_one_sends(
    name: str, client: LlamaCloudClient, config: Callable[..., ClientConfig], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    async def run(session_id: str) -> Any:
        async with await AsyncLlamaCloudClient.open(config()) as other:
            return await _awaited(PAIRS[name][0], other, session_id)

    results, sent = [], []
    for asynchronous in (False, True):
        llamacloud_emulator.reset()
        llamacloud_emulator.set_index(INDEX_FILINGS, sync_in_progress=name == "cancel a sync")
        sessions = [client.create_session([INDEX_FILINGS]).session_id for _ in range(5)]
        since = len(llamacloud_emulator.requests)
        result = asyncio.run(run(sessions[0])) if asynchronous else PAIRS[name][0](client, sessions[0])
        results.append(type(result))
        sent.append(wire(llamacloud_emulator, since, sessions[0]))
    for request in [*sent[0], *sent[1]]:
        request[2].pop("page_token", None)
    assert sent[0] == sent[1]
    assert results[0] is results[1]


class _Async:
    """Lets the synchronous form of a call be written once: iterators become lists, coroutines are awaited by the caller."""

    def __init__(self, client: AsyncLlamaCloudClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            made = getattr(self._client, name)(*args, **kwargs)
            return _Later(made)

        return call


class _Later:
    def __init__(self, made: Any) -> None:
        self.made = made

    def __iter__(self) -> Any:
        raise _Wanted(self)


class _Wanted(Exception):  # noqa: N818  # a signal, not an error
    def __init__(self, later: _Later) -> None:
        self.later = later


async def _awaited(call: Call, client: AsyncLlamaCloudClient, session_id: str) -> Any:
    try:
        later = call(_Async(client), session_id)
    except _Wanted as wanted:
        return [item async for item in wanted.later.made]
    return await later.made


def test_a_session_id_cannot_leave_its_path_segment(
    client: LlamaCloudClient, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    from airflow_provider_llamachat.exceptions import InvalidArgumentError, NotFoundError

    for session_id in ("../../x?y", "a/b", "a?b=c", "a#b", "%2e%2e", "ä ö", "a\r\nb"):
        before = len(llamacloud_emulator.requests)
        with pytest.raises(NotFoundError):
            client.get_session(session_id)
        (request,) = llamacloud_emulator.requests[before:]
        assert (request.method, request.query) == ("GET", {})
        assert request.path.startswith("/api/v1/chat/")
    for session_id in ("", " ", ".", ".."):
        before = len(llamacloud_emulator.requests)
        with pytest.raises(InvalidArgumentError):
            client.delete_session(session_id)
        assert len(llamacloud_emulator.requests) == before


def test_pages_are_fetched_as_the_iteration_needs_them(
    client: LlamaCloudClient, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    made = [client.create_session().session_id for _ in range(5)]
    before = len(llamacloud_emulator.requests)
    iterator = client.list_sessions(page_size=2)
    assert len(llamacloud_emulator.requests) == before
    first = next(iterator).session_id
    assert len(llamacloud_emulator.requests) == before + 1
    assert sorted([first, *(session.session_id for session in iterator)]) == sorted(made)
    assert len(llamacloud_emulator.requests) == before + 3


def test_project_and_organization_are_sent_with_every_call(
    config: Callable[..., ClientConfig], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with LlamaCloudClient(config(**SCOPE)) as client:
        session = client.create_session([INDEX_FILINGS])
        client.send_message(session.session_id, "What was the revenue?")
        client.get_session_summary(session.session_id)
        list(client.list_sessions())
        client.get_index(INDEX_FILINGS)
        client.delete_session(session.session_id)
    assert {tuple(sorted(request.query.items())) for request in llamacloud_emulator.requests} == {
        tuple(sorted((key, value) for key, value in SCOPE.items()))
    }


def test_unknown_fields_are_kept_and_missing_ones_are_not_an_error(
    client: LlamaCloudClient, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.omit_shared_access = True
    session = client.create_session([INDEX_FILINGS])
    assert session.shared_access is None
    assert session.index_ids == [INDEX_FILINGS]
    index = client.get_index(INDEX_FILINGS)
    assert index.model_dump()["export_config_id"]


@pytest.mark.parametrize(
    "call",
    [
        lambda c, s: c.create_session(projectid=OTHER),
        lambda c, s: c.get_session(s, projectid=OTHER),
        lambda c, s: c.delete_session(s, projectid=OTHER),
        lambda c, s: list(c.list_sessions(projectid=OTHER)),
        lambda c, s: c.get_index(INDEX_FILINGS, projectid=OTHER),
        lambda c, s: c.get_attachment_url(*PICTURE, projectid=OTHER),
        lambda c, s: list(c.stream_message(s, "Hello?", projectid=OTHER)),
        lambda c, s: c.send_message(s, "Hello?", projectid=OTHER),
    ],
)
def test_a_misspelled_project_is_refused_instead_of_ignored(
    call: Call, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    config = ClientConfig(api_key=llamacloud_emulator.api_key, base_url=llamacloud_emulator.url)
    with LlamaCloudClient(config) as client:
        session = client.create_session([INDEX_FILINGS])
        asked = len(llamacloud_emulator.requests)
        with pytest.raises(TypeError, match="projectid"):
            call(client, session.session_id)
    assert len(llamacloud_emulator.requests) == asked
