"""What tests say to the emulator and see of it, in their process and from another one."""

from __future__ import annotations

import re
import urllib.error
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import httpx
import pytest

from airflow_provider_llamachat import testing
from airflow_provider_llamachat.testing import (
    INDEX_BUILDING,
    EmulatorControl,
    Fault,
    LlamaCloudEmulator,
    Settings,
)
from tests.emulator.conftest import Api, python

pytestmark = pytest.mark.long


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


def test_names_are_found_and_listed() -> None:
    assert {"Fault", "LlamaCloudEmulator", "INDEX_FILINGS"} <= set(dir(testing))
    for name in testing.__all__:
        assert getattr(testing, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        testing.Nothing  # noqa: B018 - reading it is what raises


def test_only_the_server_needs_aiohttp() -> None:
    said = python(
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
    said = python(
        "import sys\nfrom airflow_provider_llamachat.testing import LlamaCloudEmulator\n"
        "with LlamaCloudEmulator(): pass\n"
        "print(*sorted(n for n in sys.modules if n.split('.')[0] in ('airflow', 'httpx', 'pydantic')\n"
        "  or n.startswith('airflow_provider_llamachat.') and not n.startswith('airflow_provider_llamachat.testing')))"
    )
    assert said == ""
