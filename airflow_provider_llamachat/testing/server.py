"""The emulator in the process of a test: an HTTP server with a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from airflow_provider_llamachat.testing.control import Control
from airflow_provider_llamachat.testing.gateway import Gateway
from airflow_provider_llamachat.testing.settings import Settings
from airflow_provider_llamachat.testing.state import ServiceState

DEFAULT_API_KEY = "llx-emulator-0000"
"""Key that is accepted when none is given."""

_PATIENCE = 30.0


class LlamaCloudEmulator(Control):
    """A LlamaCloud on this machine, for tests.

    A context manager; :meth:`start` and :meth:`stop` do the same. Stopped and started again it listens at the same port and has
    not forgotten anything, as a service that was down for a while. All attributes and methods can be used from any thread, before,
    during and after its running.

    :param settings: behaviour; :meth:`reset` goes back to these.
    :param host: address to listen at. Commands are taken from loopback clients only, whatever it is.
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
        keys = [DEFAULT_API_KEY] if api_keys is None else list(api_keys)
        if not keys or not all(key and key.isascii() and key.isprintable() and key == key.strip() for key in keys):
            raise ValueError("API keys are one or more texts of printable ASCII characters, without space around them")
        if not 0 <= port <= 65535:
            raise ValueError(f"The port is a number from 0 to 65535, not {port}")
        super().__init__(ServiceState(settings), keys[0])
        self._gateway = Gateway(self._state, keys, self)
        self._host = host
        self._port = port
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end. The port is known once the emulator has been started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def start(self) -> Self:
        """Listen.

        :raises OSError: the port is taken, or the host is not one of this machine.
        """
        if self._thread is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="llamacloud-emulator", daemon=True)
            self._thread.start()
            try:
                self._there(self._listen())
            except BaseException:
                self._end_thread()
                raise
        return self

    async def _listen(self) -> None:
        runner = web.AppRunner(
            self._gateway.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.2
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=4096, reuse_address=True).start()
        except (OSError, UnicodeError) as error:
            await runner.cleanup()
            # Past what asyncio says about the address, which is said here.
            reason = str(getattr(error, "strerror", None) or error).rpartition(": ")[2]
            raise OSError(f"Cannot listen at {self._host}, port {self._port}: {reason}") from None
        self._runner = runner
        self._port = runner.addresses[0][1]

    def stop(self) -> None:
        """Break every connection and end the thread; records stay readable."""
        if self._thread is not None:
            self._there(self._runner.cleanup())
            self._end_thread()

    def _end_thread(self) -> None:
        thread, self._thread = self._thread, None
        self._loop.call_soon_threadsafe(self._loop.stop)
        if thread is not None:
            thread.join(_PATIENCE)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _there(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)
        except TimeoutError:
            raise TimeoutError(f"The emulator's thread did not answer within {_PATIENCE:.0f} s") from None

    def _do(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do something where nothing else happens meanwhile: in the loop's thread, if there is one."""

        async def done() -> Any:
            return work(self, *args, **kwargs)

        if self._thread in (None, threading.current_thread()):
            return work(self, *args, **kwargs)
        return self._there(done())
