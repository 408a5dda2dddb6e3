"""Reads an Airflow connection into the configuration of a client, and keeps its secrets out of logs."""

from __future__ import annotations

import difflib
import importlib
import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.exceptions import LlamaCloudConfigError
from airflow_provider_llamachat.provider_info import CONNECTION_TYPE
from airflow_provider_llamachat.redaction import excerpt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_llamachat.client import ClientConfig

log = logging.getLogger(__name__)

_warned: set[str] = set()

# Loggers of the different Airflow versions that warn about secrets that are too short to be masked.
_MASKERS = (
    "airflow.sdk._shared.secrets_masker.secrets_masker",
    "airflow._shared.secrets_masker.secrets_masker",
    "airflow.sdk.execution_time.secrets_masker",
    "airflow.utils.log.secrets_masker",
)

# Where the different Airflow versions have the function that masks a secret. common-compat before 1.21 does not have it.
_MASK_SECRET_IN = (
    "airflow.providers.common.compat.sdk",
    "airflow.sdk.log",
    "airflow.sdk.execution_time.secrets_masker",
    "airflow.utils.log.secrets_masker",
)


def read(connection: Connection, conn_id: str) -> ClientConfig:
    """Return the validated configuration of a connection.

    :raises LlamaCloudConfigError: the connection is of another type, or invalid.
    """
    from airflow_provider_llamachat.client import ClientConfig

    kind = CONNECTION_TYPE["connection-type"]
    if connection.conn_type != kind:
        # The password of another service must not be sent to LlamaCloud, nor to its own host.
        raise LlamaCloudConfigError(
            f"The connection {excerpt(conn_id, limit=100)!r} is of type {excerpt(str(connection.conn_type or 'unknown'), limit=60)}, "
            f"not {kind}. Nothing was sent. Set llamacloud_conn_id to a connection of type LlamaCloud, or correct its "
            "type."
        )
    extra = _extra(connection)
    config = ClientConfig.build(
        api_key=connection.password,
        host=connection.host,
        port=connection.port,
        scheme=connection.schema,
        **{name: extra.get(name) for name in CONNECTION_TYPE["conn-fields"]},
    )
    if config.is_plain_http:
        _warn_once(
            f"The LlamaCloud connection's Base URL uses plain http, so the API key and all data are sent unencrypted. Use https. "
            f"Base URL: {config.base_url}."
        )
    return config


def _extra(connection: Connection) -> dict[str, Any]:
    """Return the connection's extra, and warn about unknown fields.

    Airflow's ``extra_dejson`` is not used, because it masks each value as a secret and ignores invalid JSON.

    :raises LlamaCloudConfigError: extra is not a JSON object.
    """
    try:
        extra = json.loads((connection.extra or "").strip() or "null")
    except ValueError:  # Airflow raises it too, for an invalid stored extra
        extra = ""
    if extra is None:
        return {}
    if not isinstance(extra, dict):
        raise LlamaCloudConfigError(
            'The LlamaCloud connection\'s extra is not a JSON object. Write its fields like {"region": "eu"}, or leave it empty.'
        )
    known = list(CONNECTION_TYPE["conn-fields"])
    for name in extra:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Valid fields: {', '.join(known)}."
            _warn_once(
                f"The LlamaCloud connection's extra field {excerpt(name, limit=60)!r} is unknown and has no effect. {hint}"
            )
    return extra


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        log.warning("%s", message)


@contextmanager
def without_noise() -> Iterator[None]:
    """Suppress Airflow's warning that a value of the connection's extra is too short to be masked."""

    def is_of_use(record: logging.LogRecord) -> bool:
        return "too short" not in record.getMessage()

    loggers = [logging.getLogger(name) for name in _MASKERS]
    for logger in loggers:
        logger.addFilter(is_of_use)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_of_use)


def mask_secret(secret: str) -> None:
    """Mask ``secret`` in all logs of this process.

    :raises ImportError: this Airflow is not supported, because it has no such function.
    """
    for name in _MASK_SECRET_IN:
        try:
            mask = importlib.import_module(name).mask_secret
        except (ImportError, AttributeError):
            continue
        mask(secret)
        return
    raise ImportError("This Airflow is not supported, because it has no function that masks secrets in logs.")
