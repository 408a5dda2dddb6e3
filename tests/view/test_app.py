"""The application behind the page: who may see what, what it shows, and what it costs the database."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.view.rows import ANSWER, BATCH, NOW, QUESTION, Asked, add_runs, questions, usage

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

ROUTES = ["/", "/view.js", "/view.css", "/api/runs", "/api/days", "/api/dags/nightly/conversation?run_id=run/1"]


@contextmanager
def statements() -> Iterator[list[str]]:
    """The SQL statements that run meanwhile."""
    from airflow import settings
    from sqlalchemy import event

    seen: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(settings.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(settings.engine, "before_cursor_execute", note)


def conversation(client: TestClient, of_dag: str, **query: Any) -> Any:
    """A conversation's answer."""
    return client.get(f"/api/dags/{of_dag}/conversation", params={"run_id": "run/1", **query})


def test_whoever_has_not_logged_in_sees_nothing(nobody: TestClient) -> None:
    assert {route: nobody.get(route).status_code for route in ROUTES} == dict.fromkeys(ROUTES, 401)


def test_a_dag_that_one_may_not_read_is_refused_and_absent_from_lists(admin: TestClient, guest: TestClient) -> None:
    assert admin.get("/api/runs").json()["dags"] == ["mapped", "nightly", "private", "secret"]
    assert guest.get("/api/runs").json()["dags"] == ["mapped", "nightly"]
    for dag_id in ("secret", "private"):
        assert conversation(admin, dag_id).status_code == 200
        assert conversation(guest, dag_id).status_code == 403
        assert guest.get("/api/runs", params={"dag_id": dag_id}).json()["runs"] == []
        assert guest.get("/api/days", params={"dag_id": dag_id}).json()["days"] == []
    seen = guest.get("/api/runs").text + guest.get("/api/days").text
    assert "secret" not in seen
    assert "private" not in seen


def test_the_query_does_not_get_around_the_right_to_the_dag_of_the_path(guest: TestClient) -> None:
    for path in ("secret", "~", "nightly"):
        answer = conversation(guest, path, dag_id="nightly" if path == "secret" else "secret")
        assert answer.status_code == {"secret": 403, "~": 404, "nightly": 200}[path]
        assert answer.status_code != 200 or answer.json()["dag_id"] == "nightly"


def test_no_route_changes_anything(app: Any, admin: TestClient) -> None:
    assert {method for route in app.routes for method in route.methods} == {"GET"}
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert admin.request(method, "/api/runs").status_code == 405


def test_every_response_has_the_strict_headers(
    admin: TestClient, nobody: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_llamachat.view.app import HEADERS

    answers = [admin.get(route) for route in ROUTES]
    assert [answer.status_code for answer in answers] == [200] * len(ROUTES)
    monkeypatch.setattr("airflow_provider_llamachat.view.queries.runs", lambda *_: 1 / 0)
    refused = [nobody.get("/"), admin.get("/nothing"), admin.get("/api/runs?offset=x"), admin.get("/api/runs")]
    assert [answer.status_code for answer in refused] == [401, 404, 422, 500]
    for answer in (*answers, *refused):
        assert HEADERS.items() <= {name.title(): value for name, value in answer.headers.items()}.items()
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["frame-ancestors"] == "'self'"
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.mark.usefixtures("app")
def test_the_page_has_no_way_to_parse_markup_and_nothing_inline() -> None:
    from airflow_provider_llamachat.view.app import FILES, STATIC

    script, page = (STATIC / "view.js").read_text(), (STATIC / "index.html").read_text()
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|DOMParser|srcdoc", script
    )
    assert not re.findall(r"<script(?! src=)|<style|\son\w+=|\sstyle=", page)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", script + page + (STATIC / "view.css").read_text())
    assert {path.name for path in STATIC.iterdir()} == {file for file, _ in FILES.values()}


def test_the_list_counts_what_was_asked_newest_first(guest: TestClient) -> None:
    found = guest.get("/api/runs").json()
    assert [(run["dag_id"], run["run_id"]) for run in found["runs"]] == [
        ("nightly", "run/2"),
        ("mapped", "run/1"),
        ("nightly", "run/1"),
    ]
    everything, mapped = found["runs"][2], found["runs"][1]
    counts = ("answered", "failed", "interrupted", "running", "unasked", "input_tokens", "output_tokens", "seconds")
    # A batch counts as its three questions.
    assert [everything[name] for name in counts] == [3, 2, 2, 0, 1, 430, 52, 30.0]
    assert [mapped[name] for name in counts[:4]] == [1, 0, 0, 1]
    assert (found["next"], everything["state"], everything["tasks"]) == (None, "success", 6)


