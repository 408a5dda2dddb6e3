"""Lives of one question, for the tests here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_llamachat.testing import LlamaCloudEmulator
from tests.doubt.lives import Life, Mode, connect, without_pauses

__all__ = ["without_pauses"]


@pytest.fixture(params=["worker", "deferred", "batch"])
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen


@pytest.fixture
def life(
    mode: Mode, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Life]:
    """Begins a life; ``extra`` goes into the connection."""

    def begin(*, extra: dict[str, Any] | None = None, **values: Any) -> Life:
        connect(llamacloud_emulator, monkeypatch, **(extra or {}))
        return Life(llamacloud_emulator, mode, tmp_path, **values)

    return begin
