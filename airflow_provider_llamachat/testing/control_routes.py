"""The control routes ``/_emulator/...``: what a test can do to an emulator in another process, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from airflow_provider_llamachat.testing.faults import Fault
from airflow_provider_llamachat.testing.routes import Reply
from airflow_provider_llamachat.testing.service import Service

PREFIX = "/_emulator"
"""Where the control routes are."""


class _Address(Protocol):
    """What the control routes tell of the server."""

    @property
    def url(self) -> str: ...

    api_key: str


class Controls:
    """Answers control requests. Every value is JSON; a bad one gives 400 with ``detail``."""

    def __init__(self, service: Service, address: _Address) -> None:
        self._service = service
        self._address = address
        self._reads: dict[str, Callable[[Mapping[str, str]], Any]] = {
            "": lambda _: {"url": address.url, "api_key": address.api_key},
            "/requests": lambda _: [record.to_json() for record in service.requests],
            "/turns": lambda _: [record.to_json() for record in service.turns()],
            "/posts": lambda query: service.posts(query.get("session_id"), query.get("prompt")),
            "/completed": lambda query: service.completed(query.get("session_id"), query.get("prompt")),
            "/sessions": lambda _: service.sessions(),
            "/deleted": lambda _: service.state.deleted,
            "/projects": lambda _: service.projects(),
            "/indexes": lambda _: service.indexes(),
            "/settings": lambda _: service.settings.to_json(),
            "/faults": lambda _: [fault.to_json() for fault in service.plan.pending],
        }
        self._writes: dict[tuple[str, str], Callable[[Any], None]] = {
            ("POST", "/faults"): lambda value: service.inject([Fault(**item) for item in value]),
            ("DELETE", "/faults"): lambda _: service.plan.clear(),
            ("POST", "/indexes"): lambda value: service.state.add_index(**value),
            ("PATCH", "/indexes"): lambda value: service.set_index(value["index_id"], value["values"]),
            ("POST", "/schedule"): lambda value: service.index_schedule(value["index_id"], value["steps"]),
            ("POST", "/intrude"): lambda value: service.state.intrude(**value),
            ("PATCH", "/settings"): lambda value: service.settings.update(**value),
            ("POST", "/reset"): lambda _: service.reset(),
        }

    def answer(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Reply:
        """Answer one control request."""
        if method == "GET" and path in self._reads:
            return Reply(200, self._reads[path](query))
        write = self._writes.get((method, path))
        if write is None:
            return Reply(404, {"detail": f"There is no control {method} {PREFIX}{path}"})
        try:
            write(json.loads(body) if body else None)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return Reply(400, {"detail": str(error)})
        return Reply(204)
