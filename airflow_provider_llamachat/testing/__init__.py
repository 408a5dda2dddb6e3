"""A LlamaCloud for tests: a real HTTP server that injects faults on demand and keeps a log of what it received.

Install the extra ``testing``; then::

    from airflow_provider_llamachat.testing import Fault, LlamaCloudEmulator

    with LlamaCloudEmulator() as emulator:
        emulator.inject(Fault("reset_after", endpoint="create"))
        ...  # a client at emulator.url with emulator.api_key
        assert emulator.posts() == 1

or run ``python -m airflow_provider_llamachat.testing``, or use the pytest fixtures of :mod:`.pytest_plugin`. Names are loaded on
first use, and only :class:`LlamaCloudEmulator` needs aiohttp: a remote control works without the extra.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_llamachat.testing.control import EmulatorControl, EmulatorProcess
    from airflow_provider_llamachat.testing.faults import Fault, RequestRecord, TurnRecord
    from airflow_provider_llamachat.testing.server import LlamaCloudEmulator
    from airflow_provider_llamachat.testing.settings import Settings

DEFAULT_ORGANIZATION_ID = "0a7e1f00-0000-4000-8000-000000000001"
OTHER_ORGANIZATION_ID = "0a7e1f00-0000-4000-8000-000000000002"
DEFAULT_PROJECT_ID = "9b0f5c00-0000-4000-8000-000000000001"
"""The project of a request without ``project_id``."""
OTHER_PROJECT_ID = "9b0f5c00-0000-4000-8000-000000000002"
"""Second project of the default organization."""
FOREIGN_PROJECT_ID = "9b0f5c00-0000-4000-8000-000000000003"
"""The only, hence default, project of the other organization."""

INDEX_FILINGS = "idx-filings"
INDEX_HANDBOOK = "idx-handbook"
INDEX_BUILDING = "idx-building"
"""An index that is not ready until a test says so."""
INDEX_FAILED = "idx-failed"
INDEX_OTHER_PROJECT = "idx-contracts"
"""A ready index of :data:`OTHER_PROJECT_ID`."""

__all__ = ["EmulatorControl", "EmulatorProcess", "LlamaCloudEmulator"]
__all__ += ["Fault", "RequestRecord", "Settings", "TurnRecord"]
__all__ += ["DEFAULT_ORGANIZATION_ID", "DEFAULT_PROJECT_ID"]
__all__ += ["FOREIGN_PROJECT_ID", "OTHER_ORGANIZATION_ID", "OTHER_PROJECT_ID"]
__all__ += ["INDEX_BUILDING", "INDEX_FAILED", "INDEX_FILINGS", "INDEX_HANDBOOK", "INDEX_OTHER_PROJECT"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"Settings": "settings", "LlamaCloudEmulator": "server"}.get(name, "control")
    try:
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        message = "The LlamaCloud emulator needs aiohttp. Install the extra: pip install 'airflow-provider-llamachat[testing]'"
        raise ImportError(message, name="aiohttp") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
