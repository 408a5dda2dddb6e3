"""What naming an operator costs a Dag file, on top of ``airflow.sdk`` itself, beside the peers."""

from __future__ import annotations

from typing import Any

from tests.bench.tables import fresh, middle, table

CODE = """
import json, os, sys, time
from airflow.providers.common.compat.sdk import DAG, BaseOperator, BaseHook, AirflowException, conf, task
DAG, BaseOperator, BaseHook, AirflowException, conf, task
import psutil
process = psutil.Process()
before, rss = set(sys.modules), process.memory_info().rss
began = time.perf_counter()
{statement}
seconds = time.perf_counter() - began
new = set(sys.modules) - before
print(json.dumps({{"ms": seconds * 1000, "modules": len(new), "mib": (process.memory_info().rss - rss) / 2**20,
    "heavy": sorted(new & {{"httpx", "pydantic", "httpcore", "httpx_sse", "openai", "anthropic", "requests", "aiohttp"}})}}))
"""

SUBJECTS = {
    "airflow-provider-llamachat (operators that create, ask, delete)": "import airflow_provider_llamachat.operators.chat",
    "airflow-provider-llamachat (chat, batch, sensor, decorator)": (
        "import airflow_provider_llamachat.operators.chat, airflow_provider_llamachat.operators.batch, "
        "airflow_provider_llamachat.sensors.index, airflow_provider_llamachat.decorators.chat"
    ),
    "HttpOperator": "import airflow.providers.http.operators.http",
    "OpenAI provider (agent operator)": "import airflow.providers.openai.operators.agent",
    "Anthropic provider (agent operator)": "import airflow.providers.anthropic.operators.agent",
    "official SDK (llama_cloud)": "import llama_cloud",
}


def measure(*, short: bool) -> str:
    """The table."""
    rounds = 3 if short else 9
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in SUBJECTS}
    for _ in range(rounds):
        for name, statement in SUBJECTS.items():
            results[name].append(fresh(CODE.format(statement=statement)))
    base = middle(float(item["ms"]) for item in results[next(iter(SUBJECTS))])
    rows = []
    for name, items in results.items():
        ms = middle(float(item["ms"]) for item in items)
        mib = middle(float(item["mib"]) for item in items)
        heavy = ", ".join(items[0]["heavy"]) or "none"
        rows.append((name, f"{ms / base:.1f}x", f"{ms:.0f} ms", items[0]["modules"], f"{mib:.1f} MiB", heavy))
    return table(
        "Importing an operator",
        ("what", "ratio to ours", "time", "modules", "memory", "clients and models imported"),
        rows,
        f"In a fresh interpreter, after Airflow's own SDK; median of {rounds} runs. Target: at most 30 ms and no client library.",
    )
