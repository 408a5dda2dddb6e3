"""Sessions: created, listed, read, deleted; keys, projects and every documented refusal."""

from __future__ import annotations

import re
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from airflow_provider_llamachat.testing import (
    DEFAULT_ORGANIZATION_ID,
    DEFAULT_PROJECT_ID,
    FOREIGN_PROJECT_ID,
    INDEX_BUILDING,
    INDEX_FILINGS,
    INDEX_HANDBOOK,
    INDEX_OTHER_PROJECT,
    OTHER_ORGANIZATION_ID,
    OTHER_PROJECT_ID,
    EmulatorControl,
    Fault,
    LlamaCloudEmulator,
)
from airflow_provider_llamachat.testing.faults import ENDPOINTS
from tests.emulator.conftest import Api
from tests.emulator.wire import exchange

pytestmark = pytest.mark.long


def test_a_session_from_creation_to_deletion(api: Api, emulator: LlamaCloudEmulator) -> None:
    created = api.http.post(
        "/api/v1/chat", json={"index_ids": [INDEX_FILINGS, INDEX_HANDBOOK], "shared_access": "query"}
    )
    assert created.status_code == 201
    session = created.json()
    assert re.fullmatch(r"ses-[0-9a-f]{16}", session["session_id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", session["last_updated_at"])
    assert session["index_ids"] == [INDEX_FILINGS, INDEX_HANDBOOK]
    assert session["shared_access"] == "query"
    assert session["job_metadata"] is None
    assert session["generated_title"] is None
    path = f"/api/v1/chat/{session['session_id']}"
    assert api.http.get(path + "/summary").json() == session
    assert api.http.get(path).json() == {**session, "events": []}
    assert emulator.sessions == {session["session_id"]: {**session, "events": []}}
    deleted = api.http.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    for gone in (api.http.get(path), api.http.get(path + "/summary"), api.http.delete(path)):
        assert gone.status_code == 404
        assert gone.json() == {"detail": f"Session {session['session_id']} not found."}
    assert emulator.deleted == [session["session_id"]]
    assert emulator.sessions == {}


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b'{"index_ids": null, "shared_access": null}'])
def test_an_unbound_session(content: bytes, api: Api) -> None:
    answer = api.http.post("/api/v1/chat", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 201
    assert answer.json()["index_ids"] is None
    assert answer.json()["shared_access"] == "read_only"


def test_a_session_can_be_bound_to_an_index_that_is_not_ready(api: Api) -> None:
    assert api.create([INDEX_BUILDING])


CREATE_REFUSALS: list[tuple[Any, list[Any], str]] = [
    ({"index_ids": [f"i{n}" for n in range(11)]}, ["body", "index_ids"], "too_long"),
    ({"index_ids": "idx-filings"}, ["body", "index_ids"], "list_type"),
    ({"index_ids": [1]}, ["body", "index_ids", 0], "string_type"),
    ({"shared_access": "write"}, ["body", "shared_access"], "literal_error"),
    ({"shared_access": ["query"]}, ["body", "shared_access"], "literal_error"),
    (["idx-filings"], ["body"], "model_attributes_type"),
]


@pytest.mark.parametrize(("body", "loc", "kind"), CREATE_REFUSALS)
def test_create_lists_invalid_fields(
    body: Any, loc: list[Any], kind: str, api: Api, emulator: LlamaCloudEmulator
) -> None:
    answer = api.http.post("/api/v1/chat", json=body)
    assert answer.status_code == 422
    (entry,) = answer.json()["detail"]
    assert (entry["loc"], entry["type"]) == (loc, kind)
    assert entry["msg"]
    assert "input" in entry
    assert emulator.sessions == {}


def test_the_limit_of_indexes_is_worded_as_the_api_words_it(api: Api) -> None:
    (entry,) = api.http.post("/api/v1/chat", json={"index_ids": ["i"] * 11}).json()["detail"]
    assert entry["msg"] == "List should have at most 10 items after validation, not 11"
    assert entry["ctx"] == {"field_type": "List", "max_length": 10, "actual_length": 11}
    assert entry["input"] == ["i"] * 11


def test_ten_indexes_are_accepted(api: Api, emulator: LlamaCloudEmulator) -> None:
    ids = [f"idx-{number}" for number in range(10)]
    for index_id in ids:
        emulator.add_index(index_id)
    session_id = api.create(ids)
    assert emulator.sessions[session_id]["index_ids"] == ids


def test_broken_json_and_other_content_types(api: Api) -> None:
    broken = api.http.post("/api/v1/chat", content=b'{"index_ids": [', headers={"content-type": "application/json"})
    assert broken.status_code == 422
    assert broken.json()["detail"][0]["type"] == "json_invalid"
    form = api.http.post("/api/v1/chat", data={"index_ids": "x"})
    assert form.json()["detail"][0]["type"] == "model_attributes_type"
    deep = api.http.post("/api/v1/chat", content=b"[" * 200_000, headers={"content-type": "application/json"})
    assert (deep.status_code, deep.json()) == (400, {"detail": "There was an error parsing the body"})
    big = api.http.post("/api/v1/chat", json={"index_ids": ["x" * 2_000_000]})
    assert big.status_code == 413


@pytest.mark.parametrize(
    ("method", "path"),
    [(method, "/api/v1" + path.format(id="x")) for method, path in ENDPOINTS.values()]
    + [("POST", "/nowhere"), ("PUT", "/api/v1/chat")],
)
def test_a_large_body_is_refused_by_every_endpoint(
    method: str, path: str, api: Api, emulator: LlamaCloudEmulator
) -> None:
    emulator.inject(Fault("status", status=503))
    answer = api.http.request(method, path, json={"index_ids": ["x" * 2**20]})
    assert (answer.status_code, answer.json()) == (413, {"detail": answer.reason_phrase})
    (record,) = emulator.requests
    assert (record.status, record.fault, record.request_id) == (413, None, answer.headers["x-request-id"])
    # The fault waits for a request that the server reads.
    assert len(emulator.faults) == 1


def test_a_body_that_is_too_large_is_refused_before_all_of_it_has_come(emulator: LlamaCloudEmulator) -> None:
    address = urlsplit(emulator.url)
    head = f"POST /api/v1/chat HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {2**33}\r\n\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as sock:
        sock.sendall(head.encode() + b"x" * 2**20 + b"x")
        answer = sock.recv(65536)
    (record,) = emulator.requests
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert f"x-request-id: {record.request_id}\r\n".encode() in answer
    assert (record.status, record.body) == (413, None)


def test_the_control_api_takes_large_documents(emulator: LlamaCloudEmulator) -> None:
    EmulatorControl(emulator.url).add_index("idx-large", documents=["word " * 2**20])
    assert "idx-large" in emulator.indexes


def test_an_unknown_index_is_404_with_text(api: Api, emulator: LlamaCloudEmulator) -> None:
    answer = api.http.post("/api/v1/chat", json={"index_ids": [INDEX_FILINGS, "idx-nowhere"]})
    assert (answer.status_code, answer.json()) == (404, {"detail": "Index idx-nowhere not found."})
    assert emulator.sessions == {}


def test_pages_newest_first(api: Api) -> None:
    made = [api.create() for _ in range(7)]
    api.create(project_id=OTHER_PROJECT_ID)
    seen: list[str] = []
    token: str | None = None
    newcomer = ""
    sizes: list[int] = []
    while True:
        page = api.http.get("/api/v1/chat", params={"page_size": 3, **({"page_token": token} if token else {})}).json()
        sizes.append(len(page["items"]))
        seen += [item["session_id"] for item in page["items"]]
        assert all("events" not in item for item in page["items"])
        token = page["next_page_token"]
        if token is None:
            break
        if len(sizes) == 1:
            # What comes and goes between two pages neither doubles nor hides anything that stays.
            newcomer = api.create()
            api.http.delete(f"/api/v1/chat/{made[3]}")
    assert seen == [session_id for session_id in reversed(made) if session_id != made[3]]
    assert newcomer not in seen
    assert sizes == [3, 3]


def test_a_full_last_page_has_no_token(api: Api) -> None:
    for _ in range(4):
        api.create()
    page = api.http.get("/api/v1/chat", params={"page_size": 4}).json()
    assert (len(page["items"]), page["next_page_token"]) == (4, None)


@pytest.mark.parametrize(
    ("params", "status", "kind"),
    [
        ({"page_size": "many"}, 422, "int_parsing"),
        ({"page_size": "0"}, 422, "greater_than_equal"),
        ({"page_token": "nonsense"}, 400, None),
        ({"page_token": "YWZ0ZXI6eA=="}, 400, None),
        ({"project_id": "mine"}, 422, "uuid_parsing"),
        ({"organization_id": ""}, 422, "uuid_parsing"),
    ],
)
def test_bad_queries(params: dict[str, str], status: int, kind: str | None, api: Api) -> None:
    answer = api.http.get("/api/v1/chat", params=params)
    assert answer.status_code == status
    if kind is None:
        assert answer.json() == {"detail": "Invalid page token."}
    else:
        (entry,) = answer.json()["detail"]
        assert (entry["loc"][0], entry["type"]) == ("query", kind)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer llx-other",
        "Basic llx-emulator-0000",
        "llx-emulator-0000",
        "Bearer llx-emulator-000",
    ],
)
def test_keys_that_are_refused(header: str | None, emulator: LlamaCloudEmulator) -> None:
    answer = httpx.get(f"{emulator.url}/api/v1/chat", headers={} if header is None else {"Authorization": header})
    assert answer.status_code == 401
    assert answer.json() == {"detail": "Invalid or missing API key."}
    (record,) = emulator.requests
    assert record.headers.get("Authorization") == (None if header is None else "Bearer <refused>")
    assert "llx" not in repr(record)


