"""``python -m airflow_provider_llamachat.testing``: the emulator as a process of its own.

It prints one line as soon as it listens, ``LlamaCloud emulator: url=... key=...``. SIGTERM and SIGINT end it with status 0.
"""

import argparse
import contextlib
import functools
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from airflow_provider_llamachat.testing.settings import Settings, setting_kinds

_NEWLINES = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("python -m airflow_provider_llamachat.testing", description="LlamaCloud for tests.")
    add = found.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=0, help="port; 0 takes a free one (default: %(default)s)")
    add("--api-key", action="append", dest="api_keys", help="key to accept; can be given several times")
    add("--until-stdin-closes", action="store_true", help="exit when the standard input is closed")
    add("--settings", type=json.loads, default={}, metavar="JSON", help="settings; they override the options below")
    group = found.add_argument_group("behaviour where the API's documentation is silent, and pace")
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
    # argparse names the kind in its messages.
    return functools.wraps(kind, updated=())(lambda text: None if text.lower() == "none" else kind(text))


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the emulator until a signal ends it.

    :returns: exit status: 0, or 1 with a message if the emulator cannot start.
    """
    cli = _parser()
    given = cli.parse_args(argv)
    values = {item.name: getattr(given, item.name) for item in fields(Settings)}
    values["newline"] = _NEWLINES[given.newline]
    try:
        settings = Settings(**values)
        settings.update(**given.settings)
    except (ValueError, TypeError, AttributeError) as error:
        cli.error(str(error))
    # As many sockets as the system allows. Some systems report no limit, and then refuse that.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    endings = {signal.SIGTERM, signal.SIGINT}
    # Blocked in all threads, so that no signal is lost in code that swallows what a handler raises.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, endings)
    try:
        from airflow_provider_llamachat.testing import LlamaCloudEmulator

        with LlamaCloudEmulator(settings, host=given.host, port=given.port, api_keys=given.api_keys) as emulator:
            print(f"LlamaCloud emulator: url={emulator.url} key={emulator.api_key}", flush=True)
            if given.until_stdin_closes:
                threading.Thread(target=_end_with_input, daemon=True).start()
            import airflow_provider_llamachat.testing.answers  # noqa: F401 - before the first request waits for it

            signal.sigwait(endings)
    except (ImportError, OSError, ValueError) as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        print(error if isinstance(error, ImportError) else f"The emulator cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
