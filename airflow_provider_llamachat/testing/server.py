"""The emulator's HTTP server: one aiohttp server, one service, and the control routes beside the API."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Sequence
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.web_request import BaseRequest

from airflow_provider_llamachat.testing import wire
from airflow_provider_llamachat.testing.control_routes import PREFIX, Controls
from airflow_provider_llamachat.testing.routes import Reply
from airflow_provider_llamachat.testing.service import Service
from airflow_provider_llamachat.testing.settings import Settings

DEFAULT_API_KEY = "llx-emulator-0000"
"""Key that is accepted when none is given."""

CONTROL_BODY = 256 * 1024 * 1024
"""Bytes of one control request at the most."""

log = logging.getLogger(__name__)


class EmulatorServer:
    """Listens in the running event loop; :class:`~.emulator.LlamaCloudEmulator` gives it a thread of its own.

    :param settings: behaviour; :meth:`Service.reset` goes back to what they are now.
    :param host: address to listen at. The control routes answer loopback clients only, whatever it is.
    :param port: 0 takes a free one, kept over a stop and a new start.
    :param api_keys: keys that are accepted.
    :raises ValueError: an empty list of keys, a key that is empty or not printable ASCII, a port that cannot be one.
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
        self.service = Service(settings, keys)
        self.api_key = keys[0]
        self.host = host
        self.port = port
        self._controls = Controls(self.service, self)
        self._handlers: web.Server | None = None
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listen.

        :raises OSError: the port is taken, or the host is not one of this machine.
        """
        handlers = web.Server(self._handle, handler_cancellation=True, access_log=None)
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(handlers, self.host, self.port, backlog=4096, reuse_address=True)
        except (OSError, UnicodeError) as error:
            # Past what asyncio says about the address, which is said here.
            reason = str(getattr(error, "strerror", error)).rpartition(": ")[2]
            raise OSError(f"Cannot listen at {self.host}, port {self.port}: {reason}") from None
        self._handlers = handlers
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Abandon what is under way and close every connection; what was recorded stays."""
        if self._listener is None or self._handlers is None:
            return
        self._listener.close()
        self.service.break_off()
        await self._handlers.shutdown(0.2)
        self._listener = self._handlers = None

    async def _handle(self, request: BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        if path == PREFIX or path.startswith(PREFIX + "/"):
            return await self._control(request, path, query)
        return await self.service.handle(request, path, query)

    async def _control(self, request: BaseRequest, path: str, query: str) -> web.StreamResponse:
        peer = ipaddress.ip_address(request.remote or "0.0.0.0")
        if not peer.is_loopback:
            return wire.response(Reply(403, {"detail": "The control routes answer loopback clients only."}), "control")
        # Documents for an index may be larger than what the API takes in one request.
        body = await request.clone(client_max_size=CONTROL_BODY).read()
        reply = self._controls.answer(request.method, path[len(PREFIX) :], dict(parse_qsl(query)), body)
        return wire.response(reply, "control")
