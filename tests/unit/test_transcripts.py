"""A transcript shows what others wrote, and no text in it has an effect: not as HTML, not as Markdown, not as a template."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from airflow_provider_llamachat.models import Session
from airflow_provider_llamachat.transcripts.render import escaped, is_of_another, render

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\"> <svg/onload=alert(1)> </p></td></table></body><script>1</script>",
    "{{ 7*7 }} {% raw %} ${7*7} {# #}",
    "\x1b[31mred\x1b[2J\x9b2J \x00 \x07",
    "\u202egnp.exe \u2066hidden\u2069 \u200fmark",
    "| a | b |\n|---|---|\n| closes | the table |\n\n# Heading\n\n- item\n1. one\n\n    code\n\n```\nfence",
    "a\n===\nb\n---\n***\n~~~\n:--\n> quote\n[^1]: note\n[x]: https://evil.invalid\n+ plus",
    "![picture](https://evil.invalid/p.png) [link](javascript:alert(1)) <https://evil.invalid> *a* _b_ ~~c~~ `d` &copy; &#60;b&#62;",
    "\r\nlines\rand\u2028more\u2029lines\x85end\ttab  \\",
    "half \ud800 of a pair",
)


def session_of(*texts: str, **changes: Any) -> Session:
    """One turn for each text, which stands in everything that others write."""
    events: list[dict[str, Any]] = [{"type": "text", "content": "before all"}]
    for text in texts:
        passage = {
            "content": text,
            "score": 0.5,
            "metadata": {"file_name": text, text: text},
            "static_fields": {"page_range_start": 1, "parsed_directory_file_id": text},
        }
        events += [
            {"type": "user_input", "content": text},
            {"type": "thinking", "content": text},
            {"type": "tool_call", "name": text, "call_id": "1", "arguments": {text: text}},
            {"type": "tool_result", "name": text, "call_id": "1", "result": [passage, {"odd": text}, text]},
            {"type": "text", "content": text},
            {
                "type": "stop",
                "usage": {"duration_ms": 1001.204},
                "is_error": True,
                "error": text,
                "skipped_index_ids": [text],
            },
        ]
    values = {"session_id": "ses-1", "generated_title": "\n".join(texts), "index_ids": list(texts), "events": events}
    return Session.model_validate({**values, "last_updated_at": texts[0] if texts else None, **changes})


class Page(HTMLParser):
    """Counts elements, and keeps what is seen and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def kinds_of(markdown: str) -> list[str]:
    """What blocks and inline elements that a reader of Markdown (with tables, and with HTML let through) finds."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = reader.parse(markdown)
    return [part.type for token in tokens for part in (token, *(token.children or []))]


@pytest.mark.parametrize("text", HOSTILE)
def test_html_shows_the_text_and_none_of_its_markup(text: str) -> None:
    page, harmless = Page(render(session_of(text), "html")), Page(render(session_of("harmless"), "html"))
    assert page.tags == harmless.tags
    assert (
        page.attributes == harmless.attributes <= {"lang", "charset", "http-equiv", "content", "name", "class", "dir"}
    )
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "49 " not in page.text
    shown = re.sub(r"\s+", " ", page.text)
    for word in re.findall("[a-z]{4,}", text):
        assert shown.count(word) >= 5, word
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200f]", page.text)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_the_text_and_none_of_its_markup(text: str) -> None:
    written = render(session_of(text), "markdown")
    allowed = set(kinds_of(render(session_of("harmless\n\nlines\nof text"), "markdown")))
    found = kinds_of(written)
    assert set(found) <= allowed | {"hardbreak"}
    assert not {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "fence",
        "code_block",
        "code_inline",
        "em_open",
    } & set(found)
    for kind in ("table_open", "tr_open", "td_open", "heading_open", "list_item_open", "blockquote_open"):
        assert found.count(kind) == kinds_of(render(session_of("harmless"), "markdown")).count(kind), kind
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200f]", written)
    assert "{{" not in written
    assert "49 " not in written


@given(st.text(alphabet=st.sampled_from("ab 1.)|-=#*_`~[]()<>!&\\\n\t:+>{}$"), max_size=60))
def test_escaped_text_reads_as_it_was(text: str) -> None:
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = reader.parse(escaped(text))
    inline = [part for token in tokens for part in (token.children or [])]
    assert {token.type for token in tokens} <= {"paragraph_open", "inline", "paragraph_close"}
    assert {part.type for part in inline} <= {"text", "text_special", "hardbreak", "softbreak"}
    seen = "".join(part.content for part in inline)
    assert re.sub(r"\s", "", seen) == re.sub(r"\s", "", text)


@pytest.mark.parametrize("form", ["markdown", "html", "json"])
def test_a_passage_of_ten_megabytes_is_cut_and_an_answer_is_not(form: str) -> None:
    huge = "word | *x* <b> " * 700_000
    begin = time.process_time()
    events = [
        {"type": "user_input", "content": "q"},
        {"type": "tool_result", "name": "t", "call_id": "1", "result": [{"content": huge}, {"odd": huge}, huge]},
        {"type": "text", "content": "the answer " * 100_000},
        {"type": "stop", "usage": {}},
    ]
    text = render(session_of(events=events), form)
    assert text.count("the answer") == 100_000
    assert len(text) < 1_150_000
    assert time.process_time() - begin < 10.0


def test_json_contains_the_whole_conversation() -> None:
    found = json.loads(render(session_of(*HOSTILE), "json"))
    assert len(found["turns"]) == len(HOSTILE)
    assert [turn["position"] for turn in found["turns"]] == list(range(len(HOSTILE)))
    first = found["turns"][0]
    assert first["question"] == first["answer"] == first["thinking"] == first["error"] == HOSTILE[0]
    assert first["tools"] == [{"name": HOSTILE[0], "arguments": {HOSTILE[0]: HOSTILE[0]}, "finished": True}]
    assert [sorted(source) for source in first["sources"]][1:] == [["raw", "tool"], ["text", "tool"]]
    assert first["usage"]["duration_ms"] == 1001.204


@pytest.mark.parametrize("form", ["markdown", "html", "json"])
def test_missing_values_are_not_an_error(form: str) -> None:
    empty = session_of(generated_title=None, index_ids=None, events=[])
    assert "ses-1" in render(empty, form)
    running = session_of(events=[{"type": "user_input", "content": "why"}, {"type": "text", "content": "so"}])
    text = render(running, form)
    assert "why" in text
    assert ("The turn has no end" in text) is (form != "json")


def test_figures_are_readable() -> None:
    for form in ("markdown", "html"):
        assert "1.0 s" in render(session_of("x"), form)


@pytest.mark.parametrize("theirs", ["markdown", "html", "json"])
@pytest.mark.parametrize("session_id", ["ses-1", "ses_*1<&>\"'|", "\U0001f999 [x]"])
@pytest.mark.parametrize("text", ["What?", *HOSTILE])
def test_a_file_tells_in_every_format_whose_transcript_it_is(text: str, session_id: str, theirs: str) -> None:
    session = session_of(text, session_id=session_id)
    head = render(session, theirs).encode("utf-8", "replace")
    assert not is_of_another(head, session)
    assert not is_of_another(head, session_of("A later turn", session_id=session_id))
    assert is_of_another(head, session_of(text, session_id="ses-2"))
    lie = '\n\n- Session: ses-2\n</h1><dt>Session</dt><dd>ses-2</dd>\n{\n  "session_id": "ses-2",\n'
    assert is_of_another(
        render(session_of(lie + text, session_id=session_id), theirs).encode("utf-8", "replace"),
        session_of(session_id="ses-2"),
    )


@pytest.mark.parametrize(
    "head", [b"", b"{}", b"# Notes\n\n- Session of July", b"<!DOCTYPE html>\n<dd>ses-1</dd>", b"\xff\0"], ids=repr
)
def test_a_file_that_is_no_transcript_is_of_no_session(head: bytes) -> None:
    assert not is_of_another(head, session_of("What?"))
