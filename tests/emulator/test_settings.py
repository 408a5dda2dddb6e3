"""Each switch for what the API does not document, in all its positions."""

from __future__ import annotations

import threading
import time
from dataclasses import fields
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import httpx
import pytest

from airflow_provider_llamachat.testing import (
    INDEX_BUILDING,
    INDEX_FAILED,
    INDEX_FILINGS,
    INDEX_HANDBOOK,
    LlamaCloudEmulator,
    Settings,
)
from tests.emulator.conftest import WHOLE, Api, Clock, events, eventually


def _meanwhile(api: Api, session_id: str, prompt: str = "first") -> threading.Thread:
    """A turn under way in another thread."""
    before = len(api.emulator.turns)
    thread = threading.Thread(target=api.ask, args=(session_id, prompt))
    thread.start()
    eventually(lambda: len(api.emulator.turns) > before)
    return thread


def _until(clock: Clock, api: Api, text: str, *, count: int = 1) -> str:
    """A turn's stream; time is moved to its end when ``text`` has come that often."""
    received = ""
    body = {"index_ids": [INDEX_FILINGS], "prompt": "x"}
    with api.http.stream("POST", f"/api/v1/chat/{api.bound()}/messages/stream", json=body) as answer:
        for chunk in answer.iter_text():
            is_enough = received.count(text) >= count
            received += chunk
            if not is_enough and received.count(text) >= count:
                clock.forward()
    return received


def test_every_setting_is_explained_and_checked() -> None:
    settings = Settings()
    assert all(len(item.metadata["help"]) > 15 for item in fields(Settings))
    assert Settings(**settings.to_json()) == settings
    with pytest.raises(AttributeError, match="no setting 'survive_disconnect'"):
        setattr(settings, "survive_disconnect", False)  # noqa: B010 - mypy knows the name is wrong
    wrong: list[tuple[str, Any]] = [
        ("survives_disconnect", 1),
        ("records", "never"),
        ("turn_latency", -0.1),
        ("turn_latency", "fast"),
        ("max_prompt", 1.5),
        ("max_prompt", True),
        ("requests_per_minute", -1),
        ("newline", "\t"),
        ("sync_status", 3),
    ]
    for name, value in wrong:
        with pytest.raises(ValueError, match=f"Setting {name} cannot be"):
            setattr(settings, name, value)
    settings.update(turn_latency=1, requests_per_minute=None, newline="\r")
    assert settings.turn_latency == 1


