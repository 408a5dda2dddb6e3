"""The page of conversations beside Airflow's own list of runs: server time of the same database in the same process."""

from __future__ import annotations

from typing import Any

from tests.bench.tables import fresh, middle, table

CODE = """
import json, os, tempfile, time
home = tempfile.mkdtemp(prefix="llamachat-bench-")
os.environ |= {{
    "AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{{home}}/airflow.db", "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
}}
import logging, shutil
logging.disable()
from airflow.utils.db import initdb
initdb()
from datetime import timedelta
from airflow.utils.session import create_session
from tests.view.rows import NOW, add_runs, questions
with create_session() as session:
    runs = {{f"run_{{n:04}}": (NOW - timedelta(minutes=40 * n), questions({questions})) for n in range({runs})}}
    add_runs(session, "many", runs)
from airflow.api_fastapi.app import create_app
from fastapi.testclient import TestClient
with TestClient(create_app(apps="core")) as client:
    token = client.get("/auth/token").json()["access_token"]
    client.headers["Authorization"] = f"Bearer {{token}}"
    def seconds(path):
        times = []
        for _ in range({times} + 2):
            began = time.perf_counter()
            answer = client.get(path)
            times.append(time.perf_counter() - began)
            assert answer.status_code == 200, (path, answer.status_code, answer.text[:500])
        return times[2:]
    paths = {{
        "airflow": "/api/v2/dags/~/dagRuns?limit=50&order_by=-run_after",
        "list": "/llamacloud-chats/api/runs",
        "conversation": "/llamacloud-chats/api/dags/many/conversation?run_id=run_0001",
        "charts": "/llamacloud-chats/api/days",
    }}
    print(json.dumps({{name: seconds(path) for name, path in paths.items()}}))
shutil.rmtree(home, ignore_errors=True)
"""


def measure(*, short: bool) -> str:
    """Return the table."""
    runs, questions, times = (50, 4, 3) if short else (1000, 20, 15)
    found: dict[str, Any] = fresh(CODE.format(runs=runs, questions=questions, times=times), timeout=900)
    own = middle(found["airflow"])
    names = {
        "airflow": "Airflow's API: a page of 50 runs",
        "list": "the list: 50 runs and their counts",
        "conversation": f"a conversation: {questions} questions with answers and sources",
        "charts": f"the charts: {runs * questions:,} tasks",
    }
    rows = [
        [text, f"{middle(found[key]) / own:.2f}", f"{1000 * middle(found[key]):.0f}", f"{1000 * max(found[key]):.0f}"]
        for key, text in names.items()
    ]
    return table(
        f"The page in Airflow, {runs:,} runs of {questions} questions",
        ["request", "beside Airflow's own", "median ms", "worst ms"],
        rows,
        "Server time in one process, on SQLite, login and rights included. The charts are requested after the list is shown.",
    )
