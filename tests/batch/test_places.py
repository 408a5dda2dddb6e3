"""Where results may be written, and what is noticed before anything is asked."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath

from airflow_provider_llamachat.batch import storage
from airflow_provider_llamachat.exceptions import ChatBatchError, InvalidArgumentError
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import DeleteChatSessionOperator, SaveTranscriptOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, LlamaCloudEmulator
from tests.airflow.tries import a_try
from tests.batch.stores import Buckets, Disk, Pieces, Remote
from tests.batch.test_operator import go, read

pytestmark = pytest.mark.usefixtures("llamacloud_connection")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSE", 0.0)


def batch(path: Any, **arguments: Any) -> ChatBatchOperator:
    return ChatBatchOperator(
        **{
            "task_id": "batch",
            "prompts": ["One?", "Two?"],
            "index_ids": [INDEX_FILINGS],
            "output_path": path,
            "retries": 2,
            **arguments,
        }
    )


def ask(path: Any) -> Any:
    task = batch(path)
    return task.execute(a_try(task, 1))


@pytest.mark.parametrize(
    ("store", "says"),
    [
        (Buckets("answers"), "anwsers does not exist"),
        (Buckets("answers", prefix="mine/"), "anwsers does not exist"),
        (Buckets("anwsers", read_only=True), "Access Denied"),
        (Buckets("anwsers", prefix="mine/"), "Access Denied"),
        (Disk(), "is not created"),
    ],
    ids=["missing", "missing for a limited role", "read only", "another prefix", "missing top folder"],
)
def test_a_place_that_cannot_be_written_to_is_noticed_before_anything_is_asked(
    store: Remote, says: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    before = set(getattr(store, "buckets", ()))
    with pytest.raises(ChatBatchError, match=says):
        ask(store.at("anwsers/yours/results.jsonl"))
    assert llamacloud_emulator.requests == []
    assert set(getattr(store, "buckets", ())) == before
    assert store.store == {}


@pytest.mark.parametrize("prefix", ["", "mine/"], ids=["whole bucket", "limited role"])
def test_a_batch_accesses_only_its_prefix_of_an_object_store(
    prefix: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store = Buckets("answers", prefix=prefix)
    assert ask(store.at("answers/mine/deep/results.jsonl"))["answered"] == 2
    assert store.buckets == {"answers"}
    assert list(store.store) == ["/answers/mine/deep/results.jsonl"]
    assert all(path.startswith("/answers/mine/deep/results.jsonl") for path in store.touched)


def test_the_folders_of_a_remote_disk_are_made_below_its_top(llamacloud_emulator: LlamaCloudEmulator) -> None:
    disk = Disk("/data")
    assert ask(disk.at("data/a/b/results.jsonl"))["answered"] == 2
    assert list(disk.store) == ["/data/a/b/results.jsonl"]


@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_folder_is_refused_as_output_path(
    where: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    if where == "local":
        (tmp_path / "results").mkdir()
        path: Any = str(tmp_path / "results")
    else:
        store = Buckets("answers")
        store.at("answers/results/one.txt").write_bytes(b"1")
        path = store.at("answers/results")
    with pytest.raises(InvalidArgumentError, match="output_path must be the path of a file, but it is a folder"):
        ask(path)
    assert llamacloud_emulator.requests == []


def test_a_disk_error_at_the_end_fails_the_batch_and_a_retry_asks_nothing_again(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    output = tmp_path / "results.jsonl"
    task = batch(str(output))
    answered = llamacloud_emulator.completed

    class Blocked(ChatBatchOperator):
        """Finds a folder in its place when it is done."""

        def on_answers(self, *_: Any) -> None:
            if not output.exists():
                output.mkdir()

    blocked = Blocked(
        task_id="batch", prompts=["One?", "Two?"], index_ids=[INDEX_FILINGS], output_path=str(output), retries=2
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("airflow_provider_llamachat.airflow_support.metrics.count_turn", blocked.on_answers)
        with pytest.raises(ChatBatchError, match=r"Could not write to .*Is a directory"):
            blocked.execute(a_try(blocked, 1))
    assert answered() == 2
    output.rmdir()
    assert task.execute(a_try(task, 2))["kept"] == 2
    assert answered() == 2


@pytest.mark.parametrize("where", ["local", "object store"])
def test_a_full_temporary_folder_is_named_and_a_retry_asks_nothing_again(
    where: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    task = batch(str(tmp_path / "r.jsonl") if where == "local" else Buckets("answers").at("answers/r.jsonl"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        opened = "TemporaryFile" if where == "local" else "NamedTemporaryFile"
        patch.setattr(f"tempfile.{opened}", lambda **_: Path("/dev/full").open("w+b"))  # noqa: SIM115  # storage closes it
        with pytest.raises(ChatBatchError, match=rf"to the temporary folder {tmp_path}: .*No space left.*TMPDIR"):
            task.execute(a_try(task, 1))
    assert llamacloud_emulator.completed() == 2
    assert task.execute(a_try(task, 2))["kept"] == 2
    assert llamacloud_emulator.completed() == 2


def test_results_are_uploaded_in_small_pieces_where_the_file_system_can() -> None:
    store = Pieces()
    folder = storage.Folder.around(store.at("answers/results.jsonl"))
    with folder.replacing("results.jsonl", "owner") as file:
        for number in range(20):
            file.write(bytes([number]) * 2**20)
    content = store.cat_file("answers/results.jsonl")
    assert content == b"".join(bytes([number]) * 2**20 for number in range(20))
    assert 0 < store.held <= 5 * 2**20


def test_an_interrupted_read_fails_the_batch(tmp_path: Path) -> None:
    store = Remote()
    path = store.at("answers/results.jsonl")
    path.write_bytes(b"1\n2\n")

    class Torn:
        """A file whose connection is lost after the first line."""

        def __enter__(self) -> Any:
            yielded = [b"1\n"]
            return iter(yielded.pop, None)

        def __exit__(self, *_: object) -> None:
            return None

    folder = storage.Folder.around(path)
    store.open = lambda *_, **__: Torn()
    lines = folder.lines("results.jsonl")
    assert next(lines) == b"1"
    with pytest.raises(ChatBatchError, match="Could not read"):
        next(lines)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("s3://answers/results.jsonl", r"Install apache-airflow-providers-amazon\[s3fs\]"),
        ("S3://answers/results.jsonl", r"Install apache-airflow-providers-amazon\[s3fs\]"),
        ("gs://conn@answers/results.jsonl", "Install apache-airflow-providers-google"),
        ("abfs://answers/results.jsonl", "Install apache-airflow-providers-microsoft-azure"),
        ("nosuch://answers/results.jsonl", "Install an Airflow provider for it"),
    ],
)
def test_a_file_system_that_is_missing_is_named_with_what_to_install(
    path: str, says: str, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"output_path starts with .*{says}") as caught:
        ask(path)
    assert isinstance(caught.value, AirflowFailException)
    assert llamacloud_emulator.requests == []


def test_a_file_system_that_refuses_its_settings_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Remote()
    path = store.at("answers/results.jsonl")

    def fail(_: object) -> None:
        raise ValueError("the region is blank")

    monkeypatch.setattr(ObjectStoragePath, "fs", property(fail))
    with pytest.raises(InvalidArgumentError, match=r"output_path cannot be used.*the region is blank"):
        ask(path)


@pytest.mark.airflow
@pytest.mark.usefixtures("airflow_database")
def test_templates_in_path_objects_are_rendered(tmp_path: Path) -> None:
    result = go("path_objects", folder=str(tmp_path))
    assert result.state == "success", result.tasks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mapped-0.jsonl", "mapped-1.jsonl", "one-batch.jsonl"]
    assert len(read(tmp_path / "one-batch.jsonl")) == 1


@pytest.mark.parametrize(
    ("kind", "argument", "others"),
    [
        (ChatBatchOperator, "prompts_path", {}),
        (ChatBatchOperator, "output_path", {"prompts": ["Why?"]}),
        (SaveTranscriptOperator, "output_path", {"session_id": "ses-1"}),
        (DeleteChatSessionOperator, "transcript_path", {"session_id": "ses-1"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_path_object_is_rendered(kind: Any, argument: str, others: dict[str, Any]) -> None:
    task = kind(task_id="task", **others, **{argument: PurePosixPath("/data") / "{{ quarter }}.jsonl"})
    task.render_template_fields(a_try(task, 1) | {"quarter": "Q3"})
    assert getattr(task, argument) == "/data/Q3.jsonl"


@pytest.mark.parametrize(
    "path",
    [PurePosixPath("/data") / "{{ run_id }}.jsonl", "/data/{% if x %}y{% endif %}.jsonl"],
    ids=str,
)
def test_a_path_that_still_holds_a_template_is_refused(path: Any, llamacloud_emulator: LlamaCloudEmulator) -> None:
    with pytest.raises(InvalidArgumentError, match="output_path contains a template"):
        ask(path)
    assert llamacloud_emulator.requests == []


def test_an_unknown_home_directory_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="output_path cannot be used"):
        ask("~nobody-of-that-name/results.jsonl")


def test_a_path_object_of_airflow_stays_one() -> None:
    path = ObjectStoragePath("file:///tmp/results.jsonl")
    assert batch(path).output_path is path
