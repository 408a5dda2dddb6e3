"""The environment with an older Airflow, for the form that it has: built by uv under ``build/``, kept between runs."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tests.uv import uv

PYTHONS = ">=3.11,<3.13"
"""What Airflow 2.11 runs on, as far as this provider does too."""


def airflow_environment(version: str, repository: Path) -> Path:
    """Return the interpreter of an environment with this Airflow and this provider; build it where it is missing.

    :raises RuntimeError: uv, an interpreter or a package is missing; with what was said about it.
    """
    declared = (repository / "pyproject.toml").read_bytes()
    folder = repository / "build" / "browser" / f"airflow-{version}-{hashlib.sha256(declared).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    complete = folder / ".complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        uv("venv", "--quiet", "--python", PYTHONS, str(folder))
        # With a newer one, the old form refuses a value without showing why.
        packages = (f"apache-airflow=={version}", "wtforms<3.3", str(repository))
        uv("pip", "install", "--quiet", "--python", str(python), *packages)
        complete.touch()
    # The provider itself is always the one of this moment.
    uv("pip", "install", "--quiet", "--python", str(python), "--no-deps", "--reinstall", str(repository))
    return python
