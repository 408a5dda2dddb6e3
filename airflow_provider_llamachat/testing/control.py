"""What a test sees of an emulator and does to it, in its own process or in another one. Standard library only."""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

from airflow_provider_llamachat.testing import DEFAULT_PROJECT_ID
from airflow_provider_llamachat.testing.corpus import Scripted, found_in
from airflow_provider_llamachat.testing.records import Fault, RequestRecord, TurnRecord, to_json
from airflow_provider_llamachat.testing.settings import Settings

if TYPE_CHECKING:
    from airflow_provider_llamachat.testing.state import ServiceState

C = TypeVar("C")

PREFIX = "/_emulator"
"""Where an emulator takes commands: GET for a property, POST with arguments (an array or an object) for a method."""

_RECORDS: dict[str, type[Any]] = {"requests": RequestRecord, "turns": TurnRecord, "faults": Fault}

COMMANDS: dict[str, Any] = {}
"""Properties and methods of :class:`Control`, except those that say where the emulator is."""


def _commands(kind: type[C]) -> type[C]:
    """Let ``_do`` decide where each property and method of a class is carried out."""

    def dispatched(work: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(work)(lambda control, *args, **kwargs: control._do(work, *args, **kwargs))  # noqa: SLF001 - its own

    for name, found in list(vars(kind).items()):
        if not name.startswith(("_", "url", "airflow_")):
            is_read = isinstance(found, property)
            COMMANDS[name] = property(dispatched(found.fget), found.fset) if is_read else dispatched(found)
            setattr(kind, name, COMMANDS[name])
    return kind


@_commands
class Control:
    """What a test sees of an emulator and does to it. The methods' own code is what happens where the emulator runs."""

    _state: ServiceState
    _api_key: str

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        raise NotImplementedError

    @property
    def airflow_connection_json(self) -> str:
        """The Airflow connection to the emulator, as JSON for ``AIRFLOW_CONN_...``."""
        extra = json.dumps({"history_lag": 0})  # by default the emulator's history shows a prompt at once
        return json.dumps({"conn_type": "llamacloud", "password": self.api_key, "host": self.url, "extra": extra})

    @property
    def airflow_connection_uri(self) -> str:
        """The same as a URI; the host is a whole URL, hence percent-encoded."""
        return f"llamacloud://:{quote(self.api_key, safe='')}@{quote(self.url, safe='')}?history_lag=0"

    @property
    def api_key(self) -> str:
        """A key that is accepted."""
        return self._api_key

    @property
    def settings(self) -> Settings:
        """The settings as they are now; an assignment to an attribute applies at once."""
        return self._state.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self.update_settings(**settings.to_json())

    def update_settings(self, **values: Any) -> None:
        """Change several settings.

        :raises AttributeError: a name that is not a setting (``ValueError`` from another process).
        :raises ValueError: a value that the setting does not take.
        """
        self._state.settings.update(**values)

    def inject(self, *faults: Fault) -> None:
        """Arm faults; see :class:`~.records.Fault`."""
        self._state.armed += [(fault, itertools.count()) for fault in faults]

    @property
    def faults(self) -> list[Fault]:
        """Faults that can still act."""
        return [fault for fault, _ in self._state.armed]

    def clear_faults(self) -> None:
        """Disarm all faults."""
        self._state.armed.clear()

    @property
    def requests(self) -> list[RequestRecord]:
        """Requests that arrived, in order. In the emulator's own process the records are live: a status appears when it is sent."""
        return list(self._state.requests)

    @property
    def turns(self) -> list[TurnRecord]:
        """Turns that began, in order. In the emulator's own process the records are live: their state changes when they end."""
        return list(self._state.turns)

    @property
    def prompts(self) -> list[str]:
        """Prompts that reached the server, in order, whatever became of them."""
        return [record.prompt or "" for record in self._state.requests if record.endpoint == "stream"]

    def answer(
        self, match: str | re.Pattern[str] | Mapping[str, Any], text: str, sources: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Answer prompts that match with ``text``, until the next reset. If several answers match, the latest is given.

        :param match: text that the prompt contains, or a compiled regular expression that is searched in it (another process may also
            send ``{"pattern": ..., "flags": ...}``).
        :param sources: what the model found: objects with ``file_name`` and each optional ``text``, ``pages`` (first and last),
            ``score`` and ``index_id``; or the API's own retrieval results (objects with ``content``).
        :raises ValueError: a source of another form.
        """
        if isinstance(match, Mapping):
            match = re.compile(match["pattern"], match.get("flags", 0))
        self._state.scripted.insert(0, Scripted(match, text, [found_in(source) for source in sources]))

    def posts(self, session_id: str | None = None, prompt: str | None = None) -> int:
        """Number of prompts that reached the server, whatever became of them; ``prompt`` is compared as a whole."""
        posted = [record for record in self._state.requests if record.endpoint == "stream"]
        return _count(posted, session_id, prompt)

    def completed(self, session_id: str | None = None, prompt: str | None = None) -> int:
        """Number of turns that ended well; ``prompt`` is compared as a whole."""
        return _count([turn for turn in self._state.turns if turn.state == "completed"], session_id, prompt)

    @property
    def sessions(self) -> dict[str, dict[str, Any]]:
        """Sessions that were not deleted, by id, as GET full session answers; ``events`` is complete, without lag or window."""
        return {
            key: {**session.to_json(self._state.settings), "events": [stored.event for stored in session.shown()]}
            for key, session in self._state.sessions.items()
        }

    @property
    def deleted(self) -> list[str]:
        """Ids of deleted sessions, in order."""
        return list(self._state.deleted)

    @property
    def projects(self) -> dict[str, dict[str, Any]]:
        """Projects by id, as the API answers them."""
        return dict(self._state.projects)

    @property
    def indexes(self) -> dict[str, dict[str, Any]]:
        """Indexes of all projects by id, as the API answers them, ``sync_in_progress`` included."""
        return {key: index.to_json(self._state.settings, expand=True) for key, index in self._state.indexes.items()}

    def add_index(
        self,
        index_id: str,
        *,
        project_id: str = DEFAULT_PROJECT_ID,
        name: str | None = None,
        status: str = "ready",
        error_message: str | None = None,
        documents: Sequence[str | Mapping[str, Any]] = (),
    ) -> None:
        """Add an index, or replace the one with that id.

        :param documents: its content: texts, or objects with ``text`` and, optionally, ``document`` and ``page``.
        :raises ValueError: an unknown project, or documents of another form.
        """
        known = {"status": status, "error_message": error_message, "documents": documents}
        self._state.add_index(id=index_id, project_id=project_id, name=name or index_id, **known)

    def set_index(self, index_id: str, **values: Any) -> None:
        """Change an index at once; its schedule is forgotten.

        :param values: ``status``, ``error_message``, ``sync_in_progress``, ``last_synced_at`` (ISO text or datetime).
        :raises ValueError: an unknown index or value.
        """
        self.index_schedule(index_id, ())
        self._state.indexes[index_id].change(values)

    def index_schedule(self, index_id: str, steps: Sequence[str | Mapping[str, Any]]) -> None:
        """Let each read of the index, in a list as well, move it one step on; the last step stays.

        :param steps: statuses, or objects with what :meth:`set_index` takes.
        :raises ValueError: an unknown index.
        """
        if index_id not in self._state.indexes:
            raise ValueError(f"There is no index {index_id!r}")
        schedule = self._state.indexes[index_id].schedule
        schedule.clear()
        schedule.extend({"status": step} if isinstance(step, str) else dict(step) for step in steps)

    def intrude(self, session_id: str, prompt: str, after: float = 0.0) -> None:
        """Put a finished turn of another client into a session's history; it is not one of :attr:`turns`.

        It is shown at once, hence before what lags by ``Settings.history_lag``.

        :param after: seconds until it is there.
        :raises ValueError: an unknown session.
        """
        if session_id not in self._state.sessions:
            raise ValueError(f"There is no session {session_id!r}")
        if after < 0:
            raise ValueError("after cannot be negative")
        usage = {"total_input_tokens": 1, "total_output_tokens": 1, "turns": 1, "duration_ms": 1.0}
        stop = {"type": "stop", "usage": usage, "is_error": False, "error": None, "skipped_index_ids": []}
        text = {"type": "text", "content": "This was for somebody else."}
        for event in ({"type": "user_input", "content": prompt}, text, stop):
            self._state.sessions[session_id].record(event, prompt, foreign=True, after=after)

    def reset(self) -> None:
        """Set state, log, faults and settings back to the start; requests and turns under way are broken off."""
        self._state.break_off()
        self._state.start()


def _count(records: Sequence[RequestRecord | TurnRecord], session_id: str | None, prompt: str | None) -> int:
    return sum(session_id in (None, each.session_id) and prompt in (None, each.prompt) for each in records)


class EmulatorControl(Control):
    """Does over HTTP what :class:`~.server.LlamaCloudEmulator` does in its own process: same names, same records.

    :param url: base URL of the emulator.
    :raises OSError: from every method, when the emulator cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        # An emulator is on this machine: a proxy of the environment does not lead to it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        return self._url

    def _do(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        name = work.__name__
        read = isinstance(COMMANDS[name], property)
        given = {**dict(zip(work.__code__.co_varnames[1:], args, strict=False)), **kwargs} if kwargs else args
        request = urllib.request.Request(  # noqa: S310 - the emulator's own address, given by the test
            f"{self._url}{PREFIX}/{name}",
            method="GET" if read else "POST",
            data=None if read else json.dumps(given, default=to_json).encode(),
            headers={"content-type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=30) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                detail = error.read().decode(errors="replace")
            if error.code == 400:
                raise ValueError(json.loads(detail)["detail"]) from None
            raise
        if name == "settings":
            found = Settings(**found)
            # Each assignment is sent to the emulator.
            object.__setattr__(found, "_on_change", self.update_settings)
        return [_RECORDS[name](**item) for item in found] if name in _RECORDS else found


class EmulatorProcess(EmulatorControl):
    """Context manager: starts ``python -m airflow_provider_llamachat.testing``, controls it, and ends it.

    :param settings: behaviour; :meth:`reset` goes back to these.
    :param port: 0 takes a free one.
    :param api_keys: keys that are accepted.
    :raises RuntimeError: on entering, when the process does not start; with its error output.
    """

    def __init__(
        self, settings: Settings | None = None, *, port: int = 0, api_keys: Sequence[str] | None = None
    ) -> None:
        super().__init__("")
        # Its input is a pipe of this process: it closes, and the emulator ends, even when this process is killed.
        self._command = [sys.executable, "-m", "airflow_provider_llamachat.testing", "--until-stdin-closes"]
        self._command += ["--port", str(port), "--settings", json.dumps((settings or Settings()).to_json())]
        self._command += [word for key in api_keys or () for word in ("--api-key", key)]
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process's id.

        :raises RuntimeError: it does not run.
        """
        if self._process is None:
            raise RuntimeError("The emulator's process does not run")
        return self._process.pid

    def __enter__(self) -> Self:
        with tempfile.TemporaryFile(mode="w+") as errors:
            process = subprocess.Popen(  # noqa: S603 - this interpreter and this module
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            line = process.stdout.readline() if process.stdout is not None else ""
            if "url=" not in line:
                process.communicate(timeout=30)
                errors.seek(0)
                raise RuntimeError(f"The emulator's process did not start: {errors.read().strip()}")
        self._process = process
        self._url = line.split("url=")[1].split()[0]
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            # The end of its input ends it.
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
