"""A server that speaks garbage: every method of both clients ends in a typed error or a right answer, in time."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.models import SessionSummary
from tests.hostile.conftest import IN_SHORT, KEY, METHODS, PROMPT, SESSION, Caller, assert_harmless, send_in
from tests.hostile.rawserver import KEEP_ALIVE, Answer, RawServer, Request, endless, http

CHUNKED = "Transfer-Encoding: chunked"
STREAM = "text/event-stream"


def whole(answer: bytes) -> Answer:
    return lambda _request: [answer]


def body(text: bytes, *, status: str = "200 OK", kind: str | None = "application/json") -> Answer:
    return whole(http(text, status, kind=kind))


GARBAGE: dict[str, Answer] = {
    "nothing": whole(b""),
    "http/0.9": whole(b"hello\r\nworld\r\n"),
    "another protocol": whole(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "noise": whole(bytes(range(256)) * 50),
    "status 0": whole(b"HTTP/1.1 000 X\r\n\r\n"),
    "status 20": whole(b"HTTP/1.1 20 X\r\n\r\n"),
    "status 999": body(b"{}", status="999 Beyond"),
    "switching protocols": whole(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x05hello"),
    "half a head": whole(b"HTTP/1.1 200 OK\r\nContent-Ty"),
    "header without colon": whole(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n{}"),
    "header with zero bytes": whole(b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n{}"),
    "a head of 200 kB": whole(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 25_000 + b"\r\n{}"),
    "a header of 200 kB": whole(http(b"{}", "200 OK", "X-A: " + "b" * 200_000)),
    "negative length": whole(http(b"{}", "200 OK", "Content-Length: -1", length=False)),
    "two lengths": whole(http(b"{}", "200 OK", "Content-Length: 2", "Content-Length: 3", length=False)),
    "too long a length": whole(http(b"{}", "200 OK", f"Content-Length: {10**30}", length=False)),
    "too short a length": whole(http(b'{"a": 1}', "200 OK", "Content-Length: 3", length=False)),
    "chunk size is no number": whole(http(b"zz\r\n{}\r\n0\r\n\r\n", "200 OK", CHUNKED, length=False)),
    "chunk size is negative": whole(http(b"-1\r\n{}\r\n0\r\n\r\n", "200 OK", CHUNKED, length=False)),
    "chunk size lies": whole(http(b"2\r\n{}{}{}\r\n0\r\n\r\n", "200 OK", CHUNKED, length=False)),
    "chunks without an end": whole(http(b"2\r\n{}\r\n", "200 OK", CHUNKED, length=False)),
    "no body": body(b""),
    "not compressed": whole(http(b"{}", "200 OK", "Content-Encoding: gzip")),
    "compressed otherwise": whole(http(b"{}", "200 OK", "Content-Encoding: br")),
    "compressed twice": whole(http(b"{}", "200 OK", "Content-Encoding: gzip, gzip")),
    "204 with a body": body(b'{"a": 1}', status="204 No Content"),
    "299": body(b"{}", status="299 Odd"),
    "no content type": body(b"data: {}\n\n", kind=None),
    "html": body(b"<html>Log in</html>", kind="text/html"),
    "a stream that is not asked for": body(b'data: {"type": "stop"}\n\n', kind=STREAM),
    "a content type of 50 kB": body(b"{}", kind="text/" + "x" * 50_000),
    "location without a host": whole(http(b"", "302 Found", "Location: http://")),
    "location that is no URL": whole(http(b"", "307 Temporary", "Location: http://[::1")),
    "location with a broken punycode": whole(http(b"", "308 Permanent", "Location: http://xn--zzzz--/")),
    "location with a port beyond": whole(http(b"", "301 Moved", "Location: //a:99999999/")),
    "location of 60 kB": whole(http(b"", "302 Found", "Location: /" + "a" * 60_000)),
    "location that echoes the key": whole(http(b"", "302 Found", f"Location: /?key={KEY}")),
    "redirect to nowhere": whole(http(b"", "302 Found")),
}


@pytest.mark.long
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_events_give_an_answer_or_a_typed_error(garbage: str, caller: Caller) -> None:
    outcomes = {name: caller.meets(call, GARBAGE[garbage], max_retries=0) for name, call in IN_SHORT.items()}
    # Where nothing is awaited, or the garbage is none for it, a call may succeed; no read makes an answer of it.
    for name in ("create", "get", "summary", "project", "index", "stream", "send"):
        if (name, garbage) not in {
            ("stream", "a stream that is not asked for"),
            ("send", "a stream that is not asked for"),
        }:
            assert isinstance(outcomes[name], errors.LlamaCloudError), (name, outcomes[name])


JSON: dict[str, bytes] = {
    "null": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "a number": b"7",
    "NaN": b"NaN",
    "an endless number": b'{"session_id": 1e999, "items": -1e999, "detail": 1e999}',
    "5,000 digits": b'{"session_id": ' + b"9" * 5000 + b"}",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep detail": b'{"detail": ' + b"[" * 199 + b"]" * 199 + b"}",
    "deep reasons": b'{"detail": [{"loc": ['
    + b"[" * 190
    + b"]" * 190
    + b'], "msg": {"a": '
    + b"[" * 190
    + b"]" * 190
    + b"}}]}",
    "utf-16": '{"session_id": "x"}'.encode("utf-16"),
    "latin-1": '{"detail": "größer"}'.encode("latin-1"),
    "a zero byte": b'{"detail": "a\x00b"}',
    "half a pair": b'{"session_id": 1, "detail": "\\ud800 \\udc00", "items": [], "next_page_token": "\\udfff"}',
    "control characters": b'{"detail": "a\\u0000\\u001b[2J\\r\\nb\\u2028\\u202e"}',
    "a long detail": b'{"detail": "' + "\u200b\U000e0001'\\\\".encode() * 40_000 + b'"}',
    "many details": json.dumps({"detail": [{"loc": ["body", "x" * 9000], "msg": "y" * 9000}] * 60}).encode(),
    "a session id of 1 MB": b'{"session_id": "' + b"x" * 1_000_000 + b'"}',
    "an empty session id": b'{"session_id": ""}',
    "200,000 wrong items": b'{"session_id": "ses-1", "index_ids": ['
    + b"1," * 100_000
    + b'1], "items": ['
    + b"1," * 100_000
    + b"1]}",
    "cut off": b'{"session_id": "ses-1", "events": [{"type": "te',
    "something after it": b'{"session_id": "ses-1"} {"session_id": "ses-2"}',
}


@pytest.mark.long
@pytest.mark.parametrize("status", ["200 OK", "401 X", "422 X", "500 X"])
@pytest.mark.parametrize("text", JSON)
def test_any_body_gives_an_answer_or_a_typed_error(text: str, status: str) -> None:
    for caller in (Caller(False), Caller(True)):
        for name in ("create", "get", "delete", "list", "projects", "send"):
            outcome = caller.meets(IN_SHORT[name], body(JSON[text], status=status), max_retries=0)
            if status != "200 OK" or name in {"create", "get", "projects", "send"}:
                expected = text == "a list" and (name, status) == ("projects", "200 OK")
                assert expected or isinstance(outcome, errors.LlamaCloudError), (name, outcome)


def test_duplicate_keys_are_read_as_every_json_reader_reads_them(caller: Caller) -> None:
    session = caller.meets("summary", body(b'{"session_id": "ses-0", "session_id": "ses-1", "session_id": "ses-1"}'))
    assert isinstance(session, SessionSummary)
    assert session.session_id == SESSION


@pytest.mark.long
@pytest.mark.parametrize("kind", ["get", "summary", "send"])
def test_the_answer_of_another_session_is_refused(kind: str, caller: Caller) -> None:
    turn = [{"type": "user_input", "content": PROMPT}, {"type": "text", "content": "not yours"}, {"type": "stop"}]

    def answer(request: Request) -> list[bytes | float]:
        if request.method == "POST":
            return [http(b"", kind=STREAM)]
        return [http(json.dumps({"session_id": "ses-2", "events": turn}).encode())]

    problem = caller.meets(send_in(2.0) if kind == "send" else kind, answer)
    wanted = errors.ChatTurnInterruptedError if kind == "send" else errors.LlamaCloudProtocolError
    assert isinstance(problem, wanted)
    assert "belongs to another session" in str(problem)


def test_a_session_id_in_upper_case_is_the_same_session(caller: Caller) -> None:
    assert caller.meets("summary", body(b'{"session_id": "SES-1"}')).session_id == "SES-1"


def test_a_redirect_is_not_followed_and_the_key_is_not_sent(caller: Caller) -> None:
    with RawServer(body(b"{}")) as elsewhere:
        for status in ("301 X", "302 X", "303 X", "307 X", "308 X"):
            for name in METHODS:
                redirect = whole(
                    http(b"", status, f"Location: {elsewhere.url}/api/v1/chat", f"Refresh: 0; url={elsewhere.url}")
                )
                problem = caller.meets(name, redirect)
                assert isinstance(problem, errors.LlamaCloudProtocolError)
                assert elsewhere.url in str(problem)
        assert elsewhere.requests == []


def test_cookies_are_not_sent_back(caller: Caller) -> None:
    def answer(request: Request) -> list[bytes | float]:
        cookie = f"Set-Cookie: c{request.number}={'x' * 4000}; Path=/"
        return [http(b'{"session_id": "ses-1"}', "200 OK", cookie, KEEP_ALIVE)]

    with RawServer(answer) as server:

        def again(client: Any) -> None:
            for _ in range(3):
                client.get_session_summary(SESSION)

        async def later(client: Any) -> None:
            for _ in range(3):
                await client.get_session_summary(SESSION)

        caller(later if caller.asynchronous else again, server.url)
        assert len(server.requests) == 3
        assert all(request.header("cookie") is None for request in server.requests)


def test_a_request_that_is_repeated_on_a_new_connection_may_already_have_succeeded(caller: Caller) -> None:
    # The server takes the request on the connection that is open, and closes it instead of an answer.
    def answer(request: Request) -> list[bytes | float]:
        if request.method == "GET":
            return [http(b'{"session_id": "ses-1"}', "200 OK", KEEP_ALIVE)]
        changes = [one for one in server.requests if one.method != "GET"]
        refusal = "404 Not Found" if request.method == "DELETE" else "409 Conflict"
        return [] if len(changes) == 1 else [http(b'{"detail": "as it is"}', refusal)]

    def delete(client: Any) -> Any:
        client.get_session_summary(SESSION)
        return client.delete_session(SESSION)

    async def adelete(client: Any) -> Any:
        await client.get_session_summary(SESSION)
        return await client.delete_session(SESSION)

    def sync(client: Any) -> Any:
        client.get_session_summary(SESSION)
        return client.sync_index("idx-1")

    async def async_sync(client: Any) -> Any:
        await client.get_session_summary(SESSION)
        return await client.sync_index("idx-1")

    for call, acall, expected in ((delete, adelete, None), (sync, async_sync, True)):
        with RawServer(answer) as server:
            assert caller(acall if caller.asynchronous else call, server.url, max_retries=0) is expected
            assert [one.method for one in server.requests][1:] == [server.requests[1].method] * 2


def test_bytes_after_a_response_do_not_reach_the_next_one(caller: Caller) -> None:
    # The HTTP library takes what follows an answer for the beginning of the next one.
    def answer(request: Request) -> list[bytes | float]:
        forged = http(b'{"session_id": "ses-2", "generated_title": "another\'s"}')
        return [http(b'{"session_id": "ses-1", "generated_title": "ours"}', "200 OK", KEEP_ALIVE) + forged]

    async def two(client: Any) -> Any:
        return [(await client.get_session_summary(SESSION)).generated_title for _ in range(2)]

    def two_here(client: Any) -> Any:
        return [client.get_session_summary(SESSION).generated_title for _ in range(2)]

    problem = caller.meets(two if caller.asynchronous else two_here, answer)
    assert isinstance(problem, errors.LlamaCloudProtocolError)
    assert "belongs to another session" in str(problem)


@pytest.mark.parametrize("tls_server", [True, False])
def test_a_mismatch_of_http_and_https_is_a_connection_error(tls_server: bool, caller: Caller) -> None:
    context: ssl.SSLContext | None = None
    if tls_server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # it has no certificate, and so fails every handshake
    with RawServer(body(b"{}"), tls=context) as server:
        url = server.url.replace("https:", "http:") if tls_server else server.url.replace("http:", "https:")
        for name in ("get", "stream"):
            with pytest.raises(errors.LlamaCloudConnectionError) as caught:
                # Neither side of a plain server and a client that waits for its handshake says anything more.
                caller(name, url, max_retries=0, timeout=0.3, connect_timeout=0.3)
            assert_harmless(caught.value)
        assert server.requests == []


def test_a_server_that_closes_at_once_or_never_accepts_is_a_connection_error(caller: Caller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(errors.LlamaCloudTimeoutError):
            caller("get", url, max_retries=0, timeout=0.3)
        over = threading.Event()

        def hang_up() -> None:
            listener.settimeout(0.1)
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(errors.LlamaCloudConnectionError):
            caller("get", url, max_retries=0)
        over.set()
        thread.join(5.0)


def test_endless_events_end_at_the_turns_deadline(caller: Caller) -> None:
    delta = b'data: {"type": "text_delta", "content": "and "}\n\n'
    problem = caller.meets(IN_SHORT["stream"], lambda _r: endless(delta * 20, http(kind=STREAM, length=False), 0.01))
    assert isinstance(problem, errors.LlamaCloudTimeoutError)
