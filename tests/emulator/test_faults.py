"""Each fault that can meet any request, as it looks on the wire, and what the server did all the same."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.emulator.conftest import Api, events, eventually
from tests.emulator.wire import ask, exchange

pytestmark = pytest.mark.long

CREATE = ("POST", "/api/v1/chat", {"index_ids": [INDEX_FILINGS]})


def test_status(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(
        Fault("status"),
        Fault("status", status=429, retry_after="Wed, 21 Oct 2065 07:28:00 GMT", detail="slow down"),
        Fault("status", status=422, detail=[{"loc": ["body"], "msg": "no", "type": "x"}]),
        Fault("status", status=599),
    )
    answers = [api.http.post("/api/v1/chat", json={}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [500, 429, 422, 599]
    assert [answer.json()["detail"] for answer in answers] == [
        "Internal Server Error",
        "slow down",
        [{"loc": ["body"], "msg": "no", "type": "x"}],
        "Error",
    ]
    assert [answer.headers.get("retry-after") for answer in answers] == [
        None,
        "Wed, 21 Oct 2065 07:28:00 GMT",
        None,
        None,
    ]
    assert [(record.status, record.fault) for record in emulator.requests] == [
        (answer.status_code, "status") for answer in answers
    ]
    assert emulator.sessions == {}


def test_delay(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault("delay", delay=0.3))
    started = time.monotonic()
    api.create()
    assert time.monotonic() - started >= 0.3
    # Whoever leaves during the delay has not had anything done.
    emulator.inject(Fault("delay", delay=60))
    with pytest.raises(httpx.ReadTimeout):
        api.http.post("/api/v1/chat", json={}, timeout=1.0)
    assert len(emulator.sessions) == 1
    assert [(record.status, record.fault) for record in emulator.requests] == [(201, "delay"), (None, "delay")]


def test_a_failure_can_be_delayed(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault("status", status=503, delay=0.2))
    started = time.monotonic()
    assert api.http.get("/api/v1/chat").status_code == 503
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(("kind", "processed"), [("hang", False), ("hang_after", True)])
def test_hang(kind: str, processed: bool, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault(kind))

    def noted(received: bytes) -> bool:
        return [record.fault for record in emulator.requests] == [kind] and len(emulator.sessions) == processed

    assert exchange(emulator, *CREATE, silent_after=noted) == (b"", "silence")
    assert len(emulator.sessions) == processed
    (record,) = emulator.requests
    assert (record.status, record.fault, record.body) == (None, kind, {"index_ids": [INDEX_FILINGS]})


@pytest.mark.parametrize(("kind", "processed"), [("reset_before", False), ("reset_after", True)])
def test_reset(kind: str, processed: bool, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault(kind))
    assert exchange(emulator, *CREATE) == (b"", "reset")
    assert len(emulator.sessions) == processed
    (record,) = emulator.requests
    assert (record.status, record.fault, record.body) == (None, kind, {"index_ids": [INDEX_FILINGS]})


def test_truncated_body(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault("truncated_body"), Fault("truncated_body", endpoint="get"))
    received, end = exchange(emulator, *CREATE)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 Created\r\n")
    assert end == "end"
    promised = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert 0 < len(body) < promised
    (session_id,) = emulator.sessions
    with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection without sending complete message body"):
        api.http.get(f"/api/v1/chat/{session_id}")


def test_malformed_json(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault("malformed_json", times=3))
    created = api.http.post("/api/v1/chat", json={})
    (session_id,) = emulator.sessions
    read, deleted = api.http.get(f"/api/v1/chat/{session_id}"), api.http.delete(f"/api/v1/chat/{session_id}")
    assert [answer.status_code for answer in (created, read, deleted)] == [201, 200, 200]
    for answer in (created, read, deleted):
        assert answer.headers["content-type"] == "application/json"
        with pytest.raises(json.JSONDecodeError):
            answer.json()
    assert emulator.deleted == [session_id]


def test_redirect(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(
        Fault("redirect", location="http://127.0.0.1:1/elsewhere"), Fault("redirect", location="/x", status=302)
    )
    first, second = api.http.post("/api/v1/chat", json={}), api.http.get("/api/v1/chat")
    assert (first.status_code, first.headers["location"]) == (307, "http://127.0.0.1:1/elsewhere")
    assert (second.status_code, second.headers["location"]) == (302, "/x")
    assert emulator.sessions == {}


def test_html(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault("html", status=502, retry_after="7"), Fault("html", status=200))
    bad = api.http.post("/api/v1/chat", json={})
    assert (bad.status_code, bad.headers["retry-after"]) == (502, "7")
    assert bad.headers["content-type"].startswith("text/html")
    assert "<h1>502 Bad Gateway</h1>" in bad.text
    assert api.http.get("/api/v1/chat").status_code == 200
    assert emulator.sessions == {}


@pytest.mark.parametrize("status", [None, 500])
def test_huge(status: int | None, api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault("huge", status=status))
    size = 0
    with api.http.stream("GET", "/api/v1/chat") as answer:
        assert answer.status_code == (status or 200)
        assert "content-length" not in answer.headers
        for chunk in answer.iter_raw():
            size += len(chunk)
            assert b"}" not in chunk
    assert 64 * 2**20 <= size < 65 * 2**20


def test_a_huge_event_and_other_requests_meanwhile(api: Api, emulator: LlamaCloudEmulator) -> None:
    session_id = api.bound()
    emulator.inject(Fault("huge", endpoint="stream"))
    body = {"index_ids": [INDEX_FILINGS], "prompt": "x"}
    with api.http.stream("POST", f"/api/v1/chat/{session_id}/messages/stream", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        chunks = answer.iter_raw()
        first = next(chunks) + next(chunks)
        assert first.startswith(b'event: message\ndata: {"type":"text","content":"a')
        # Read no further: the server waits for this client, and serves others.
        assert httpx.get(f"{emulator.url}/nowhere", timeout=60).status_code == 404
    assert emulator.turns == []


def test_which_requests_a_fault_affects(api: Api, emulator: LlamaCloudEmulator) -> None:
    first, second = api.bound(), api.bound()

    def statuses() -> list[int]:
        return [
            api.http.get("/api/v1/chat").status_code,
            api.http.get(f"/api/v1/chat/{first}").status_code,
            api.http.get(f"/api/v1/chat/{second}/summary").status_code,
            api.ask(first, "What is new?").status_code,
            api.http.get("/api/v1/projects").status_code,
            api.http.get("/nowhere").status_code,
        ]

    healthy = [200, 200, 200, 200, 200, 404]
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"endpoint": "list"}, [0]),
        ({"endpoint": "summary"}, [2]),
        ({"method": "post"}, [3]),
        ({"path": r"^/api/v1/chat"}, [0, 1, 2, 3]),
        ({"path": r"summary$"}, [2]),
        ({"session_id": first}, [1, 3]),
        ({"session_id": second}, [2]),
        ({"prompt": "new"}, [3]),
        ({"prompt": "old"}, []),
        ({"method": "GET", "session_id": first}, [1]),
        ({}, [0, 1, 2, 3, 4, 5]),
    ]
    for wish, places in cases:
        emulator.inject(Fault("status", status=503, times=None, **wish))
        expected = [503 if place in places else status for place, status in enumerate(healthy)]
        assert statuses() == expected, wish
        assert len(emulator.faults) == 1
        emulator.clear_faults()
    assert statuses() == healthy


def test_how_often_and_in_what_order(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault("status", status=503, skip=2, times=2), Fault("status", status=501))
    assert [api.http.get("/api/v1/chat").status_code for _ in range(6)] == [501, 200, 503, 503, 200, 200]
    assert emulator.faults == []


def test_a_fault_acts_before_the_key_is_checked(emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault("status", status=502), Fault("reset_after"))
    assert httpx.get(f"{emulator.url}/api/v1/chat").status_code == 502
    with pytest.raises(httpx.ReadError):
        httpx.get(f"{emulator.url}/api/v1/chat")
    assert httpx.get(f"{emulator.url}/api/v1/chat").status_code == 401


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "explode"}, "no fault 'explode'"),
        ({"kind": "status", "endpoint": "chat"}, "no endpoint 'chat'"),
        ({"kind": "stall", "endpoint": "create"}, "affects only streams"),
        ({"kind": "redirect"}, "needs a location"),
        ({"kind": "status", "times": 0}, "times must be at least 1"),
        ({"kind": "delay", "delay": -1.0}, "delay and after_events must be at least 0"),
        ({"kind": "status", "path": "("}, "not a regular expression"),
    ],
)
def test_invalid_faults_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fault(**arguments)


# The same kinds where the request is a prompt: "processed" then means that the turn was accepted and begun.


@pytest.mark.parametrize("kind", ["status", "hang", "reset_before", "html"])
def test_a_fault_before_processing_leaves_no_turn(kind: str, api: Api, emulator: LlamaCloudEmulator) -> None:
    session_id = api.bound()
    emulator.inject(Fault(kind, endpoint="stream"))
    ask(emulator, session_id, silent_after=lambda _: emulator.posts(session_id) == 1)
    assert emulator.posts(session_id) == 1
    assert emulator.turns == []
    assert api.history(session_id) == []


@pytest.mark.parametrize("survives", [True, False])
@pytest.mark.parametrize(("kind", "end"), [("hang_after", "silence"), ("reset_after", "reset")])
def test_a_prompt_whose_answer_never_began(
    kind: str, end: str, survives: bool, api: Api, emulator: LlamaCloudEmulator
) -> None:
    emulator.settings.survives_disconnect = survives
    session_id = api.bound()
    emulator.inject(Fault(kind, endpoint="stream"))
    assert ask(emulator, session_id, silent_after=lambda _: bool(emulator.turns)) == (b"", end)
    eventually(lambda: emulator.turns[0].state != "running")
    assert emulator.turns[0].state == ("completed" if survives else "abandoned")
    assert api.types(session_id)[-1] == ("stop" if survives else "user_input")
    assert emulator.completed(session_id) == survives


@pytest.mark.parametrize("latency", [0.0, 0.2])
@pytest.mark.parametrize("survives", [True, False])
def test_a_damaged_response_does_not_stop_the_turn(
    survives: bool, latency: float, api: Api, emulator: LlamaCloudEmulator
) -> None:
    emulator.update_settings(survives_disconnect=survives, turn_latency=latency)
    session_id = api.bound()
    emulator.inject(Fault("truncated_body", endpoint="stream"), Fault("malformed_json", endpoint="stream"))
    with pytest.raises(httpx.RemoteProtocolError):
        api.ask(session_id)
    broken = api.ask(session_id)
    assert (broken.status_code, broken.headers["content-type"]) == (200, "application/json")
    assert [turn.state for turn in emulator.turns] == ["completed", "completed"]


def test_leaving_before_a_damaged_response_abandons_the_turn(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.update_settings(survives_disconnect=False, turn_latency=60.0)
    session_id = api.bound()
    emulator.inject(Fault("truncated_body", endpoint="stream"))
    assert ask(emulator, session_id, silent_after=lambda _: bool(emulator.turns)) == (b"", "silence")
    eventually(lambda: emulator.turns[0].state == "abandoned")


def test_a_delay_and_a_stream_fault_can_affect_the_same_prompt(api: Api, emulator: LlamaCloudEmulator) -> None:
    session_id = api.bound()
    emulator.inject(Fault("delay", delay=0.2, endpoint="stream"), Fault("cut", after_events=3))
    started = time.monotonic()
    assert len(events(api.ask(session_id).text)) == 3
    assert time.monotonic() - started >= 0.2
    assert emulator.requests[-1].fault == "cut"
