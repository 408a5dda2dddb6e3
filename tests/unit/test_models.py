"""What stands beside an answer may have any type; only what identifies and what is asked for must be right."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from airflow_provider_llamachat import models
from airflow_provider_llamachat.client import endpoints
from airflow_provider_llamachat.models import Index, Project, Session, SessionPage, SessionSummary, ToolUse

STRANGE: list[Any] = [0, -1, 1.5, 10**30, True, "text", "", [], ["a"], [[]], {}, {"a": [1]}, None]


@pytest.mark.parametrize("value", STRANGE, ids=repr)
@pytest.mark.parametrize(
    ("model", "known"),
    [
        (SessionSummary, {"session_id": "ses-1"}),
        (Session, {"session_id": "ses-1", "events": []}),
        (Project, {"id": "p"}),
        (Index, {"id": "i"}),
        (Index, {"id": "i", "metadata": {}}),
    ],
    ids=["summary", "session", "project", "index", "index with metadata"],
)
def test_only_ids_of_a_wrong_type_fail_a_read(model: Any, known: dict[str, Any], value: Any) -> None:
    ids = {"session_id", "id", "events", "index_ids", "project_id", "organization_id"}
    for name in set(model.model_fields) - ids - (set() if known.get("metadata") is None else {"metadata"}):
        read = model.model_validate({**known, name: value})
        assert read.model_dump()["session_id" if "session_id" in known else "id"]
        read.as_json()
    if "metadata" in known:
        for name in ("status", "error_message"):
            metadata = model.model_validate({**known, "metadata": {name: value}}).metadata
            assert getattr(metadata, name) is None or isinstance(getattr(metadata, name), str)


def test_a_time_that_is_a_number_stays_one_that_can_be_compared() -> None:
    assert SessionSummary(session_id="s", last_updated_at=1764062459).last_updated_at == "1764062459"  # type: ignore[arg-type]
    assert Index(id="i", last_synced_at=1764062459.5).last_synced_at == "1764062459.5"  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, "x", [], {}, True])
def test_a_session_with_any_metadata_of_a_job_was_asked_before(value: Any) -> None:
    assert SessionSummary(session_id="s", job_metadata=value).job_metadata is not None


@pytest.mark.parametrize("value", [7, None, "", {}, ["a"]])
def test_an_id_of_a_strange_type_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        SessionSummary(session_id=value)
    with pytest.raises(ValidationError):
        SessionPage(items=[{"session_id": value}])  # type: ignore[list-item]
    with pytest.raises(ValidationError):
        SessionSummary(session_id="s", index_ids=[7])  # type: ignore[list-item]


def test_one_thread_at_a_time_builds_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    building, most = [], []

    def rebuild(**options: Any) -> bool:
        building.append(options)
        most.append(len(building))
        time.sleep(0.02)
        building.pop()
        return True

    monkeypatch.setattr(BaseModel, "model_rebuild", staticmethod(rebuild))
    with ThreadPoolExecutor() as threads:
        built = [threads.submit(model.model_rebuild, raise_errors=False) for model in (Session, Session, ToolUse)]
    assert [one.result() for one in built] == [True] * 3
    assert most == [1, 1, 1]


def test_each_public_name_is_found_by_itself_and_listed() -> None:
    code = (
        "import sys\n"
        "for name in sys.argv[1:]:\n"
        "    for known in [each for each in sys.modules if each.startswith('airflow_provider_llamachat.models')]:\n"
        "        del sys.modules[known]\n"
        "    import airflow_provider_llamachat.models as models\n"
        "    assert name in dir(models)\n"
        "    found = getattr(models, name)\n"
        "    assert not isinstance(found, type) or found.__module__ == models.__name__, found.__module__\n"
    )
    subprocess.run([sys.executable, "-c", code, *models.__all__], check=True)


def test_a_model_is_loaded_before_its_request_is_sent() -> None:
    code = (
        "import sys\n"
        "ids = dict.fromkeys(('session_id', 'project_id', 'index_id', 'attachment_name'), 'a')\n"
        "for name in sys.argv[1:]:\n"
        "    for known in [each for each in sys.modules if each.startswith('airflow_provider_llamachat')]:\n"
        "        del sys.modules[known]\n"
        "    from airflow_provider_llamachat.client import endpoints\n"
        "    model = getattr(endpoints, name).call(ids).endpoint.answer\n"
        "    assert model in vars(sys.modules['airflow_provider_llamachat.models']), name\n"
    )
    answering = [
        name for name, found in vars(endpoints).items() if isinstance(found, endpoints.Endpoint) and found.answer
    ]
    assert len(answering) > 5
    subprocess.run([sys.executable, "-c", code, *answering], check=True)


def test_a_model_that_a_user_derives_keeps_its_own_module() -> None:
    class Own(SessionSummary):
        pass

    assert Own.__module__ == __name__