def test_the_list_is_filtered_by_dag_and_time(guest: TestClient) -> None:
    def listed(**query: Any) -> list[str]:
        return [run["run_id"] for run in guest.get("/api/runs", params=query).json()["runs"]]

    day = timedelta(days=1)
    assert listed(dag_id="mapped") == ["run/1"]
    assert listed(dag_id="unknown") == []
    assert listed(since=(NOW - 90 * day).isoformat(), until=(NOW - 30 * day).isoformat()) == ["long ago"]
    # Without a time zone, UTC is meant.
    assert listed(since=(NOW - 90 * day).replace(tzinfo=None).isoformat(), dag_id="nightly")[-1] == "long ago"
    # Without a beginning, the page shows the thirty days before the end.
    assert listed(until=(NOW - 45 * day).isoformat()) == ["long ago"]
    assert listed(until=(NOW - 20 * day).replace(tzinfo=None).isoformat()) == []


def test_outcomes_and_tokens_per_day_and_dag(guest: TestClient) -> None:
    found = guest.get("/api/days", params={"dag_id": "nightly"}).json()
    assert found["is_cut"] is False
    first = found["days"][0]
    assert (first["day"], first["dag_id"]) == ((NOW - timedelta(days=1)).date().isoformat(), "nightly")
    assert sum(day["input_tokens"] for day in found["days"]) == 530


def test_a_conversation_shows_question_answer_evidence_and_cost(guest: TestClient) -> None:
    tasks = {task["task_id"]: task for task in conversation(guest, "nightly").json()["tasks"]}
    assert list(tasks) == ["ask_00", "ask_01", "failed", "interrupted", "batch", "skipped"]
    asked = tasks["ask_00"]
    assert (asked["question"], asked["answer"], asked["outcome"]) == (QUESTION, ANSWER, "answered")
    assert (asked["adopted"], asked["session_id"], asked["try_number"]) == (False, "ses-1", 1)
    assert asked["usage"] == {"total_input_tokens": 100, "total_output_tokens": 10, "turns": 2, "duration_ms": 1500.0}
    assert asked["tools"] == [{"name": "retrieve", "results": 1}, {"name": "grep", "results": 1}]
    assert (asked["sources"][0]["file_name"], asked["sources"][0]["pages"]) == ("report-q3.pdf", [2, 3])
    assert [tasks[name]["outcome"] for name in ("failed", "interrupted", "skipped")] == [
        "failed",
        "interrupted",
        "unasked",
    ]
    batch = tasks["batch"]
    assert batch["manifest"]["total"] == 3
    assert [one["outcome"] for one in batch["results"]] == ["answered", "failed", "interrupted"]
    assert batch["results"][1]["error"] == "model overloaded"


def test_a_mapped_task_and_one_of_a_subclass_have_their_conversation(guest: TestClient) -> None:
    found = conversation(guest, "mapped", task_id="ask", map_index=1).json()["tasks"]
    assert [(task["map_index"], task["outcome"], task["question"]) for task in found] == [(1, "running", None)]
    own = guest.get("/api/dags/nightly/conversation", params={"run_id": "run/2"}).json()["tasks"]
    assert [(task["task_id"], task["answer"]) for task in own] == [("subclass", ANSWER)]
    # That a class of this name asks in one Dag says nothing about another Dag.
    assert guest.get("/api/dags/mapped/conversation", params={"run_id": "not ours"}).status_code == 404
    assert "not ours" not in guest.get("/api/runs").text


def test_what_is_not_there_is_not_found(guest: TestClient) -> None:
    for query in ({"run_id": "none"}, {"task_id": "none"}, {"map_index": 7}, {"run_id": "asked nothing"}):
        assert conversation(guest, "nightly", **query).status_code == 404
    assert conversation(guest, "no_such_dag").status_code == 404


