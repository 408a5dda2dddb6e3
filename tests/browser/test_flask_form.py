"""The connection form of Airflow 2, which keeps everything as text and fills the fields of all connection types at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from airflow_provider_llamachat.testing import DEFAULT_PROJECT_ID, OTHER_PROJECT_ID, EmulatorProcess
from tests.browser.conftest import KEY, WRONG_KEY, StoredConfig
from tests.browser.watching import picture
from tests.system.stack import AirflowStack

pytestmark = pytest.mark.browser
EXTRA = "extra__llamacloud__"


class FlaskForm:
    """The form, by the labels that it shows."""

    def __init__(self, page: Page, airflow: AirflowStack) -> None:
        self.page = page
        self.base_url = airflow.url

    def add(self, conn_id: str) -> None:
        self.page.goto(f"{self.base_url}/connection/add")
        self.page.locator("#conn_type").select_option("llamacloud")
        expect(self.field("API Key")).to_be_visible()
        # Scripts at the end of the page take over the form's buttons.
        self.page.wait_for_load_state("load")
        self.page.locator("#conn_id").fill(conn_id)

    def reopen(self, conn_id: str) -> None:
        self.page.goto(f"{self.base_url}/connection/list/")
        row = self.page.get_by_role("row").filter(has=self.page.get_by_role("cell", name=conn_id, exact=True))
        row.locator("a[href*='/connection/edit/']").click()
        expect(self.page.locator("#conn_id")).to_have_value(conn_id)

    def rows(self) -> Locator:
        return self.page.locator("#model_form tr:visible").filter(has=self.page.locator("input, textarea, select"))

    def labels(self) -> list[str]:
        return [text.strip(" *\n\t") for text in self.rows().locator("label").all_inner_texts()]

    def field(self, label: str) -> Locator:
        return self.rows().filter(has=self.page.get_by_text(label, exact=True)).locator("input, textarea").first

    def fill(self, fields: dict[str, str]) -> None:
        for label, value in fields.items():
            self.field(label).fill(value)

    def values(self) -> dict[str, str]:
        chosen = ("Connection Id", "Connection Type")
        return {label: self.field(label).input_value() for label in self.labels() if label not in chosen}

    def save(self) -> None:
        self.page.get_by_role("button", name="Save").click()
        expect(self.page.locator(".alert", has_text="Row").first).to_be_visible()

    def test(self) -> str:
        with self.page.expect_response(lambda answer: answer.url.endswith("/connections/test")) as waited:
            self.page.locator("#test-connection").click()
        message = str(waited.value.json()["message"])
        expect(self.page.locator(".alert").first).to_have_text(message)
        return message


@pytest.fixture
def form(page: Page, old_airflow: AirflowStack) -> FlaskForm:
    return FlaskForm(page, old_airflow)


def test_entered_values_are_tested_stored_and_shown_again(
    form: FlaskForm,
    old_airflow: AirflowStack,
    emulator: EmulatorProcess,
    stored_config: StoredConfig,
    repository: Path,
) -> None:
    form.page.set_viewport_size({"width": 1280, "height": 1170})
    form.add("llamacloud_default")
    assert form.labels() == [
        "Connection Id",
        "Connection Type",
        "Description",
        "Base URL",
        "API Key",
        "Region",
        "Project ID",
        "Organization ID",
        "Timeout (s)",
        "Max retries",
        "History lag (s)",
    ]
    entered = {
        "Description": "Nightly questions",
        "Base URL": emulator.url,
        "API Key": KEY,
        "Region": "eu",
        "Project ID": OTHER_PROJECT_ID,
        "Timeout (s)": "90.5",
        "Max retries": "0",
        "History lag (s)": "0",
    }
    form.fill(entered)
    assert form.test() == f"Connected to {emulator.url}, project 'Contracts' ({OTHER_PROJECT_ID})."
    form.page.evaluate("scrollTo(0, 0)")
    picture(form.page, "connection-form-2.11", repository)
    form.save()

    found = stored_config(old_airflow, "llamacloud_default")
    assert found["extra"] == {
        "region": "eu",
        "project_id": OTHER_PROJECT_ID,
        "timeout": "90.5",
        "max_retries": "0",
        "history_lag": "0",
    }
    config = {
        "api_key": KEY,
        "base_url": emulator.url,
        "project_id": OTHER_PROJECT_ID,
        "organization_id": None,
        "timeout": 90.5,
        "max_retries": 0,
        "history_lag": 0,
    }
    assert config.items() <= found["config"].items()

    form.reopen("llamacloud_default")
    expect(form.field("API Key")).to_be_visible()  # a script of the page puts the labels
    assert form.values() == {**entered, "API Key": "", "Organization ID": ""}
    form.fill({"Project ID": DEFAULT_PROJECT_ID})
    form.save()
    again = stored_config(old_airflow, "llamacloud_default")
    assert again["extra"] == {**found["extra"], "project_id": DEFAULT_PROJECT_ID}
    assert again["config"] == {**found["config"], "project_id": DEFAULT_PROJECT_ID}
    assert "password" not in old_airflow.api.call("GET", "/connections/llamacloud_default")


def test_a_wrong_key_is_reported_with_what_to_do(form: FlaskForm, emulator: EmulatorProcess) -> None:
    form.add("wrong_key")
    form.fill({"Base URL": emulator.url, "API Key": WRONG_KEY})
    message = form.test()
    assert message.startswith("API key or region:")
    assert "Check the connection's API Key and Region (or Base URL)." in message
    form.page.goto("about:blank")  # what was typed goes with the form


def test_an_unknown_region_is_refused_before_it_is_stored(form: FlaskForm, old_airflow: AirflowStack) -> None:
    form.add("unknown_region")
    form.fill({"Base URL": "https://llamacloud.example", "Region": "asia"})
    # A script of the page replaces the text of the first alert with a warning of its own, as soon as it runs.
    with form.page.expect_response(lambda answer: answer.request.method == "POST") as waited:
        form.page.get_by_role("button", name="Save").click()
    assert "must be one of: us, eu" in waited.value.text()
    expect(form.page.locator("tr", has=form.page.locator(f"#{EXTRA}region")).locator(".alert")).to_be_visible()
    assert old_airflow.api.send("GET", "/connections/unknown_region").status_code == 404


def test_connections_of_other_types_can_still_be_edited(form: FlaskForm, old_airflow: AirflowStack) -> None:
    extra = json.dumps({"region": "ap-southeast-2", "timeout": "never", "max_retries": "many", "project_id": 7})
    old_airflow.api.put_connection("of_another_type", {"conn_type": "generic", "extra": extra})
    form.reopen("of_another_type")
    expect(form.page.locator(f"#{EXTRA}region")).to_be_hidden()
    form.page.locator("#description").fill("Edited")
    form.save()
    stored = old_airflow.api.call("GET", "/connections/of_another_type")
    assert stored["description"] == "Edited"
    assert json.loads(stored["extra"]) == json.loads(extra)