def test_every_answer_has_its_own_request_id(api: Api, emulator: LlamaCloudEmulator) -> None:
    session_id = api.bound()
    answers = [
        api.http.get("/api/v1/chat"),
        api.ask(session_id),
        api.http.get("/nowhere"),
        httpx.get(f"{emulator.url}/api/v1/chat"),
        api.http.delete(f"/api/v1/chat/{session_id}"),
    ]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert [record.request_id for record in emulator.requests[1:]] == ids


def test_paths_and_methods_that_do_not_exist(api: Api, emulator: LlamaCloudEmulator) -> None:
    for path in ("/", "/api/v1", "/api/v1/chat/", "/api/v1/chat/x/messages", "/api/v2/chat", "/api/v1/beta/chat"):
        answer = api.http.get(path)
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"}), path
    put = api.http.put("/api/v1/chat")
    assert (put.status_code, put.json()) == (405, {"detail": "Method Not Allowed"})
    assert put.headers["allow"] == "POST, GET"
    assert api.http.get("/api/v1/chat/x/messages/stream").status_code == 405
    assert emulator.requests[0].endpoint is None


def test_a_request_for_an_absolute_url_is_answered_with_404(emulator: LlamaCloudEmulator) -> None:
    received, _ = exchange(emulator, "GET", f"{emulator.url}/api/v1/projects")
    assert received.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert [(record.path, record.endpoint) for record in emulator.requests] == [
        (f"{emulator.url}/api/v1/projects", None)
    ]


