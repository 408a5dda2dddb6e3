"""The page *LlamaCloud chats* in Airflow, with two users, in light and dark, at the width of a phone, and with hostile texts."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import FrameLocator, Page, expect

from tests.browser.conftest import PATIENCE
from tests.browser.fill_chats import ANSWERS, DAG, RUN
from tests.browser.watching import picture
from tests.system.stack import AirflowStack
from tests.unit.test_transcripts import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

pytestmark = pytest.mark.browser
PASSWORDS = {"admin": "a password of the admin", "guest": "a password of the guest"}
PHONE = {"width": 390, "height": 844}

LogIn = Callable[..., Page]


@pytest.fixture(scope="module")
def chats(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowStack]:
    """The API server of an Airflow whose database has runs that asked; a guest does not see the Dag ``secret_merger``."""
    passwords = tmp_path_factory.mktemp("passwords") / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    environment = {
        "PYTHONPATH": str(repository),
        "AIRFLOW__CORE__AUTH_MANAGER": "tests.view.auth.TwoUsersAuthManager",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,guest:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
    }
    dags = [Path(__file__).parent / "dags" / "quarterly_reports.py"]
    stack = AirflowStack(dags=dags, environment=environment)
    try:
        stack.start(["api-server"])
        stack.run("dags", "reserialize")
        fill = [stack.python, "-m", "tests.browser.fill_chats"]
        done = subprocess.run(
            fill, env=stack.environment(), cwd=repository, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def log_in(browser: Browser, chats: AirflowStack) -> Iterator[LogIn]:
    """A function: log in with Airflow's form; return the page."""
    opened: list[BrowserContext] = []

    def go(user: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        opened.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(f"{chats.url}/auth/login")
        page.locator("input[name=username]").fill(user)
        page.locator("input[name=password]").fill(PASSWORDS[user])
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(re.compile(rf"^{re.escape(chats.url)}/(?!auth)"))
        return page

    yield go
    for context in opened:
        context.close()


def shown_in(page: Page) -> FrameLocator:
    """The page inside Airflow's."""
    return page.frame_locator("iframe")


def address(url: str, **where: Any) -> str:
    """The address of a conversation inside Airflow."""
    return f"{url}/plugin/llamacloud-chats#{urlencode(where)}"


def test_from_the_navigation_to_the_list_the_charts_and_a_conversation(
    log_in: LogIn, chats: AirflowStack, repository: Path
) -> None:
    page = log_in("admin")
    page.goto(f"{chats.url}/plugin/llamacloud-chats")
    frame = shown_in(page)
    expect(frame.locator(".runs tbody tr")).to_have_count(50)
    expect(frame.locator(".charts svg")).to_have_count(2)
    assert frame.locator(".charts svg").first.locator("line").count() == 3
    assert frame.locator("svg rect").count() > 40
    picture(page, "chats-list", repository)
    frame.get_by_role("button", name="Older").click()
    expect(frame.get_by_text("Runs 51–")).to_be_visible()
    frame.locator("select[name=dag_id]").select_option("contract_review")
    frame.get_by_role("button", name="Apply").click()
    expect(frame.locator(".runs tbody tr")).to_have_count(7)
    frame.locator("select[name=dag_id]").select_option(DAG)
    frame.get_by_role("button", name="Apply").click()
    expect(frame.locator(".runs tbody tr")).to_have_count(14)
    picture(frame.locator(".charts"), "chats-charts", repository)
    frame.get_by_role("link", name=DAG, exact=True).first.click()
    revenue = frame.locator("article").filter(has=frame.get_by_role("heading", name="ask_revenue"))
    for text in ANSWERS["ask_revenue"]:
        expect(revenue).to_contain_text(text)
    expect(revenue).to_contain_text("Answer: paid")
    expect(frame.locator("article").filter(has_text="ask_outlook")).to_contain_text("adopted")
    expect(frame.locator("article").filter(has_text="ask_risks")).to_contain_text("A retry looks for its answer")
    revenue.get_by_text("2 sources, from retrieve (1) and grep (1)").click()
    expect(revenue).to_contain_text("report-q3.pdf, pages 2–3, retrieve, score 0.91")
    picture(page, "chats-conversation", repository)
    batch = frame.locator("article").filter(has=frame.get_by_role("heading", name="nightly_batch"))
    expect(batch.locator("tbody tr")).to_have_count(3)
    expect(batch).to_contain_text("model overloaded")
    picture(batch, "chats-batch", repository)
    # A reload of Airflow's page comes back to the conversation.
    page.reload()
    expect(shown_in(page).get_by_role("heading", name="ask_revenue")).to_be_visible()
    shown_in(page).locator("article").filter(has_text="ask_revenue").get_by_role("link", name="Open the task").click()
    page.wait_for_url(f"{chats.url}/dags/{DAG}/runs/{RUN}/tasks/ask_revenue**")


@pytest.mark.parametrize(("task", "mapped"), [("ask_risks", None), ("ask_region", 1)], ids=["failed", "mapped"])
def test_the_button_of_a_task_leads_to_its_conversation(
    task: str, mapped: int | None, log_in: LogIn, chats: AirflowStack
) -> None:
    page = log_in("admin")
    suffix = "" if mapped is None else f"/mapped/{mapped}"
    page.goto(f"{chats.url}/dags/{DAG}/runs/{RUN}/tasks/{task}{suffix}/details")
    link = page.get_by_role("link", name="LlamaCloud conversation")
    expect(link).to_be_visible()
    page.goto(str(link.evaluate("link => link.href")))
    frame = shown_in(page)
    expect(frame.locator("article")).to_have_count(1)
    expect(frame.locator("article h3")).to_have_text(task if mapped is None else f"{task} [{mapped}]")


def test_a_user_sees_only_the_dags_that_airflow_lets_them_read(log_in: LogIn, chats: AirflowStack) -> None:
    page = log_in("guest")
    page.goto(f"{chats.url}/plugin/llamacloud-chats")
    options = shown_in(page).locator("select[name=dag_id]").locator("option")
    expect(options).to_have_text(["All Dags", "contract_review", "hostile", "inbox", DAG])
    page.goto("about:blank")
    page.goto(address(chats.url, dag_id="secret_merger", run_id="manual__01"))
    expect(shown_in(page).get_by_role("alert")).to_contain_text("You may not read the XComs of this Dag.")
    admin = log_in("admin")
    admin.goto(address(chats.url, dag_id="secret_merger", run_id="manual__01"))
    expect(shown_in(admin).locator("article")).to_have_count(1)


def test_it_follows_the_colour_mode_of_airflow(log_in: LogIn, chats: AirflowStack, repository: Path) -> None:
    page = log_in("admin")
    page.evaluate("localStorage.setItem('theme', 'dark')")
    page.goto(address(chats.url, dag_id=DAG, run_id=RUN))
    frame = shown_in(page)
    expect(frame.get_by_role("heading", name="ask_revenue")).to_be_visible()
    expect(frame.locator("html")).to_have_attribute("data-theme", "dark")
    assert frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(17, 17, 19)"
    picture(page, "chats-dark", repository)
    page.evaluate("document.documentElement.classList.replace('dark', 'light')")
    expect(frame.locator("html")).to_have_attribute("data-theme", "light")
    own = log_in("admin", color_scheme="dark")
    own.evaluate("localStorage.removeItem('theme')")
    own.goto(f"{chats.url}/llamacloud-chats/")
    expect(own.locator(".runs")).to_be_visible()
    assert own.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(17, 17, 19)"


def test_it_fits_a_phone(log_in: LogIn, chats: AirflowStack, repository: Path) -> None:
    page = log_in("admin", viewport=PHONE)
    for place in ("", f"#{urlencode({'dag_id': DAG, 'run_id': RUN})}"):
        page.goto("about:blank")
        page.goto(f"{chats.url}/llamacloud-chats/{place}")
        expect(page.locator("article, .charts svg").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (
            f"{place or 'the list'} is too wide"
        )
        if place:
            picture(page, "chats-phone", repository)


def test_the_keyboard_is_enough(log_in: LogIn, chats: AirflowStack) -> None:
    page = log_in("admin")
    page.goto(f"{chats.url}/llamacloud-chats/#in={DAG}")
    expect(page.locator(".runs tbody tr")).to_have_count(14)
    page.locator("h1 a").focus()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.runs') !== null"):
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="ask_revenue")).to_be_visible()
    page.go_back()
    expect(page.locator(".runs tbody tr")).to_have_count(14)


