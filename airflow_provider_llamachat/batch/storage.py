"""Writes files atomically, to a local disk or any file system of fsspec. Blocking: do not use in an event loop.

A local file is written next to its target, synced and renamed. Object stores show an object only after its upload is complete,
so a single upload is enough. On other remote file systems, such as SFTP, a kill during a write can leave a damaged file.
Readers must expect that.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
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
"""Maximum number of attempts of a read or write."""
PAUSE = 0.3
"""Seconds between the first two attempts. Each further pause is four times as long."""
CHUNK = 1024 * 1024
"""Bytes of a file that are read at once. Some file systems would hold 50 MiB in memory."""
UPLOAD = {"chunksize": 5 * CHUNK, "max_concurrency": 1}
"""How a file is uploaded, where this can be chosen. s3fs would hold 100 MiB or more. S3 takes 10,000 chunks of at least 5 MiB."""

T = TypeVar("T")


class Folder:
    """A folder whose files are written atomically.

    :param fs: an fsspec file system.
    :param root: the folder's path in it.
    :param url: the URL of the folder, for messages.
    """

    def __init__(self, fs: Any, root: str, url: str) -> None:
        self.url = url
        self._fs = fs
        self._root = root.rstrip("/")
        protocols = [fs.protocol] if isinstance(fs.protocol, str) else list(fs.protocol)
        self._is_local = "file" in protocols

    @classmethod
    def around(cls, path: Any) -> Folder:
        """Return the folder that contains a file.

        :param path: an ``ObjectStoragePath``, another universal path, a ``pathlib.Path``, or local path text.
        """
        # Strings only: joining ObjectStoragePaths differs between releases of universal_pathlib, and warns in some.
        if (fs := getattr(path, "fs", None)) is not None:
            return cls(fs, str(path.path).rpartition("/")[0], str(path).rpartition("/")[0])
        import fsspec  # type: ignore[import-untyped]  # it has no type hints

        folder = str(Path(path).absolute().parent)
        return cls(fsspec.filesystem("file"), folder, folder)

    def below(self, *names: str) -> Folder:
        """Return a subfolder."""
        return Folder(self._fs, "/".join((self._root, *names)), "/".join((self.url, *names)))

    def target(self, name: str) -> tuple[Folder, str]:
        """Return the folder and the name of a file, or those of the file that a local link leads to, if its folder takes new files."""
        if not self._is_local or (real := os.path.realpath(self._at(name))) == self._at(name):
            return self, name
        if not os.access(Path(real).parent, os.W_OK | os.X_OK):
            return self, name
        return Folder.around(real), Path(real).name

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def names(self) -> list[str]:
        """Return the sorted names of the entries, or an empty list if the folder does not exist."""
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
        with self._beside(name, f".{name}") as file:
            file.write(content)

    @contextlib.contextmanager
    def _beside(self, name: str, temporary: str) -> Iterator[IO[bytes]]:
        root = Path(self._root)
        root.mkdir(parents=True, exist_ok=True)
        beside = root / temporary
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(root / name)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        # The rename is durable only after the directory is synced.
        directory = os.open(root, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _place(self, action: Callable[[], object]) -> None:
        """Write, and create missing folders only if necessary. Object stores have none, and a role may not list them."""
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
        # It may be a bucket. Creating one because of a typo would cost money.
        if not self._fs.isdir(path):
            raise FileNotFoundError(f"{path} does not exist, and is not created because it may be a bucket.")
        for piece in below:
            path = f"{path}/{piece}"
            if not self._fs.isdir(path):
                with contextlib.suppress(FileExistsError):
                    self._fs.mkdir(path, create_parents=False)

    @contextlib.contextmanager
    def replacing(self, name: str, owner: str) -> Iterator[IO[bytes]]:
        """Open a temporary file, and move it to its place when the block succeeds. On an error nothing changes.

        :param owner: names the temporary file, so that the next attempt overwrites what a kill left behind.
        :raises ChatBatchError: the operating system reported an error.
        """
        with self._telling("write to", OSError):
            if self._is_local:
                with self._beside(name, f".{name}.{owner}") as file:
                    yield file
                return
            with on_local_disk("write to"), tempfile.NamedTemporaryFile(prefix="llamachat-batch-") as file:
                yield file
                file.flush()
                self._trying("write to", lambda: self._upload(file.name, name))

    def _upload(self, local: str, name: str) -> None:
        taken = inspect.signature(self._fs.put_file).parameters
        options = {option: value for option, value in UPLOAD.items() if option in taken}
        self._place(lambda: self._fs.put_file(local, self._at(name), **options))

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Any]:
        with (
            self._telling("read", Exception),
            self._trying("read", lambda: self._fs.open(self._at(name), "rb", block_size=CHUNK)) as file,
        ):
            yield file

    def lines(self, name: str) -> Iterator[bytes]:
        """Yield the lines of a file without line breaks."""
        with self._reading(name) as file:
            for line in file:
                yield line.rstrip(b"\n")

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file in pieces."""
        with self._reading(name) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, or None if it does not exist."""

        def content() -> bytes | None:
            try:
                return bytes(self._fs.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

        return self._trying("read", content)

    def head(self, name: str, most: int = CHUNK) -> bytes | None:
        """Return the beginning of a file, or None if it does not exist or may not be read. Stores do not always tell the difference.

        :param most: read on, up to this number of bytes, until there is a line break.
        """

        def content() -> bytes | None:
            try:
                with self._fs.open(self._at(name), "rb", block_size=CHUNK) as file:
                    found = bytes(file.read(CHUNK))
                    while b"\n" not in found and len(found) < most and (more := file.read(CHUNK)):
                        found += more
                    return found
            except OSError as problem:
                # gcsfs has no class of its own for a refusal.
                if isinstance(problem, (FileNotFoundError, PermissionError)) or str(problem).startswith("Forbidden"):
                    return None
                raise

        return self._trying("read", content)

    def is_folder(self, name: str) -> bool:
        """Whether a folder has that name. If this is not known, return False."""
        try:
            return bool(self._fs.isdir(self._at(name)))
        except Exception:  # noqa: BLE001  # file systems raise exceptions of any class
            return False

    def remove(self, names: list[str]) -> None:
        """Remove files that are no longer needed. An error is logged and does not make the batch fail."""
        for name in names:
            if not self._removed(partial(self._fs.rm_file, self._at(name))):
                return

    def discard(self, name: str) -> None:
        """Remove a file, and ignore errors."""
        with contextlib.suppress(Exception):  # file systems raise exceptions of any class
            self._fs.rm_file(self._at(name))

    def has(self, name: str) -> bool:
        """Whether a file exists."""
        return self._trying("check", lambda: bool(self._fs.exists(self._at(name))))

    def remove_self(self) -> None:
        """Remove the folder and its content. Errors are logged."""
        if self._is_local:
            self._removed(lambda: self._fs.rm(self._root, recursive=True))
        else:
            # One by one, because s3fs does not report errors of a bulk deletion.
            self.remove(self.names())
            self.remove_if_empty()

    def _removed(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except FileNotFoundError:
            pass
        except Exception as problem:  # noqa: BLE001  # file systems raise exceptions of any class
            log.warning(
                "The part files of the batch could not be removed. The results are complete, but clearing the task asks nothing again "
                "until the folder is removed. Folder: %s. Cause: %s: %s",
                self.url,
                type(problem).__name__,
                excerpt(str(problem), limit=200),
            )
            return False
        return True

    def remove_if_empty(self) -> None:
        """Remove the folder if it is empty. Object stores have no empty folders."""
        with contextlib.suppress(Exception):  # file systems raise exceptions of any class
            if not self._names():
                self._fs.rmdir(self._root)

    def _trying(self, what: str, action: Callable[[], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except Exception as problem:  # file systems raise exceptions of any class
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
        return ChatBatchError(f"Could not {what} {self.url}: {_reason(problem)}")


@contextlib.contextmanager
def on_local_disk(what: str) -> Iterator[None]:
    """Use temporary local files during the block.

    :param what: what is done, for messages.
    :raises ChatBatchError: the operating system reported an error.
    """
    try:
        yield
    except OSError as problem:
        folder = f"the temporary folder {tempfile.tempdir or ''}".rstrip()  # unknown if no folder can be written
        raise ChatBatchError(
            f"Could not {what} {folder}: {_reason(problem)}. Free space on this disk of the "
            "worker, or set TMPDIR on the workers to a folder that has more."
        ) from problem


def _reason(problem: Exception) -> str:
    return excerpt(f"{type(problem).__name__}: {problem}", limit=300)


def spool() -> IO[bytes]:
    """Open a temporary local file that is deleted when it is closed. Use it in :func:`on_local_disk`."""
    return tempfile.TemporaryFile(prefix="llamachat-batch-")