def test_long_lists_have_pages_and_the_number_of_statements_does_not_grow(guest: TestClient) -> None:
    from airflow.utils.session import create_session

    def cost(path: str, **query: Any) -> tuple[int, Any]:
        with statements() as seen:
            answer = guest.get(path, params=query)
        return len(seen), answer.json()

    paths = ["/api/runs", "/api/days", "/api/dags/many/conversation"]
    with create_session() as session:
        add_runs(session, "many", {"first": (NOW, questions(1))})
    few = [cost(path, dag_id="many", run_id="first")[0] for path in paths * 2][3:]
    with create_session() as session:
        add_runs(session, "many", {f"run_{number}": (NOW, questions(3)) for number in range(60)})
        add_runs(session, "many", {"wide": (NOW, [Asked("ask", map_index=number) for number in range(120)])})
    many = [cost(path, dag_id="many", run_id="wide") for path in paths]
    assert [count for count, _ in many] == few
    # Airflow's own are among these: whether the login was revoked (since 3.2), and each right to a conversation's Dag (before 3.3).
    assert [count <= most for count, most in zip(few, (5, 5, 7), strict=True)] == [True] * 3, few
    runs, _, wide = (found for _, found in many)
    assert (len(runs["runs"]), runs["next"], len(wide["tasks"]), wide["next"]) == (50, 50, 100, 100)
    rest = cost("/api/runs", dag_id="many", offset=50)[1]
    assert (len(rest["runs"]), rest["next"]) == (12, None)
    assert len(cost(paths[2], run_id="wide", offset=100)[1]["tasks"]) == 20


def test_nothing_of_a_connection_or_a_key_is_sent(guest: TestClient) -> None:
    sent = json.dumps([conversation(guest, "nightly").json(), guest.get("/api/runs").json()])
    assert "conn_id" not in sent
    assert "llx-" not in sent


def test_a_conversation_of_a_widely_mapped_task_reads_only_what_its_page_shows(admin: TestClient) -> None:
    from airflow.utils.session import create_session

    from airflow_provider_llamachat.view import queries

    read = 0

    def count(done: Any) -> Any:
        nonlocal read
        rows = done.all()
        read += len(rows)
        return SimpleNamespace(all=lambda: rows)

    with create_session() as session:
        wide = [Asked("ask", map_index=number) for number in range(300)]
        add_runs(session, "wide", {"run/1": (NOW - 200 * timedelta(days=1), wide)})
        counting: Any = SimpleNamespace(execute=lambda query: count(session.execute(query)))
        found = queries.conversation(counting, "wide", "run/1", task_id=None, map_index=None, offset=100)
    assert [task.map_index for task in found] == list(range(100, 201))
    assert all(task.xcoms["usage"] and task.rendered["prompt"] for task in found)
    # What asked, and of each task itself, three XComs and the rendered fields.
    assert read == 1 + len(found) * (1 + 3 + 1)


def test_charts_end_today_unless_one_asks_for_the_future(admin: TestClient) -> None:
    from airflow.utils.session import create_session

    far = datetime(9999, 1, 2, tzinfo=UTC)
    with create_session() as session:
        add_runs(session, "far", {"today": (NOW, questions(1)), "far": (far, questions(1))})
    charted = [
        [day["day"] for day in admin.get("/api/days", params={"dag_id": "far", **limits}).json()["days"]]
        for limits in ({}, {"until": "9999-02-01", "since": NOW.isoformat()})
    ]
    assert charted == [[NOW.date().isoformat()], [NOW.date().isoformat(), "9999-01-02"]]


