"""The emulator in its thread, in a process of its own, and on the command line."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
from aiohttp import web

from airflow_provider_llamachat import testing
from airflow_provider_llamachat.testing import (
    INDEX_BUILDING,
    INDEX_FILINGS,
    EmulatorControl,
    EmulatorProcess,
    Fault,
    LlamaCloudEmulator,
    Settings,
)
from airflow_provider_llamachat.testing.__main__ import main
from tests.emulator.conftest import Api, eventually


def test_a_remote_control_sees_and_does_the_same(api: Api, emulator: LlamaCloudEmulator) -> None:
    control = EmulatorControl(emulator.url + "/")
    assert (control.url, control.api_key) == (emulator.url, emulator.api_key)
    assert control.airflow_connection_json == emulator.airflow_connection_json
    session_id = api.bound()
    control.inject(Fault("cut", after_events=2, prompt="cut"), Fault("status", skip=5))
    assert control.faults == emulator.faults == [Fault("cut", after_events=2, prompt="cut"), Fault("status", skip=5)]
    api.ask(session_id, "to be cut")
    api.ask(session_id, "whole & sound?")
    control.clear_faults()
    gone = api.create()
    api.http.delete(f"/api/v1/chat/{gone}")
    assert control.requests == emulator.requests
    assert control.requests[0].headers["CONTENT-TYPE"] == "application/json"
    assert control.turns == emulator.turns
    assert control.sessions == emulator.sessions
    assert control.sessions[session_id]["events"][0]["content"] == "to be cut"
    assert control.deleted == emulator.deleted == [gone]
    assert control.projects == emulator.projects
    assert (control.posts(), control.posts(session_id, "whole & sound?"), control.posts(gone)) == (2, 1, 0)
    assert (control.completed(), control.completed(prompt="whole & sound?")) == (2, 1)
    control.add_index("idx-far", name="Far", status="building", documents=["One.", {"text": "Two."}])
    control.index_schedule("idx-far", ["parsing", {"status": "failed", "error_message": "torn"}])
    api.http.get("/api/v1/indexes/idx-far")
    api.http.get("/api/v1/indexes/idx-far")
    control.set_index(INDEX_BUILDING, status="ready", last_synced_at=datetime(2026, 5, 6, tzinfo=UTC))
    assert control.indexes == emulator.indexes
    assert control.indexes["idx-far"]["metadata"] == {"status": "failed", "error_message": "torn"}
    assert control.indexes[INDEX_BUILDING]["last_synced_at"].startswith("2026-05-06T00:00:00")
    # None of this is a request that a client made.
    assert len(emulator.requests) == 7
    control.reset()
    assert (emulator.requests, emulator.turns, emulator.sessions, emulator.faults) == ([], [], {}, [])
    assert "idx-far" not in emulator.indexes


def test_settings_through_a_remote_control(emulator: LlamaCloudEmulator) -> None:
    control = EmulatorControl(emulator.url)
    control.settings.survives_disconnect = False
    control.settings.newline = "\r\n"
    assert (emulator.settings.survives_disconnect, emulator.settings.newline) == (False, "\r\n")
    assert control.settings.to_json() == emulator.settings.to_json()
    control.settings = Settings(turn_latency=0.5)
    assert emulator.settings == Settings(turn_latency=0.5)
    emulator.settings = Settings(delta_chars=7)
    assert control.settings.delta_chars == 7
    held = emulator.settings
    control.reset()
    assert held == emulator.settings == Settings()
    with pytest.raises(ValueError, match="cannot be"):
        control.settings.records = "never"  # type: ignore[assignment]  # refused before it is sent
    with pytest.raises(ValueError, match="cannot be"):
        control.update_settings(records="never")
    with pytest.raises(ValueError, match="no setting"):
        control.update_settings(record="start")


def test_a_remote_control_reports_invalid_commands(emulator: LlamaCloudEmulator) -> None:
    control = EmulatorControl(emulator.url)
    with pytest.raises(ValueError, match="no index 'idx-nowhere'"):
        control.set_index("idx-nowhere", status="ready")
    with pytest.raises(ValueError, match="no project"):
        control.add_index("idx-mine", project_id="x")
    answer = httpx.post(f"{emulator.url}/_emulator/faults", json=[{"kind": "explode"}])
    assert (answer.status_code, "no fault 'explode'" in answer.json()["detail"]) == (400, True)
    answer = httpx.post(f"{emulator.url}/_emulator/inject", json=5)
    assert (answer.status_code, answer.json()) == (
        400,
        {"detail": "The arguments must be a JSON array or object, not 5"},
    )
    assert httpx.get(f"{emulator.url}/_emulator/nothing").status_code == 404
    assert emulator.requests == []
    with pytest.raises(urllib.error.HTTPError):
        EmulatorControl(emulator.url + "/api").reset()


@pytest.mark.parametrize("kind", [LlamaCloudEmulator, EmulatorControl])
def test_the_address_is_a_property_that_mocks_subclasses_and_the_documentation_have(kind: Any) -> None:
    class Elsewhere(kind):  # type: ignore[misc]  # of either kind
        @property
        def url(self) -> str:
            return f"{super().url}/elsewhere"

    address = {"url": "http://127.0.0.1:9/"} if kind is EmulatorControl else {"port": 9}
    assert Elsewhere(**address).url == "http://127.0.0.1:9/elsewhere"
    assert mock.create_autospec(kind).url
    assert kind.url.__doc__.startswith("Base URL")
    with pytest.raises(AttributeError):
        kind(**address).url = "http://127.0.0.1:10"


def test_an_emulator_of_a_subclass_with_another_address_starts() -> None:
    class Named(LlamaCloudEmulator):
        @property
        def url(self) -> str:
            return super().url.replace("127.0.0.1", "localhost")

    with Named() as emulator:
        assert re.fullmatch(r"http://localhost:[1-9]\d+", emulator.url)
        assert EmulatorControl(emulator.url).api_key == emulator.api_key


def test_the_connection_is_what_airflow_reads(emulator: LlamaCloudEmulator) -> None:
    from airflow.models.connection import Connection

    for made in (
        Connection(uri=emulator.airflow_connection_uri),
        Connection.from_json(emulator.airflow_connection_json),
    ):
        assert (made.conn_type, made.password, made.host) == ("llamacloud", emulator.api_key, emulator.url)
        assert not made.port


def test_start_stop_and_start_again() -> None:
    emulator = LlamaCloudEmulator()
    with emulator as entered:
        assert entered is emulator
        assert emulator.start() is emulator
        api = Api(emulator)
        session_id = api.bound()
        address = emulator.url
    with pytest.raises(httpx.ConnectError):
        api.http.get("/api/v1/chat")
    # Down, it can still be read and prepared.
    assert list(emulator.sessions) == [session_id]
    emulator.inject(Fault("status", status=503))
    with emulator:
        assert emulator.url == address
        assert [api.http.get(f"/api/v1/chat/{session_id}").status_code for _ in range(2)] == [503, 200]
    emulator.stop()
    api.http.close()


def _start_from_several_threads(emulator: LlamaCloudEmulator, patch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """How many servers a slow start makes, and the keys that each thread got from the emulator that it had started."""
    everyone, servers, keys, listen = threading.Barrier(4), [], [], web.TCPSite.start

    async def slowly(site: web.TCPSite) -> None:
        servers.append(site)
        await asyncio.sleep(0.2)
        await listen(site)

    def start() -> None:
        everyone.wait(60)
        emulator.start()
        keys.append(EmulatorControl(emulator.url).api_key)

    patch.setattr(web.TCPSite, "start", slowly)
    threads = [threading.Thread(target=start) for _ in range(everyone.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return len(servers), keys


# Whether each of the threads can use it is what the next test asks.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_start_from_several_threads_starts_one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = LlamaCloudEmulator()
    servers, _ = _start_from_several_threads(emulator, monkeypatch)
    emulator.stop()
    assert servers == 1
    with pytest.raises(httpx.ConnectError):
        httpx.get(emulator.url)


def test_whoever_starts_it_can_use_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = LlamaCloudEmulator()
    _, keys = _start_from_several_threads(emulator, monkeypatch)
    emulator.stop()
    assert keys == [emulator.api_key] * 4


@pytest.mark.parametrize("slow", ["start", "cleanup"])
def test_a_signal_handler_can_stop_an_emulator_that_is_starting_or_stopping(slow: str) -> None:
    said = _python(
        f"""
