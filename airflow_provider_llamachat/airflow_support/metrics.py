"""Counts turns and tokens in Airflow's metrics.

See https://airflow.apache.org/docs/apache-airflow/stable/administration-and-deployment/logging-monitoring/metrics.html.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow_provider_llamachat.redaction import excerpt

log = logging.getLogger(__name__)


def count_turn(outcome: str, usage: dict[str, Any] | None = None) -> None:
    """Count a turn: ``llamachat.turns`` (tag ``outcome``: answered, failed or interrupted) and ``llamachat.tokens`` (tag ``direction``)."""
    try:
        from airflow.providers.common.compat.sdk import Stats

        Stats.incr("llamachat.turns", tags={"outcome": outcome})
        for direction in ("input", "output"):
            if tokens := (usage or {}).get(f"total_{direction}_tokens"):
                Stats.incr("llamachat.tokens", int(tokens), tags={"direction": direction})
    except Exception as problem:  # noqa: BLE001  # metrics back ends raise exceptions of any class
        log.warning("A turn was not counted (%s: %s).", type(problem).__name__, excerpt(str(problem), limit=200))