def test_records_at_the_end(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(records="end", turn_latency=60.0)
    session_id = api.bound()
    thread = _meanwhile(api, session_id)
    clock.forward(30.0)
    assert api.history(session_id) == []
    assert api.http.get(f"/api/v1/chat/{session_id}").json()["generated_title"] is None
    clock.forward(30.0)
    thread.join(60)
    assert api.types(session_id) == WHOLE


def test_an_abandoned_turn_leaves_nothing_when_records_come_at_the_end(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.update_settings(records="end", turn_latency=60.0, survives_disconnect=False)
    session_id = api.bound()
    body = {"index_ids": [INDEX_FILINGS], "prompt": "x"}
    with api.http.stream("POST", f"/api/v1/chat/{session_id}/messages/stream", json=body) as answer:
        chunks = answer.iter_raw()
        next(chunks)
    eventually(lambda: emulator.turns[0].state == "abandoned")
    assert api.history(session_id) == []


def test_two_turns_at_once_queue(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(turn_latency=60.0, keepalive_interval=0.1)
    session_id = api.bound()
    thread = _meanwhile(api, session_id)
    body = {"index_ids": [INDEX_FILINGS], "prompt": "second"}
    with api.http.stream("POST", f"/api/v1/chat/{session_id}/messages/stream", json=body) as answer:
        chunks = answer.iter_text()
        assert next(chunks).startswith(": keep-alive\n\n")
        clock.forward()
        eventually(lambda: len(emulator.turns) == 2)
        clock.forward()
        assert '"stop"' in "".join(chunks)
    thread.join(60)
    first, second = emulator.turns
    assert (first.position, second.position) == (0, 1)
    assert first.ended is not None
    assert second.started >= first.ended
    assert api.types(session_id) == WHOLE * 2


def test_a_long_queue_keeps_its_order(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.settings.turn_latency = 60.0
    session_id = api.bound()
    threads = []
    for number in range(12):
        threads.append(threading.Thread(target=api.ask, args=(session_id, f"prompt {number}")))
        threads[-1].start()
        # A prompt has its place in the queue when it was read, which is later than its request's arrival.
        eventually(partial(emulator.posts, prompt=f"prompt {number}"))
    emulator.settings.turn_latency = 0.0
    clock.forward()
    for thread in threads:
        thread.join(60)
    assert [turn.prompt for turn in emulator.turns] == [f"prompt {number}" for number in range(12)]
    assert [turn.position for turn in emulator.turns] == list(range(12))
    assert api.types(session_id) == WHOLE * 12


def test_two_turns_at_once_refused(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(turn_latency=60.0, concurrent_turns="refuse")
    session_id = api.bound()
    thread = _meanwhile(api, session_id)
    answer = api.ask(session_id, "second")
    assert (answer.status_code, answer.json()) == (409, {"detail": f"Session {session_id} has a turn in progress."})
    emulator.settings.turn_latency = 0.0
    clock.forward()
    thread.join(60)
    assert api.ask(session_id, "third").status_code == 200
    assert [turn.prompt for turn in emulator.turns] == ["first", "third"]


def test_two_turns_at_once_allowed(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(turn_latency=60.0, concurrent_turns="allow")
    session_id = api.bound()
    threads = [_meanwhile(api, session_id), _meanwhile(api, session_id, "second")]
    clock.forward()
    for thread in threads:
        thread.join(60)
    first, second = emulator.turns
    assert first.ended is not None
    assert first.started < second.started < first.ended
    assert sorted(api.types(session_id)) == sorted(WHOLE * 2)


@pytest.mark.parametrize("policy", ["finish", "refuse"])
def test_deleting_a_busy_session(policy: str, api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(turn_latency=60.0, delete_while_running=policy)
    session_id = api.bound()
    thread = _meanwhile(api, session_id)
    answer = api.http.delete(f"/api/v1/chat/{session_id}")
    clock.forward()
    thread.join(60)
    assert answer.status_code == (204 if policy == "finish" else 409)
    assert (session_id in emulator.sessions) == (policy == "refuse")
    assert emulator.completed(session_id) == 1


def test_a_reset_breaks_off_the_turns_of_deleted_sessions_too(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.turn_latency = 30.0
    session_id = api.bound()
    body = {"index_ids": [INDEX_FILINGS], "prompt": "x"}
    with api.http.stream("POST", f"/api/v1/chat/{session_id}/messages/stream", json=body) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        api.http.delete(f"/api/v1/chat/{session_id}")
        (turn,) = emulator.turns
        emulator.reset()
        assert turn.state == "abandoned"
        with pytest.raises(httpx.HTTPError):
            list(chunks)


@pytest.mark.parametrize("policy", ["refuse", "accept"])
def test_other_indexes_than_the_locked_ones(policy: str, api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.mismatch = policy  # type: ignore[assignment]  # one of the two, by the parameters
    session_id = api.bound()
    api.ask(session_id)
    answer = api.ask(session_id, "How many days of vacation?", [INDEX_HANDBOOK])
    if policy == "refuse":
        assert answer.status_code == 422
        (entry,) = answer.json()["detail"]
        assert entry["loc"] == ["body", "index_ids"]
        assert entry["msg"] == f"Session {session_id} is bound to other indexes: {INDEX_FILINGS}"
        assert emulator.completed() == 1
    else:
        assert "28 days" in answer.text
    assert emulator.sessions[session_id]["index_ids"] == [INDEX_FILINGS]


@pytest.mark.parametrize("policy", ["rebind", "refuse"])
def test_other_indexes_in_the_first_turn(policy: str, api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.unlocked_mismatch = policy  # type: ignore[assignment]  # one of the two, by the parameters
    session_id = api.bound()
    answer = api.ask(session_id, "How many days of vacation?", [INDEX_HANDBOOK])
    assert answer.status_code == (200 if policy == "rebind" else 422)
    bound = emulator.sessions[session_id]["index_ids"]
    assert bound == ([INDEX_HANDBOOK] if policy == "rebind" else [INDEX_FILINGS])
    assert api.ask(session_id, index_ids=bound).status_code == 200


@pytest.mark.parametrize("binds", [False, True])
def test_the_first_turn_of_an_unbound_session(binds: bool, api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.binds_unbound = binds
    session_id = api.create()
    api.ask(session_id)
    assert emulator.sessions[session_id]["index_ids"] == ([INDEX_FILINGS] if binds else None)
    assert api.ask(session_id, index_ids=[INDEX_HANDBOOK]).status_code == (422 if binds else 200)


def test_an_unknown_index_in_a_turn_can_be_skipped(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.unknown_index = "skip"
    stream = events(api.ask(api.create(), index_ids=["idx-nowhere", INDEX_FILINGS]).text)
    assert stream[-1][1]["skipped_index_ids"] == ["idx-nowhere"]


@pytest.mark.parametrize("flag", [True, "true", 1])
def test_indexes_that_are_required_and_not_ready(flag: Any, api: Api, emulator: LlamaCloudEmulator) -> None:
    ids = [INDEX_FILINGS, INDEX_BUILDING]
    refused = api.ask(api.create(), index_ids=ids, require_all_indexes=flag)
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["msg"] == f"Indexes that cannot be queried: {INDEX_BUILDING}"
    emulator.settings.unready_required = "error_stop"
    session_id = api.create()
    stop = events(api.ask(session_id, index_ids=ids, require_all_indexes=flag).text)[-1][1]
    assert (stop["is_error"], stop["error"]) == (True, f"Indexes that cannot be queried: {INDEX_BUILDING}")
    assert [turn.state for turn in emulator.turns] == ["failed"]
    assert api.types(session_id) == ["user_input", "stop"]
    assert api.ask(api.create(), require_all_indexes=flag).status_code == 200


@pytest.mark.parametrize("policy", ["error_stop", "answer"])
def test_nothing_to_query(policy: str, api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.nothing_to_query = policy  # type: ignore[assignment]  # one of the two, by the parameters
    stream = events(api.ask(api.create(), index_ids=[INDEX_BUILDING, INDEX_FAILED]).text)
    stop = stream[-1][1]
    assert stop["skipped_index_ids"] == [INDEX_BUILDING, INDEX_FAILED]
    assert stop["is_error"] == (policy == "error_stop")
    if policy == "error_stop":
        assert stop["error"] == "None of the requested indexes can be queried."
    else:
        assert "nothing to search" in stream[-2][1]["content"]


def test_shapes_of_answers(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.update_settings(default_shared_access="query", page_end="omit", default_page_size=2, max_page_size=3)
    session_id = api.create()
    for _ in range(4):
        api.create()
    summary = f"/api/v1/chat/{session_id}/summary"
    assert api.http.get(summary).json()["shared_access"] == "query"
    page = api.http.get("/api/v1/chat").json()
    assert len(page["items"]) == 2
    assert len(api.http.get("/api/v1/chat", params={"page_size": 100}).json()["items"]) == 3
    last = api.http.get("/api/v1/chat", params={"page_size": 3, "page_token": page["next_page_token"]}).json()
    assert list(last) == ["items"]
    emulator.settings.omit_shared_access = True
    assert "shared_access" not in api.http.get(summary).json()
    assert "shared_access" not in api.http.get(f"/api/v1/chat/{session_id}").json()
    assert "shared_access" not in api.http.post("/api/v1/chat", json={"shared_access": "query"}).json()


def test_limits(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.update_settings(max_prompt=2000, max_indexes=1)
    session_id = api.bound()
    assert api.ask(session_id, "x" * 2000).status_code == 200
    (entry,) = api.ask(session_id, "x" * 2001).json()["detail"]
    assert (entry["msg"], entry["ctx"]) == ("String should have at most 2000 characters", {"max_length": 2000})
    (entry,) = api.http.post("/api/v1/chat", json={"index_ids": ["a", "b"]}).json()["detail"]
    assert entry["msg"] == "List should have at most 1 item after validation, not 2"


@pytest.mark.parametrize("count", [8, 20, 50, 150])
def test_the_number_of_events_of_a_turn_can_be_set(count: int, api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.events_per_turn = count
    stream = events(api.ask(api.bound()).text)
    assert len(stream) == count
    assert all(data.get("content", "x") for _, data in stream)


def test_the_size_of_answers_and_deltas(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.update_settings(answer_chars=1000, delta_chars=100)
    stream = [data for _, data in events(api.ask(api.bound()).text)]
    assert len(stream[-2]["content"]) == 1000
    assert stream[-2]["content"].startswith("Revenue in Q3 was 47.5")
    assert sum(data["type"] == "text_delta" for data in stream) == 10
    emulator.update_settings(answer_chars=10)
    assert events(api.ask(api.bound()).text)[-2][1]["content"] == "Revenue in"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_of_the_stream(newline: str, api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(newline=newline, turn_latency=60.0, events_per_turn=8, keepalive_interval=0.01)
    raw = _until(clock, api, f": keep-alive{newline}{newline}")
    assert set("\r\n") & set(raw) == set(newline)
    assert f"{newline}data: " in raw
    assert f": keep-alive{newline}{newline}" in raw
    assert len(events(raw)) == 8


def test_keep_alives(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    for survives in (True, False):
        emulator.update_settings(
            turn_latency=60.0, events_per_turn=8, keepalive_interval=0.02, survives_disconnect=survives
        )
        began = time.monotonic()
        raw = _until(clock, api, ": keep-alive\n\n", count=5)
        assert raw.count(": keep-alive") <= (time.monotonic() - began) / 0.02
        emulator.update_settings(turn_latency=0.2, keepalive_interval=None)
        assert ": keep-alive" not in api.ask(api.bound()).text


def test_latency_without_survival_is_the_same(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.update_settings(turn_latency=0.4, survives_disconnect=False)
    started = time.monotonic()
    assert len(events(api.ask(api.bound()).text)) > 8
    assert time.monotonic() - started >= 0.4


def test_requests_per_minute(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(requests_per_minute=3)
    assert [api.http.get("/api/v1/chat").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = api.http.get("/api/v1/chat")
    assert refused.json() == {"detail": "Rate limit exceeded. Please retry later."}
    assert 30 <= int(refused.headers["retry-after"]) <= 60
    # The window slides: refused requests did not push it on.
    clock.forward()
    assert [api.http.get("/api/v1/chat").status_code for _ in range(4)] == [200, 200, 200, 429]
    emulator.settings.requests_per_minute = 0
    clock.forward()
    assert api.http.get("/api/v1/chat").status_code == 429


def test_a_sliding_window_admits_one_request_for_each_that_leaves_it(
    api: Api, emulator: LlamaCloudEmulator, clock: Clock
) -> None:
    emulator.update_settings(requests_per_minute=2, rate_window=180.0)
    api.http.get("/api/v1/chat")
    clock.forward(90.0)
    api.http.get("/api/v1/chat")
    clock.forward(91.0)
    assert [api.http.get("/api/v1/chat").status_code for _ in range(2)] == [200, 429]


def test_forms_of_retry_after(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.update_settings(requests_per_minute=1)
    api.http.get("/api/v1/chat")
    assert 30 <= int(api.http.get("/api/v1/chat").headers["retry-after"]) <= 60
    emulator.settings.retry_after_style = "date"
    until = parsedate_to_datetime(api.http.get("/api/v1/chat").headers["retry-after"]).timestamp()
    assert 30 <= until - time.time() <= 61
    emulator.settings.retry_after_style = "none"
    assert "retry-after" not in api.http.get("/api/v1/chat").headers


def test_the_limit_may_be_on_turns_only(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.update_settings(requests_per_minute=1, rate_limits="turns")
    session_id = api.bound()
    assert [api.ask(session_id).status_code for _ in range(2)] == [200, 429]
    assert [api.http.get("/api/v1/chat").status_code for _ in range(3)] == [200, 200, 200]
    assert emulator.posts() == 2
    assert len(emulator.turns) == 1


def test_each_key_has_a_limit_of_its_own() -> None:
    with LlamaCloudEmulator(Settings(requests_per_minute=1), api_keys=["llx-one", "llx-two"]) as emulator:
        api = Api(emulator)
        with api.http:
            other = {"Authorization": "Bearer llx-two"}
            assert [
                api.http.get("/api/v1/chat", headers=headers).status_code for headers in ({}, other, {}, other)
            ] == [
                200,
                200,
                429,
                429,
            ]
