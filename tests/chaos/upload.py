"""Uploads results as a process of its own, in the environment of the object store. Prints by how many MiB its memory grew."""

from __future__ import annotations

import sys
from pathlib import Path

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_llamachat.batch.storage import Folder

MIB = 1024 * 1024


def peak() -> float:
    """The most memory that this process has had, in MiB. Unlike getrusage, without that of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def upload(path: ObjectStoragePath, size: int) -> None:
    """Write ``size`` MiB as a batch writes its results."""
    with Folder.around(path).replacing(path.name, "test") as file:
        for number in range(size):
            file.write(bytes([number % 256]) * MIB)


def main(url: str, size: int) -> float:
    """Return by how many MiB an upload of ``size`` MiB made the memory grow."""
    path = ObjectStoragePath(url)
    upload(path, 1)  # so that the client's modules are loaded
    before = peak()
    upload(path, size)
    return peak() - before


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2])), flush=True)
