"""A real browser, an emulator with a key of its own, and the two Airflows whose forms differ."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_llamachat.testing import EmulatorProcess
from tests.browser.environments import airflow_environment
from tests.system.stack import AirflowStack

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# The package that drives the browser comes with `make browser`; the other suites do without it.
if find_spec("playwright") is None:
    collect_ignore_glob = ["test_*.py"]

KEY = "llx-typed-into-a-form-7f3a"
WRONG_KEY = "llx-of-another-region-91c2"
OLD_AIRFLOW = "2.11.2"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)

# A page may fetch what it shows one by one, on a machine that runs a whole Airflow besides.
PATIENCE = 20_000

StoredConfig = Callable[[AirflowStack, str], dict[str, Any]]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of this machine, without a window."""
    from playwright.sync_api import expect, sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.exit("Chromium is needed for these tests: on Debian, 'apt install chromium' adds it.", returncode=1)
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, headless=True, args=QUIET)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A page; neither it nor anything that was sent to it may contain a key."""
    from tests.browser.watching import Watched

    watched = Watched(browser, tmp_path, [KEY, WRONG_KEY], timeout=PATIENCE)
    yield watched.page()
    assert watched.close() == []


@pytest.fixture(scope="session")
def emulator() -> Iterator[EmulatorProcess]:
    """LlamaCloud, which knows :data:`KEY` only."""
    with EmulatorProcess(api_keys=[KEY]) as running:
        yield running


@pytest.fixture(scope="session")
def airflow(repository: Path) -> Iterator[AirflowStack]:
    """The Airflow of this environment, whole."""
    dags = [repository / "dags_examples" / "llamachat_question_and_answer.py"]
    with AirflowStack(dags=dags) as running:
        yield running


@pytest.fixture(scope="session")
def old_airflow(repository: Path) -> Iterator[AirflowStack]:
    """The web server of an Airflow whose forms are made by Flask."""
    stack = AirflowStack(python=airflow_environment(OLD_AIRFLOW, repository))
    try:
        stack.start(["webserver"])
        assert stack.version_text == OLD_AIRFLOW
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def stored_config() -> StoredConfig:
    """A function: what a hook makes of a connection that an Airflow stores; with the stored extra."""
    script = str(Path(__file__).with_name("stored_config.py"))

    def read(stack: AirflowStack, conn_id: str) -> dict[str, Any]:
        done = subprocess.run(
            [stack.python, script, conn_id],
            env=stack.environment(),
            cwd=stack.home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return read
