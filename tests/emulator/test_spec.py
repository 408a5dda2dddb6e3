"""Answers against the schemas of the vendor's OpenAPI document, where a copy of it lies beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from airflow_provider_llamachat.testing import (
    DEFAULT_PROJECT_ID,
    INDEX_BUILDING,
    INDEX_FILINGS,
    Fault,
    LlamaCloudEmulator,
)
from tests.emulator.conftest import Api, events


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    path = Path(__file__).resolve().parents[2].parent / "shared" / "llamacloud" / "openapi-chat.json"
    if not path.is_file():
        pytest.skip("there is no copy of the vendor's OpenAPI document beside the checkout")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


class Judge:
    """Holds answers to what the document says of their endpoint and status."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec

    def schema(self, schema: dict[str, Any], value: Any) -> None:
        whole = {**schema, "components": self._spec["components"]}
        validator = Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
        assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)] == []

    def answer(self, path: str, answer: httpx.Response, status: int) -> Any:
        assert answer.status_code == status, answer.text
        described = self._spec["paths"][path][answer.request.method.lower()]["responses"][str(status)]
        if "content" not in described:
            assert answer.content == b""
            return None
        self.schema(described["content"]["application/json"]["schema"], answer.json())
        return answer.json()

    def component(self, name: str, value: Any) -> None:
        self.schema({"$ref": f"#/components/schemas/{name}"}, value)


CHAT = "/api/v1/chat"
SESSION = CHAT + "/{session_id}"
STREAM = SESSION + "/messages/stream"


def test_every_endpoint_and_refusal(spec: dict[str, Any], api: Api, emulator: LlamaCloudEmulator) -> None:
    judge = Judge(spec)
    created = judge.answer(CHAT, api.http.post(CHAT, json={"index_ids": [INDEX_FILINGS, INDEX_BUILDING]}), 201)
    here = f"{CHAT}/{created['session_id']}"
    judge.answer(CHAT, api.http.post(CHAT, json={}), 201)
    judge.answer(CHAT, api.http.post(CHAT, json={"index_ids": ["i"] * 11}), 422)
    judge.answer(CHAT, api.http.get(CHAT, params={"page_size": 1}), 200)
    judge.answer(CHAT, api.http.get(CHAT, params={"page_size": "x", "project_id": "y"}), 422)
    judge.answer(SESSION, api.http.get(here), 200)
    for fault in (None, Fault("error_stop", after_events=8, detail="overloaded")):
        if fault is not None:
            emulator.inject(fault)
        stream = api.ask(created["session_id"], index_ids=[INDEX_FILINGS, INDEX_BUILDING])
        for _, data in events(stream.text):
            name = "".join(part.capitalize() for part in data["type"].split("_")) + "Event"
            judge.component(name, data)
    judge.answer(SESSION, api.http.get(here), 200)
    judge.answer(SESSION + "/summary", api.http.get(here + "/summary"), 200)
    judge.answer(STREAM, api.ask(created["session_id"], "x" * 1001), 422)
    judge.answer(STREAM, api.ask(created["session_id"], index_ids=[]), 422)
    judge.answer(STREAM, api.http.post(here + "/messages/stream"), 422)
    judge.answer(SESSION, api.http.delete(here), 204)
    judge.answer("/api/v1/projects", api.http.get("/api/v1/projects"), 200)
    judge.answer("/api/v1/projects", api.http.get("/api/v1/projects", params={"organization_id": "x"}), 422)
    project = "/api/v1/projects/{project_id}"
    judge.answer(project, api.http.get(f"/api/v1/projects/{DEFAULT_PROJECT_ID}"), 200)
    judge.answer(project, api.http.get("/api/v1/projects/x"), 422)
    judge.answer("/api/v1/indexes", api.http.get("/api/v1/indexes"), 200)
    index = "/api/v1/indexes/{index_id}"
    judge.answer(index, api.http.get(f"/api/v1/indexes/{INDEX_BUILDING}", params={"expand": "sync_in_progress"}), 200)
    judge.answer(index + "/sync", api.http.post(f"/api/v1/indexes/{INDEX_FILINGS}/sync"), 202)
    served = {(record.method.lower(), record.endpoint) for record in emulator.requests}
    # Making and deleting indexes is the one part of the document that the emulator leaves to its test's own words.
    described = {(method, path) for path, methods in spec["paths"].items() for method in methods}
    assert len(served) == len(described - {("delete", index)})


def test_the_documented_limits_are_the_defaults(spec: dict[str, Any], emulator: LlamaCloudEmulator) -> None:
    schemas = spec["components"]["schemas"]
    assert schemas["ChatParams"]["properties"]["prompt"]["maxLength"] == emulator.settings.max_prompt
    assert schemas["SessionCreate"]["properties"]["index_ids"]["anyOf"][0]["maxItems"] == emulator.settings.max_indexes
