"""Deferred turns in one event loop, as a triggerer runs them: how long the loop stands still, CPU for an event, memory for a turn."""

from __future__ import annotations

import json
import sys

from airflow_provider_llamachat.testing import EmulatorProcess, Settings
from tests.bench.tables import fresh, table

CODE = """
import asyncio, gc, json, os, resource, ssl, sys, time
import psutil
COUNT, OWN_CONTEXT = {count}, {own_context}
SESSIONS = json.loads(open(os.environ["BENCH_SESSIONS"]).read())
from airflow_provider_llamachat.client import config, aio
from airflow_provider_llamachat.triggers.chat import ChatTurnTrigger
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
import airflow_provider_llamachat.progress
if OWN_CONTEXT:
    import httpx
    aio.ssl_context = httpx.create_ssl_context

class Stalls:
    def __init__(self): self.longest, self.over = 0.0, 0
    async def watch(self):
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.002)
            late = time.perf_counter() - began - 0.002
            self.longest = max(self.longest, late); self.over += late > 0.1

async def one(session):
    trigger = ChatTurnTrigger(llamacloud_conn_id="llamacloud_default", session_id=session, prompt="What was the revenue in Q3?",
        index_ids=["idx-filings"], baseline=0, deadline=time.time() + 300, log_answer=True)
    async for event in trigger.run():
        assert event.payload["state"] == "answered", event.payload

async def main():
    # What a triggerer has done long before: the first connection looked up, the modules imported.
    async with await LlamaCloudHook().get_async_conn(): pass
    gc.collect()
    rss = psutil.Process().memory_info().rss
    stalls = Stalls(); watcher = asyncio.ensure_future(stalls.watch())
    cpu, began = time.process_time(), time.perf_counter()
    peak = rss
    tasks = [asyncio.ensure_future(one(session)) for session in SESSIONS[:COUNT]]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.25)
        peak = max(peak, psutil.Process().memory_info().rss)
    await asyncio.gather(*tasks)
    watcher.cancel()
    print(json.dumps(dict(stall=stalls.longest * 1000, over=stalls.over, cpu=time.process_time() - cpu,
        wall=time.perf_counter() - began, kb=(peak - rss) / 1000 / COUNT)))
import logging; logging.disable(logging.CRITICAL)
asyncio.run(main())
"""


def measure(*, short: bool) -> str:
    """The table."""
    import tempfile
    from pathlib import Path

    counts = (200,) if short else (100, 200, 500, 1000)
    rows = []
    latency = 6.0 if short else 12.0
    with EmulatorProcess(Settings(turn_latency=latency)) as emulator, tempfile.TemporaryDirectory() as folder:
        from airflow_provider_llamachat.client import ClientConfig, LlamaCloudClient

        for count in counts:
            for own in (False, True) if count == 200 else (False,):
                emulator.reset()
                emulator.settings.turn_latency = latency
                with LlamaCloudClient(ClientConfig(api_key=emulator.api_key, base_url=emulator.url)) as client:
                    sessions = [client.create_session(["idx-filings"]).session_id for _ in range(count)]
                file = Path(folder) / "sessions.json"
                file.write_text(json.dumps(sessions))
                environment = {
                    "BENCH_SESSIONS": str(file),
                    "AIRFLOW_CONN_LLAMACLOUD_DEFAULT": emulator.airflow_connection_json,
                }
                got = fresh(CODE.format(count=count, own_context=own), environment=environment)
                posts, completed = emulator.posts(), emulator.completed()
                events = count * _events_of_a_turn(emulator)
                rows.append(
                    (
                        f"{count}{' (a TLS context for each client)' if own else ''}",
                        f"{got['stall']:.0f} ms",
                        f"{got['kb']:.0f} kB",
                        f"{got['cpu'] / events * 1e6:.0f} µs",
                        f"{got['cpu']:.1f} s",
                        f"{got['wall']:.1f} s",
                        completed,
                    )
                )
                assert posts == completed == count, "a turn was asked twice, or lost"
    return table(
        "Deferred turns in one event loop",
        (
            "turns at once",
            "longest loop stall",
            "memory for a turn",
            "CPU for an event",
            "CPU",
            "wall",
            "turns completed",
        ),
        rows,
        f"Each turn streams for {latency:.0f} s, its answer logged. Target: 1,000 turns without a stall over 100 ms, under 60 kB each. "
        f"All turns start in the same moment, which is the worst case. Python {sys.version.split()[0]}.",
    )


def _events_of_a_turn(emulator: EmulatorProcess) -> int:
    from airflow_provider_llamachat.client import ClientConfig, LlamaCloudClient

    keep = emulator.settings.turn_latency
    emulator.settings.turn_latency = 0.0
    with LlamaCloudClient(ClientConfig(api_key=emulator.api_key, base_url=emulator.url)) as client:
        session = client.create_session(["idx-filings"])
        events = client.stream_message(
            session.session_id, "What was the revenue in Q3? (count)", index_ids=["idx-filings"]
        )
        number = sum(1 for _ in events)
        client.delete_session(session.session_id)
    emulator.settings.turn_latency = keep
    return number
