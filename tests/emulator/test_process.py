"""The emulator in a process of its own, and on the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from airflow_provider_llamachat.testing import (
    INDEX_FILINGS,
    EmulatorControl,
    EmulatorProcess,
    LlamaCloudEmulator,
    Settings,
)
from airflow_provider_llamachat.testing.__main__ import main
from tests.emulator.conftest import eventually

pytestmark = pytest.mark.long


def _exited(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, complained = process.communicate(timeout=60)
    return process.returncode, said, complained


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_the_command(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "airflow_provider_llamachat.testing"]
    options = ["--port", "0", "--api-key", "llx-mine", "--api-key", "llx-yours", "--turn-latency", "0.25"]
    options += [
        "--requests-per-minute",
        "500",
        "--newline",
        "crlf",
        "--no-survives-disconnect",
        "--keepalive-interval",
        "none",
    ]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("LlamaCloud emulator: url=http://127.0.0.1:")
        assert line.endswith(" key=llx-mine\n")
        url = line.split("url=")[1].split()[0]
        settings = EmulatorControl(url).settings
        assert settings.to_json() == {
            **Settings().to_json(),
            "turn_latency": 0.25,
            "requests_per_minute": 500,
            "newline": "\r\n",
            "survives_disconnect": False,
            "keepalive_interval": None,
        }
        assert httpx.get(f"{url}/api/v1/projects", headers={"Authorization": "Bearer llx-yours"}).status_code == 200
        with httpx.stream("GET", f"{url}/_emulator/requests"):
            process.send_signal(number)
            assert _exited(process) == (0, "", "")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


# Python code that something runs at any moment (a weak reference's callback, say) and that swallows what is raised in it.
_DEAF = """
import os, signal, sys, time
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "pydantic":
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
            except BaseException:
                pass
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("options", [[], pytest.param(["--until-stdin-closes"], marks=pytest.mark.long)])
def test_a_signal_during_imports_ends_the_process(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_DEAF)
    process = subprocess.Popen(
        [sys.executable, "-m", "airflow_provider_llamachat.testing", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    try:
        # Its input stays open, so nothing but the signal can end it.
        assert process.wait(timeout=60) == 0
        assert _exited(process)[2] == ""
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.long
def test_a_signal_and_the_end_of_input_together_end_the_process_once() -> None:
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow_provider_llamachat.testing", "--until-stdin-closes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert _exited(process) == (0, "", "")


def test_the_command_explains_invalid_options(emulator: LlamaCloudEmulator, capsys: pytest.CaptureFixture[str]) -> None:
    port = emulator.url.rpartition(":")[2]
    assert main(["--port", port]) == 1
    assert "The emulator cannot start:" in capsys.readouterr().err
    assert main(["--api-key", ""]) == 1
    assert "printable ASCII" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["--settings", '{"speed": 3}'])
    assert caught.value.code == 2
    assert "no setting 'speed'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["--turn-latency", "-1"])
    assert caught.value.code == 2
    assert "Setting turn_latency cannot be -1.0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--survives-disconnect" in shown
    assert "a turn outlives its client" in shown


def test_an_emulator_in_a_process_of_its_own() -> None:
    with EmulatorProcess(Settings(delta_chars=5), api_keys=["llx-child"]) as emulator:
        pid = emulator.pid
        assert (emulator.api_key, emulator.settings.delta_chars) == ("llx-child", 5)
        headers = {"Authorization": "Bearer llx-child"}
        assert (
            httpx.post(f"{emulator.url}/api/v1/chat", json={"index_ids": [INDEX_FILINGS]}, headers=headers).status_code
            == 201
        )
        assert len(emulator.sessions) == 1
        emulator.reset()
        assert (emulator.sessions, emulator.settings.delta_chars) == ({}, 5)
    assert not Path(f"/proc/{pid}").exists() or os.name != "posix"
    with pytest.raises(RuntimeError, match="is not running"):
        emulator.pid  # noqa: B018 - reading it is what raises
    with pytest.raises(OSError, match="refused"):
        emulator.reset()


def test_a_process_ends_with_the_one_that_started_it() -> None:
    code = (
        "import os, signal\nfrom airflow_provider_llamachat.testing import EmulatorProcess\n"
        "with EmulatorProcess() as emulator:\n"
        "    print(emulator.pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    eventually(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_a_process_that_does_not_start_is_reported(emulator: LlamaCloudEmulator) -> None:
    port = int(emulator.url.rpartition(":")[2])
    with pytest.raises(RuntimeError, match="did not start: The emulator cannot start"):
        EmulatorProcess(port=port).__enter__()