import asyncio, faulthandler, signal
from aiohttp import web
from airflow_provider_llamachat.testing import LlamaCloudEmulator
faulthandler.dump_traceback_later(30, exit=True)
kind = {{"start": web.TCPSite, "cleanup": web.AppRunner}}["{slow}"]
quick = getattr(kind, "{slow}")
async def slowly(self):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    await asyncio.sleep(0.5)
    await quick(self)
setattr(kind, "{slow}", slowly)
emulator = LlamaCloudEmulator()
signal.signal(signal.SIGALRM, lambda *_: (print("signal"), emulator.stop()))
emulator.start()
emulator.stop()
print("end")
"""
    )
    assert said.split() == ["signal", "end"]


def _slow_cleanup(patch: pytest.MonkeyPatch) -> list[str]:
    """Make the end of every server take a moment; lists when it begins and ends."""
    steps, cleanup = [], web.AppRunner.cleanup

    async def slowly(runner: web.AppRunner) -> None:
        steps.append("begins")
        await asyncio.sleep(0.3)
        await cleanup(runner)
        steps.append("ends")

    patch.setattr(web.AppRunner, "cleanup", slowly)
    return steps


def test_a_start_that_failed_does_not_disturb_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _slow_cleanup(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as other:
        emulator = LlamaCloudEmulator(Settings(turn_latency=1.0), port=other.getsockname()[1])
        with pytest.raises(OSError, match="Cannot listen"):
            emulator.start()
    assert steps == ["begins", "ends"]
    with emulator:
        api = Api(emulator)
        with api.http:
            api.ask(api.bound())
    assert [turn.state for turn in emulator.turns] == ["completed"]


def test_nothing_touches_an_emulator_while_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _slow_cleanup(monkeypatch)
    emulator = LlamaCloudEmulator().start()
    stop = threading.Thread(target=emulator.stop)
    stop.start()
    eventually(lambda: steps)
    emulator.reset()
    assert steps == ["begins", "ends"]
    stop.join(60)


def test_two_emulators_are_independent(emulator: LlamaCloudEmulator) -> None:
    with LlamaCloudEmulator(api_keys=["llx-second"]) as second:
        assert second.url != emulator.url
        api = Api(second)
        with api.http:
            api.create()
        assert (len(second.sessions), len(emulator.sessions)) == (1, 0)
        assert (
            httpx.get(f"{emulator.url}/api/v1/chat", headers={"Authorization": "Bearer llx-second"}).status_code == 401
        )


def test_a_used_port_and_invalid_keys_are_refused(emulator: LlamaCloudEmulator) -> None:
    port = int(emulator.url.rpartition(":")[2])
    with pytest.raises(OSError, match=f"Cannot listen on 127.0.0.1, port {port}: .*already in use"):
        LlamaCloudEmulator(port=port).start()
    for keys in ([], [""], ["llx-\n"], ["schlüssel"], [" llx"]):
        with pytest.raises(ValueError, match="printable ASCII"):
            LlamaCloudEmulator(api_keys=keys)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ({"port": 70000}, "port must be a number from 0 to 65535, not 70000"),
        ({"port": -1}, "port must be a number from 0 to 65535, not -1"),
        ({"host": "192.0.2.1"}, "Cannot listen on 192.0.2.1, port 0: .*(assign requested address|could not bind)"),
        ({"host": "nowhere.invalid"}, "Cannot listen on nowhere.invalid, port 0: "),
        ({"host": "no..where"}, "Cannot listen on no..where, port 0: "),
    ],
)
def test_an_invalid_address_is_refused_at_once_with_an_explanation(
    address: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    with pytest.raises((OSError, ValueError), match=words):
        LlamaCloudEmulator(**address).start()
    ((name, value),) = address.items()
    assert main([f"--{name}", str(value)]) == 1
    assert re.search(words, capsys.readouterr().err)
    assert time.monotonic() - started < 25


def test_ipv6_loopback() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")
    with LlamaCloudEmulator(host="::1") as emulator:
        assert emulator.url.startswith("http://[::1]:")
        assert EmulatorControl(emulator.url).settings == Settings()


def test_stop_and_reset_end_hanging_requests() -> None:
    emulator = LlamaCloudEmulator(Settings(turn_latency=600.0)).start()
    api = Api(emulator)
    failures: list[Exception] = []

    def run(work: Any) -> None:
        try:
            work()
        except httpx.HTTPError as error:
            failures.append(error)

    for finish in (emulator.reset, emulator.stop):
        session_id = api.bound()
        emulator.inject(Fault("hang", endpoint="list"))
        threads = [
            threading.Thread(target=run, args=(lambda: api.http.get("/api/v1/chat"),)),
            threading.Thread(target=run, args=(lambda: api.ask(session_id),)),  # noqa: B023 - joined below
            threading.Thread(target=run, args=(lambda: api.ask(session_id, "queued"),)),  # noqa: B023 - joined below
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: len(emulator.requests) == 4)
        turns = emulator.turns
        started = time.monotonic()
        finish()
        for thread in threads:
            thread.join(60)
        assert time.monotonic() - started < 25
        assert [turn.state for turn in turns] == ["abandoned"]
    assert len(failures) == 6
    api.http.close()


def _exited(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, complained = process.communicate(timeout=60)
    return process.returncode, said, complained


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
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


@pytest.mark.parametrize("options", [[], ["--until-stdin-closes"]])
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
    assert "a turn runs on to its end when its client is gone" in shown


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


def test_names_are_found_and_listed() -> None:
    assert {"Fault", "LlamaCloudEmulator", "INDEX_FILINGS"} <= set(dir(testing))
    for name in testing.__all__:
        assert getattr(testing, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        testing.Nothing  # noqa: B018 - reading it is what raises


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_only_the_server_needs_aiohttp() -> None:
    said = _python(
        "import sys; sys.modules['aiohttp'] = None\n"
        "from airflow_provider_llamachat import testing\n"
        "from airflow_provider_llamachat.testing import EmulatorControl, EmulatorProcess, Fault, Settings, TurnRecord\n"
        "try:\n    testing.LlamaCloudEmulator\nexcept ImportError as error:\n    print(error)\n"
        "from airflow_provider_llamachat.testing.__main__ import main\n"
        "sys.stderr = sys.stdout\nprint(main([]))"
    )
    hint = "The LlamaCloud emulator needs aiohttp. Install the extra: pip install 'airflow-provider-llamachat[testing]'"
    assert said.splitlines() == [hint, hint, "1"]


def test_the_emulator_shares_nothing_with_the_provider_or_airflow() -> None:
    said = _python(
        "import sys\nfrom airflow_provider_llamachat.testing import LlamaCloudEmulator\n"
        "with LlamaCloudEmulator(): pass\n"
        "print(*sorted(n for n in sys.modules if n.split('.')[0] in ('airflow', 'httpx', 'pydantic')\n"
        "  or n.startswith('airflow_provider_llamachat.') and not n.startswith('airflow_provider_llamachat.testing')))"
    )
    assert said == ""
