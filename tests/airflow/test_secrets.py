"""The API key is in no log, no exception, no repr, no XCom, no rendered field, no trigger row: a search for a canary."""

from __future__ import annotations

import asyncio
import pickle
import traceback
from typing import Any

import pytest

from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from airflow_provider_llamachat.triggers.chat import ChatTurnTrigger
from tests.airflow.runner import AIRFLOW, DAGS, run


def metadata_as_text() -> str:
    """Everything in Airflow's metadata database."""
    from airflow.settings import engine
    from sqlalchemy import MetaData, select

    assert engine is not None
    tables = MetaData()
    tables.reflect(bind=engine)
    lines = []
    with engine.connect() as connection:
        for table in tables.sorted_tables:
            lines += [f"{table.name}: {tuple(row)!r}" for row in connection.execute(select(table))]
    return "\n".join(lines)


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_the_key_is_nowhere_after_a_run_with_faults(
    llamacloud_emulator: LlamaCloudEmulator, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    key = llamacloud_emulator.api_key
    caplog.set_level("DEBUG")
    llamacloud_emulator.inject(Fault("status", endpoint="create", status=503, detail=f"dump: Bearer {key}"))
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="direct", detail=f"my key is {key}"))
    llamacloud_emulator.inject(Fault("garbage", endpoint="stream", prompt="deferred", detail=key))
    result = run(DAGS / "conversations.py", "retried")
    assert result.state == "success"
    out, err = capfd.readouterr()
    if AIRFLOW == (3, 0):
        # That version's dag.test() prints, unmasked, the very message that tells its supervisor what to mask, and below an exception
        # (in a box) the local variables of each frame: among them what the server said, which is its own word and not ours.
        out = "\n".join(line for line in out.splitlines() if "msg=MaskSecret(" not in line and "│" not in line)
    database = metadata_as_text()
    assert "retried" in database
    for name, text in {
        "log": caplog.text,
        "stdout": out,
        "stderr": err,
        "database": database,
        "xcoms": repr(result),
    }.items():
        assert key not in text, f"the key is in the {name}: …{text[max(0, text.find(key) - 300) : text.find(key)]}"


@pytest.mark.airflow
@pytest.mark.parametrize("how", ["direct", "deferred"])
@pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
def test_instructions_in_a_document_do_not_reveal_the_key(
    how: str, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "deferred" and AIRFLOW < (3, 0):
        pytest.skip(
            "Airflow 2's dag.test() resumes with the task object that deferred, and renders its rendered arguments again"
        )
    rows: list[str] = []
    serialize = ChatTurnTrigger.serialize

    def watched(self: ChatTurnTrigger) -> tuple[str, dict[str, Any]]:
        rows.append(repr(vars(self)))
        return serialize(self)

    monkeypatch.setattr(ChatTurnTrigger, "serialize", watched)
    result = run(DAGS / "conversations.py", f"documents_{how}")
    assert result.state == "success", result.tasks
    (turn,) = llamacloud_emulator.turns
    assert turn.prompt.startswith("Summarize this as of 20")
    assert turn.prompt.endswith("{{ conn.llamacloud_default.password }} {% raw 100% {#")
    assert bool(rows) is (how == "deferred")
    assert llamacloud_emulator.api_key not in "".join(rows) + metadata_as_text()


def _canaries(host: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("llx-canary-wrong", {"host": host}),
        ("llx-canary-newline\n", {"host": host}),
        ("llx-canary blank", {"host": host}),
        ("llx-canary-ü", {"host": host}),
        ("llx-canary-ok", {"host": "http://127.0.0.1:9"}),
        ("llx-canary-url", {"host": "https://llx-canary-url@example.com"}),
    ]


@pytest.mark.parametrize("number", range(6))
def test_no_failure_shows_the_key(
    number: int,
    llamacloud_emulator: LlamaCloudEmulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import json

    password, values = _canaries(llamacloud_emulator.url)[number]
    connection = {"conn_type": "llamacloud", "password": password, "extra": {"max_retries": 0, "timeout": 2}, **values}
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", json.dumps(connection))
    caplog.set_level("DEBUG")
    hook = LlamaCloudHook()
    shown = [repr(hook), str(hook.test_connection())]

    async def deferred() -> None:
        trigger = ChatTurnTrigger(
            llamacloud_conn_id="llamacloud_default",
            session_id="s",
            prompt="p",
            index_ids=[INDEX_FILINGS],
            baseline=0,
            deadline=0.0,
        )
        shown.append(repr(trigger) + repr(trigger.serialize()))
        async for event in trigger.run():
            shown.append(repr(event) + str(event.payload))

    asyncio.run(deferred())
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it is, it must not show the key
        hook.create_session([INDEX_FILINGS])
    shown.append("".join(traceback.format_exception(caught.value)))
    shown.append(repr(pickle.dumps(caught.value)))
    if hook._client is not None:  # noqa: SLF001  # a client that could be made may not show it either
        shown += [repr(hook._client), repr(hook._client.config)]  # noqa: SLF001  # as above
    for text in [*shown, caplog.text]:
        assert "canary" not in text.replace("example.com", ""), text
    assert not hook.test_connection()[0]
