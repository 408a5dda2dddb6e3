"""The watch over secrets itself: it has to find one that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.conftest import PATIENCE
from tests.browser.react_ui import ConnectionPages
from tests.browser.watching import Watched
from tests.system.stack import AirflowStack

pytestmark = pytest.mark.browser


def test_a_secret_is_found_in_answers_and_in_fields(browser: Browser, airflow: AirflowStack, tmp_path: Path) -> None:
    airflow.api.put_connection("watched", {"conn_type": "llamacloud", "host": "https://said-in-an-answer.example"})
    watched = Watched(browser, tmp_path, ["said-in-an-answer"], timeout=PATIENCE)
    ConnectionPages(watched.page(), airflow.url).reopen("watched")
    found = watched.close()
    assert f"page {airflow.url}/connections" in found
    assert [place for place in found if place.startswith(f"answer {airflow.url}/api/v2/connections")]
