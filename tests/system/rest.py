"""Airflow's stable REST API as the tests need it, in its two versions (v1: Airflow 2, v2: Airflow 3).

https://airflow.apache.org/docs/apache-airflow/stable/stable-rest-api-ref.html
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx


class AirflowApi:
    """A client of one Airflow on loopback, as an admin.

    :param base_url: address of the API server or web server.
    :param version: Airflow's version.
    """

    def __init__(self, base_url: str, version: tuple[int, ...]) -> None:
        self.base_url = base_url
        self._airflow_3 = version >= (3,)
        self._prefix = "/api/v2" if self._airflow_3 else "/api/v1"
        self._client = httpx.Client(base_url=base_url, timeout=30, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Call the API and return the answer's JSON, None for an empty one.

        :raises RuntimeError: any answer but a success, with its text.
        """
        answer = self.send(method, path, **options)
        if answer.is_error:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:2000]}")
        return answer.json() if answer.content else None

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Call the API and return whatever it answers; a token that ran out (or is not there yet) is fetched."""
        answer = self._client.request(method, self._prefix + path, **options)
        if answer.status_code == 401 and self._airflow_3:
            token = self._client.get("/auth/token").raise_for_status().json()["access_token"]
            self._client.headers["Authorization"] = f"Bearer {token}"
            answer = self._client.request(method, self._prefix + path, **options)
        return answer

    def _all(self, name: str, path: str) -> list[dict[str, Any]]:
        """Return all items of a list, which Airflow gives in pages of a hundred at most."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", path, params={"limit": 100, "offset": len(found)})
            found += page[name]
            if not page[name] or len(found) >= page["total_entries"]:
                return found

    def heartbeats(self) -> dict[str, datetime | None]:
        """Return when scheduler, triggerer and Dag processor were last heard of, by name of the component; {} while there is no answer."""
        try:
            answer = self._client.get(self._prefix + ("/monitor/health" if self._airflow_3 else "/health"), timeout=5)
        except httpx.HTTPError:
            return {}
        if answer.is_error:
            return {}
        found: dict[str, datetime | None] = {}
        for name, health in answer.json().items():
            heard = next((value for key, value in (health or {}).items() if key.startswith("latest_")), None)
            found[name.replace("_", "-")] = datetime.fromisoformat(heard) if heard else None
        return found

    def dag_exists(self, dag_id: str) -> bool:
        """Whether the Dag was parsed."""
        return self.send("GET", f"/dags/{quote(dag_id, safe='')}").is_success

    def import_errors(self) -> dict[str, str]:
        """Return what is wrong with Dag files, by file."""
        return {item["filename"]: item["stack_trace"] for item in self.call("GET", "/importErrors")["import_errors"]}

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
        """Start a run."""
        body: dict[str, Any] = {"dag_run_id": run_id, "conf": conf}
        if self._airflow_3:
            body["logical_date"] = None
        self.call("POST", f"/dags/{quote(dag_id, safe='')}/dagRuns", json=body)

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run."""
        return str(self.call("GET", _run(dag_id, run_id))["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances of a run as the API describes them."""
        return self._all("task_instances", _run(dag_id, run_id) + "/taskInstances")

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str, map_index: int) -> Any:
        """Return the value of an XCom.

        :raises KeyError: there is none.
        """
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}/xcomEntries/{quote(key, safe='')}"
        answer = self.send("GET", path, params={"map_index": map_index, "stringify": "false"})
        if answer.status_code == 404:
            raise KeyError(f"{task_id} pushed no XCom {key!r} (map index {map_index})")
        if answer.is_error:
            raise RuntimeError(f"GET {path}: {answer.status_code} {answer.text[:2000]}")
        return answer.json()["value"]

    def xcom_keys(self, dag_id: str, run_id: str, task_id: str) -> list[tuple[str, int]]:
        """Return key and map index of each XCom of a task."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}/xcomEntries"
        return [(entry["key"], entry.get("map_index", -1)) for entry in self._all("xcom_entries", path)]

    def clear(self, dag_id: str, run_id: str, task_ids: list[str], *, downstream: bool) -> None:
        """Clear finished tasks, so that they run again."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": task_ids,
            "only_failed": False,
            "reset_dag_runs": True,
            "include_downstream": downstream,
        }
        self.call("POST", f"/dags/{quote(dag_id, safe='')}/clearTaskInstances", json=body)

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task instance, as a user does in the grid."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}"
        self.call(
            "PATCH", path, json={"new_state": state} if self._airflow_3 else {"new_state": state, "dry_run": False}
        )

    def put_connection(self, conn_id: str, value: dict[str, Any]) -> None:
        """Create a connection in the metadata database, or replace it."""
        known = ("conn_type", "host", "login", "password", "port", "schema")
        body: dict[str, Any] = {"connection_id": conn_id, **{name: value[name] for name in known if name in value}}
        if extra := value.get("extra"):
            body["extra"] = extra if isinstance(extra, str) else json.dumps(extra)
        self.send("DELETE", f"/connections/{quote(conn_id, safe='')}")
        self.call("POST", "/connections", json=body)


def _run(dag_id: str, run_id: str) -> str:
    return f"/dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}"
