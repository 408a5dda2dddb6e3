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

    def expect_labels(self, *labels: str) -> None:
        """Wait until the section that is open has these labels: its fields appear one after the other."""
        expect(self.dialog.locator("[data-state=open] label")).to_have_text(list(labels))

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

    def expect_regions(self, *regions: str) -> None:
        """Open the choice of regions and wait until it offers these."""
        self._region().click()
        expect(self.page.get_by_role("option")).to_have_text(list(regions))

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

    def expect_extras(self, extra: dict[str, Any]) -> None:
        """Wait until the extra fields show this, by their names in ``extra``."""
        for name, value in extra.items():
            expect(self.dialog.locator(f"[name=element_{name}]")).to_have_value(str(value))

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
