"""The emulator's start and stop, from any thread, and the address it listens on."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from aiohttp import web

from airflow_provider_llamachat.testing import (
    EmulatorControl,
    EmulatorProcess,
    Fault,
    LlamaCloudEmulator,
    Settings,
)
from airflow_provider_llamachat.testing.__main__ import main
from tests.emulator.conftest import Api, eventually, python

pytestmark = pytest.mark.long


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
    said = python(
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


@pytest.mark.parametrize("port", [70000, -1, "abc", "8000", None, 1.5, True])
def test_an_invalid_port_is_refused_before_anything_starts(port: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = re.escape(f"port must be a number from 0 to 65535, not {port!r}")
    for kind in (LlamaCloudEmulator, EmulatorProcess):
        with pytest.raises(ValueError, match=words):
            kind(port=port)  # it is not started
    if isinstance(port, int) and not isinstance(port, bool):
        assert main(["--port", str(port)]) == 1
        assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize("port", ["abc", "1.5", "", "None"])
def test_a_port_that_is_no_number_is_refused_on_the_command_line(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--port", port])
    assert f"argument --port: invalid int value: {port!r}" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["", " ", None, 127])
def test_a_host_that_is_no_name_is_refused_before_anything_starts(
    host: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = re.escape(f"host must be a host name or an IP address, not {host!r}")
    with pytest.raises(ValueError, match=words):
        LlamaCloudEmulator(host=host)
    if isinstance(host, str):
        assert main(["--host", host]) == 1
        assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("host", "reason"),
    [("192.0.2.1", ".*(assign requested address|could not bind)"), ("nowhere.invalid", ""), ("no..where", "")],
)
def test_a_host_that_is_not_this_machine_is_refused_with_an_explanation(
    host: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"Cannot listen on {host}, port 0: {reason}"
    with pytest.raises(OSError, match=words):
        LlamaCloudEmulator(host=host).start()
    assert main(["--host", host]) == 1
    assert re.search(words, capsys.readouterr().err)


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
