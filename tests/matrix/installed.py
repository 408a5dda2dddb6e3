"""A pytest plugin (``-p tests.matrix.installed``): fails a run in which any module of the package is not the installed one."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

PACKAGE = "airflow_provider_llamachat"


def strangers() -> list[str]:
    """The files of loaded modules of the package that lie outside of this environment's site-packages."""
    site_packages = Path(sysconfig.get_path("purelib")).resolve()
    loaded = [module for name, module in sys.modules.items() if name.split(".")[0] == PACKAGE]
    files = [Path(file).resolve() for module in loaded if (file := getattr(module, "__file__", None))]
    return sorted(str(file) for file in files if not file.is_relative_to(site_packages))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Look when everything was imported; each process of pytest-xdist looks for itself."""
    if PACKAGE not in sys.modules:
        raise pytest.UsageError(f"{PACKAGE} was not imported: its pytest plugin is not installed")
    if found := strangers():
        raise pytest.UsageError(f"These are not of the installed wheel: {found}")
