"""Every code block of the README and the docs: Dags are parsed by Airflow, tests are run, commands are carried out."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from airflow import __version__ as airflow_version

from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.testing import LlamaCloudEmulator
from tests.airflow.runner import load, own_warnings_only

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"^(pip install|make |python -m airflow_provider_llamachat\.testing)")
"""Installing is what set this environment up, `make` is what runs this test, and the server has tests of its own."""


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
        for number, (indent, text) in enumerate(found):
            yield f"{page.name}-{number}", "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))


VERSION = tuple(int(part) for part in airflow_version.split(".")[:2])
PYTHON = dict(blocks("python"))
SHELL = dict(blocks("sh"))


def named_files(page: str, folder: Path) -> None:
    """Write the blocks of a page that begin with the name of a file (``# dags/quarterly.py``)."""
    for name, text in PYTHON.items():
        if name.startswith(page) and (found := re.match(r"# (\S+\.py)\n", text)):
            (folder / found[1]).parent.mkdir(exist_ok=True)
            (folder / found[1]).write_text(text)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.airflow] if name.startswith("testing") else []) for name in PYTHON]
)
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_python_blocks_work(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    llamacloud_emulator: LlamaCloudEmulator,
) -> None:
    if "retry_policy" in PYTHON[name] and VERSION < (3, 3):
        pytest.skip("Airflow 3.3 introduced retry policies")
    file = tmp_path / (re.sub(r"\W", "_", name) + ".py")
    file.write_text("from __future__ import annotations\n" + PYTHON[name])
    named_files(name.partition(".md")[0], tmp_path)
    monkeypatch.chdir(tmp_path)
    if "DAG(" in PYTHON[name] or "@dag" in PYTHON[name]:
        assert load(file)
        return
    space: dict[str, object] = {"__name__": "documented"}
    exec(compile(PYTHON[name], str(file), "exec"), space)  # the block is ours
    tests = [value for key, value in space.items() if key.startswith("test_") and inspect.isfunction(value)]
    for test in tests:
        llamacloud_emulator.reset()
        test(**{fixture: request.getfixturevalue(fixture) for fixture in inspect.signature(test).parameters})
    assert tests or any(callable(value) for value in space.values())


def airflow(*words: str) -> str:
    """What an ``airflow`` command prints. It runs in this process: starting one costs more than all that most commands do."""
    from airflow.cli.cli_parser import get_parser

    said = io.StringIO()
    with contextlib.redirect_stdout(said), own_warnings_only():
        arguments = get_parser().parse_args(words)
        arguments.func(arguments)
    return said.getvalue()


def in_this_process(commands: list[str]) -> str:
    """Run ``airflow`` commands with the words that a shell makes of them."""
    said = ""
    for command in commands:
        program, *words = shlex.split(command, comments=True)
        assert program == "airflow", command
        said += airflow(*words)
    return said


def in_a_shell(commands: list[str]) -> str:
    """Run a block as a user does who pastes it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        ["bash", "-ec", "\n".join(commands)], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def forget_connection(conn_id: str) -> None:
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(Connection).filter(Connection.conn_id == conn_id).delete()


@pytest.mark.parametrize("shell", [in_this_process, pytest.param(in_a_shell, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.airflow] if "airflow connections" in commands else []
        )  # loads all of Airflow
        for name, commands in SHELL.items()
    ],
)
@pytest.mark.usefixtures("airflow_database")
def test_shell_blocks_work_as_pasted(
    name: str,
    shell: Callable[[list[str]], str],
    llamacloud_emulator: LlamaCloudEmulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = SHELL[name].replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.strip() and not NOT_RUN.match(line)]
    if any(line.startswith("export AIRFLOW_CONN_") for line in commands):
        (line,) = commands
        variable, _, value = line.removeprefix("export ").partition("=")
        monkeypatch.setenv(variable, value.strip("'"))
        config = LlamaCloudHook().get_config()
        assert config.api_key in {"llx-your-key", llamacloud_emulator.api_key}
        return
    if not commands:
        assert all(NOT_RUN.match(line) for line in lines if line.strip())
        return
    monkeypatch.setenv("AIRFLOW__CORE__TEST_CONNECTION", "Enabled")
    tested = any(line.startswith("airflow connections test") for line in commands)
    if tested:
        # What is tested has to be reachable: the environment's connection wins over the one that the block adds.
        monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", llamacloud_emulator.airflow_connection_json)
    forget_connection("llamacloud_default")
    said = shell(commands)
    if tested:
        assert "success" in said.lower(), said


def test_links_and_images_have_existing_targets() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_airflow_discovers_the_provider(airflow_database: Path) -> None:
    listed = json.loads(airflow("providers", "list", "-o", "json"))
    (ours,) = [provider for provider in listed if provider["package_name"] == "airflow-provider-llamachat"]
    assert ours["version"] == "1.1.0"
    assert "LlamaCloud" in airflow("providers", "get", "airflow-provider-llamachat", "--full")
    hooks = json.loads(airflow("providers", "hooks", "-o", "json"))
    (hook,) = [hook for hook in hooks if hook["connection_type"] == "llamacloud"]
    assert hook["class"] == "airflow_provider_llamachat.hooks.llamacloud.LlamaCloudHook"
    assert hook["hook_name"] == "LlamaCloud"
