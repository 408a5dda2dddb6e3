"""The application behind the page. Each route requires Airflow's login, and asks its auth manager for the right to read a Dag's XComs.

There are only GET routes, and none of them calls LlamaCloud or reads a connection or a file that a task names.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, get_user, requires_access_dag
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.team import Team
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.types import Message, Receive, Scope, Send

from airflow_provider_llamachat.view import queries, shown

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.batch_apis import IsAuthorizedDagRequest

STATIC = Path(__file__).parent / "static"
FILES = {
    "": ("index.html", "text/html"),
    "view.js": ("view.js", "text/javascript"),
    "view.css": ("view.css", "text/css"),
}
NEEDED = (DagAccessEntity.XCOM, DagAccessEntity.TASK_INSTANCE)
"""What a user must be allowed to read of a Dag: answers are XComs, questions are fields of task instances."""
DEFAULT_PERIOD = timedelta(days=30)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ChatsApp(FastAPI):
    """Puts :data:`HEADERS` on every response, including errors."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        await super().__call__(scope, receive, send_with_headers)


router = APIRouter(dependencies=[Depends(get_user)])


def period_of(since: datetime | None = None, until: datetime | None = None) -> queries.Period:
    """Return the period of a request. Dates without a time zone are UTC. Default: the last 30 days, or those before ``until``."""
    since, until = (date.replace(tzinfo=UTC) if date and date.tzinfo is None else date for date in (since, until))
    try:
        return queries.Period(since or (until or datetime.now(UTC)) - DEFAULT_PERIOD, until)
    except OverflowError:  # the first month of the year 1
        return queries.Period(None, until)


PeriodDep = Annotated[queries.Period, Depends(period_of)]


def readable(user: Any, dag_ids: frozenset[str], session: Session) -> list[str]:
    """Return the Dags whose XComs and task instances the user may read."""
    manager = get_auth_manager()
    teams = _teams(sorted(dag_ids), session)
    # Airflow 3.1 does not pass teams.
    takes_team = "team_name" in signature(manager.filter_authorized_dag_ids).parameters
    by_team: dict[str | None, set[str]] = {}
    for dag_id in sorted(dag_ids):
        by_team.setdefault(teams.get(dag_id), set()).add(dag_id)
    allowed: list[str] = []
    for team, own in by_team.items():
        of_team: dict[str, Any] = {"team_name": team} if takes_team else {}
        allowed += manager.filter_authorized_dag_ids(dag_ids=own, user=user, method="GET", **of_team)
    allowed.sort()

    def requests(*names: str) -> list[IsAuthorizedDagRequest]:
        details = [DagDetails(id=dag_id, team_name=teams.get(dag_id)) for dag_id in names]
        return [{"method": "GET", "access_entity": entity, "details": one} for one in details for entity in NEEDED]

    # An auth manager may be a server: one question about all Dags, and about each only if the answer is no.
    if not allowed or manager.batch_is_authorized_dag(requests(*allowed), user=user):
        return allowed
    return [
        dag_id for dag_id in allowed if all(manager.is_authorized_dag(**one, user=user) for one in requests(dag_id))
    ]


def _teams(dag_ids: list[str], session: Session) -> dict[str, str | None]:
    several = getattr(DagModel, "get_dag_id_to_team_name_mapping", None)
    if several:
        return dict(several(dag_ids, session=session))
    # Airflow 3.1 has a function for one Dag only.
    query = select(DagModel.dag_id, Team.name).join(DagBundleModel.teams)
    query = query.join(DagModel, DagModel.bundle_name == DagBundleModel.name).where(DagModel.dag_id.in_(dag_ids))
    return {row[0]: row[1] for row in session.execute(query).all()}


def _chosen(dags: list[str], dag_id: str | None) -> list[str]:
    return dags if dag_id is None else [name for name in dags if name == dag_id]


@router.get("/")
@router.get("/{name}")
def page(name: str = "") -> Response:
    """Return a file of the page."""
    if name not in FILES:
        raise HTTPException(404, "There is no such page.")
    file, kind = FILES[name]
    return Response((STATIC / file).read_bytes(), media_type=kind)


@router.get("/api/runs")
def runs(
    user: GetUserDep,
    session: SessionDep,
    period: PeriodDep,
    dag_id: str | None = None,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Response:
    """Return a page of the runs that asked something, newest first, and the Dags to choose from."""
    found = queries.asking(session, *period.limits())
    dags = readable(user, found.dag_ids, session)
    rows = queries.runs(session, period, found, _chosen(dags, dag_id), offset)
    page_of = rows[: queries.RUNS_PER_PAGE]
    by_run: dict[int, list[queries.Task]] = {row.id: [] for row in page_of}
    for task in queries.tasks_of_runs(session, list(by_run), found):
        by_run[task.run].append(task)
    return JSONResponse(
        {
            "dags": dags,
            "runs": [shown.run(row, by_run[row.id]) for row in page_of],
            "offset": offset,
            "next": offset + len(page_of) if len(rows) > len(page_of) else None,
        }
    )


@router.get("/api/days")
def days(user: GetUserDep, session: SessionDep, period: PeriodDep, dag_id: str | None = None) -> Response:
    """Return outcomes and tokens per day and Dag, up to now unless the request names an end."""
    period = replace(period, until=period.until or datetime.now(UTC))
    found = queries.asking(session, *period.limits())
    dags = _chosen(readable(user, found.dag_ids, session), dag_id)
    by_run, tasks, is_cut = queries.tasks_of_period(session, period, found, dags)
    return JSONResponse({"days": shown.days(by_run, tasks), "is_cut": is_cut})


@router.get(
    "/api/dags/{dag_id}/conversation",
    dependencies=[Depends(requires_access_dag("GET", entity)) for entity in NEEDED],
)
def conversation(
    session: SessionDep,
    dag_id: str,
    run_id: str,
    task_id: str | None = None,
    map_index: int | None = None,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Response:
    """Return the questions and answers of a run, or of one of its tasks, in the order in which the tasks started."""
    tasks = queries.conversation(session, dag_id, run_id, task_id=task_id, map_index=map_index, offset=offset)
    if not tasks:
        raise HTTPException(404, "This run has no task that asked LlamaCloud, or there is no such run.")
    page_of = tasks[: queries.TASKS_PER_PAGE]
    return JSONResponse(
        {
            "dag_id": dag_id,
            "run_id": run_id,
            "tasks": [shown.task(task) for task in page_of],
            "totals": shown.totals(page_of),
            "next": offset + len(page_of) if len(tasks) > len(page_of) else None,
        }
    )


def create_app() -> FastAPI:
    """Return the application."""
    app = ChatsApp(title="LlamaCloud chats", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router)
    return app
