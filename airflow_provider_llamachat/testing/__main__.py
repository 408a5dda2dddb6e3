"""``python -m airflow_provider_llamachat.testing``: the emulator as a process of its own.

When it is listening it prints one line, ``LlamaCloud emulator: url=... key=...``; SIGTERM and SIGINT end it with status 0.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from airflow_provider_llamachat.testing.settings import Settings, setting_kinds

_NEWLINES = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m airflow_provider_llamachat.testing", description="A LlamaCloud on this machine, for tests."
    )
    add = found.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    add("--port", type=int, default=0, help="port; 0 takes a free one (default: %(default)s)")
    add("--api-key", action="append", dest="api_keys", help="key to accept; can be given several times")
    add("--until-stdin-closes", action="store_true", help="end with the process that holds the standard input")
    add("--settings", type=json.loads, default={}, metavar="JSON", help="settings; these override single options")
    group = found.add_argument_group("behaviour, where the API's documentation is silent, and pace")
    for item in fields(Settings):
        kind, *others = setting_kinds()[item.name]
        options: dict[str, Any] = {"default": item.default, "help": item.metadata["help"] + " (default: %(default)s)"}
        if item.name == "newline":
            options.update(choices=sorted(_NEWLINES), default="lf")
        elif kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif not isinstance(kind, type):
            options["choices"] = (kind, *others)
        else:
            options["type"] = _optional(kind) if others else kind
        group.add_argument("--" + item.name.replace("_", "-"), **options)
    return found


def _optional(kind: type[Any]) -> Any:
    def read(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__
    return read


def _allow_many_sockets() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the emulator until a signal ends it.

    :returns: exit status: 0, or 1 with a message when it cannot start.
    """
    cli = _parser()
    arguments = cli.parse_args(argv)
    values = {item.name: getattr(arguments, item.name) for item in fields(Settings)}
    values["newline"] = _NEWLINES[arguments.newline]
    try:
        settings = Settings(**values)
        settings.update(**arguments.settings)
    except (ValueError, TypeError, AttributeError) as error:
        cli.error(str(error))
    _allow_many_sockets()
    endings = {signal.SIGTERM, signal.SIGINT}
    # Blocked in all threads, so that no signal is lost in the code that runs when it arrives.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, endings)
    try:
        from airflow_provider_llamachat.testing import LlamaCloudEmulator

        keys = arguments.api_keys
        with LlamaCloudEmulator(settings, host=arguments.host, port=arguments.port, api_keys=keys) as emulator:
            print(f"LlamaCloud emulator: url={emulator.url} key={emulator.api_key}", flush=True)
            if arguments.until_stdin_closes:
                threading.Thread(target=_end_with_input, daemon=True).start()
            # The first request needs it: imported before one arrives, it delays nobody.
            importlib.import_module("airflow_provider_llamachat.testing.endpoints")
            signal.sigwait(endings)
    except (ImportError, OSError, ValueError) as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        print(error if isinstance(error, ImportError) else f"The emulator cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
