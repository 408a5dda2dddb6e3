"""What a browser was sent, all of it, so that a test can say what was in none of it; and the pictures for the documentation."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, FloatRect, Locator, Page

ASKED_FOR = "LLAMACHAT_SCREENSHOTS"
"""Environment variable: 1 puts the pictures into ``docs/images``; otherwise they stay under ``build``."""

LARGEST_PICTURE = 150_000
"""Bytes."""


class Watched:
    """A browser context (cookies of its own) that remembers each answer's body.

    :param secrets: what no answer and no page may contain.
    :param timeout: milliseconds that an action waits for its element.
    """

    def __init__(self, browser: Browser, folder: Path, secrets: list[str], *, timeout: float) -> None:
        self._record = folder / "answers.har"
        self._secrets = secrets
        self.context: BrowserContext = browser.new_context(
            viewport={"width": 1280, "height": 900},
            record_har_path=self._record,
            record_har_content="embed",
            # Airflow's own scripts and styles are megabytes that are the same for everybody.
            record_har_url_filter=re.compile(r"^(?!.*\.(js|css|png|svg|ico|woff2?)(\?.*)?$)"),
        )
        self.context.set_default_timeout(timeout)

    def page(self) -> Page:
        """Open a page."""
        return self.context.new_page()

    def close(self) -> list[str]:
        """Close it and return where a secret was found: ``page ...`` and ``answer ...`` with the address; [] is good."""
        found = [
            f"page {page.url}"
            for page in self.context.pages
            if any(secret in shown for secret in self._secrets for shown in [page.content(), *_values(page)])
        ]
        self.context.close()
        bodies = answers(self._record)
        if not any("/connection" in address for address, _ in bodies):
            raise AssertionError(f"no answer about connections was recorded: {[address for address, _ in bodies]}")
        return found + [
            f"answer {address}" for address, body in bodies if any(secret in body for secret in self._secrets)
        ]


def _values(page: Page) -> list[str]:
    values = page.locator("input, textarea").evaluate_all("fields => fields.map(field => field.value)")
    return [str(value) for value in values]


def answers(record: Path) -> list[tuple[str, str]]:
    """Return address and text of each answer in a HAR file, headers included."""
    found = []
    for entry in json.loads(record.read_text())["log"]["entries"]:
        content = entry["response"]["content"]
        body = content.get("text", "")
        if content.get("encoding") == "base64":
            body = base64.b64decode(body).decode("utf-8", "replace")
        found.append((entry["request"]["url"], json.dumps(entry["response"]["headers"]) + body))
    return found


def picture(shown: Page | Locator, name: str, repository: Path, *, around: Locator | None = None) -> None:
    """Take a picture; where it ends up depends on :data:`ASKED_FOR`.

    :param around: parts of the page; the picture is cut to them, with a margin.
    """
    folder = repository / "build" / "browser" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.png"
    if around is not None:
        around.page.screenshot(path=file, clip=_cut(around), animations="disabled")
    else:
        shown.screenshot(path=file, animations="disabled")
    assert file.stat().st_size < LARGEST_PICTURE, f"{file} has {file.stat().st_size} bytes"
    if os.environ.get(ASKED_FOR) == "1":
        images = repository / "docs" / "images"
        images.mkdir(exist_ok=True)
        shutil.copy(file, images)


def _cut(parts: Locator, margin: float = 24.0) -> FloatRect:
    boxes = [box for part in parts.all() if (box := part.bounding_box())]
    left, top = (min(box[side] for box in boxes) - margin for side in ("x", "y"))
    right = max(box["x"] + box["width"] for box in boxes) + margin
    bottom = max(box["y"] + box["height"] for box in boxes) + margin
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}
