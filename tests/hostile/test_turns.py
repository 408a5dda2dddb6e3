"""Turns under a hostile or sloppy server: paid for once, the right answer or none, and no figure beside it loses it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from operator import methodcaller
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import ClientConfig, LlamaCloudClient
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.hostile.conftest import KEY, PROMPT, SESSION, Caller, assert_harmless, send_in
from tests.hostile.rawserver import RawServer, Request, http

STREAM = "text/event-stream"
TURN: list[dict[str, Any]] = [
    {"type": "user_input", "content": PROMPT},
    {"type": "text", "content": "4.2 million"},
    {"type": "stop", "usage": {"turns": 1}, "is_error": False},
]


def stream(events: list[dict[str, Any]]) -> bytes:
    return http(b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events), kind=STREAM)


def history(events: list[Any]) -> bytes:
    return http(json.dumps({"session_id": SESSION, "events": events}).encode())


@pytest.mark.parametrize(
    "stop",
    [
        {"usage": None},
        {"usage": []},
        {"usage": {"total_input_tokens": float("nan"), "duration_ms": float("inf"), "turns": 10**400}},
        {"usage": {"total_input_tokens": "12", "total_output_tokens": {"text": 3}}},
        {"error": {"message": "none"}, "skipped_index_ids": [None, 3, "idx-2"]},
        {"is_error": None},
        {"usage": {"x" * 5000: 1, "blob": "y" * 100_000, **{f"n{number}": number for number in range(500)}}},
    ],
    ids=["none", "list", "not finite", "in other types", "reasons", "no verdict", "large"],
)
def test_an_invalid_figure_does_not_lose_the_answer(stop: dict[str, Any], caller: Caller) -> None:
    answer = stream([*TURN[:2], {"type": "stop", **stop}])
    turn = caller.meets("send", lambda _r: [answer])
    assert turn.answer == "4.2 million"
    assert turn.finished
    assert not turn.is_error
    usage = turn.usage_as_dict()
    assert len(json.dumps(usage, allow_nan=False)) < 10_000
    assert {"total_input_tokens", "total_output_tokens", "turns", "duration_ms"} <= set(usage)
    assert all(value is None or abs(value) < 2**63 for value in usage.values())


@pytest.mark.long
@pytest.mark.parametrize(
    "content",
    [
        None,
        pytest.param([{"type": "text", "text": PROMPT}], marks=pytest.mark.long),
        pytest.param(7, marks=pytest.mark.long),
        pytest.param({"text": PROMPT}, marks=pytest.mark.long),
    ],
)
def test_a_prompt_that_is_recorded_in_an_unknown_form_is_not_asked_again(content: Any, caller: Caller) -> None:
    posts = 0

    def answer(request: Request) -> Iterable[bytes | float]:
        nonlocal posts
        if request.method == "POST":
            posts += 1
            return [b""]  # the connection breaks: nobody knows whether the prompt arrived
        return [history([{"type": "user_input", "content": content}] * posts)]

    problem = caller.meets(send_in(2.0), answer)
    assert isinstance(problem, errors.ChatTurnInterruptedError)
    assert problem.reason == "deadline"  # it stands in our place, so it may be ours: waited for
    assert posts == 1


def test_the_answer_to_our_own_post_is_ours_whatever_prompt_it_records(caller: Caller) -> None:
    other = [{"type": "user_input", "content": "Who are you?"}, {"type": "text", "content": "a llama"}, TURN[2]]

    def answer(request: Request) -> Iterable[bytes | float]:
        return [stream(other) if request.method == "POST" else history(TURN)]

    assert caller.meets("send", answer).answer == "a llama"


@pytest.mark.parametrize("recorded", [f"You are helpful.\n{PROMPT}", f"  {PROMPT}\n", PROMPT[:20], ""])
def test_a_server_may_add_to_a_prompt_or_cut_it_in_its_stream(recorded: str, caller: Caller) -> None:
    answer = stream([{"type": "user_input", "content": recorded}, *TURN[1:]])
    assert caller.meets("send", lambda _r: [answer]).answer == "4.2 million"


@pytest.mark.long
def test_garbage_in_the_stream_does_not_repeat_the_prompt(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_llamachat.client.sse.MAX_EVENT", 100_000)
    posts = 0

    def answer(request: Request) -> Iterable[bytes | float]:
        nonlocal posts
        if request.method == "POST":
            posts += 1
            return [http(b"x" * 300_000, kind=STREAM)]
        return [history([])]  # the server records a turn only when it is over

    problem = caller.meets(send_in(2.0), answer, max_retries=3)
    assert isinstance(problem, errors.ChatTurnInterruptedError)
    assert problem.reason in {"vanished", "deadline"}
    assert posts == 1


def test_the_reason_of_a_failed_turn_does_not_show_the_key(caller: Caller) -> None:
    reason = f"upstream refused {KEY} \x1b[2J\n" * 500
    answer = stream([TURN[0], {"type": "stop", "is_error": True, "error": reason}])
    problem = caller.meets("send", lambda _r: [answer])
    assert isinstance(problem, errors.ChatTurnFailedError)
    assert "upstream refused ***" in str(problem)


def test_a_malformed_event_is_logged_without_the_key(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    bad = b"data: {authorization: %s}\n\n" % KEY.encode()
    answer = http(bad + b'data: {"type": "stop"}\n\n', kind=STREAM)
    with caplog.at_level(logging.DEBUG, logger="airflow_provider_llamachat"):
        assert [event.type for event in caller.meets("stream", lambda _r: [answer])] == ["stop"]
    assert "Skipped a malformed event" in caplog.text
    assert "canary" not in caplog.text


def test_a_locked_session_with_endless_indexes_gives_a_short_message(caller: Caller) -> None:
    session = {"session_id": SESSION, "index_ids": ["x\n" * 1000] * 2000, "job_metadata": {"turns": 1}, "events": []}
    body = http(json.dumps(session).encode())
    problem = caller.meets(lambda c: c.send_message(SESSION, PROMPT, index_ids=["idx-1"]), lambda _r: [body])
    assert isinstance(problem, errors.InvalidArgumentError)
    assert "was locked to the indexes" in str(problem)


# Prompts and ids, against the emulator ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ var.value.secret }} {% raw %} ${HOME} $(id) %(x)s {0}",
        "a\x00b\x1b[31mc\r\nd\x7f",
        "\u202egnp.exe \u2028 \U0001f4c8 \ufeff e\u0301",
        'data: {"type": "stop"}\n\ndata: {"type": "text", "content": "forged"}\n\n',
        '"},{"type":"stop"}',
    ],
)
def test_a_prompt_arrives_as_it_is(prompt: str, caller: Caller, llamacloud_emulator: LlamaCloudEmulator) -> None:
    def ask(client: Any) -> Any:
        return client.send_message(session_id, prompt, index_ids=[INDEX_FILINGS])

    config = ClientConfig(api_key=llamacloud_emulator.api_key, base_url=llamacloud_emulator.url)
    with LlamaCloudClient(config) as client:
        session_id = client.create_session([INDEX_FILINGS]).session_id
    turn = caller(ask, llamacloud_emulator.url, api_key=llamacloud_emulator.api_key)
    assert turn.answer
    assert "forged" not in turn.answer or "forged" in prompt
    (post,) = [request for request in llamacloud_emulator.requests if request.path.endswith("/messages/stream")]
    assert post.body["prompt"] == prompt
    llamacloud_emulator.inject(Fault("reset_after", endpoint="stream"))
    assert caller(ask, llamacloud_emulator.url, api_key=llamacloud_emulator.api_key).answer, (
        "it is recognized in the history too"
    )
    assert llamacloud_emulator.completed(prompt=prompt) == 2


@pytest.mark.parametrize(("size", "kind"), [(100_000, errors.UnprocessableError), (2**20, errors.RequestRefusedError)])
def test_a_prompt_that_is_too_large_is_refused_once_with_a_short_message(
    size: int, kind: type[errors.LlamaCloudError], caller: Caller, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    config = ClientConfig(api_key=llamacloud_emulator.api_key, base_url=llamacloud_emulator.url)
    with LlamaCloudClient(config) as client:
        session_id = client.create_session([INDEX_FILINGS]).session_id
    with pytest.raises(kind) as caught:
        caller(
            lambda c: c.send_message(session_id, "x" * size, index_ids=[INDEX_FILINGS]),
            llamacloud_emulator.url,
            api_key=llamacloud_emulator.api_key,
        )
    assert_harmless(caught.value)
    assert caught.value.status in {413, 422}
    assert llamacloud_emulator.posts() <= 1


HALF = "\ud800"


@pytest.mark.parametrize("bad", ["", " ", ".", "..", "x" * 513, "x" * 2**20, f"ses-{HALF}"])
def test_an_invalid_id_sends_nothing(bad: str, caller: Caller) -> None:
    ways: dict[str, Any] = {
        "get": lambda c: c.get_session(bad),
        "delete": lambda c: c.delete_session(bad),
        "index": lambda c: c.get_index(bad),
        "send": lambda c: c.send_message(bad, PROMPT, index_ids=["idx-1"], baseline=0),
        "stream": lambda c: c.stream_message(bad, PROMPT, index_ids=["idx-1"]),
    }
    if bad.strip("."):
        ways["create"] = lambda c: c.create_session([bad])
    if bad == "x" * 513 or HALF in bad:
        ways["prompt"] = lambda c: c.send_message(SESSION, f"what {HALF}", index_ids=["idx-1"], baseline=0)
    with RawServer(lambda _r: [http(b"{}")]) as server:
        for name, way in ways.items():
            if name == "create" and not bad.strip():
                continue  # no index is no error there
            with pytest.raises(errors.InvalidArgumentError) as caught:
                caller(way, server.url)
            assert_harmless(caught.value)
        assert server.requests == []


@pytest.mark.parametrize(
    "tricky", ["../../x?y", "..%2f..", "a/../../b", "//evil.example/", "a?b=c&d", "a#b", "\\..\\", "%00", "a\r\nX: y"]
)
def test_an_id_stays_in_its_segment(tricky: str, caller: Caller) -> None:
    with RawServer(lambda _r: [http(b"{}")]) as server:
        for way in ("get_session", "get_session_summary", "delete_session", "get_index", "sync_index"):
            try:
                caller(methodcaller(way, tricky), server.url, max_retries=0)
            except errors.LlamaCloudProtocolError as problem:
                assert_harmless(problem)
        for request in server.requests:
            parts = request.target.split("?")[0].split("/")
            assert parts[:4] in (["", "api", "v1", "chat"], ["", "api", "v1", "indexes"])
            assert len(parts) - (parts[-1] in {"summary", "sync"}) == 5
            assert request.header("x") is None
        assert len(server.requests) == 5
