"""Files that are either whole or absent, on a local disk or in any object store that fsspec reaches. Blocking: not for an event loop.

Locally a file is written beside its place, synced and renamed. Object stores show an object only when its upload is complete,
so there a single upload does the same. On other remote file systems (SFTP, say) a kill in mid-write can leave a torn
file: readers count on that.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from airflow_provider_llamachat.exceptions import ChatBatchError
from airflow_provider_llamachat.redaction import excerpt

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a write or read is tried before the batch gives up."""
PAUSE = 0.3
"""Seconds between the first two of these attempts; four times that before each further one."""

T = TypeVar("T")


class Folder:
    """A folder of whole files.

    :param fs: an fsspec file system.
    :param root: the folder's path in it.
    :param url: the folder, as messages name it.
    """

    def __init__(self, fs: Any, root: str, url: str) -> None:
        self.url = url
        self._fs = fs
        self._root = root.rstrip("/")
        protocols = [fs.protocol] if isinstance(fs.protocol, str) else list(fs.protocol)
        self._is_local = "file" in protocols

    @classmethod
    def around(cls, path: Any) -> Folder:
        """The folder that a file lies in.

        :param path: an ``ObjectStoragePath``, another universal path, a ``pathlib.Path``, or local path text.
        """
        # Strings only: joining ObjectStoragePaths differs between releases of universal_pathlib, and warns in some.
        if (fs := getattr(path, "fs", None)) is not None:
            return cls(fs, str(path.path).rpartition("/")[0], str(path).rpartition("/")[0])
        import fsspec  # type: ignore[import-untyped]  # it ships no types

        folder = str(Path(path).absolute().parent)
        return cls(fsspec.filesystem("file"), folder, folder)

    def below(self, *names: str) -> Folder:
        """A folder in this one."""
        return Folder(self._fs, "/".join((self._root, *names)), "/".join((self.url, *names)))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def names(self) -> list[str]:
        """Names of the files there, sorted; none when the folder does not exist."""
        return sorted(self._trying("list", self._names))

    def _names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            return [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in self._fs.ls(self._root, detail=True)]
        except FileNotFoundError:
            return []

    def write(self, name: str, content: bytes) -> None:
        """Write a file, durably."""
        self._trying("write to", lambda: self._write(name, content))

    def _write(self, name: str, content: bytes) -> None:
        if not self._is_local:
            self._place(lambda: self._fs.pipe_file(self._at(name), content))
            return
        root = Path(self._root)
        root.mkdir(parents=True, exist_ok=True)
        beside = root / f".{name}"
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _rename(beside, root / name)

    def _place(self, action: Callable[[], object]) -> None:
        """Write; where folders have to be made before, make them. Object stores have none, and a role may not ask for any."""
        try:
            action()
        except OSError as problem:
            if not isinstance(problem, FileNotFoundError) and problem.errno != errno.ENOENT:
                raise
            self._make()
            action()

    def _make(self) -> None:
        top, *below = [piece for piece in self._root.split("/") if piece]
        path = f"/{top}" if self._root.startswith("/") else top
        # It may be a bucket: one that is created by a slip of the pen costs money, and is not where anybody looks.
        if not self._fs.isdir(path):
            raise FileNotFoundError(f"{path} does not exist. It may be a bucket, so it is not created.")
        for piece in below:
            path = f"{path}/{piece}"
            if not self._fs.isdir(path):
                with contextlib.suppress(FileExistsError):
                    self._fs.mkdir(path, create_parents=False)

    @contextlib.contextmanager
    def replacing(self, name: str, owner: str) -> Iterator[IO[bytes]]:
        """Give a file to write to, and put it in place when the block has ended well; on an error nothing changes.

        :param owner: who writes: what a kill leaves behind is overwritten by the same owner's next attempt.
        :raises ChatBatchError: the block, or the putting in place, met an error of the operating system.
        """
        with self._telling("write to", OSError), self._replacing(name, owner) as file:
            yield file

    @contextlib.contextmanager
    def _replacing(self, name: str, owner: str) -> Iterator[IO[bytes]]:
        if self._is_local:
            root = Path(self._root)
            root.mkdir(parents=True, exist_ok=True)
            beside = root / f".{name}.{owner}"
            try:
                with beside.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                _rename(beside, root / name)
            finally:
                beside.unlink(missing_ok=True)
            return
        with tempfile.NamedTemporaryFile(prefix="llamachat-batch-") as file:
            yield file
            file.flush()
            self._trying("write to", lambda: self._upload(file.name, name))

    def _upload(self, local: str, name: str) -> None:
        self._place(lambda: self._fs.put_file(local, self._at(name)))

    def lines(self, name: str) -> Iterator[bytes]:
        """The lines of a file, one at a time, without their ends."""
        with (
            self._telling("read", Exception),
            self._trying("read", lambda: self._fs.open(self._at(name), "rb")) as file,
        ):
            for line in file:
                yield line.rstrip(b"\n")

    def read(self, name: str) -> bytes | None:
        """A small file as a whole; None when it is not there."""

        def content() -> bytes | None:
            try:
                return bytes(self._fs.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

        return self._trying("read", content)

    def first_line(self, name: str) -> bytes | None:
        """The first line of a file; None when it is not there, or not to be read: a store may tell the one from the other to few."""
        try:
            with self._fs.open(self._at(name), "rb") as file:
                return bytes(file.readline())
        except Exception:  # noqa: BLE001  # file systems raise whatever their libraries do
            return None

    def is_folder(self, name: str) -> bool:
        """Whether a folder stands at that name. Where that is not told, it counts for none."""
        try:
            return bool(self._fs.isdir(self._at(name)))
        except Exception:  # noqa: BLE001  # file systems raise whatever their libraries do
            return False

    def remove(self, names: list[str]) -> None:
        """Remove files, as far as that is possible: what is no longer needed must not make a batch fail."""
        for name in names:
            if not self._removed(partial(self._fs.rm_file, self._at(name))):
                return

    def discard(self, name: str) -> None:
        """Remove a file that does no harm where it is."""
        with contextlib.suppress(Exception):  # file systems raise whatever their libraries do
            self._fs.rm_file(self._at(name))

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return self._trying("look into", lambda: bool(self._fs.exists(self._at(name))))

    def remove_self(self) -> None:
        """Remove the folder and everything in it, as far as that is possible."""
        if self._is_local:
            self._removed(lambda: self._fs.rm(self._root, recursive=True))
        else:
            # One by one: what a store refuses of many that are deleted together, s3fs does not tell.
            self.remove(self.names())
            self.remove_if_empty()

    def _removed(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except FileNotFoundError:
            pass
        except Exception as problem:  # noqa: BLE001  # file systems raise whatever their libraries do
            log.warning(
                "%s could not be removed (%s: %s). The results are not affected. Until it is removed, a batch that was complete counts as "
                "complete, also when its task is cleared.",
                self.url,
                type(problem).__name__,
                excerpt(str(problem), limit=200),
            )
            return False
        return True

    def remove_if_empty(self) -> None:
        """Remove the folder if nothing is in it; object stores have no empty folders anyway."""
        with contextlib.suppress(Exception):  # file systems raise whatever their libraries do
            if not self._names():
                self._fs.rmdir(self._root)

    def _trying(self, what: str, action: Callable[[], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except Exception as problem:  # file systems raise whatever their libraries do
                if attempt == ATTEMPTS:
                    raise self._failure(what, problem) from problem
                time.sleep(PAUSE * 4 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")  # pragma: no cover  # for the type checker only

    @contextlib.contextmanager
    def _telling(self, what: str, kind: type[Exception]) -> Iterator[None]:
        try:
            yield
        except ChatBatchError:
            raise
        except kind as problem:
            raise self._failure(what, problem) from problem

    def _failure(self, what: str, problem: Exception) -> ChatBatchError:
        reason = excerpt(f"{type(problem).__name__}: {problem}", limit=300)
        return ChatBatchError(f"Could not {what} {self.url}: {reason}")


def _rename(source: Path, target: Path) -> None:
    source.replace(target)
    # The rename itself is durable only when the directory is.
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def spool() -> IO[bytes]:
    """A temporary local file, gone when it is closed."""
    return tempfile.TemporaryFile(prefix="llamachat-batch-")
