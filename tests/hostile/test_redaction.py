"""A body, a header or a page that echoes the API key: no notation that programs use puts it into a message."""

from __future__ import annotations

import base64
import codecs
import html
import json
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import ClientConfig
from airflow_provider_llamachat.redaction import MAX_MESSAGE, excerpt, one_line, scrub
from tests.hostile.conftest import KEY, Caller
from tests.hostile.rawserver import http

ECHOES: dict[str, bytes] = {
    "plain": KEY.encode(),
    "bearer": f"Authorization: Bearer {KEY}".encode(),
    "json": json.dumps({"headers": {"authorization": f"Bearer {KEY}"}}).encode(),
    "detail": json.dumps({"detail": f"bad key {KEY}"}).encode(),
    "detail as object": json.dumps({"detail": {"key": KEY}}).encode(),
    "detail as list": json.dumps({"detail": [{"loc": ["header", KEY], "msg": KEY, "input": KEY}]}).encode(),
    "json in json": json.dumps({"detail": json.dumps({"key": KEY})}).encode(),
    "json in json in text": json.dumps(json.dumps(json.dumps(KEY))).encode(),
    "representation": repr({"k": KEY.encode()}).encode(),
    "url": quote(KEY, safe="").encode(),
    "url with bare slashes": quote(KEY).encode(),
    "url as a browser writes it": quote(KEY, safe="/'&+!*()~").encode(),
    "url in url": quote(quote(KEY), safe="").encode(),
    "url in lower case": quote(KEY, safe="").replace("%2F", "%2f").replace("%2B", "%2b").encode(),
    "url in json": json.dumps({"detail": quote(KEY)}).encode(),
    "json with escaped slashes": json.dumps({"detail": KEY}).replace("/", "\\/").encode(),
    "json with everything escaped": ('{"detail": "' + "".join(f"\\u{ord(c):04x}" for c in KEY) + '"}').encode(),
    "html with numbers": "".join(c if c.isalnum() else f"&#{ord(c)};" for c in KEY).encode(),
    "html in hexadecimal": "".join(c if c.isalnum() else f"&#x{ord(c):X};" for c in KEY).encode(),
    "query": f"/login?next=%2F&key={quote_plus(KEY)}".encode(),
    "html": f"<pre>{html.escape(KEY)}</pre>".encode(),
    "base64": base64.b64encode(f"Bearer {KEY}".encode()),
    "basic, 1": base64.b64encode(f"u:{KEY}".encode()),
    "basic, 2": base64.b64encode(f"us:{KEY}x".encode()),
    "base64 for urls": base64.urlsafe_b64encode(f"\xff\xfe{KEY}\xff".encode("latin-1")),
    "hexadecimal": KEY.encode().hex().upper().encode(),
    "upper case": KEY.upper().encode(),
    "utf-16": KEY.encode("utf-16-le"),
    "utf-16 with a mark": codecs.BOM_UTF16_BE + KEY.encode("utf-16-be"),
    "at the window's edge": b" " * 790 + KEY.encode() * 3,
    "between": b"\x00".join([b"x" * 150, KEY.encode()]),
}


def shows(text: str) -> bool:
    """Whether any of the notations stands in the text."""
    plain = text.lower().replace("\\", "")
    return any(
        part.lower() in plain
        for part in (
            "canary",
            "63616e617279",
            "".join(f"u{ord(c):04x}" for c in "canary"),
            *(base64.b64encode(b"." * n + b"<canary>")[4:-4].decode() for n in range(3)),
        )
    )


@pytest.mark.long
@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("status", ["200 OK", "403 X", "503 X", "302 X"])
def test_an_echo_of_the_key_is_not_shown(echo: str, status: str, caller: Caller) -> None:
    text = ECHOES[echo]
    line = text.replace(b"\x00", b"").decode("latin-1")
    answer = http(text, status, f"Location: /{line}", f"X-Request-Id: {line}", kind=f"text/{line}")
    for name in ("get", "stream", "projects"):
        problem = caller.meets(name, lambda _r: [answer], max_retries=0)
        assert isinstance(problem, errors.LlamaCloudError)
        assert not shows(str(problem)), problem
        assert not shows(str(problem.request_id))


