"""What a call costs beside raw httpx, the official SDK and requests: on a warm client, and the first one in a process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from airflow_provider_llamachat.testing import INDEX_FILINGS, EmulatorProcess
from tests.bench.tables import fresh, middle, table

FIRST = {
    "raw httpx": "import httpx; httpx.Client(base_url=URL, headers=HEADERS).post('/api/v1/chat', json=BODY).raise_for_status()",
    "ours (client)": (
        "from airflow_provider_llamachat.client import ClientConfig, LlamaCloudClient; "
        "LlamaCloudClient(ClientConfig(api_key=KEY, base_url=URL)).create_session(BODY['index_ids'])"
    ),
    "official SDK": (
        "import llama_cloud; llama_cloud.LlamaCloud(api_key=KEY, base_url=URL).chat.create(index_ids=BODY['index_ids'])"
    ),
    "requests": "import requests; requests.post(URL + '/api/v1/chat', json=BODY, headers=HEADERS).raise_for_status()",
}

FIRST_CODE = """
import json, os, time
# A task process has Airflow's SDK already, whatever its operator calls.
from airflow.providers.common.compat.sdk import AirflowFailException, BaseHook; AirflowFailException, BaseHook
URL, KEY, BODY = os.environ["BENCH_URL"], os.environ["BENCH_KEY"], {body!r}
HEADERS = {{"Authorization": "Bearer " + KEY}}
began = time.perf_counter()
{statement}
print(json.dumps({{"ms": (time.perf_counter() - began) * 1000}}))
"""


def _senders(emulator: EmulatorProcess) -> dict[str, Callable[[], Any]]:
    import httpx
    import llama_cloud
    import requests

    from airflow_provider_llamachat.client import ClientConfig, LlamaCloudClient
    from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

    body = {"index_ids": [INDEX_FILINGS]}
    headers = {"Authorization": f"Bearer {emulator.api_key}"}
    raw = httpx.Client(base_url=emulator.url, headers=headers)
    session = requests.Session()
    session.headers.update(headers)
    os.environ["AIRFLOW_CONN_LLAMACLOUD_DEFAULT"] = emulator.airflow_connection_json
    hook = LlamaCloudHook()
    client = LlamaCloudClient(ClientConfig(api_key=emulator.api_key, base_url=emulator.url))
    sdk = llama_cloud.LlamaCloud(api_key=emulator.api_key, base_url=emulator.url)
    return {
        "raw httpx": lambda: raw.post("/api/v1/chat", json=body).raise_for_status().json(),
        "ours (client)": lambda: client.create_session([INDEX_FILINGS]),
        "ours (hook)": lambda: hook.create_session([INDEX_FILINGS]),
        "official SDK": lambda: sdk.chat.create(index_ids=[INDEX_FILINGS]),
        "requests": lambda: session.post(f"{emulator.url}/api/v1/chat", json=body).json(),
    }


def measure(*, short: bool) -> str:
    """Both tables."""
    rounds, calls = (5, 40) if short else (25, 100)
    with EmulatorProcess() as emulator:
        senders = _senders(emulator)
        times: dict[str, list[float]] = {name: [] for name in senders}
        for number in range(rounds + 1):
            for name, send in senders.items():
                began = time.perf_counter()
                for _ in range(calls):
                    send()
                if number:  # the first round warms connections and caches
                    times[name].append((time.perf_counter() - began) / calls * 1e6)
            emulator.reset()
        # The fastest round is the one that other processes disturbed least; all are measured in turns within one run.
        best = {name: min(values) for name, values in times.items()}
        warm = table(
            "Creating a session on a warm client",
            ("who", "ratio to raw httpx", "fastest round", "median round"),
            [
                (n, f"{best[n] / best['raw httpx']:.2f}x", f"{best[n]:.0f} µs", f"{middle(times[n]):.0f} µs")
                for n in senders
            ],
            f"A whole call against the emulator on loopback, {rounds} rounds of {calls} calls each. Target: at most 1.15x raw httpx, and "
            "faster than the SDK.",
        )
        environment = {"BENCH_URL": emulator.url, "BENCH_KEY": emulator.api_key}
        first = {
            name: [
                fresh(
                    FIRST_CODE.format(statement=statement, body={"index_ids": [INDEX_FILINGS]}), environment=environment
                )["ms"]
                for _ in range(3 if short else 9)
            ]
            for name, statement in FIRST.items()
        }
    base = middle(first["raw httpx"])
    cold = table(
        "The first call in a fresh process",
        ("who", "ratio to raw httpx", "time"),
        [(name, f"{middle(values) / base:.2f}x", f"{middle(values):.0f} ms") for name, values in first.items()],
        "In a process that has imported Airflow's SDK, as every task has: imports, TLS context, client and one create; median. "
        "Target: at most 1.4x raw httpx.",
    )
    return warm + "\n" + cold
