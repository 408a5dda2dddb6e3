"""A LlamaCloud for tests: a real HTTP server with faults on demand and a log of what it received.

Install the extra ``testing``; then::

    from airflow_provider_llamachat.testing import Fault, LlamaCloudEmulator

    with LlamaCloudEmulator() as emulator:
        emulator.inject(Fault("reset_after", endpoint="create"))
        ...  # a client at emulator.url with emulator.api_key
        assert emulator.posts() == 1

or ``python -m airflow_provider_llamachat.testing``, or the pytest fixtures of :mod:`.pytest_plugin`. Names are loaded when they are
first used, and only :class:`LlamaCloudEmulator` needs aiohttp, so a remote control works without the extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_llamachat.testing.control import EmulatorControl
    from airflow_provider_llamachat.testing.corpus import (
        DEFAULT_ORGANIZATION_ID,
        DEFAULT_PROJECT_ID,
        FOREIGN_PROJECT_ID,
        INDEX_BUILDING,
        INDEX_FAILED,
        INDEX_FILINGS,
        INDEX_HANDBOOK,
        INDEX_OTHER_PROJECT,
        OTHER_ORGANIZATION_ID,
        OTHER_PROJECT_ID,
    )
    from airflow_provider_llamachat.testing.emulator import LlamaCloudEmulator
    from airflow_provider_llamachat.testing.faults import Fault
    from airflow_provider_llamachat.testing.ledger import RequestRecord, TurnRecord
    from airflow_provider_llamachat.testing.process import EmulatorProcess
    from airflow_provider_llamachat.testing.settings import Settings

__all__ = [
    "DEFAULT_ORGANIZATION_ID",
    "DEFAULT_PROJECT_ID",
    "FOREIGN_PROJECT_ID",
    "INDEX_BUILDING",
    "INDEX_FAILED",
    "INDEX_FILINGS",
    "INDEX_HANDBOOK",
    "INDEX_OTHER_PROJECT",
    "OTHER_ORGANIZATION_ID",
    "OTHER_PROJECT_ID",
    "EmulatorControl",
    "EmulatorProcess",
    "Fault",
    "LlamaCloudEmulator",
    "RequestRecord",
    "Settings",
    "TurnRecord",
]

_HOMES = {
    "EmulatorControl": "control",
    "EmulatorProcess": "process",
    "Fault": "faults",
    "LlamaCloudEmulator": "emulator",
    "RequestRecord": "ledger",
    "Settings": "settings",
    "TurnRecord": "ledger",
}

INSTALL_HINT = (
    "The LlamaCloud emulator needs aiohttp. Install the extra: pip install 'airflow-provider-llamachat[testing]'"
)
"""What is said when aiohttp is missing."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'corpus')}")
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise ImportError(INSTALL_HINT, name=error.name) from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
