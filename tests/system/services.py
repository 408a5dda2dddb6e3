"""PostgreSQL and Redis on loopback for one test: data in a temporary folder, a password of their own, ended by process id."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.system.processes import Child, clean_environment, free_port

POSTGRESQL = Path("/usr/lib/postgresql")
"""Where Debian puts the programs that are not for users, by version."""


def program(name: str, package: str, places: Sequence[Path] = ()) -> Path:
    """Return the path of a program.

    :param package: the Debian package that brings it.
    :param places: folders beside those in PATH.
    :raises RuntimeError: it is not there.
    """
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", os.defpath), "/usr/sbin"])
    if (found := shutil.which(name, path=path)) is None:
        raise RuntimeError(f"{name} is not there: on Debian and Ubuntu, 'apt install {package}' brings it.")
    return Path(found)


@contextmanager
def _served(name: str, command: list[str], folder: Path, port: int, user: str | None = None) -> Iterator[None]:
    """Run a server until the block ends.

    :raises RuntimeError: it does not listen after half a minute; with its log.
    """
    server = Child(name, command, environment=clean_environment(), logs=folder, user=user)
    try:
        deadline = time.monotonic() + 30
        while not _listens(server.pid, port):
            if not server.running or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not come up:\n{server.tail()}")
            time.sleep(0.1)
        yield
    finally:
        # Both take it as: break the connections and end in good order. Killed, PostgreSQL leaves shared memory behind.
        server.signal(signal.SIGINT)
        server.stop(grace=20)


def _listens(pid: int, port: int) -> bool:
    try:
        sockets = psutil.Process(pid).net_connections("tcp4")
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets)


def _unprivileged() -> str | None:
    """Return who PostgreSQL, which refuses to run as root, runs as; None: as this process.

    :raises RuntimeError: the user that its package brings is missing.
    """
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise RuntimeError("There is no user postgres, whom the Debian package postgresql brings.") from None


@contextmanager
def postgresql() -> Iterator[str]:
    """Run an empty PostgreSQL; give ``user:password@host:port/database``."""
    versions = sorted(POSTGRESQL.glob("*/bin"), key=lambda place: float(place.parent.name), reverse=True)
    # Its other programs lie beside the real one.
    initdb = program("initdb", "postgresql", versions).resolve()
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="llamachat-postgresql-"))
    try:
        password, port = secrets.token_hex(12), free_port()
        (folder / "password").write_text(password)
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        subprocess.run(
            [
                *(str(initdb), "-D", str(folder / "data"), "-U", "airflow", f"--pwfile={folder / 'password'}"),
                *("-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            user=user,
        )
        options = {"fsync": "off", "max_connections": "300", "listen_addresses": "127.0.0.1", "port": str(port)}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        command = [str(initdb.parent / "postgres"), "-D", str(folder / "data"), "-k", str(folder), *settings]
        with _served("postgresql", command, folder, port, user):
            yield f"airflow:{password}@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redis() -> Iterator[str]:
    """Run an empty Redis; give its URL."""
    server = program("redis-server", "redis-server")
    folder = Path(tempfile.mkdtemp(prefix="llamachat-redis-"))
    try:
        password, port = secrets.token_hex(12), free_port()
        options = {"port": str(port), "bind": "127.0.0.1", "save": "", "appendonly": "no", "requirepass": password}
        settings = [part for name, value in options.items() for part in (f"--{name}", value)]
        with _served("redis", [str(server), *settings], folder, port):
            yield f"redis://:{password}@127.0.0.1:{port}/0"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
