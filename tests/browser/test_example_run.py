"""The question-and-answer example as a user runs it from the UI: connection by form, trigger by button, answers in the XComs."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

from airflow_provider_llamachat.testing import EmulatorProcess
from tests.browser.conftest import KEY
from tests.browser.react_ui import ConnectionPages
from tests.browser.watching import picture
from tests.system.stack import AirflowStack

pytestmark = pytest.mark.browser
DAG = "llamachat_question_and_answer"
TASKS = ("create_session", "ask_revenue", "ask_follow_up", "compare", "delete_session")


def test_run_the_example_and_read_its_answers(
    page: Page, airflow: AirflowStack, emulator: EmulatorProcess, repository: Path
) -> None:
    pages = ConnectionPages(page, airflow.url)
    address = urlsplit(emulator.url)
    pages.add("llamacloud_default")
    pages.fill(api_key=KEY, base_url=f"http://{address.hostname}", port=str(address.port))
    pages.save()

    completed = emulator.completed()
    page.set_viewport_size({"width": 1400, "height": 860})
    page.goto(f"{airflow.url}/dags/{DAG}")
    page.get_by_role("button", name="Trigger").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Trigger", exact=True).click()
    page.wait_for_url(re.compile(r"/runs/manual"))
    run_address = page.url.split("?")[0]
    page.get_by_role("button", name="Show Graph").click()
    for task in TASKS:
        node = page.locator(".react-flow__node").filter(has_text=task)
        expect(node).to_contain_text("success", timeout=90_000)
    page.get_by_role("button", name="Fit View").click()
    picture(page, "dag-graph", repository, around=page.locator(".react-flow__node"))
    assert emulator.completed() == completed + 2

    page.get_by_role("button", name="Show Grid").click()
    page.goto(f"{run_address}/tasks/create_session/xcom")
    for key in ("session_id", "index_ids", "return_value"):
        expect(xcom(page, key)).to_be_visible()
    page.goto(f"{run_address}/tasks/ask_follow_up/xcom")
    run_id = unquote(run_address.rpartition("/")[2])
    answer = airflow.api.xcom(DAG, run_id, "ask_follow_up", "return_value", -1)
    assert "Q2" in answer
    expect(xcom(page, "return_value")).to_contain_text(answer)
    expect(xcom(page, "skipped_index_ids")).to_be_visible()
    page.get_by_role("button", name="Expand all extra JSON").click()
    expect(xcom(page, "usage")).to_contain_text("total_output_tokens")
    picture(page, "xcom", repository)


def xcom(page: Page, key: str) -> Locator:
    """Return an XCom's row."""
    return page.get_by_role("row").filter(has=page.get_by_role("cell", name=key, exact=True))
