"""The question-and-answer example as a user runs it from the UI: connection by form, trigger by button, answers in the XComs."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Page, expect

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
    page.set_viewport_size({"width": 1400, "height": 640})
    page.goto(f"{airflow.url}/dags/{DAG}")
    page.get_by_role("button", name="Trigger").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Trigger", exact=True).click()
    page.wait_for_url(re.compile(r"/runs/manual"))
    run_address = page.url.split("?")[0]
    page.get_by_role("button", name="Show Graph").click()
    for task in TASKS:
        node = page.locator(".react-flow__node").filter(has_text=task)
        expect(node).to_contain_text("success", timeout=90_000)
    page.wait_for_load_state("networkidle")
    picture(page, "dag-graph", repository)
    assert emulator.completed() == completed + 2

    page.goto(f"{run_address}/tasks/ask_follow_up/xcom")
    for key in ("return_value", "usage", "skipped_index_ids"):
        expect(page.get_by_role("row").filter(has_text=key)).to_be_visible()
    run_id = unquote(run_address.rpartition("/")[2])
    answer = airflow.api.xcom(DAG, run_id, "ask_follow_up", "return_value", -1)
    assert "Q2" in answer
    expect(page.get_by_role("row").filter(has_text="return_value")).to_contain_text(answer)
    expect(page.get_by_role("row").filter(has_text="usage")).to_contain_text("total_output_tokens")
    picture(page, "xcom", repository)
