"""The emulator in the process of a test: a server with a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from airflow_provider_llamachat.testing import corpus
from airflow_provider_llamachat.testing.connection import Reachable
from airflow_provider_llamachat.testing.faults import Fault
from airflow_provider_llamachat.testing.records import RequestRecord, TurnRecord
from airflow_provider_llamachat.testing.server import EmulatorServer
from airflow_provider_llamachat.testing.settings import Settings

T = TypeVar("T")
_PATIENCE = 30.0


class LlamaCloudEmulator(Reachable):
    """A LlamaCloud on this machine, for tests.

    A context manager; :meth:`start` and :meth:`stop` do the same. Stopped and started again it listens at the same port and has
    not forgotten anything, as a service that was down for a while. All attributes and methods can be used from any thread, before,
    during and after its running.

    :param settings: behaviour; :meth:`reset` goes back to these.
    :param host: address to listen at.
    :param port: 0 takes a free one.
    :param api_keys: keys that are accepted; :attr:`api_key` is the first.
    :raises ValueError: unusable keys, or a port that cannot be one.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_keys: Sequence[str] | None = None,
    ) -> None:
        self._server = EmulatorServer(settings, host=host, port=port, api_keys=api_keys)
        self._service = self._server.service
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def start(self) -> Self:
        """Listen.

        :raises OSError: the port is taken, or the host is not one of this machine.
        """
        if self._thread is not None:
            return self
        ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        thread = threading.Thread(
            target=lambda: asyncio.run(self._live(ready)), name="llamacloud-emulator", daemon=True
        )
        thread.start()
        try:
            ready.result(_PATIENCE)
        except BaseException:
            thread.join(_PATIENCE)
            raise
        self._thread = thread
        return self

    async def _live(self, ready: concurrent.futures.Future[None]) -> None:
        self._stopping = asyncio.Event()
        try:
            await self._server.start()
        except BaseException as error:  # noqa: BLE001 - handed on to the thread that waits
            ready.set_exception(error)
            return
        self._loop = asyncio.get_running_loop()
        ready.set_result(None)
        await self._stopping.wait()
        await self._server.stop()

    def stop(self) -> None:
        """Break every connection and end the thread; records stay readable."""
        thread, loop, stopping = self._thread, self._loop, self._stopping
        if thread is None or loop is None or stopping is None:
            return
        loop.call_soon_threadsafe(stopping.set)
        thread.join(_PATIENCE)
        if thread.is_alive():
            raise RuntimeError(f"The emulator's thread did not end within {_PATIENCE:.0f} s")
        self._thread = self._loop = self._stopping = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _do(self, work: Callable[[], T]) -> T:
        """Do something where nothing else happens meanwhile: in the loop's thread, if there is one."""
        thread, loop = self._thread, self._loop
        if thread is None or loop is None or threading.current_thread() is thread:
            return work()
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as error:  # noqa: BLE001 - handed on to the thread that asked
                done.set_exception(error)

        loop.call_soon_threadsafe(run)
        return done.result(_PATIENCE)

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end. The port is known once the emulator has been started."""
        return self._server.url

    @property
    def api_key(self) -> str:
        """A key that is accepted."""
        return self._server.api_key

    @property
    def settings(self) -> Settings:
        """The settings; assigning to an attribute counts at once."""
        return self._service.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self.update_settings(**settings.to_json())

    def update_settings(self, **values: Any) -> None:
        """Change several settings.

        :raises AttributeError: a name that is no setting.
        :raises ValueError: a value that does not fit.
        """
        self._do(lambda: self._service.settings.update(**values))

    def inject(self, *faults: Fault) -> None:
        """Arm faults; see :class:`~.faults.Fault`."""
        self._do(lambda: self._service.inject(faults))

    @property
    def faults(self) -> list[Fault]:
        """Faults that can still act."""
        return self._do(lambda: self._service.plan.pending)

    def clear_faults(self) -> None:
        """Disarm all faults."""
        self._do(self._service.plan.clear)

    @property
    def requests(self) -> list[RequestRecord]:
        """Requests that arrived, in order. The records are live: a status appears when it is sent."""
        return self._do(lambda: list(self._service.requests))

    @property
    def turns(self) -> list[TurnRecord]:
        """Turns that began, in order. The records are live: their state changes when they end."""
        return self._do(self._service.turns)

    def posts(self, session_id: str | None = None, prompt: str | None = None) -> int:
        """Prompts that reached the server, whatever became of them; ``prompt`` is compared as a whole."""
        return self._do(lambda: self._service.posts(session_id, prompt))

    def completed(self, session_id: str | None = None, prompt: str | None = None) -> int:
        """Turns that ran to a good end; ``prompt`` is compared as a whole."""
        return self._do(lambda: self._service.completed(session_id, prompt))

    @property
    def sessions(self) -> dict[str, dict[str, Any]]:
        """Sessions that were not deleted, by id, as GET full session answers them; ``events`` is whole, without lag or window."""
        return self._do(self._service.sessions)

    @property
    def deleted(self) -> list[str]:
        """Ids of deleted sessions, in order."""
        return self._do(lambda: list(self._service.state.deleted))

    @property
    def projects(self) -> dict[str, dict[str, Any]]:
        """Projects by id, as the API answers them."""
        return self._do(self._service.projects)

    @property
    def indexes(self) -> dict[str, dict[str, Any]]:
        """Indexes of all projects by id, as the API answers them, ``sync_in_progress`` included."""
        return self._do(self._service.indexes)

    def add_index(
        self,
        index_id: str,
        *,
        project_id: str = corpus.DEFAULT_PROJECT_ID,
        name: str | None = None,
        status: str = "ready",
        error_message: str | None = None,
        documents: Sequence[Any] = (),
    ) -> None:
        """Add an index, or replace the one of that id.

        :param documents: its passages: texts, or objects with ``text`` and, if wanted, ``document`` and ``page``.
        :raises ValueError: an unknown project, or documents of another form.
        """
        self._do(
            lambda: self._service.state.add_index(
                index_id,
                project_id=project_id,
                name=name,
                status=status,
                error_message=error_message,
                documents=documents,
            )
        )

    def set_index(self, index_id: str, **values: Any) -> None:
        """Change an index at once; a schedule it had is forgotten.

        :param values: ``status``, ``error_message``, ``sync_in_progress``, ``last_synced_at`` (ISO text or datetime).
        :raises ValueError: an unknown index or value.
        """
        self._do(lambda: self._service.set_index(index_id, values))

    def index_schedule(self, index_id: str, steps: Sequence[str | Mapping[str, Any]]) -> None:
        """Let each GET of the index move it one step on; the last step stays.

        :param steps: statuses, or objects with what :meth:`set_index` takes.
        :raises ValueError: an unknown index.
        """
        self._do(lambda: self._service.index_schedule(index_id, steps))

    def intrude(self, session_id: str, prompt: str, after: float = 0.0) -> None:
        """Put somebody else's finished turn into a session's history; it is no turn of :attr:`turns`.

        It is shown at once, hence before what lags by ``Settings.history_lag``.

        :param after: seconds until it is there.
        :raises ValueError: an unknown session.
        """
        self._do(lambda: self._service.state.intrude(session_id, prompt, after))

    def reset(self) -> None:
        """State, log, faults and settings back to the start; requests and turns under way are broken off."""
        self._do(self._service.reset)
