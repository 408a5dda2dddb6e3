"""A real browser shows a transcript whose every text tries to run a script: none runs, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_llamachat.transcripts.render import render
from tests.unit.test_transcripts import HOSTILE, session_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@contextmanager
def opened(browser: Browser, file: Path, *, bypass_csp: bool) -> Iterator[tuple[Page, list[str]]]:
    """A page that shows ``file``, and what happened on it: requests, messages, errors and dialogs."""
    events: list[str] = []
    context = browser.new_context(bypass_csp=bypass_csp)
    page = context.new_page()
    page.on("dialog", lambda dialog: events.append(f"dialog {dialog.message}"))
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.on("console", lambda message: events.append(f"console {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error {error}"))
    page.on("request", lambda request: events.append(f"request {request.url}"))
    page.goto(file.as_uri())
    page.wait_for_timeout(300)
    yield page, events
    context.close()


@pytest.mark.parametrize("bypass_csp", [False, True], ids=["as it is", "without its policy"])
def test_no_script_runs_and_nothing_is_fetched(bypass_csp: bool, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "transcript.html"
    file.write_bytes(render(session_of(*HOSTILE, generated_title="A title"), "html").encode("utf-8", "replace"))
    with opened(browser, file, bypass_csp=bypass_csp) as (page, events):
        assert events == [f"request {file.as_uri()}"]
        assert page.title() == "A title"
        assert page.evaluate("document.scripts.length + document.images.length + document.links.length") == 0
        assert page.locator("section").count() == len(HOSTILE)
        assert HOSTILE[0] in page.locator("section").first.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), "too wide"


def test_the_same_texts_without_escaping_would_run(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "transcript.html"
    file.write_text(f"<title>A title</title>{HOSTILE[0]}{HOSTILE[1]}")
    with opened(browser, file, bypass_csp=True) as (page, events):
        assert page.title() == "owned"
        assert len(events) > 1