def test_an_encoded_id_stays_in_its_segment(api: Api, emulator: LlamaCloudEmulator) -> None:
    answer = api.http.get("/api/v1/chat/..%2F..%2Fx%3Fy")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Session ../../x?y not found."})
    (record,) = emulator.requests
    assert (record.path, record.session_id, record.endpoint) == ("/api/v1/chat/..%2F..%2Fx%3Fy", "../../x?y", "get")


def test_sessions_are_visible_only_in_their_project(api: Api) -> None:
    mine, theirs = api.bound(), api.create([INDEX_OTHER_PROJECT], project_id=OTHER_PROJECT_ID)
    assert api.http.get(f"/api/v1/chat/{mine}", params={"project_id": DEFAULT_PROJECT_ID}).status_code == 200
    assert api.http.get(f"/api/v1/chat/{mine}", params={"project_id": OTHER_PROJECT_ID}).status_code == 404
    assert api.http.get(f"/api/v1/chat/{theirs}").status_code == 404
    assert api.http.get(f"/api/v1/chat/{theirs}/summary", params={"project_id": OTHER_PROJECT_ID}).status_code == 200
    assert api.http.delete(f"/api/v1/chat/{theirs}").status_code == 404
    assert api.ask(theirs).status_code == 404
    listed = api.http.get("/api/v1/chat", params={"project_id": OTHER_PROJECT_ID}).json()["items"]
    assert [item["session_id"] for item in listed] == [theirs]
    elsewhere = api.http.post(
        "/api/v1/chat", json={"index_ids": [INDEX_FILINGS]}, params={"project_id": OTHER_PROJECT_ID}
    )
    assert elsewhere.status_code == 404


def test_organizations(api: Api) -> None:
    foreign = api.create(organization_id=OTHER_ORGANIZATION_ID)
    assert api.http.get(f"/api/v1/chat/{foreign}", params={"project_id": FOREIGN_PROJECT_ID}).status_code == 200
    assert (
        api.http.get(f"/api/v1/chat/{foreign}", params={"organization_id": DEFAULT_ORGANIZATION_ID}).status_code == 404
    )
    crossed = {"project_id": DEFAULT_PROJECT_ID, "organization_id": OTHER_ORGANIZATION_ID}
    assert api.http.get("/api/v1/chat", params=crossed).json() == {"detail": f"Project {DEFAULT_PROJECT_ID} not found."}
    nowhere = "00000000-0000-4000-8000-000000000000"
    for params in ({"project_id": nowhere}, {"organization_id": nowhere}):
        assert api.http.get("/api/v1/chat", params=params).status_code == 404


def test_the_log_records_each_request(api: Api, emulator: LlamaCloudEmulator) -> None:
    api.http.get("/api/v1/chat?page_size=2&tag=a&tag=b&tag=c", headers={"Cookie": "s=1", "X-Api-Key": "k"})
    api.http.post("/api/v1/chat", json={"index_ids": None})
    api.http.post("/api/v1/chat", content=b"{", headers={"content-type": "application/json"})
    first, second, third = emulator.requests
    assert (first.number, first.method, first.path, first.endpoint) == (1, "GET", "/api/v1/chat", "list")
    assert first.query == {"page_size": "2", "tag": ["a", "b", "c"]}
    assert first.headers["AUTHORIZATION"] == "Bearer <accepted>"
    assert "Authorization" in first.headers
    assert first.headers["cookie"] == first.headers["x-api-key"] == "<withheld>"
    assert first.body is None
    assert (second.body, second.status, second.fault) == ({"index_ids": None}, 201, None)
    assert (third.body, third.status) == (None, 422)
    assert first.time <= second.time <= third.time
