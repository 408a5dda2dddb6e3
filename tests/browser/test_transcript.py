"""A real browser shows a transcript whose every text tries to run a script: none runs, and nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_llamachat.transcripts.render import render
from tests.unit.test_transcripts import HOSTILE, session_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("bypass_csp", [False, True], ids=["as it is", "without its policy"])
def test_no_script_runs_and_nothing_is_fetched(bypass_csp: bool, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "transcript.html"
    file.write_bytes(render(session_of(*HOSTILE, generated_title="A title"), "html").encode("utf-8", "replace"))
    context = browser.new_context(bypass_csp=bypass_csp)
    events: list[str] = []
    page = context.new_page()
    page.on("dialog", lambda dialog: events.append(f"dialog {dialog.message}"))
    page.on("console", lambda message: events.append(f"console {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error {error}"))
    page.on("request", lambda request: events.append(f"request {request.url}"))
    page.goto(file.as_uri())
    page.wait_for_timeout(300)
    assert events == [f"request {file.as_uri()}"]
    assert page.title() == "A title"
    assert page.evaluate("document.scripts.length + document.images.length + document.links.length") == 0
    assert page.locator("section").count() == len(HOSTILE)
    assert HOSTILE[0] in page.locator("section").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (
        "it is too wide"
    )
    context.close()
