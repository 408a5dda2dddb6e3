"""Airflow's function that masks a secret in logs, wherever this Airflow has it."""

from __future__ import annotations

import importlib

_MODULES = (
    "airflow.providers.common.compat.sdk",
    # common-compat before 1.21 does not have it.
    "airflow.sdk.log",
    "airflow.sdk.execution_time.secrets_masker",
    "airflow.utils.log.secrets_masker",
)


def mask_secret(secret: str) -> None:
    """Mask ``secret`` in all logs of this process.

    :raises ImportError: this Airflow is not supported, because it has no such function.
    """
    for name in _MODULES:
        try:
            mask = importlib.import_module(name).mask_secret
        except (ImportError, AttributeError):
            continue
        mask(secret)
        return
    raise ImportError("This Airflow is not supported, because it has no function that masks secrets in logs.")
