"""The connection form of Airflow 3, from an empty form to the *Test* button, in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from airflow_provider_llamachat.client import ClientConfig
from airflow_provider_llamachat.provider_info import get_provider_info
from airflow_provider_llamachat.testing import (
    DEFAULT_ORGANIZATION_ID,
    DEFAULT_PROJECT_ID,
    OTHER_PROJECT_ID,
    EmulatorProcess,
)
from tests.browser.conftest import KEY, WRONG_KEY, StoredConfig
from tests.browser.react_ui import ConnectionPages
from tests.browser.watching import picture
from tests.system.stack import AirflowStack

pytestmark = pytest.mark.browser


@pytest.fixture
def pages(page: Page, airflow: AirflowStack) -> ConnectionPages:
    return ConnectionPages(page, airflow.url)


def fill_address(pages: ConnectionPages, emulator: EmulatorProcess) -> None:
    address = urlsplit(emulator.url)
    pages.fill(base_url=f"http://{address.hostname}", port=str(address.port))


def test_the_form_shows_what_is_used_and_hides_the_rest(pages: ConnectionPages, repository: Path) -> None:
    pages.page.set_viewport_size({"width": 1280, "height": 1280})
    pages.add("llamacloud_default")
    # This version's Test button wants a port, so there is a field for it.
    pages.expect_labels("Description", "Base URL", "API Key", "Port")
    expect(pages.field("API Key")).to_have_attribute("type", "password")
    expect(pages.field("API Key")).to_have_attribute("placeholder", "llx-…")
    expect(pages.field("Base URL")).to_have_attribute("placeholder", "empty: chosen by Region")
    for hidden in ("login", "schema"):
        expect(pages.dialog.locator(f"[name={hidden}]")).to_have_count(0)
    pages.fill(api_key="llx-not-a-real-key")
    picture(pages.dialog, "connection-form", repository)
    pages.open_extras()
    pages.expect_labels("Region", "Project ID", "Organization ID", "Timeout (s)", "Max retries", "History lag (s)")
    for field in get_provider_info()["connection-types"][0]["conn-fields"].values():
        expect(pages.dialog).to_contain_text(field["description"])
    pages.expect_regions("us", "eu")
    picture(pages.dialog, "connection-form-extra", repository)


def test_entered_values_are_stored_and_shown_again(
    pages: ConnectionPages, airflow: AirflowStack, stored_config: StoredConfig
) -> None:
    pages.add("all_fields")
    pages.fill(description="Nightly questions", base_url="https://llamacloud.example/api/v1/", api_key=KEY, port="8443")
    pages.open_extras()
    pages.expect_regions("us", "eu")
    pages.choose_region("eu")
    pages.fill_extras(
        project_id=OTHER_PROJECT_ID,
        organization_id=DEFAULT_ORGANIZATION_ID,
        timeout="90.5",
        max_retries="0",
        history_lag="2.5",
    )
    pages.save()

    extra = {
        "region": "eu",
        "project_id": OTHER_PROJECT_ID,
        "organization_id": DEFAULT_ORGANIZATION_ID,
        "timeout": 90.5,
        "max_retries": 0,
        "history_lag": 2.5,
    }
    config = {
        "api_key": KEY,
        "base_url": "https://llamacloud.example:8443",
        "project_id": OTHER_PROJECT_ID,
        "organization_id": DEFAULT_ORGANIZATION_ID,
        "timeout": 90.5,
        "max_retries": 0,
        "history_lag": 2.5,
    }
    found = stored_config(airflow, "all_fields")
    assert found["extra"] == extra
    assert config.items() <= found["config"].items()

    pages.reopen("all_fields")
    expect(pages.field("API Key")).to_have_value("***")
    expect(pages.field("Base URL")).to_have_value("https://llamacloud.example/api/v1/")
    pages.expect_extras(extra)
    pages.fill(description="Nightly questions, and more")
    pages.save()
    assert stored_config(airflow, "all_fields") == found
    shown = airflow.api.call("GET", "/connections/all_fields")
    assert (shown["password"], shown["description"]) == ("***", "Nightly questions, and more")


def test_an_api_key_alone_is_a_complete_connection(pages: ConnectionPages, airflow: AirflowStack) -> None:
    pages.add("key_alone")
    pages.fill(api_key=KEY)
    pages.save()
    stored = airflow.api.call("GET", "/connections/key_alone")
    extra = json.loads(stored["extra"])
    assert extra == dict.fromkeys(("region", "project_id", "organization_id", "timeout", "max_retries", "history_lag"))
    config = ClientConfig.build(api_key=KEY, host=stored["host"], port=stored["port"], **extra)
    assert config == ClientConfig(api_key=KEY)


def test_the_test_button_turns_green_and_names_the_project(
    pages: ConnectionPages, emulator: EmulatorProcess, repository: Path
) -> None:
    pages.page.set_viewport_size({"width": 1100, "height": 540})
    pages.add("llamacloud_reachable")
    fill_address(pages, emulator)
    pages.fill(api_key=KEY)
    pages.open_extras()
    pages.fill_extras(project_id=DEFAULT_PROJECT_ID, organization_id="", timeout="", max_retries="", history_lag="")
    pages.save()
    answer, button = pages.test("llamacloud_reachable")
    assert answer["status"] is True
    assert answer["message"] == f"Connected to {emulator.url}, project 'Default' ({DEFAULT_PROJECT_ID})."
    expect(button.locator("svg")).to_have_attribute("color", "green")
    expect(pages.page.get_by_text(answer["message"])).to_be_visible()
    picture(pages.page, "connection-test", repository)


def test_a_wrong_key_turns_the_test_button_red_and_explains_what_to_do(
    pages: ConnectionPages, emulator: EmulatorProcess, repository: Path
) -> None:
    pages.page.set_viewport_size({"width": 1100, "height": 540})
    pages.add("wrong_key")
    fill_address(pages, emulator)
    pages.fill(api_key=WRONG_KEY)
    pages.save()
    answer, button = pages.test("wrong_key")
    assert answer["status"] is False
    expect(button.locator("svg")).to_have_attribute("color", "red")
    message = pages.page.get_by_text("API key or region:")
    expect(message).to_be_visible()
    expect(message).to_contain_text(emulator.url)
    expect(message).to_contain_text("Check the connection's API Key and Region (or Base URL).")
    picture(pages.page, "connection-test-wrong-key", repository)
    # The key is corrected in the form, and nothing else has to be entered again.
    pages.reopen("wrong_key")
    pages.fill(api_key=KEY)
    pages.save()
    answer, button = pages.test("wrong_key")
    assert answer["status"] is True
    assert "default project 'Default'" in answer["message"]
    expect(button.locator("svg")).to_have_attribute("color", "green")