def test_the_check_finds_a_key_that_is_shown() -> None:
    for echo, text in ECHOES.items():
        if "utf-16" not in echo:
            assert shows(text.decode("latin-1")), echo


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60), st.text(max_size=30))
def test_any_key_is_found_in_any_notation(key: str, around: str) -> None:
    for text in (
        key,
        quote(key, safe=""),
        json.dumps(key),
        json.dumps(json.dumps(key)),
        html.escape(key),
        key.encode().hex(),
    ):
        left, right = json.dumps(around)[1:-1], around
        assert text.strip('"') not in scrub(f"{left}{text}{right}", (key,)) or text.strip('"') in left + "***" + right


@given(st.text(max_size=4000))
def test_a_message_is_one_bounded_line_and_stays_as_it_is(text: str) -> None:
    line = one_line(text)
    assert len(line) <= MAX_MESSAGE
    assert one_line(line) == line
    assert len(line.splitlines()) <= 1
    line.encode()


@pytest.mark.parametrize(
    "text",
    [
        "bearer bonds; bearer shares",
        "Bearer of bad news, bearer, bearer",
        "a bearer instrument of 2024",
        "the bearer acknowledgements and bearer responsibilities",
        "bearer-token authentication",
        "see the llx-files folder, llx-prefix, llx- and LLX-1",
    ],
)
def test_words_are_not_mistaken_for_tokens(text: str) -> None:
    assert scrub(text, ()) == text


@pytest.mark.parametrize(
    "token", ["0123456789abcdef", "abc.DEF-123_456~x/y+z==", "eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG", "f" * 40]
)
def test_what_has_the_form_of_a_token_is_not_shown(token: str) -> None:
    assert scrub(f'{{"authorization": "Bearer {token}"}}', ()) == '{"authorization": "***"}'


@pytest.mark.parametrize("key", ["llx-" + "aB3_" * 4, "llx-" + "x-" * 24, "LLX-0123456789ABCDEF", "llx-AbC123dEf456"])
def test_what_has_the_form_of_a_key_is_not_shown(key: str) -> None:
    assert scrub(f"key={key}.", ()) == "key=***."


@pytest.mark.parametrize("key", ["llx-abcd", "llx-your-key", "no-form-of-a-key"])
def test_the_key_of_a_connection_is_not_shown_whatever_its_form(key: str) -> None:
    ClientConfig(api_key=key)
    assert scrub(f"key={key}.", ()) == "key=***."
    assert str(errors.LlamaCloudError(f"key={key}.")) == "key=***."


def test_a_clients_key_is_redacted_wherever_server_text_is_shown() -> None:
    key = "a/key+of=no/special'form"
    assert key in excerpt(f"it said {key}")
    assert key not in repr(ClientConfig(api_key=key))
    for text in (key, quote(key), json.dumps({"k": key})):
        assert scrub(f"it said {text}", ()).startswith("it said ")
        assert "special" not in scrub(f"it said {text}", ())
        assert "special" not in excerpt(f"it said {text}")
        assert "special" not in str(errors.LlamaCloudError(f"it said {text}"))


def test_a_key_that_is_too_short_is_not_redacted_in_texts() -> None:
    ClientConfig(api_key="e")
    assert scrub("every letter", ()) == "every letter"


def test_redaction_of_hostile_text_is_fast() -> None:
    begin = time.process_time()
    for text in (KEY[:-1] * 5000, "\\" * 250_000, "bearer " * 25_000, "llx-" * 50_000, "=\\" * 75_000):
        scrub(text, (KEY,))
        excerpt(text, secrets=(KEY,))
    assert time.process_time() - begin < 5.0


@pytest.mark.parametrize(
    "text", ["A\u017fK-0123456", "as\u212a-0123456", "ask\\-0123456", "a%73k-0123456", "&#97;sk-0123456"]
)
def test_a_secret_is_found_in_equivalent_notations(text: str) -> None:
    assert scrub(f"Revenue grew: {text} 11 %.", ("ask-0123456",)) == "Revenue grew: *** 11 %."


@pytest.mark.parametrize(
    ("mark", "equals"), [("?", "="), ("&", "="), ("&amp;", "="), ("\\u0026", "="), ("%3F", "%3D"), ("%26", "%3d")]
)
def test_the_signature_of_a_url_in_json_in_html_or_in_another_url_is_redacted(mark: str, equals: str) -> None:
    assert scrub(f"https://files.invalid/a{mark}X-Amz-Signature{equals}{'ab12' * 16}", ()).endswith(f"{mark}***")
