"""A conversation is saved completely or not at all, and deleted only after it was saved."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_llamachat.batch import storage
from airflow_provider_llamachat.batch.storage import Folder
from airflow_provider_llamachat.client import LlamaCloudClient
from airflow_provider_llamachat.client.retry import no_backoff
from airflow_provider_llamachat.exceptions import (
    ChatTurnInterruptedError,
    InvalidArgumentError,
    NotFoundError,
    RequestRefusedError,
    ServerError,
    TranscriptError,
)
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.models import Session
from airflow_provider_llamachat.operators import transcript
from airflow_provider_llamachat.operators.chat import DeleteChatSessionOperator, SaveTranscriptOperator
from airflow_provider_llamachat.testing import DEFAULT_PROJECT_ID, INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.airflow.tries import a_try
from tests.batch.stores import Buckets

pytestmark = pytest.mark.usefixtures("airflow_database", "llamacloud_connection")
PROMPT = "What was the revenue in Q3?"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    monkeypatch.setattr(transcript, "POLL", 0.05)


@pytest.fixture
def session_id() -> str:
    hook = LlamaCloudHook()
    made = hook.create_session([INDEX_FILINGS]).session_id
    hook.send_message(made, PROMPT)
    return made


def save(session_id: Any, path: Any, form: str = "markdown") -> str:
    task = SaveTranscriptOperator(task_id="save", session_id=session_id, output_path=path, format=form)
    return task.execute(a_try(task, 1))


def delete(session_id: Any, path: Any, **options: Any) -> None:
    task = DeleteChatSessionOperator(task_id="delete", session_id=session_id, transcript_path=path, **options)
    task.execute(a_try(task, 1))


def with_history_lag(seconds: float, emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = json.loads(emulator.airflow_connection_json)
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", json.dumps({**connection, "extra": {"history_lag": seconds}}))


@pytest.mark.parametrize("form", ["markdown", "html", "json"])
def test_the_conversation_is_saved_with_one_read(
    form: str, session_id: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    before = len(llamacloud_emulator.requests)
    path = tmp_path / "new" / f"transcript.{form}"
    assert save(session_id, path, form).removeprefix("file://") == str(path)
    assert [request.endpoint for request in llamacloud_emulator.requests[before:]] == ["get"]
    text = path.read_text()
    assert PROMPT in text
    assert text.count("47.5 million euros") >= 2  # in the answer and in its source
    assert (text.startswith("<!DOCTYPE html>"), text.startswith("{")) == (form == "html", form == "json")
    save(session_id, path, form)
    assert path.read_text() == text
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]


def test_an_object_store_holds_it_as_one_object(session_id: str) -> None:
    store = Buckets("reports")
    path = store.at("reports/2026/transcript.html")
    assert save({"session_id": session_id}, path, "html") == str(path)
    assert b"47.5 million" in path.read_bytes()
    with pytest.raises(TranscriptError, match=r"The transcript was not saved\. Could not write to .*does not exist"):
        save(session_id, store.at("rebort/transcript.md"))


def test_a_session_is_deleted_after_it_was_saved_and_not_otherwise(
    session_id: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(TranscriptError, match="Is a directory"):
        delete(session_id, tmp_path / "folder")
    with pytest.raises(TranscriptError):
        delete(session_id, Buckets("reports").at("rebort/transcript.md"))
    with pytest.raises(InvalidArgumentError, match="transcript_path must be an absolute path"):
        delete(session_id, "transcript.md")
    with pytest.raises(InvalidArgumentError, match="transcript_format must be one of"):
        delete(session_id, tmp_path / "t", transcript_format="pdf")
    llamacloud_emulator.inject(Fault("status", endpoint="get", status=500, times=None))
    with no_backoff(), pytest.raises(ServerError):
        delete(session_id, tmp_path / "transcript.md")
    assert llamacloud_emulator.deleted == []
    llamacloud_emulator.clear_faults()
    delete(session_id, tmp_path / "transcript.md")
    assert llamacloud_emulator.deleted == [session_id]
    assert "47.5 million" in (tmp_path / "transcript.md").read_text()
    # A retry whose earlier attempt deleted the session leaves its transcript alone.
    delete(session_id, tmp_path / "transcript.md")
    assert "47.5 million" in (tmp_path / "transcript.md").read_text()
    delete("", tmp_path / "other.md")
    assert not (tmp_path / "other.md").exists()
    with pytest.raises(NotFoundError):
        delete(session_id, tmp_path / "other.md", ignore_missing=False)


@pytest.mark.parametrize("path", ["transcript.md", None])
@pytest.mark.parametrize("scope", [{}, {"project_id": DEFAULT_PROJECT_ID}])
def test_a_wrong_base_url_is_no_proof_that_a_session_is_missing(
    path: str | None,
    scope: dict[str, str],
    session_id: str,
    tmp_path: Path,
    llamacloud_emulator: LlamaCloudEmulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection = {**json.loads(llamacloud_emulator.airflow_connection_json), "host": llamacloud_emulator.url + "/wrong"}
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", json.dumps(connection))
    with pytest.raises(RequestRefusedError, match="Base URL"):
        delete(session_id, path and tmp_path / path, **scope)
    assert list(llamacloud_emulator.sessions) == [session_id]


@pytest.mark.parametrize(
    ("detail", "requests"), [("Not Found", ["delete", "list"]), ("Session ses-1 not found.", ["delete"])]
)
def test_only_a_404_that_may_be_of_an_unknown_path_takes_another_request(
    detail: str, requests: list[str], session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    before = len(llamacloud_emulator.requests)
    llamacloud_emulator.inject(Fault("status", endpoint="delete", status=404, detail=detail))
    delete(session_id, None)
    assert [request.endpoint for request in llamacloud_emulator.requests[before:]] == requests


@pytest.mark.parametrize(
    ("status", "error", "named"),
    [
        (403, NotFoundError, "delete chat session"),
        (404, NotFoundError, "delete chat session"),
        (503, ServerError, "list"),
    ],
)
def test_a_refused_list_does_not_hide_which_session_was_not_found(
    status: int, error: type[Exception], named: str, session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(
        Fault("status", endpoint="delete", status=404, detail="Not Found"),
        Fault("status", endpoint="list", status=status, detail="Not Found", times=None),
    )
    with no_backoff(), pytest.raises(error, match=f"Could not {named}"):
        delete(session_id, None, project_id=DEFAULT_PROJECT_ID)


def test_an_existing_file_is_kept_when_saving_fails(
    session_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "transcript.md"
    path.write_text("the earlier one")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TranscriptError, match="No space left on device"):
        save(session_id, path)
    assert path.read_text() == "the earlier one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["transcript.md"]


def test_a_turn_that_is_still_running_is_waited_for(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_history_lag(20.0, llamacloud_emulator, monkeypatch)
    hook = LlamaCloudHook()
    made = hook.create_session([INDEX_FILINGS]).session_id
    llamacloud_emulator.settings.turn_latency = 1.0
    asking = threading.Thread(target=LlamaCloudHook().send_message, args=(made, PROMPT))
    asking.start()
    while not hook.get_session(made).events:
        pass
    save(made, tmp_path / "transcript.json", "json")
    asking.join()
    (turn,) = json.loads((tmp_path / "transcript.json").read_text())["turns"]
    assert turn["finished"] is True


def test_a_turn_that_never_ends_is_saved_as_it_is(
    session_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with_history_lag(0.2, llamacloud_emulator, monkeypatch)
    llamacloud_emulator.settings.survives_disconnect = False
    llamacloud_emulator.inject(Fault("cut", after_events=3))
    with pytest.raises(ChatTurnInterruptedError):
        list(LlamaCloudHook().stream_message(session_id, "And in Q2?"))
    save(session_id, tmp_path / "transcript.md")
    text = (tmp_path / "transcript.md").read_text()
    assert "And in Q2?" in text
    assert text.count("The turn has no end") == 1


@pytest.mark.parametrize(
    ("path", "form", "says"),
    [
        (None, "json", "output_path must be the path of a file"),
        ("relative.md", "json", "output_path must be an absolute path"),
        ("/tmp/{{ ds }}.md", "json", "output_path contains a template that was not rendered"),
        ("/tmp/", "json", "output_path must be the path of a file"),
        ("/tmp/x.md", "pdf", "format must be one of 'markdown', 'json', 'html'"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_read(
    path: Any, form: str, says: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        save("ses-1", path, form)
    assert llamacloud_emulator.requests == []


def test_a_used_session_without_visible_turns_is_neither_saved_nor_deleted(
    session_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with_history_lag(0.2, llamacloud_emulator, monkeypatch)
    whole = LlamaCloudClient.get_session
    monkeypatch.setattr(
        LlamaCloudClient,
        "get_session",
        lambda *args, **kwargs: whole(*args, **kwargs).model_copy(update={"events": []}),
    )
    with pytest.raises(TranscriptError, match="its history is empty"):
        delete(session_id, tmp_path / "transcript.md")
    assert llamacloud_emulator.deleted == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["", " ", "None"])
def test_a_transcript_path_that_renders_to_nothing_keeps_the_session(
    path: str, session_id: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with pytest.raises(InvalidArgumentError, match="transcript_path was set, but rendered to nothing"):
        delete(session_id, path)
    assert llamacloud_emulator.deleted == []


def test_a_session_whose_transcript_is_incomplete_is_saved_but_not_deleted(
    session_id: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = LlamaCloudClient.get_session

    def damaged(client: LlamaCloudClient, asked: str, **scope: Any) -> Session:
        values = read(client, asked, **scope).model_dump()
        lost = [{"type": "text", "content": ["no text"]}, {"type": 5}]
        return Session.model_validate({**values, "events": [*values["events"][:1], *lost, *values["events"][1:]]})

    monkeypatch.setattr(LlamaCloudClient, "get_session", damaged)
    path = tmp_path / "transcript.md"
    assert "47.5 million" in Path(save(session_id, str(path)).removeprefix("file://")).read_text()
    with pytest.raises(TranscriptError, match="lacks 2 events that are malformed"):
        delete(session_id, str(path))
    assert llamacloud_emulator.deleted == []


@pytest.mark.parametrize("later", ["markdown", "html", "json"])
@pytest.mark.parametrize("earlier", ["markdown", "html", "json"])
@pytest.mark.parametrize("where", ["local", "object store"])
def test_a_session_is_not_deleted_if_its_transcript_would_replace_another_sessions(
    where: str, earlier: str, later: str, session_id: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    path = tmp_path / "transcript" if where == "local" else Buckets("reports").at("reports/transcript")
    delete(session_id, path, transcript_format=earlier)
    kept = path.read_bytes()
    other = LlamaCloudHook().create_session([INDEX_FILINGS]).session_id
    with pytest.raises(InvalidArgumentError) as caught:
        delete(other, path, transcript_format=later)
    # not the run's id, which a cleared run keeps although its session is another
    assert "{{ ti.xcom_pull(task_ids='create', key='session_id') }}" in str(caught.value)
    assert "or move the file away" in str(caught.value)
    assert caught.value.session_id == other
    assert path.read_bytes() == kept
    assert llamacloud_emulator.deleted == [session_id]
    assert save(other, path)  # whose session stays, so that nothing is lost


@pytest.mark.parametrize("earlier", ["markdown", "html", "json"])
@pytest.mark.parametrize("where", ["local", "object store"])
def test_a_retry_replaces_the_transcript_of_its_own_session(
    where: str, earlier: str, session_id: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    path = tmp_path / "transcript" if where == "local" else Buckets("reports").at("reports/transcript")
    save(session_id, path, earlier)
    LlamaCloudHook().send_message(session_id, "And in Q2?")
    delete(session_id, path)
    assert b"And in Q2?" in path.read_bytes()
    assert llamacloud_emulator.deleted == [session_id]


def test_a_file_that_is_no_transcript_is_replaced(session_id: str, tmp_path: Path) -> None:
    path = tmp_path / "transcript.md"
    path.write_bytes(b"# Notes\n\xff" + b"-" * 3_000_000)
    delete(session_id, path)
    assert PROMPT in path.read_text()


def test_a_session_is_not_deleted_if_its_transcript_was_replaced_meanwhile(
    session_id: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, theirs = tmp_path / "transcript.md", tmp_path / "theirs.md"
    save(LlamaCloudHook().create_session().session_id, theirs)
    really = Folder.head
    looks: list[Path] = []

    def head(folder: Folder, name: str, *most: int) -> bytes | None:
        looks.append(path)
        if path.exists():
            path.write_bytes(theirs.read_bytes())
        return really(folder, name, *most)

    monkeypatch.setattr(Folder, "head", head)
    with pytest.raises(InvalidArgumentError, match="already holds the transcript of another session"):
        delete(session_id, path)
    assert len(looks) == 2
    assert llamacloud_emulator.deleted == []


def failing_reads(monkeypatch: pytest.MonkeyPatch, problem: OSError, *, only_after_the_upload: bool = False) -> Any:
    store = Buckets("reports")
    opened = store.open

    def failing(at: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb" and (not only_after_the_upload or store.exists(at)):
            raise problem
        return opened(at, mode, **options)

    monkeypatch.setattr(store, "open", failing)
    return store.at("reports/transcript.md")


def test_a_role_that_may_not_read_saves_and_deletes(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_gcsfs_says_it = OSError(
        "Forbidden: reports/transcript.md\nThe account does not have storage.objects.get access."
    )
    delete(session_id, failing_reads(monkeypatch, as_gcsfs_says_it))
    assert llamacloud_emulator.deleted == [session_id]


def test_a_transcript_that_was_saved_but_cannot_be_read_again_is_not_called_unsaved(
    session_id: str, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = failing_reads(monkeypatch, OSError("connection reset"), only_after_the_upload=True)
    with pytest.raises(
        TranscriptError,
        match=r"^The session was not deleted, because its saved transcript could not be read\. Could not read .*connection reset",
    ):
        delete(session_id, path)
    assert path.exists()
    assert llamacloud_emulator.deleted == []
