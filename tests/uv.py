"""uv, which comes with the development environment: builds environments with other Airflows, on interpreters that are there."""

from __future__ import annotations

import os
import subprocess
import sys


def uv(*arguments: str) -> str:
    """Run uv; return what it printed.

    :raises RuntimeError: it failed; with what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments],
        # Like pip, it trusts what the system trusts; it fetches no interpreter from elsewhere.
        env={**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_SYSTEM_CERTS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"uv {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
