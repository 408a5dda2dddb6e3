"""Prompts from files: what is taken, how little of it is in memory, and what a user is told about a file that cannot be asked."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from airflow_provider_llamachat.batch import prompt_files, storage
from airflow_provider_llamachat.batch.items import Item
from airflow_provider_llamachat.exceptions import ChatBatchError, InvalidArgumentError
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator
from tests.airflow.tries import a_try
from tests.batch.stores import Buckets

IDS = ["idx-1"]


def read(path: Path, content: bytes | str, **options: Any) -> list[Item]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    items = prompt_files.read(path, **{"index_ids": IDS, **options})
    try:
        assert len(items) == len(list(items))
        return list(items)
    finally:
        items.close()


CSV = 'id,prompt,customer,index_ids,session_id\n7,"Why, and\nhow?",Ünal,,\n,Plain?,,"[""a"", ""b""]",ses-1\n\n'
LINES = '{"id": 7, "prompt": "Why, and\\nhow?", "customer": "Ünal"}\n\n{"prompt": "Plain?", "customer": "", "index_ids": ["b", "a"], '
LINES += '"session_id": "ses-1"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("questions.csv", CSV),
        ("QUESTIONS.CSV", CSV.replace("\n", "\r\n").replace("and\r\n", "and\n")),
        ("questions.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("questions.csv", CSV.rstrip("\n")),
        ("questions.jsonl", LINES),
        ("questions.ndjson", b"\xef\xbb\xbf" + LINES.rstrip("\n").encode()),
    ],
)
def test_both_formats_give_the_same_items(name: str, content: bytes | str, tmp_path: Path) -> None:
    first, second = read(tmp_path / name, content)
    assert first == Item(0, "Why, and\nhow?", id="7", asked_of=("idx-1",), extra={"customer": "Ünal"})
    assert (second.prompt, second.id, second.session_id, second.asked_of) == ("Plain?", None, "ses-1", ("a", "b"))
    assert second.extra == {"customer": ""}


def test_lines_may_be_plain_prompts_and_extra_fields_may_be_any_json(tmp_path: Path) -> None:
    plain, rich = read(tmp_path / "q.jsonl", '"Why?"\n{"prompt": "How?", "row": {"n": [1, null]}, "at": 2.5}')
    assert plain == Item(0, "Why?", asked_of=("idx-1",))
    assert rich.extra == {"row": {"n": [1, None]}, "at": 2.5}


@pytest.mark.parametrize("content", ["", "\n\n", "id,prompt\n"])
def test_a_file_without_rows_has_no_items(content: str, tmp_path: Path) -> None:
    assert read(tmp_path / "q.csv", content) == []


BAD: dict[str, tuple[str, bytes | str, str]] = {
    "missing column": (
        "q.csv",
        "id,question\n1,Why?\n",
        "line 1 names no column prompt. Name the column of the questions prompt",
    ),
    "capital letters": ("q.csv", "ID,Prompt\n1,Why?\n", r"line 1 names no column prompt.*Columns: ID, Prompt"),
    "capital id": ("q.csv", "ID,prompt\n1,Why?\n", "line 2 has the unknown field 'ID'. If it is id, correct its name"),
    "semicolons": (
        "q.csv",
        "id;prompt\n1;Why?\n",
        "line 1 names no column prompt. They seem not to be separated by commas",
    ),
    "two columns of a name": ("q.csv", "prompt,a,a\nWhy?,1,2\n", "line 1 names a column twice"),
    "comma in a cell": (
        "q.csv",
        "id,prompt\n1,Why?\n2,Why, and how?\n",
        "line 3 has 3 cells, but the first line has 2",
    ),
    "short row": ("q.csv", "prompt,id\nWhy?\n", "line 2 has 1 cells, but the first line has 2"),
    "open quotation mark": (
        "q.csv",
        'prompt\nWhy?\n"How?\nWhen?\n',
        "line 3 is not CSV, for example because a quotation mark",
    ),
    "blank prompt": ("q.csv", "id,prompt\n1,Why?\n2, \n", "line 3: prompt must be text that is not blank"),
    "same id": ("q.csv", "id,prompt\n1,Why?\n1,How?\n", r"line 3 \(id '1'\) has the same id as prompts_path, line 2"),
    "misspelled field": (
        "q.csv",
        "prompt,index_id\nWhy?,a\n",
        "line 2 has the unknown field 'index_id'. If it is index_ids",
    ),
    "Latin-1": (
        "q.csv",
        "prompt\nWhy?\nÜber?\n".encode("latin-1"),
        r"line 3 is not UTF-8 \(byte 0xdc\). Save the file as UTF-8",
    ),
    "UTF-16": ("q.csv", "prompt\nWhy?\n".encode("utf-16"), "line 1 is not UTF-8"),
    "UTF-16 without a mark": ("q.jsonl", '"Why?"'.encode("utf-16-le"), "line 1 has a zero byte, as text in UTF-16 has"),
    "not JSON": (
        "q.jsonl",
        '{"prompt": "Why?"}\n{"prompt": }\n',
        "line 2 is not JSON. Write one object with a prompt in each line",
    ),
    "a field twice": (
        "q.jsonl",
        '"Why?"\n{"prompt": "How?", "id": 1, "prompt": "When?"}\n',
        "line 2 names the field 'prompt' twice. Name each field of a prompt once",
    ),
    "one list": ("q.jsonl", '[\n{"prompt": "Why?"}\n]\n', "line 1 is not JSON. The file looks like one JSON list"),
    "a number": ("q.jsonl", '"Why?"\n7\n', "line 2 must be a prompt or an object with one, got int 7"),
    "misspelled prompt": (
        "q.jsonl",
        '{"promt": "Why?"}\n',
        "line 1 has no prompt. Add the field 'prompt'. It has: promt",
    ),
    "not a number": ("q.jsonl", '{"prompt": "Why?", "x": NaN}\n', "line 1 has a field that is not JSON"),
    "no line breaks": ("q.jsonl", b"x" * (3 * 1024 * 1024), "line 1 is longer than"),
    "unknown format": ("q.xlsx", "PK", r"prompts_path must end in .csv, .jsonl, .ndjson"),
    "no indexes": ("q.csv", "prompt,index_ids\nWhy?,a\nHow?,\n", "line 3 has no indexes"),
}
"""What is wrong with a file, by example, and what its user is told."""


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_with_its_line_and_the_way_out(kind: str, tmp_path: Path) -> None:
    name, content, says = BAD[kind]
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        read(tmp_path / name, content, index_ids=None if kind == "no indexes" else IDS)
    assert str(caught.value).endswith(f"Nothing was asked in this attempt. File: {tmp_path / name}")


def batch(**arguments: Any) -> ChatBatchOperator:
    return ChatBatchOperator(**{"task_id": "batch", "index_ids": [INDEX_FILINGS], "retries": 2, **arguments})


@pytest.mark.usefixtures("llamacloud_connection")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "Set either prompts or prompts_path, but neither is set"),
        ({"prompts": ["Why?"], "prompts_path": "/tmp/q.csv"}, "but both are set"),
        ({"prompts_path": "q.csv"}, "prompts_path must be an absolute path or a URL"),
        ({"prompts_path": "{folder}"}, r"prompts_path must end in .csv"),
        ({"prompts_path": "{folder}/folder.csv"}, "prompts_path must be the path of a file, but it is a folder"),
        (
            {"prompts_path": "{folder}/missing.csv"},
            r"prompts_path does not exist\. Nothing was asked in this attempt\. File: ",
        ),
        ({"prompts_path": "{folder}/bad.csv"}, "line 2: prompt must be text"),
        ({"prompts": "questions.csv"}, "prompts must be a JSON or Python list"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_nothing_is_asked_of_what_cannot_be_read(
    arguments: dict[str, Any], says: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "bad.csv").write_text("prompt\n \n")
    if "prompts_path" in arguments:
        arguments = {**arguments, "prompts_path": arguments["prompts_path"].replace("{folder}", str(tmp_path))}
    task = batch(**arguments)
    with pytest.raises(InvalidArgumentError, match=says):
        task.execute(a_try(task, 1))
    assert llamacloud_emulator.requests == []


@pytest.mark.usefixtures("llamacloud_connection")
@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("{folder}/q.csv", "file://{folder}/q.csv"),
        ("{folder}/q.csv", "{folder}/other/../q.csv"),
        ("{folder}/link.csv", "{folder}/q.csv"),
    ],
)
def test_results_do_not_replace_the_prompts(
    source: str, output: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    (tmp_path / "q.csv").write_text("prompt\nWhy?\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "q.csv")
    source, output = (text.replace("{folder}", str(tmp_path)) for text in (source, output))
    task = batch(prompts_path=source, output_path=output)
    with pytest.raises(
        InvalidArgumentError, match=r"prompts_path and output_path are the same file.*Nothing was asked"
    ):
        task.execute(a_try(task, 1))
    assert (tmp_path / "q.csv").read_text() == "prompt\nWhy?\n"
    assert llamacloud_emulator.requests == []


@pytest.mark.usefixtures("llamacloud_connection")
def test_results_do_not_replace_the_prompts_in_an_object_store(llamacloud_emulator: LlamaCloudEmulator) -> None:
    path = Buckets("answers").at("answers/q.csv")
    path.write_bytes(b"prompt\nWhy?\n")
    task = batch(prompts_path=path, output_path=path)
    with pytest.raises(InvalidArgumentError, match="prompts_path and output_path are the same file"):
        task.execute(a_try(task, 1))
    assert path.read_bytes() == b"prompt\nWhy?\n"
    assert llamacloud_emulator.requests == []


@pytest.mark.usefixtures("llamacloud_connection")
@pytest.mark.parametrize("where", ["local", "object store"])
def test_a_batch_from_a_file_hands_unknown_fields_on_to_the_results(
    where: str, tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store = Buckets("answers")
    source: Any = tmp_path / "q.csv" if where == "local" else store.at("answers/q.csv")
    source.write_bytes(b"prompt,customer\nWhy?,Ann\nHow?,Ben\n")
    task = batch(prompts_path=source, output_path=str(tmp_path / "results.jsonl"))
    assert task.execute(a_try(task, 1))["answered"] == 2
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["extra"]) for line in lines] == [
        ("Why?", {"customer": "Ann"}),
        ("How?", {"customer": "Ben"}),
    ]


@pytest.mark.usefixtures("llamacloud_connection")
def test_a_retry_asks_what_a_changed_file_has_more_and_keeps_the_other_answers(
    tmp_path: Path, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("error_stop", endpoint="stream", prompt="Two?"))
    source = tmp_path / "q.csv"
    source.write_text("id,prompt,x\na,One?,1\nb,Two?,2\n")
    task = batch(prompts_path=str(source), output_path=str(tmp_path / "results.jsonl"), min_answered=1.0)
    with pytest.raises(ChatBatchError):
        task.execute(a_try(task, 1))
    source.write_text("id,prompt,x\nc,Three?,3\na,One?,4\nb,Two?,2\n")
    manifest = task.execute(a_try(task, 2))
    assert (manifest["total"], manifest["answered"], manifest["kept"]) == (3, 3, 1)
    assert llamacloud_emulator.posts(prompt="One?") == 1


def test_an_extra_field_that_is_not_json_is_refused_before_anything_is_asked(
    llamacloud_emulator: LlamaCloudEmulator,
) -> None:
    task = batch(prompts=[{"prompt": "Why?", "at": object()}])
    with pytest.raises(InvalidArgumentError, match=r"prompts\[0\] has a field that is not JSON.*Fields: at"):
        task.execute(a_try(task, 1))
    assert llamacloud_emulator.requests == []


def test_a_read_that_breaks_off_is_a_batchs_error_that_a_retry_may_overcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Buckets("answers")
    path = store.at("answers/q.csv")
    path.write_bytes(b"prompt\nWhy?\n")

    class Torn:
        """A file whose connection is lost after the first piece."""

        pieces: Iterator[bytes] = iter([b"prompt\n"])

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def read(self, _: int) -> bytes:
            return next(self.pieces)

    monkeypatch.setattr(store, "open", lambda *_, **__: Torn())
    with pytest.raises(ChatBatchError, match="Could not read"):
        prompt_files.read(path, index_ids=IDS)


def test_a_remote_file_is_read_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Buckets("answers")
    path = store.at("answers/q.csv")
    path.write_bytes(b"prompt\nWhy?\n")
    sizes, opened = [], store.open

    def watched(*given: Any, **options: Any) -> Any:
        sizes.append(options["block_size"])
        return opened(*given, **options)

    monkeypatch.setattr(store, "open", watched)
    prompt_files.read(path, index_ids=IDS).close()
    assert sizes == [1024 * 1024]  # s3fs takes 50 times as much by itself, for each file


def test_the_memory_for_a_prompt_does_not_depend_on_its_length(tmp_path: Path) -> None:
    def held(length: int) -> int:
        path = tmp_path / "q.csv"
        path.write_text("prompt,note\n" + f"{'x' * length},{'y' * length}\n" * 500)
        gc.collect()
        tracemalloc.start()
        items = prompt_files.read(path, index_ids=IDS)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        items.close()
        return used

    held(10)  # imports
    assert held(1000) < held(10) + 100_000 < 200_000


def broken(*_: Any, **__: Any) -> Any:
    raise OSError(5, "Input/output error")


def test_a_full_disk_while_prompts_are_copied_is_a_batchs_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    path = tmp_path / "q.csv"
    path.write_text("prompt\n" + "Why?\n" * 10_000)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Path("/dev/full").open("wb"))  # noqa: SIM115  # the reader closes it
    with pytest.raises(
        ChatBatchError,
        match=r"temporary folder .*No space left.*more\. Nothing was asked in this attempt\. File: .*q\.csv",
    ):
        prompt_files.read(path, index_ids=IDS)
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ChatBatchError, match=r"temporary folder .*missing.*No such file"):
        prompt_files.read(path, index_ids=IDS)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile.gettempdir", broken)
    with pytest.raises(ChatBatchError, match=r"the temporary folder: OSError: .*Input/output error"):
        prompt_files.read(path, index_ids=IDS)


def test_prompts_that_cannot_be_read_are_told_in_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "q.csv"
    path.write_text("prompt\nWhy?\n")
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.open", broken)
    with pytest.raises(
        ChatBatchError, match=r"Input/output error\. Nothing was asked in this attempt\. File: .*q\.csv"
    ):
        prompt_files.read(path, index_ids=IDS)
