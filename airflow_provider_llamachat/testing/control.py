"""What a test reads from an emulator and does to it, in its own process or from another one. Standard library only."""

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
from typing import Any, Self
from urllib.parse import quote

from airflow_provider_llamachat.testing import DEFAULT_PROJECT_ID
from airflow_provider_llamachat.testing.corpus import found_in
from airflow_provider_llamachat.testing.faults import Fault, RequestRecord, TurnRecord, to_json
from airflow_provider_llamachat.testing.settings import Settings
from airflow_provider_llamachat.testing.state import ServiceState

PREFIX = "/_emulator"
"""Path of the control API: GET reads a property, POST calls a method with arguments (an array or an object)."""

_RECORDS: dict[str, type[Any]] = {"requests": RequestRecord, "turns": TurnRecord, "faults": Fault}


def _dispatched(work: Any) -> Any:
    """Make ``_do`` decide where a property or method runs."""
    if isinstance(work, property):
        return property(_dispatched(work.fget), work.fset)
    return functools.wraps(work)(lambda control, *args, **kwargs: control._do(work, *args, **kwargs))  # noqa: SLF001 - its own


class Control:
    """What a test reads from an emulator and does to it. The bodies of the methods run where the emulator runs."""

    _state: ServiceState
    _api_key: str
    _url: str

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end. The port is known once the emulator has started."""
        return self._url

    @property
    def airflow_connection_json(self) -> str:
        """The Airflow connection to the emulator, as JSON for ``AIRFLOW_CONN_...``."""
        extra = json.dumps({"history_lag": 0})  # by default the emulator's history shows a prompt at once
        return json.dumps({"conn_type": "llamacloud", "password": self.api_key, "host": self.url, "extra": extra})

    @property
    def airflow_connection_uri(self) -> str:
        """The same as a URI. Its host is a whole URL, so it is percent-encoded."""
        return f"llamacloud://:{quote(self.api_key, safe='')}@{quote(self.url, safe='')}?history_lag=0"

    @property
    def api_key(self) -> str:
        """A key that is accepted."""
        return self._api_key

    @property
    def settings(self) -> Settings:
        """The current settings. An assignment to an attribute applies at once."""
        return self._state.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self.update_settings(**settings.to_json())

    def update_settings(self, **values: Any) -> None:
        """Change several settings. Raises what an assignment to one of them raises; from another process, always ``ValueError``."""
        self._state.settings.update(**values)

    def inject(self, *faults: Fault | Mapping[str, Any]) -> None:
        """Arm faults, or objects with their fields; see :class:`~.faults.Fault`."""
        self._state.armed += [(one if isinstance(one, Fault) else Fault(**one), itertools.count()) for one in faults]

    @property
    def faults(self) -> list[Fault]:
        """Faults that can still act."""
        return [fault for fault, _ in self._state.armed]

    def clear_faults(self) -> None:
        """Disarm all faults."""
        self._state.armed.clear()

    @property
    def requests(self) -> list[RequestRecord]:
        """Requests that arrived, in order. In the emulator's own process the records are live: ``status`` is set when it is sent."""
        return list(self._state.requests)

    @property
    def turns(self) -> list[TurnRecord]:
        """Turns that began, in order. In the emulator's own process the records are live: they change when the turn ends."""
        return list(self._state.turns)

    @property
    def prompts(self) -> list[str]:
        """Prompts that reached the server, in order, whatever became of them."""
        return [record.prompt or "" for record in self._state.requests if record.endpoint == "stream"]

    def answer(
        self, match: str | re.Pattern[str] | Mapping[str, Any], text: str, sources: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Answer prompts that match with ``text``, until the next reset. If several answers match, the latest is given.

        :param match: text that the prompt contains, or a compiled regular expression that is searched in it (the control API also
            takes ``{"pattern": ..., "flags": ...}``).
        :param sources: what the model found: objects with ``file_name`` and each optional ``text``, ``pages`` (first and last),
            ``score`` and ``index_id``; or the API's own retrieval results (objects with ``content``).
        :raises ValueError: a source of another form.
        """
        if isinstance(match, Mapping):
            match = re.compile(match["pattern"], match.get("flags", 0))
        wanted = re.compile(re.escape(match)) if isinstance(match, str) else match
        self._state.scripted.insert(0, (wanted, text, [found_in(source) for source in sources]))

    def posts(self, session_id: str | None = None, prompt: str | None = None) -> int:
        """Number of prompts that reached the server, whatever became of them. A given ``prompt`` is compared as a whole."""
        return _count([each for each in self._state.requests if each.endpoint == "stream"], session_id, prompt)

    def completed(self, session_id: str | None = None, prompt: str | None = None) -> int:
        """Number of turns that ended without an error. A given ``prompt`` is compared as a whole."""
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
        """Indexes of all projects by id, as the API answers them, including ``sync_in_progress``."""
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
        """Change an index at once, and forget its schedule.

        :param values: ``status``, ``error_message``, ``sync_in_progress``, ``last_synced_at`` (ISO text or datetime).
        :raises ValueError: an unknown index, or another name.
        """
        self.index_schedule(index_id, ())
        self._state.indexes[index_id].change(values)

    def index_schedule(self, index_id: str, steps: Sequence[str | Mapping[str, Any]]) -> None:
        """Move the index one step on each time it is read, also in a list. It stays at the last step.

        :param steps: statuses, or objects with what :meth:`set_index` takes.
        :raises ValueError: an unknown index.
        """
        if index_id not in self._state.indexes:
            raise ValueError(f"There is no index {index_id!r}")
        schedule = [{"status": step} if isinstance(step, str) else dict(step) for step in steps]
        self._state.indexes[index_id].schedule = iter(schedule)

    def intrude(self, session_id: str, prompt: str, after: float = 0.0) -> None:
        """Put another client's finished turn into a session's history, without ``Settings.history_lag``. It is not one of :attr:`turns`.

        :param after: seconds until it is there.
        :raises ValueError: an unknown session, or a negative ``after``.
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
        """Restore the initial state, log, faults and settings. Requests and turns in progress are cut off."""
        self._state.break_off()
        self._state.start()


COMMANDS = {name: _dispatched(found) for name, found in vars(Control).items() if not re.match("_|airflow_|url", name)}
"""Properties and methods of :class:`Control` that the control API offers: all but the address of the emulator."""
for _name, _command in COMMANDS.items():
    setattr(Control, _name, _command)


def _count(records: Sequence[RequestRecord | TurnRecord], session_id: str | None, prompt: str | None) -> int:
    return sum(session_id in (None, each.session_id) and prompt in (None, each.prompt) for each in records)


class EmulatorControl(Control):
    """Does over HTTP what :class:`~.server.LlamaCloudEmulator` does in its own process: same names, same records.

    :param url: base URL of the emulator.
    :raises OSError: from every method, if the emulator cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        # The emulator is on this machine, so a proxy from the environment cannot reach it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _do(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        name = work.__name__
        given = {**dict(zip(work.__code__.co_varnames[1:], args, strict=False)), **kwargs} if kwargs else args
        body = None if isinstance(COMMANDS[name], property) else json.dumps(given, default=to_json).encode()
        try:
            with self._opener.open(f"{self._url}{PREFIX}/{name}", body, timeout=30) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 400:
                    raise
                raise ValueError(json.load(error)["detail"]) from None
        if name == "settings":
            found = Settings(**found)
            object.__setattr__(found, "_on_change", self.update_settings)  # sends each assignment to the emulator
        return [_RECORDS[name](**item) for item in found] if name in _RECORDS else found


def checked_port(port: object) -> int:
    """Return ``port``, or raise ValueError if nothing can listen there."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:  # True is 1
        raise ValueError(f"port must be a number from 0 to 65535, not {port!r}")
    return port


class EmulatorProcess(EmulatorControl):
    """Context manager that starts ``python -m airflow_provider_llamachat.testing``, controls it, and ends it.

    ``settings``, ``port`` and ``api_keys`` are those of :class:`~.server.LlamaCloudEmulator`.

    :raises ValueError: the port is not a number from 0 to 65535.
    :raises RuntimeError: on entering, if the process does not start; with its error output.
    """

    def __init__(
        self, settings: Settings | None = None, *, port: int = 0, api_keys: Sequence[str] | None = None
    ) -> None:
        super().__init__("")
        # Its input is a pipe of this process: it closes, and the emulator ends, even when this process is killed.
        behaviour = json.dumps((settings or Settings()).to_json())
        self._command = [sys.executable, "-m", "airflow_provider_llamachat.testing", "--until-stdin-closes"]
        self._command += ["--port", str(checked_port(port)), "--settings", behaviour]
        self._command += [word for key in api_keys or () for word in ("--api-key", key)]
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Id of the process. Raises ``RuntimeError`` if it is not running."""
        if self._process is None:
            raise RuntimeError("The emulator's process is not running")
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
            process.communicate(timeout=10)  # the end of its input ends it
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
