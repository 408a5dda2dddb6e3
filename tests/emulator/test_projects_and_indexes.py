"""Projects and indexes: lists, filters, build states, syncs."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from airflow_provider_llamachat.testing import (
    DEFAULT_ORGANIZATION_ID,
    DEFAULT_PROJECT_ID,
    FOREIGN_PROJECT_ID,
    INDEX_BUILDING,
    INDEX_FAILED,
    INDEX_FILINGS,
    INDEX_HANDBOOK,
    INDEX_OTHER_PROJECT,
    OTHER_ORGANIZATION_ID,
    OTHER_PROJECT_ID,
    LlamaCloudEmulator,
)
from tests.emulator.conftest import Api, Clock, eventually


def test_projects_and_their_filters(api: Api, emulator: LlamaCloudEmulator) -> None:
    def ids(**params: str) -> list[str]:
        return [project["id"] for project in api.http.get("/api/v1/projects", params=params).json()]

    assert ids() == [DEFAULT_PROJECT_ID, OTHER_PROJECT_ID, FOREIGN_PROJECT_ID]
    assert ids(organization_id=DEFAULT_ORGANIZATION_ID) == [DEFAULT_PROJECT_ID, OTHER_PROJECT_ID]
    assert ids(project_name="Default") == [DEFAULT_PROJECT_ID, FOREIGN_PROJECT_ID]
    assert ids(project_name="Default", organization_id=OTHER_ORGANIZATION_ID) == [FOREIGN_PROJECT_ID]
    assert ids(project_name="Nothing") == []
    one = api.http.get(f"/api/v1/projects/{OTHER_PROJECT_ID}").json()
    assert (one["name"], one["organization_id"], one["is_default"]) == ("Contracts", DEFAULT_ORGANIZATION_ID, False)
    assert emulator.projects[OTHER_PROJECT_ID] == one
    bad = api.http.get("/api/v1/projects/mine")
    assert (bad.status_code, bad.json()["detail"][0]["loc"]) == (422, ["path", "project_id"])
    assert api.http.get("/api/v1/projects", params={"organization_id": "x"}).status_code == 422
    wrong = api.http.get(f"/api/v1/projects/{OTHER_PROJECT_ID}", params={"organization_id": OTHER_ORGANIZATION_ID})
    assert wrong.status_code == 404


def test_indexes_of_a_project(api: Api, emulator: LlamaCloudEmulator) -> None:
    listed = api.http.get("/api/v1/indexes").json()["items"]
    assert [index["id"] for index in listed] == [INDEX_FILINGS, INDEX_HANDBOOK, INDEX_BUILDING, INDEX_FAILED]
    assert [index["metadata"]["status"] for index in listed] == ["ready", "ready", "building", "failed"]
    assert listed[3]["metadata"]["error_message"] == "Parsing failed: letters-1998.pdf is encrypted."
    assert "error_message" not in listed[0]["metadata"]
    assert all(index["sync_in_progress"] is None for index in listed)
    other = api.http.get("/api/v1/indexes", params={"project_id": OTHER_PROJECT_ID}).json()["items"]
    assert [index["id"] for index in other] == [INDEX_OTHER_PROJECT]
    directory = listed[1]["source_directory_id"]
    filtered = api.http.get("/api/v1/indexes", params={"source_directory_id": directory}).json()["items"]
    assert [index["id"] for index in filtered] == [INDEX_HANDBOOK]
    assert set(emulator.indexes) == {index["id"] for index in listed + other}


def test_pages_of_indexes(api: Api) -> None:
    first = api.http.get("/api/v1/indexes", params={"page_size": 3}).json()
    second = api.http.get("/api/v1/indexes", params={"page_size": 3, "page_token": first["next_page_token"]}).json()
    assert [len(first["items"]), len(second["items"])] == [3, 1]
    assert second["next_page_token"] is None
    for token in ("nonsense", "YWZ0ZXI6bm93aGVyZQ=="):
        assert api.http.get("/api/v1/indexes", params={"page_token": token}).status_code == 400


def test_one_index(api: Api) -> None:
    index = api.http.get(f"/api/v1/indexes/{INDEX_FILINGS}", params={"expand": "sync_in_progress"}).json()
    assert index["sync_in_progress"] is False
    assert index["project_id"] == DEFAULT_PROJECT_ID
    assert datetime.fromisoformat(index["last_synced_at"]).tzinfo is not None
    for missing in (
        api.http.get("/api/v1/indexes/idx-nowhere"),
        api.http.get(f"/api/v1/indexes/{INDEX_FILINGS}", params={"project_id": OTHER_PROJECT_ID}),
        api.http.post("/api/v1/indexes/idx-nowhere/sync"),
    ):
        assert missing.status_code == 404
        assert missing.json()["detail"].endswith(" not found.")


def test_a_sync_can_be_cancelled_while_it_runs(api: Api, emulator: LlamaCloudEmulator) -> None:
    path, before = f"/api/v1/indexes/{INDEX_FILINGS}", emulator.indexes[INDEX_FILINGS]["last_synced_at"]
    emulator.settings.sync_seconds = 3600.0
    assert api.http.post(path + "/sync/cancel").status_code == 409
    assert api.http.post(path + "/sync").status_code == 202
    assert api.http.post(path + "/sync/cancel").status_code == 200
    index = api.http.get(path, params={"expand": "sync_in_progress"}).json()
    assert (index["sync_in_progress"], index["last_synced_at"]) == (False, before)
    assert api.http.post(path + "/sync/cancel").status_code == 409


def test_a_sync_takes_its_time_and_moves_last_synced_at(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.sync_seconds = 0.3
    path = f"/api/v1/indexes/{INDEX_FILINGS}"

    def read() -> tuple[str, bool, str]:
        index = api.http.get(path, params={"expand": "sync_in_progress"}).json()
        return index["last_synced_at"], index["sync_in_progress"], index["metadata"]["status"]

    before = read()[0]
    assert api.http.post(path + "/sync").status_code == 202
    again = api.http.post(path + "/sync")
    assert (again.status_code, "already in progress" in again.json()["detail"]) == (409, True)
    assert read() == (before, True, "ready")
    emulator.settings.sync_status = "syncing"
    assert read() == (before, True, "syncing")
    eventually(lambda: not read()[1])
    after, _, status = read()
    assert after > before
    assert status == "ready"
    assert emulator.indexes[INDEX_FILINGS]["last_synced_at"] == after
    assert api.http.post(path + "/sync").status_code == 202


def test_a_sync_that_a_test_holds_moves_last_synced_at_and_ends_when_the_test_says_so(
    api: Api, emulator: LlamaCloudEmulator, clock: Clock
) -> None:
    path, before = f"/api/v1/indexes/{INDEX_FILINGS}", emulator.indexes[INDEX_FILINGS]["last_synced_at"]
    emulator.settings.sync_seconds = 60.0
    assert api.http.post(path + "/sync").status_code == 202
    emulator.set_index(INDEX_FILINGS, sync_in_progress=True)
    clock.forward()
    index = emulator.indexes[INDEX_FILINGS]
    assert (index["sync_in_progress"], index["last_synced_at"] > before) == (True, True)
    assert api.http.post(path + "/sync").status_code == 409
    emulator.set_index(INDEX_FILINGS, sync_in_progress=False)
    assert emulator.indexes[INDEX_FILINGS]["sync_in_progress"] is False
    # A sync that a client started and a test ends leaves the index as it was.
    after = emulator.indexes[INDEX_FILINGS]["last_synced_at"]
    assert api.http.post(path + "/sync").status_code == 202
    emulator.set_index(INDEX_FILINGS, sync_in_progress=False)
    clock.forward()
    assert emulator.indexes[INDEX_FILINGS]["last_synced_at"] == after
    # A client can cancel what a test holds.
    emulator.set_index(INDEX_FILINGS, sync_in_progress=True)
    assert api.http.post(path + "/sync/cancel").status_code == 200
    assert emulator.indexes[INDEX_FILINGS]["sync_in_progress"] is False


def test_a_schedule_is_what_it_was_when_it_was_set(api: Api, emulator: LlamaCloudEmulator) -> None:
    step = {"status": "parsing"}
    emulator.index_schedule(INDEX_BUILDING, [step])
    step["status"] = "changed"
    assert api.http.get(f"/api/v1/indexes/{INDEX_BUILDING}").json()["metadata"] == {"status": "parsing"}


def test_a_schedule_moves_with_each_read(api: Api, emulator: LlamaCloudEmulator) -> None:
    failed = {"status": "failed", "error_message": "no text in it"}
    emulator.index_schedule(INDEX_BUILDING, ["parsing", "embedding", failed])
    read = [api.http.get(f"/api/v1/indexes/{INDEX_BUILDING}").json()["metadata"] for _ in range(4)]
    assert read == [{"status": "parsing"}, {"status": "embedding"}, failed, failed]
    emulator.index_schedule(INDEX_BUILDING, ["parsing", "ready"])
    assert emulator.indexes[INDEX_BUILDING]["metadata"]["status"] == "failed"
    emulator.set_index(INDEX_BUILDING, status="ready", error_message=None)
    assert api.http.get(f"/api/v1/indexes/{INDEX_BUILDING}").json()["metadata"] == {"status": "ready"}


def test_indexes_made_and_changed_by_a_test(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.add_index(
        "idx-mine",
        name="Mine",
        documents=[
            "The harbour opens at six.",
            {"text": "The ferry costs nine crowns.", "document": "Fares", "page": 4},
        ],
    )
    assert api.http.get("/api/v1/indexes/idx-mine").json()["name"] == "Mine"
    session_id = api.create(["idx-mine"])
    assert "nine crowns. (Fares, page 4)" in api.ask(session_id, "What does the ferry cost?", ["idx-mine"]).text
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    emulator.set_index("idx-mine", sync_in_progress=True, last_synced_at=moment)
    index = api.http.get("/api/v1/indexes/idx-mine", params={"expand[]": "sync_in_progress"}).json()
    assert (index["sync_in_progress"], index["last_synced_at"]) == (True, "2026-01-02T00:00:00.000000Z")
    assert api.http.post("/api/v1/indexes/idx-mine/sync").status_code == 409
    emulator.set_index("idx-mine", sync_in_progress=False)
    assert api.http.post("/api/v1/indexes/idx-mine/sync").status_code == 202
    emulator.set_index("idx-mine", sync_in_progress=False)
    assert emulator.indexes["idx-mine"]["sync_in_progress"] is False


def test_invalid_index_arguments_are_refused(emulator: LlamaCloudEmulator) -> None:
    with pytest.raises(ValueError, match="no index 'idx-nowhere'"):
        emulator.set_index("idx-nowhere", status="ready")
    with pytest.raises(ValueError, match="no 'state'"):
        emulator.set_index(INDEX_FILINGS, state="ready")
    with pytest.raises(ValueError, match="no project 'x'"):
        emulator.add_index("idx-mine", project_id="x")
    with pytest.raises(ValueError, match="Document 2 is neither"):
        emulator.add_index("idx-mine", documents=["good", {"page": 1}])
    started = time.monotonic()
    assert "idx-mine" not in emulator.indexes
    assert time.monotonic() - started < 25