def test_rights_cost_the_same_for_two_dags_and_for_twenty(
    admin: TestClient, guest: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.utils.session import create_session

    from tests.view.auth import TwoUsersAuthManager

    asked: list[tuple[str, int]] = []

    def watched(name: str, size: Callable[[Any, Any], int]) -> None:
        real = getattr(TwoUsersAuthManager, name)

        def call(manager: Any, *given: Any, **named: Any) -> Any:
            asked.append((name, size(given, named)))
            return real(manager, *given, **named)

        monkeypatch.setattr(TwoUsersAuthManager, name, call)

    watched("filter_authorized_dag_ids", lambda _, named: len(named["dag_ids"]))
    watched("batch_is_authorized_dag", lambda given, _: len(given[0]))

    def cost(client: TestClient, path: str) -> tuple[int, list[tuple[str, int]], Any]:
        limits = {"since": (NOW - timedelta(days=300)).isoformat(), "until": (NOW - timedelta(days=250)).isoformat()}
        client.get(path, params=limits)
        asked.clear()
        with statements() as seen:
            answer = client.get(path, params=limits)
        return len(seen), asked.copy(), answer.json()

    names = [f"dag_{number:02}" for number in range(20)]
    at, paths = NOW - timedelta(days=260), ("/api/runs", "/api/days")
    spent = []
    for some in (names[:2], names[2:]):
        with create_session() as session:
            for name in some:
                add_runs(session, name, {"run/1": (at, questions(1))})
        spent.append([cost(admin, path) for path in paths])
    few, many = ([count for count, *_ in of] for of in spent)
    assert few == many
    # Nobody is asked about Dags that asked nothing, and about two rights to each of the others.
    for of, size in zip(spent, (2, 20), strict=True):
        rights = [("filter_authorized_dag_ids", size), ("batch_is_authorized_dag", 2 * size)]
        assert [calls for _, calls, _ in of] == [rights] * 2
    assert spent[1][0][2]["dags"] == names
    # A Dag whose XComs one may not read does not hide the others.
    with create_session() as session:
        add_runs(session, "private_old", {"run/1": (at, questions(1))})
    assert cost(guest, paths[0])[2]["dags"] == names


def test_each_team_is_asked_for_its_own_dags(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.models.dag import DagModel

    from airflow_provider_llamachat.view import app

    calls: list[Any] = []

    def filtered(*, dag_ids: set[str], user: str, method: str, team_name: str | None = None) -> set[str]:
        calls.append((team_name, sorted(dag_ids)))
        return dag_ids - {"b"}

    def refused(requests: list[Any], *, user: str) -> bool:
        calls.append([(one["details"].id, one["details"].team_name) for one in requests])
        return False

    manager = SimpleNamespace(
        filter_authorized_dag_ids=filtered,
        batch_is_authorized_dag=refused,
        is_authorized_dag=lambda **given: given["details"].id != "c",
    )
    monkeypatch.setattr(app, "get_auth_manager", lambda: manager)
    teams = {"a": "red", "b": "red", "d": "blue"}
    monkeypatch.setattr(DagModel, "get_dag_id_to_team_name_mapping", lambda *_, **__: teams, raising=False)
    session: Any = None
    assert app.readable("user", frozenset("abcd"), session) == ["a", "d"]
    rights = [(name, teams.get(name)) for name in "acd" for _ in app.NEEDED]
    assert calls == [("red", ["a", "b"]), (None, ["c"]), ("blue", ["d"]), rights]
    # Airflow 3.1 does not pass teams.
    manager.filter_authorized_dag_ids = lambda *, dag_ids, user, method: dag_ids - {"b"}
    assert app.readable("user", frozenset("abcd"), session) == ["a", "d"]
    assert app.readable("user", frozenset(), session) == []


def test_an_airflow_that_knows_the_team_of_one_dag_only_is_asked_once_for_all(
    admin: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.models.dag import DagModel

    monkeypatch.delattr(DagModel, "get_dag_id_to_team_name_mapping", raising=False)
    with statements() as seen:
        answer = admin.get("/api/runs").json()
    assert {"nightly", "secret"} <= set(answer["dags"])
    assert sum(" team" in statement for statement in seen) == 1


def test_charts_say_when_they_are_cut(admin: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.utils.session import create_session

    from airflow_provider_llamachat.view import queries

    at = NOW - timedelta(days=400)
    batches = [
        replace(BATCH, task_id=f"batch_{number}", xcoms={**BATCH.xcoms, "usage": usage()}) for number in range(2)
    ]
    with create_session() as session:
        add_runs(session, "cut", {"run/1": (at, batches)})
    limits = {"since": (at - timedelta(days=1)).isoformat(), "until": (at + timedelta(days=1)).isoformat()}
    seen = {}
    # Two batches with two values each are four rows.
    for most in (3, 4):
        monkeypatch.setattr(queries, "MAX_CHART_ROWS", most)
        seen[most] = admin.get("/api/days", params=limits).json()["is_cut"]
    assert seen == {3: True, 4: False}
