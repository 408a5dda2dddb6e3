"""File systems as the tests here need them: an object store with buckets and rights, and a remote disk with folders."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import ObjectStoragePath
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]  # it ships no types

try:
    from airflow.sdk.io import attach
except ImportError:
    from airflow.io.store import attach  # type: ignore[no-redef,import-not-found]  # where Airflow 2 has it


class Remote(MemoryFileSystem):  # type: ignore[misc]  # fsspec is not typed
    """Files in memory, apart from those of every other instance.

    :ivar touched: every path that was listed, read, written or made.
    """

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}
        self.pseudo_dirs = [""]
        self.touched: list[str] = []

    def at(self, url: str) -> ObjectStoragePath:
        """A path here, as a Dag gives it."""
        name = f"test{id(self)}"
        attach("memory", conn_id=name, fs=self)
        return ObjectStoragePath(f"memory://{name}@{url}")

    def check(self, path: str, *, writes: bool = False) -> None:
        """Refuse what this file system would refuse."""
        self.touched.append(self._strip_protocol(path))

    def ls(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.check(path)
        return super().ls(path, *args, **kwargs)

    def isdir(self, path: str) -> bool:
        try:
            own = self._strip_protocol(path)
            return any(entry != own for entry in self.ls(path, detail=False)) or own in self.pseudo_dirs
        except OSError:
            return False

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self.check(path, writes=mode != "rb")
        return super()._open(path, mode, **kwargs)  # fsspec's own way to make a file system

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        with self.open(path, "wb") as file:
            file.write(value)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        with open(lpath, "rb") as file:  # noqa: PTH123  # what fsspec hands over is text
            self.pipe_file(rpath, file.read())


class Buckets(Remote):
    """An object store: no folders, buckets that have to be there, and a role that may do only so much.

    :ivar buckets: those that there are.
    :ivar prefix: what keys begin with that the role may list, read and write; asking for a bucket is no part of that.
    :ivar read_only: the role may not write.
    """

    def __init__(self, *buckets: str, prefix: str = "", read_only: bool = False) -> None:
        super().__init__()
        self.buckets = set(buckets)
        self.prefix = prefix
        self.read_only = read_only

    def check(self, path: str, *, writes: bool = False) -> None:
        super().check(path)
        bucket, _, key = self._strip_protocol(path).lstrip("/").partition("/")
        if bucket not in self.buckets:
            raise FileNotFoundError("The specified bucket does not exist")
        if not f"{key}/".startswith(self.prefix) or (writes and self.read_only):
            raise PermissionError("Access Denied")

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        bucket, _, key = self._strip_protocol(path).lstrip("/").partition("/")
        if bucket in self.buckets:
            return
        if key and not create_parents:
            raise FileNotFoundError(bucket)
        if self.prefix:
            raise PermissionError("Access Denied: CreateBucket")
        self.buckets.add(bucket)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.check(self._strip_protocol(path).lstrip("/").partition("/")[0])
        self.mkdir(path)


class Disk(Remote):
    """A remote disk: a file can be written only to a folder that is there."""

    def __init__(self, *folders: str) -> None:
        super().__init__()
        self.pseudo_dirs += folders

    def check(self, path: str, *, writes: bool = False) -> None:
        super().check(path)
        parent = self._parent(self._strip_protocol(path))
        if writes and parent not in self.pseudo_dirs:
            raise FileNotFoundError(parent)


class Pieces(Remote):
    """An object store whose client uploads files in pieces, several at a time, as that of S3 does.

    :ivar held: the most bytes of a file that were in memory at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = 0

    def put_file(
        self, lpath: str, rpath: str, chunksize: int = 50 * 2**20, max_concurrency: int = 10, **kwargs: Any
    ) -> None:
        with open(lpath, "rb") as file, self.open(rpath, "wb") as there:  # noqa: PTH123  # what fsspec hands over is text
            while some := file.read(chunksize * max_concurrency):
                self.held = max(self.held, len(some))
                there.write(some)
