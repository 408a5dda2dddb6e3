"""An S3-compatible server (moto), and an environment in which Airflow reaches it.

Its packages need other versions than the environment of the tests, so they have one of their own, built by uv under ``build/``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Self

from tests.uv import uv

PACKAGES = ("apache-airflow-providers-amazon[s3fs]", "moto[server]>=5", "psutil")


def environment(repository: Path) -> Path:
    """Return the interpreter of an environment with this Airflow, this provider, and what S3 needs; build it where it is missing.

    :raises RuntimeError: uv or a package is missing; with what was said about it.
    """
    wanted = (f"apache-airflow=={version('apache-airflow')}", *PACKAGES)
    declared = (repository / "pyproject.toml").read_bytes() + repr(wanted).encode()
    folder = repository / "build" / "s3" / hashlib.sha256(declared).hexdigest()[:12]
    python, complete = folder / "bin" / "python", folder / ".complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        uv("venv", "--quiet", str(folder))
        uv("pip", "install", "--quiet", "--python", str(python), *wanted, str(repository))
        # The provider is imported from the repository, as it is at this moment.
        uv("pip", "uninstall", "--quiet", "--python", str(python), "airflow-provider-llamachat")
        complete.touch()
    return python


class ObjectStore:
    """Context manager: an S3-compatible server in a process of its own, with one bucket."""

    BUCKET = "nights"

    def __init__(self, python: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._command = [str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while True:
            try:
                self._send("PUT", "")
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self._process.kill()
                    raise
                time.sleep(0.2)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _send(self, method: str, key: str, content: bytes | None = None) -> bytes:
        # Nobody checks the signature, but what has none may not read.
        signature = (
            "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        )
        headers = {"Content-Type": "application/octet-stream", "Authorization": signature}
        request = urllib.request.Request(f"{self.url}/{self.BUCKET}/{key}", content, headers, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            read: bytes = answer.read()
            return read

    def write(self, key: str, content: bytes) -> None:
        """Put an object."""
        self._send("PUT", key, content)

    def read(self, key: str) -> bytes:
        """Return the content of an object."""
        return self._send("GET", key)

    def keys(self) -> list[str]:
        """The keys of all objects, at most a thousand."""
        listing = self._send("GET", "?list-type=2").decode()
        return [piece.split("</Key>")[0] for piece in listing.split("<Key>")[1:]]

    @property
    def connection(self) -> str:
        """The Airflow connection to it, as JSON."""
        extra = {"endpoint_url": self.url, "region_name": "us-east-1"}
        return json.dumps({"conn_type": "aws", "login": "key", "password": "secret", "extra": extra})

    def path(self, key: str) -> str:
        """The path of an object, as a Dag gives it."""
        return f"s3://aws_default@{self.BUCKET}/{key}"
