"""The emulator in a process of its own, started and ended by a test: it then takes no time from the code under test."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from airflow_provider_llamachat.testing.control import EmulatorControl
from airflow_provider_llamachat.testing.settings import Settings


class EmulatorProcess(EmulatorControl):
    """Context manager: starts ``python -m airflow_provider_llamachat.testing``, is its control, and ends it.

    :param settings: behaviour; :meth:`reset` goes back to these.
    :param port: 0 takes a free one.
    :param api_keys: keys that are accepted.
    :raises RuntimeError: on entering, when the process does not come up; with what it said.
    """

    def __init__(
        self, settings: Settings | None = None, *, port: int = 0, api_keys: Sequence[str] | None = None
    ) -> None:
        super().__init__("")
        module = "airflow_provider_llamachat.testing"
        # Its input is a pipe of ours: it closes, and the emulator ends, even when this process is killed.
        self._command = [sys.executable, "-m", module, "--until-stdin-closes", "--port", str(port)]
        if settings is not None:
            self._command += ["--settings", json.dumps(settings.to_json())]
        for key in api_keys or ():
            self._command += ["--api-key", key]
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
        with tempfile.TemporaryFile(mode="w+") as complaints:
            process = subprocess.Popen(  # noqa: S603 - this interpreter and this module
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
            )
            line = process.stdout.readline() if process.stdout is not None else ""
            if "url=" not in line:
                process.communicate(timeout=30)
                complaints.seek(0)
                raise RuntimeError(f"The emulator's process did not start: {complaints.read().strip()}")
        self._process = process
        self._url = line.split("url=")[1].split()[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