@pytest.mark.parametrize("bypass_csp", [False, True], ids=["as it is", "without its policy"])
def test_hostile_texts_run_no_script_and_fetch_nothing(bypass_csp: bool, log_in: LogIn, chats: AirflowStack) -> None:
    page = log_in("admin", bypass_csp=bypass_csp)
    page.goto(f"{chats.url}/llamacloud-chats/#in=hostile")
    expect(page.locator(".runs tbody tr")).to_have_count(1)
    events: list[str] = []
    page.on("dialog", lambda dialog: events.append(f"dialog {dialog.message}"))
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.on("console", lambda message: events.append(f"console {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error {error}"))
    page.on("request", lambda request: events.append(request.url.split("?")[0].removeprefix(chats.url)))
    page.locator(".runs tbody a").click()
    expect(page.locator("article")).to_have_count(len(HOSTILE) + 1)
    for summary in page.locator("summary").all():
        summary.click()
    page.wait_for_timeout(300)
    assert events == ["/llamacloud-chats/api/dags/hostile/conversation"]
    assert page.title() == "LlamaCloud chats"
    assert page.evaluate(
        "[document.scripts.length, document.images.length, document.querySelectorAll('iframe, style').length]"
    ) == [1, 0, 0]
    texts = page.locator("article .question").all_inner_texts()
    assert HOSTILE[0] in texts[0]
