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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.system.processes import free_port

POSTGRESQL = [Path(f"/usr/lib/postgresql/{number}/bin") for number in range(25, 12, -1)]
"""Where Debian puts the programs that are not for users."""


def debian(program: str, package: str, places: list[Path]) -> Path:
    """Return the path of a program, after installing its Debian package if it is nowhere.

    :param places: folders beside those in PATH.
    :raises RuntimeError: it is not there and can not be installed.
    """
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", os.defpath), "/usr/sbin"])
    if (found := shutil.which(program, path=path)) is None:
        sudo = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
            subprocess.run([*sudo, "apt-get", *command], check=False, env=quiet, stdout=subprocess.DEVNULL)
        found = shutil.which(program, path=path)
    if found is None:
        raise RuntimeError(f"{program} is not there, and the Debian package {package} could not be installed.")
    return Path(found)


@contextmanager
def _served(command: list[str], folder: Path, port: int, user: str | None = None) -> Iterator[None]:
    """Run a server until the block ends.

    :raises RuntimeError: it does not listen after half a minute; with its log.
    """
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
        )
    try:
        deadline = time.monotonic() + 30
        while not _listens(process.pid, port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not come up:\n{log.read_text(errors='replace')}")
            time.sleep(0.1)
        yield
    finally:
        # Both servers take it as: break the connections, end what you started, then yourself.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def _listens(pid: int, port: int) -> bool:
    try:
        sockets = psutil.Process(pid).net_connections("tcp4")
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets)


@contextmanager
def postgresql() -> Iterator[str]:
    """Run an empty PostgreSQL; give ``user:password@host:port/database``."""
    initdb = debian("initdb", "postgresql", POSTGRESQL).resolve()
    # It refuses to run as root; the package brings a user for it.
    user = "postgres" if os.geteuid() == 0 else None
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
        with _served(command, folder, port, user):
            yield f"airflow:{password}@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redis() -> Iterator[str]:
    """Run an empty Redis; give its URL."""
    server = debian("redis-server", "redis-server", [])
    folder = Path(tempfile.mkdtemp(prefix="llamachat-redis-"))
    try:
        password, port = secrets.token_hex(12), free_port()
        options = {"port": str(port), "bind": "127.0.0.1", "save": "", "appendonly": "no", "requirepass": password}
        settings = [part for name, value in options.items() for part in (f"--{name}", value)]
        with _served([str(server), *settings], folder, port):
            yield f"redis://:{password}@127.0.0.1:{port}/0"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
