"""Each fault of a stream on the wire, with turns that survive their client and turns that do not."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from airflow_provider_llamachat.testing.faults import STREAM_KINDS
from tests.emulator.conftest import WHOLE, Api, Clock, events, eventually
from tests.emulator.wire import ask

pytestmark = pytest.mark.long


def _body(received: bytes) -> str:
    """The text in the chunks of a body, whole or not."""
    data = received.partition(b"\r\n\r\n")[2]
    found = b""
    while b"\r\n" in data:
        size, _, data = data.partition(b"\r\n")
        found += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return found.decode()


def _came(count: int) -> Callable[[bytes], bool]:
    """Whether that many events were received, and the head before them."""
    return lambda received: b"\r\n\r\n" in received and received.count(b"data: ") >= count


@pytest.mark.parametrize("latency", [0.0, pytest.param(0.2, marks=pytest.mark.long)])
@pytest.mark.parametrize("after", [0, 1, 9])
@pytest.mark.parametrize("survives", [True, False])
@pytest.mark.parametrize(("kind", "end"), [("stall", "silence"), ("stream_reset", "reset"), ("cut", "end")])
def test_a_stream_that_breaks(
    kind: str, end: str, survives: bool, after: int, latency: float, api: Api, emulator: LlamaCloudEmulator
) -> None:
    emulator.update_settings(survives_disconnect=survives, turn_latency=latency, delta_chars=40)
    session_id = api.bound()
    emulator.inject(Fault(kind, after_events=after))
    received, how = ask(emulator, session_id, silent_after=_came(after))
    assert how == end
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert received.endswith(b"0\r\n\r\n") == (kind == "cut")
    sent = events(_body(received.removesuffix(b"0\r\n\r\n")))
    assert len(sent) == after
    assert all(data["type"] != "stop" for _, data in sent)
    eventually(lambda: emulator.turns[0].state != "running")
    kept = api.types(session_id)
    if survives:
        assert (emulator.turns[0].state, kept) == ("completed", WHOLE)
    else:
        assert emulator.turns[0].state == "abandoned"
        # The prompt's event exists from the moment the turn was accepted; nothing exists that was not about to be sent.
        assert kept == ["user_input", *[data["type"] for kind, data in sent if kind == "message"][1:]]
        assert emulator.turns[0].ended is not None
        assert emulator.turns[0].input_tokens is None
        assert api.http.get(f"/api/v1/chat/{session_id}").json()["job_metadata"] is None
    assert emulator.requests[1].fault == kind
    # The session is free for the next turn.
    assert api.ask(session_id).text.count('"stop"') == 1
    assert emulator.turns[1].position == 1


@pytest.mark.parametrize("survives", [True, False])
def test_a_stalled_turn_continues_while_its_client_waits_only_if_it_survives(
    survives: bool, api: Api, emulator: LlamaCloudEmulator
) -> None:
    emulator.update_settings(turn_latency=0.2, survives_disconnect=survives)
    session_id = api.bound()
    emulator.inject(Fault("stall", after_events=2))
    body = {"index_ids": [INDEX_FILINGS], "prompt": "x"}
    with api.http.stream("POST", f"/api/v1/chat/{session_id}/messages/stream", json=body) as answer:
        # Kept: httpx closes the connection of an iterator that is dropped.
        chunks = answer.iter_raw()
        next(chunks)
        (turn,) = emulator.turns
        if survives:
            eventually(lambda: turn.state == "completed")
        else:
            time.sleep(0.5)
            assert turn.state == "running"
    eventually(lambda: turn.state == ("completed" if survives else "abandoned"))


def test_a_stalled_stream_sends_no_keep_alives(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.keepalive_interval = 0.05
    emulator.inject(Fault("stall", after_events=2))
    received, how = ask(emulator, api.bound(), silent_after=_came(2))
    assert (how, len(events(_body(received)))) == ("silence", 2)
    assert b": keep-alive" not in received


def test_after_the_last_event_a_stream_can_still_stall_but_a_cut_one_lacks_its_stop(
    api: Api, emulator: LlamaCloudEmulator
) -> None:
    session_id = api.bound()
    emulator.inject(Fault("stall", after_events=999))
    received, how = ask(emulator, session_id, silent_after=lambda received: b'"stop"' in received)
    assert (how, '"stop"' in _body(received)) == ("silence", True)
    emulator.inject(Fault("cut", after_events=999))
    assert events(api.ask(session_id).text)[-1][1]["type"] == "text"


@pytest.mark.parametrize(
    ("after", "history"), [(0, ["user_input", "stop"]), (1, ["user_input", "stop"]), (9, [*WHOLE[:4], "stop"])]
)
def test_error_stop(after: int, history: list[str], api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.delta_chars = 40
    session_id = api.bound()
    emulator.inject(Fault("error_stop", after_events=after, detail="model overloaded"))
    stream = events(api.ask(session_id).text)
    assert len(stream) == max(1, after) + 1
    stop = stream[-1][1]
    assert (stop["type"], stop["is_error"], stop["error"]) == ("stop", True, "model overloaded")
    assert stop["usage"]["total_input_tokens"] > 0
    assert api.types(session_id) == history
    assert emulator.turns[0].state == "failed"
    assert emulator.completed() == 0
    job = api.http.get(f"/api/v1/chat/{session_id}/summary").json()["job_metadata"]
    assert (job["is_error"], job["error"]) == (True, "model overloaded")


@pytest.mark.parametrize("kind", ["garbage", "unknown_event", "invalid_utf8"])
def test_an_invalid_event_among_valid_ones(kind: str, api: Api, emulator: LlamaCloudEmulator) -> None:
    session_id = api.bound()
    good = api.ask(session_id).content.split(b"\n\n")
    emulator.inject(Fault(kind, after_events=3))
    odd = api.ask(session_id).content.split(b"\n\n")
    assert len(odd) == len(good) + 1
    event = odd.pop(3)
    assert [block for block in odd if b"duration_ms" not in block and b"call-" not in block] == [
        block for block in good if b"duration_ms" not in block and b"call-" not in block
    ]
    data = event.split(b"data: ")[1]
    if kind == "garbage":
        with pytest.raises(json.JSONDecodeError):
            json.loads(data)
    elif kind == "unknown_event":
        assert json.loads(data)["type"] == "citation_map"
    else:
        with pytest.raises(UnicodeDecodeError):
            data.decode()
    assert emulator.completed(session_id) == 2
    assert api.types(session_id) == WHOLE * 2


@pytest.mark.parametrize("kind", sorted(STREAM_KINDS - {"stall", "slow"}))
def test_a_fault_of_a_stream_acts_after_its_delay(kind: str, api: Api, emulator: LlamaCloudEmulator) -> None:
    session_id = api.bound()
    emulator.inject(Fault(kind, after_events=2, delay=0.3))
    started = time.monotonic()
    received, _ = ask(emulator, session_id)
    assert time.monotonic() - started >= 0.3
    assert len(re.findall(b"event: [a-z]+\ndata: ", received)) >= 2


@pytest.mark.long
def test_slow_bytes(api: Api, emulator: LlamaCloudEmulator) -> None:
    session_id = api.bound()
    emulator.inject(Fault("slow", after_events=2, delay=0.0005))
    body = {"index_ids": [INDEX_FILINGS], "prompt": "Dividend?"}
    started = time.monotonic()
    with api.http.stream("POST", f"/api/v1/chat/{session_id}/messages/stream", json=body) as answer:
        chunks = list(answer.iter_raw())
    elapsed = time.monotonic() - started
    single = sum(len(chunk) == 1 for chunk in chunks)
    assert len(events(b"".join(chunks).decode())) > 8
    assert single > 200
    assert elapsed >= 0.0005 * single


def test_skip_counts_accepted_turns_only(api: Api, emulator: LlamaCloudEmulator) -> None:
    session_id = api.bound()
    emulator.inject(Fault("cut", skip=1, prompt="again"))
    assert api.ask(session_id, "again " * 300).status_code == 422
    answers = [api.ask(session_id, prompt).text for prompt in ("again 1", "another", "again 2", "again 3")]
    assert ['"stop"' in answer for answer in answers] == [True, True, False, True]


# The client itself leaves: no fault at all.


@pytest.mark.parametrize("survives", [True, False])
def test_a_client_that_leaves(survives: bool, api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(turn_latency=60.0, survives_disconnect=survives)
    session_id = api.bound()
    body = {"index_ids": [INDEX_FILINGS], "prompt": "What was the revenue in Q3?"}
    with api.http.stream("POST", f"/api/v1/chat/{session_id}/messages/stream", json=body) as answer:
        next(answer.iter_raw())
    (turn,) = emulator.turns
    if survives:
        # At its own pace, not faster for being alone.
        assert turn.state == "running"
        clock.forward()
        eventually(lambda: turn.state == "completed")
        assert api.types(session_id) == WHOLE
    else:
        eventually(lambda: turn.state == "abandoned")
        clock.forward()
        assert "stop" not in api.types(session_id)


@pytest.mark.parametrize("survives", [True, False])
def test_the_current_settings_decide_when_the_client_leaves(
    survives: bool, api: Api, emulator: LlamaCloudEmulator, clock: Clock
) -> None:
    emulator.update_settings(turn_latency=60.0, survives_disconnect=not survives)
    session_id = api.bound()
    body = {"index_ids": [INDEX_FILINGS], "prompt": "x"}
    with api.http.stream("POST", f"/api/v1/chat/{session_id}/messages/stream", json=body) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        emulator.settings.survives_disconnect = survives
    (turn,) = emulator.turns
    if survives:
        clock.forward()
    eventually(lambda: turn.ended is not None)
    assert turn.state == ("completed" if survives else "abandoned")


@pytest.mark.parametrize("survives", [True, False])
def test_a_client_that_leaves_the_queue(survives: bool, api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(turn_latency=60.0)
    session_id = api.bound()
    first = threading.Thread(target=api.ask, args=(session_id, "first"))
    first.start()
    eventually(lambda: len(emulator.turns) == 1)
    emulator.settings.survives_disconnect = survives
    with pytest.raises(httpx.ReadTimeout):
        api.http.post(
            f"/api/v1/chat/{session_id}/messages/stream",
            json={"index_ids": [INDEX_FILINGS], "prompt": "second"},
            timeout=1.0,
        )
    # The server has noticed when it has served others since.
    for _ in range(3):
        assert api.http.get("/api/v1/projects").status_code == 200
    clock.forward()
    first.join(60)
    asked = ["first", "second"] if survives else ["first"]
    eventually(lambda: len(emulator.turns) == len(asked))
    clock.forward()
    eventually(lambda: emulator.completed() == len(asked))
    assert [turn.prompt for turn in emulator.turns] == asked
    assert [event["content"] for event in api.history(session_id) if event["type"] == "user_input"] == asked
    assert emulator.posts(session_id) == 2
