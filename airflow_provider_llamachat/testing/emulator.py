"""The emulator in the process of a test: a server with a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from airflow_provider_llamachat.testing.control import Control
from airflow_provider_llamachat.testing.server import EmulatorServer
from airflow_provider_llamachat.testing.settings import Settings

_PATIENCE = 30.0


class LlamaCloudEmulator(Control):
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
        self._server = EmulatorServer(settings, host, port, api_keys)
        super().__init__(self._server.state, self._server.api_key)
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

    def _do(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do something where nothing else happens meanwhile: in the loop's thread, if there is one."""
        thread, loop = self._thread, self._loop
        if thread is None or loop is None or threading.current_thread() is thread:
            return work(self, *args, **kwargs)

        async def there() -> Any:
            return work(self, *args, **kwargs)

        return asyncio.run_coroutine_threadsafe(there(), loop).result(_PATIENCE)

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end. The port is known once the emulator has been started."""
        return self._server.url
