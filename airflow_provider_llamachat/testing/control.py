"""Remote control of an emulator that runs in another process. Standard library only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from airflow_provider_llamachat.testing import corpus
from airflow_provider_llamachat.testing.connection import Reachable
from airflow_provider_llamachat.testing.faults import Fault
from airflow_provider_llamachat.testing.records import RequestRecord, TurnRecord
from airflow_provider_llamachat.testing.settings import Settings

_PREFIX = "/_emulator"
_TIMEOUT = 30.0


class _RemoteSettings(Settings):
    """Settings of another process: read at once when made, each assignment is sent there."""

    def __init__(self, control: EmulatorControl, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_control", None)
        super().__init__(**values)
        object.__setattr__(self, "_control", control)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        control: EmulatorControl | None = self.__dict__["_control"]
        if control is not None:
            control.update_settings(**{name: value})


class EmulatorControl(Reachable):
    """Does over HTTP what :class:`~.emulator.LlamaCloudEmulator` does in its own process: same names, same records.

    :param url: base URL of the emulator.
    :raises OSError: from every method, when the emulator can not be reached.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        # An emulator is on this machine: a proxy of the environment is no way to it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _call(self, method: str, path: str, value: Any = None, **query: str | None) -> Any:
        given = urlencode({name: text for name, text in query.items() if text is not None})
        request = urllib.request.Request(  # noqa: S310 - the emulator's own address, given by the test
            f"{self._url}{_PREFIX}{path}{'?' if given else ''}{given}",
            method=method,
            data=None if value is None else json.dumps(value).encode(),
            headers={"content-type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                detail = error.read().decode(errors="replace")
            if error.code == 400:
                raise ValueError(json.loads(detail)["detail"]) from None
            raise
        return json.loads(body) if body else None

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        return self._url

    @property
    def api_key(self) -> str:
        """A key that is accepted."""
        key: str = self._call("GET", "")["api_key"]
        return key

    @property
    def settings(self) -> Settings:
        """The settings as they are now; assigning to an attribute changes the emulator's."""
        return _RemoteSettings(self, self._call("GET", "/settings"))

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self.update_settings(**settings.to_json())

    def update_settings(self, **values: Any) -> None:
        """Change several settings in one request.

        :raises ValueError: a name or value that does not fit.
        """
        self._call("PATCH", "/settings", values)

    def inject(self, *faults: Fault) -> None:
        """Arm faults."""
        self._call("POST", "/faults", [fault.to_json() for fault in faults])

    @property
    def faults(self) -> list[Fault]:
        """Faults that can still act."""
        return [Fault(**item) for item in self._call("GET", "/faults")]

    def clear_faults(self) -> None:
        """Disarm all faults."""
        self._call("DELETE", "/faults")

    @property
    def requests(self) -> list[RequestRecord]:
        """Requests that arrived, in order."""
        return [RequestRecord.from_json(item) for item in self._call("GET", "/requests")]

    @property
    def turns(self) -> list[TurnRecord]:
        """Turns that began, in order."""
        return [TurnRecord.from_json(item) for item in self._call("GET", "/turns")]

    def posts(self, session_id: str | None = None, prompt: str | None = None) -> int:
        """Prompts that reached the server, whatever became of them; ``prompt`` is compared as a whole."""
        count: int = self._call("GET", "/posts", session_id=session_id, prompt=prompt)
        return count

    def completed(self, session_id: str | None = None, prompt: str | None = None) -> int:
        """Turns that ran to a good end; ``prompt`` is compared as a whole."""
        count: int = self._call("GET", "/completed", session_id=session_id, prompt=prompt)
        return count

    @property
    def sessions(self) -> dict[str, dict[str, Any]]:
        """Sessions that were not deleted, by id, as GET full session answers them; ``events`` is whole, without lag or window."""
        found: dict[str, dict[str, Any]] = self._call("GET", "/sessions")
        return found

    @property
    def deleted(self) -> list[str]:
        """Ids of deleted sessions, in order."""
        found: list[str] = self._call("GET", "/deleted")
        return found

    @property
    def projects(self) -> dict[str, dict[str, Any]]:
        """Projects by id, as the API answers them."""
        found: dict[str, dict[str, Any]] = self._call("GET", "/projects")
        return found

    @property
    def indexes(self) -> dict[str, dict[str, Any]]:
        """Indexes of all projects by id, as the API answers them."""
        found: dict[str, dict[str, Any]] = self._call("GET", "/indexes")
        return found

    def add_index(
        self,
        index_id: str,
        *,
        project_id: str = corpus.DEFAULT_PROJECT_ID,
        name: str | None = None,
        status: str = "ready",
        error_message: str | None = None,
        documents: Sequence[str | Mapping[str, Any]] = (),
    ) -> None:
        """Add an index, or replace the one of that id; see :meth:`~.emulator.LlamaCloudEmulator.add_index`."""
        self._call(
            "POST",
            "/indexes",
            {
                "index_id": index_id,
                "project_id": project_id,
                "name": name,
                "status": status,
                "error_message": error_message,
                "documents": list(documents),
            },
        )

    def set_index(self, index_id: str, **values: Any) -> None:
        """Change an index; see :meth:`~.emulator.LlamaCloudEmulator.set_index`."""
        synced = values.get("last_synced_at")
        if isinstance(synced, datetime):
            values["last_synced_at"] = synced.astimezone(UTC).isoformat()
        self._call("PATCH", "/indexes", {"index_id": index_id, "values": values})

    def index_schedule(self, index_id: str, steps: Sequence[str | Mapping[str, Any]]) -> None:
        """Let each GET of the index move it one step on; see :meth:`~.emulator.LlamaCloudEmulator.index_schedule`."""
        self._call("POST", "/schedule", {"index_id": index_id, "steps": list(steps)})

    def intrude(self, session_id: str, prompt: str, after: float = 0.0) -> None:
        """Put somebody else's turn into a session's history; see :meth:`~.emulator.LlamaCloudEmulator.intrude`."""
        self._call("POST", "/intrude", {"session_id": session_id, "prompt": prompt, "after": after})

    def reset(self) -> None:
        """State, log, faults and settings back to the start."""
        self._call("POST", "/reset")
