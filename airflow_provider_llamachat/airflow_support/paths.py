"""Paths that operators write to: any path of Airflow's object storage, or an absolute local path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.redaction import excerpt

FILE_SYSTEMS = {
    "s3": "apache-airflow-providers-amazon[s3fs]",
    "s3a": "apache-airflow-providers-amazon[s3fs]",
    "gs": "apache-airflow-providers-google",
    "gcs": "apache-airflow-providers-google",
    "abfs": "apache-airflow-providers-microsoft-azure",
    "abfss": "apache-airflow-providers-microsoft-azure",
    "adl": "apache-airflow-providers-microsoft-azure",
    "sftp": "apache-airflow-providers-sftp",
    "ssh": "apache-airflow-providers-sftp",
}
"""Packages that provide common file systems for Airflow."""


def resolved_path(given: Any, name: str) -> Any:
    """Return ``given`` as an ``ObjectStoragePath``, or None if it was not given.

    :param name: name of the argument, for messages.
    :raises InvalidArgumentError: it is not the path of a file, or no file system for it is installed.
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    given = arguments.given(given, name)
    if given is None:
        return None
    text = str(given).strip()
    if "{{" in text or "{%" in text:
        raise InvalidArgumentError(
            f"{name} contains a template that was not rendered. Pass it as text or as Airflow's ObjectStoragePath. "
            f"Got: {excerpt(text, limit=200)!r}."
        )
    if "://" not in text and not isinstance(given, ObjectStoragePath):
        text = _local(text, name)
    try:
        path = given if isinstance(given, ObjectStoragePath) else ObjectStoragePath(text)
        path.fs  # noqa: B018  # raises if the file system is missing
    except (ImportError, ValueError) as problem:
        if not isinstance(problem, ImportError) and not re.search("registered|not known|nsupported", str(problem)):
            raise InvalidArgumentError(
                f"{name} cannot be used, got {excerpt(text, limit=200)!r}: {problem}"
            ) from problem
        scheme = text.partition("://")[0]
        package = FILE_SYSTEMS.get(scheme.lower())
        remedy = f"Install {package}" if package else "Install an Airflow provider for it"
        raise InvalidArgumentError(
            f"{name} starts with {scheme}://, but no file system for it is installed. {remedy} on the workers. "
            f"Cause: {str(problem)[:300]}"
        ) from problem
    if not path.name or text.endswith("/"):
        raise InvalidArgumentError(f"{name} must be the path of a file, got {excerpt(text, limit=200)!r}.")
    return path


def is_same_file(one: Any, other: Any) -> bool:
    """Whether two results of :func:`resolved_path` are the same file. Connections do not tell files apart."""
    return bool(_place(one) == _place(other))


def _place(path: Any) -> tuple[str, str]:
    is_local = path.protocol in {"", "file", "local"}
    return ("file", str(Path(path.path).resolve())) if is_local else (path.protocol, path.path)


def _local(text: str, name: str) -> str:
    try:
        local = Path(text).expanduser()
    except RuntimeError as problem:
        raise InvalidArgumentError(f"{name} cannot be used, got {excerpt(text, limit=200)!r}: {problem}") from None
    if not local.is_absolute():
        raise InvalidArgumentError(
            f"{name} must be an absolute path or a URL, because a relative path depends on the worker. Got: {excerpt(text, limit=200)!r}."
        )
    return str(local) + text[len(text.rstrip("/")) :]
