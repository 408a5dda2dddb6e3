"""Deferred turns in one event loop, as a triggerer runs them: how long the loop stands still, CPU for an event, memory for a turn."""

from __future__ import annotations

import json
import sys

from airflow_provider_llamachat.testing import EmulatorProcess, Settings
from tests.bench.tables import fresh, table

CODE = """
import asyncio, gc, json, os, resource, ssl, sys, time
import psutil
COUNT, WHO = {count}, {who!r}
SESSIONS = json.loads(open(os.environ["BENCH_SESSIONS"]).read())
from airflow_provider_llamachat.client import http
from airflow_provider_llamachat.triggers.chat import ChatTurnTrigger
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
import airflow_provider_llamachat.airflow_support.turn_log
import httpx, httpx_sse
if WHO == "own context":
    http.ssl_context = httpx.create_ssl_context

class Stalls:
    def __init__(self): self.longest = self.ours = self.collection = self.collecting = 0.0; gc.callbacks.append(self.collect)
    def collect(self, phase, info):
        if phase == "start": self.since = time.perf_counter()
        else:
            took = time.perf_counter() - self.since
            self.collection = max(self.collection, took); self.collecting += took
    async def watch(self):
        while True:
            began, collecting = time.perf_counter(), self.collecting
            await asyncio.sleep(0.002)
            late = time.perf_counter() - began - 0.002
            self.longest = max(self.longest, late)
            self.ours = max(self.ours, late - (self.collecting - collecting))

async def one(session):
    trigger = ChatTurnTrigger(llamacloud_conn_id="llamacloud_default", session_id=session, prompt="What was the revenue in Q3?",
        index_ids=["idx-filings"], baseline=0, deadline=time.time() + 300, log_answer=True)
    async for event in trigger.run():
        assert event.payload["state"] == "answered", event.payload

async def raw(session, client):
    # What a program has to do at the least: one stream on one client that all share, its answer logged.
    body = dict(prompt="What was the revenue in Q3?", index_ids=["idx-filings"])
    async with httpx_sse.aconnect_sse(client, "POST", f"/api/v1/chat/{{session}}/messages/stream", json=body) as source:
        log = airflow_provider_llamachat.airflow_support.turn_log.TurnLog(logging.getLogger("raw"))
        async for sse in source.aiter_sse():
            if sse.data: log(airflow_provider_llamachat.models.parse_event(json.loads(sse.data)))

async def main():
    # What a triggerer has done long before: the first connection looked up, the modules imported.
    async with await LlamaCloudHook().get_async_conn(): pass
    stalls = Stalls()
    gc.collect()
    before = stalls.collection
    stalls.collection = stalls.collecting = 0.0
    rss = psutil.Process().memory_info().rss
    watcher = asyncio.ensure_future(stalls.watch())
    cpu, began = time.process_time(), time.perf_counter()
    peak = rss
    config = LlamaCloudHook().get_config()
    client = httpx.AsyncClient(base_url=config.base_url, headers=dict(Authorization="Bearer " + config.api_key), timeout=60,
        limits=httpx.Limits(max_connections=None)) if WHO == "raw httpx" else None
    tasks = [asyncio.ensure_future(raw(session, client) if client else one(session)) for session in SESSIONS[:COUNT]]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.25)
        peak = max(peak, psutil.Process().memory_info().rss)
    await asyncio.gather(*tasks)
    watcher.cancel()
    print(json.dumps(dict(stall=stalls.longest * 1000, ours=stalls.ours * 1000, collection=stalls.collection * 1000,
        before=before * 1000, cpu=time.process_time() - cpu,
        wall=time.perf_counter() - began, kb=(peak - rss) / 1000 / COUNT)))
import logging; logging.disable(logging.CRITICAL)
import airflow_provider_llamachat.conversation.ask, airflow_provider_llamachat.client.sse, airflow_provider_llamachat.client.aio
asyncio.run(main())
"""


PEERS = {200: ("own context",), 1000: ("raw httpx",)}
"""What runs beside ours, by the number of turns."""


def measure(*, short: bool) -> str:
    """The table."""
    import tempfile
    from pathlib import Path

    counts = (200,) if short else (100, 200, 500, 1000)
    rows: list[tuple[object, ...]] = []
    ours: dict[str, float] = {}
    latency = 6.0 if short else 12.0
    with EmulatorProcess(Settings(turn_latency=latency)) as emulator, tempfile.TemporaryDirectory() as folder:
        from airflow_provider_llamachat.client import ClientConfig, LlamaCloudClient

        for count in counts:
            for who in ("ours", *PEERS.get(count, ())):
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
                got = fresh(CODE.format(count=count, who=who), environment=environment)
                posts, completed = emulator.posts(), emulator.completed()
                events = count * _events_of_a_turn(emulator)
                if who == "ours":
                    ours = got
                rows.append(
                    (
                        count,
                        who,
                        f"{got['ours'] / ours['ours']:.1f}x",
                        f"{got['ours']:.0f} ms",
                        f"{got['collection']:.0f} ms ({got['before']:.0f} ms)",
                        f"{got['stall']:.0f} ms",
                        f"{got['kb']:.0f} kB",
                        f"{got['cpu'] / events * 1e6:.0f} µs",
                        f"{got['wall']:.1f} s",
                        completed,
                    )
                )
                assert posts == completed == count, "a turn was asked twice, or lost"
    return table(
        "Deferred turns in one event loop",
        (
            "turns at once",
            "who",
            "ratio of the stall to ours",
            "longest stall but for collections",
            "longest collection (before any turn)",
            "longest stall",
            "memory for a turn",
            "CPU for an event",
            "wall",
            "turns completed",
        ),
        rows,
        f"Each turn streams for {latency:.0f} s, its answer logged; all start in the same moment, which is the worst case. Python "
        f"{sys.version.split()[0]}. Its garbage collector stops the loop for as long as it takes to look at everything in the process, "
        "Airflow itself included: the figure in brackets is that of a process that has imported what a triggerer has, and no turn yet. "
        "Target: 1,000 turns without a stall over 100 ms of our own, under 60 kB each. *raw httpx*: one client for all, one request "
        "for each, no history read, no retry. *own context*: a TLS context for each client.",
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
