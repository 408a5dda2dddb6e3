"""Airflow 3's connection pages as a user handles them: by labels and roles."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page, expect

STANDARD = {"Description": "description", "Base URL": "host", "API Key": "password", "Port": "port"}


class ConnectionPages:
    """The list of connections and its form.

    :param page: a page of the browser.
    :param base_url: Airflow's address.
    """

    def __init__(self, page: Page, base_url: str) -> None:
        self.page = page
        self.base_url = base_url
        self.dialog = page.get_by_role("dialog")

    def add(self, conn_id: str) -> None:
        """Open the form for a new LlamaCloud connection."""
        self.page.goto(f"{self.base_url}/connections")
        self.page.get_by_role("button", name="Add Connection").click()
        self.dialog.locator("[name=connection_id]").fill(conn_id)
        kind = self.dialog.get_by_role("combobox").first
        kind.click()
        kind.fill("Llama")
        self.page.get_by_role("option", name="LlamaCloud", exact=True).click()
        expect(self.field("API Key")).to_be_visible()

    def reopen(self, conn_id: str) -> None:
        """Open the form of a stored connection."""
        self.page.goto(f"{self.base_url}/connections")
        self.row(conn_id).get_by_role("button", name="Edit Connection").click()
        expect(self.field("API Key")).to_be_visible()

    def row(self, conn_id: str) -> Locator:
        """Return a connection's row in the list."""
        return self.page.get_by_role("row").filter(has_text=conn_id)

    def field(self, label: str) -> Locator:
        """Return an entry of *Standard Fields* by its label."""
        return self.dialog.locator(f"[name={STANDARD[label]}]")

    def labels(self) -> list[str]:
        """Return the labels of the section that is open."""
        return [text.strip() for text in self.dialog.locator("[data-state=open] label").all_inner_texts()]

    def open_extras(self) -> None:
        """Open *Extra Fields*; the section before closes."""
        self.dialog.get_by_role("button", name="Extra Fields", exact=True).click()
        expect(self.dialog.locator("[name=element_project_id]")).to_be_visible()
        expect(self.field("API Key")).to_be_hidden()

    def fill(self, **labels: str) -> None:
        """Fill standard fields; ``api_key`` stands for *API Key*."""
        names = {"base_url": "Base URL", "api_key": "API Key", "port": "Port", "description": "Description"}
        for name, value in labels.items():
            self.field(names[name]).fill(value)

    def region_choices(self) -> list[str]:
        """Open the choice of regions and return what it offers."""
        self._region().click()
        return self.page.get_by_role("option").all_inner_texts()

    def choose_region(self, region: str) -> None:
        """Choose a region in the open choice."""
        self.page.get_by_role("option", name=region, exact=True).click()

    def fill_extras(
        self, *, project_id: str, organization_id: str, timeout: str, max_retries: str, history_lag: str
    ) -> None:
        """Fill the extra fields that are typed."""
        self.dialog.locator("[name=element_project_id]").fill(project_id)
        self.dialog.locator("[name=element_organization_id]").fill(organization_id)
        for index, value in enumerate((timeout, max_retries, history_lag)):
            number = self.dialog.get_by_role("spinbutton").nth(index)
            number.fill(value)
            number.blur()

    def extras(self) -> dict[str, str]:
        """Return what the extra fields show, by their names in ``extra``."""
        names = ("region", "project_id", "organization_id", "timeout", "max_retries", "history_lag")
        return {name: self.dialog.locator(f"[name=element_{name}]").input_value() for name in names}

    def save(self) -> None:
        """Save; the form closes."""
        self.dialog.get_by_role("button", name="Save").click()
        expect(self.dialog).to_be_hidden()

    def test(self, conn_id: str) -> tuple[dict[str, Any], Locator]:
        """Find a connection in the list and press *Test*; return what the API answered and the button, whose symbol shows it."""
        self.page.goto(f"{self.base_url}/connections")
        self.page.get_by_placeholder("Search Connections").fill(conn_id)
        expect(self.page.get_by_text("1 Connection", exact=True)).to_be_visible()
        button = self.row(conn_id).get_by_role("button", name="Test Connection")
        with self.page.expect_response(lambda answer: answer.url.endswith("/connections/test")) as waited:
            button.click()
        answer: dict[str, Any] = waited.value.json()
        return answer, button

    def _region(self) -> Locator:
        # The second choice of the form; the first is the connection type.
        return self.dialog.get_by_role("combobox").nth(1)
