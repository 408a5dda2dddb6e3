"""A batch beside the ways people ask many questions without it: wall time against the ideal, memory, mapped tasks, the SDK in a loop."""

from __future__ import annotations

import math
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow_provider_llamachat.testing import EmulatorProcess, Settings
from tests.bench.tables import fresh, table

CONCURRENCY = 32
MAPPED_AT_ONCE = 8
"""Mapped tasks that run at the same time: four for each core here; more only makes each of them slower."""

CODE = """
import asyncio, json, logging, os, re, tempfile, time
from pathlib import Path
from airflow_provider_llamachat.batch.engine import Batch
from airflow_provider_llamachat.batch.items import BatchScope, parse
from airflow_provider_llamachat.batch.journal import PartsJournal
from airflow_provider_llamachat.batch.sessions import Options
from airflow_provider_llamachat.client import AsyncLlamaCloudClient, ClientConfig
from airflow_provider_llamachat.client.throttle import Throttle
from airflow.providers.common.compat.sdk import BaseOperator, ObjectStoragePath
COUNT = {count}
logging.disable(logging.CRITICAL)
scope, options = BatchScope("dag", "task", "run"), Options(index_ids=["idx-filings"], max_concurrency={concurrency})
config = ClientConfig(api_key=os.environ["BENCH_KEY"], base_url=os.environ["BENCH_URL"])

def peak():  # in MiB; getrusage also has that of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

async def main(folder):
    items = parse([f"Question {{number}}: what was the revenue in Q3?" for number in range(COUNT)], index_ids=options.index_ids)
    output = ObjectStoragePath(f"file://{{folder}}/results.jsonl")
    async with await AsyncLlamaCloudClient.open(config, throttle=Throttle()) as client:
        before = peak()
        cpu, began = time.process_time(), time.perf_counter()
        report = await Batch(client, items, scope, options, PartsJournal(output, scope), logging.getLogger("bench")).run()
        # Before the results are read below.
        found = dict(seconds=time.perf_counter() - began, cpu=time.process_time() - cpu, before=before, peak=peak())
    assert report.results.counts["answered"] == COUNT == len(Path(folder, "results.jsonl").read_bytes().splitlines())
    return found

with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(asyncio.run(main(folder))))
"""

SDK = """
import json, os, time, llama_cloud
client = llama_cloud.LlamaCloud(api_key=os.environ["BENCH_KEY"], base_url=os.environ["BENCH_URL"])
began = time.perf_counter()
for number in range({count}):
    session = client.chat.create(index_ids=["idx-filings"])
    client.chat.stream(session.session_id, index_ids=["idx-filings"], prompt=f"Question {{number}}: what was the revenue in Q3?")
print(json.dumps(dict(seconds=time.perf_counter() - began)))
"""


def _batch(emulator: EmulatorProcess, count: int, concurrency: int = CONCURRENCY) -> dict[str, Any]:
    environment = {"BENCH_URL": emulator.url, "BENCH_KEY": emulator.api_key}
    result = fresh(CODE.format(count=count, concurrency=concurrency), environment=environment, timeout=900)
    emulator.reset()
    return result


def _airflow(emulator: EmulatorProcess, count: int) -> tuple[float, float, str]:
    """Seconds for ``count`` prompts as mapped tasks, and as one batch, on a whole Airflow; and which Airflow."""
    from tests.system.stack import AirflowStack

    dags = [Path(__file__).parent / "dags" / "mapped_or_batch.py"]
    environment = {"AIRFLOW_CONN_LLAMACLOUD_DEFAULT": emulator.airflow_connection_json}
    with (
        tempfile.TemporaryDirectory() as folder,
        AirflowStack(dags=dags, environment=environment, parallelism=MAPPED_AT_ONCE) as stack,
    ):
        run = stack.trigger("bench_mapped", {"count": count})
        _succeed(stack.wait(run, timeout=60 + 15 * count))
        ends = [_moment(stack.task(run, "ask", map_index=number)["end_date"]) for number in range(count)]
        mapped = max(ends) - _moment(stack.task(run, "questions")["end_date"])
        conf = {
            "prompts": [f"Question {number}?" for number in range(count)],
            "output": f"file://{folder}/results.jsonl",
        }
        began = time.time()
        run = stack.trigger("bench_batch", conf)
        _succeed(stack.wait(run, timeout=120))
        return mapped, _moment(stack.task(run, "ask")["end_date"]) - began, stack.version_text


def _succeed(state: str) -> None:
    if state != "success":
        raise RuntimeError(f"the run that was measured ended as {state}")


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def measure(*, short: bool) -> str:
    """Three tables: wall time, memory, and what a task for each prompt costs."""
    latency, many = (0.5, 128) if short else (1.0, 1000)
    few, mapped_count = (4, 4) if short else (12, 32)
    sizes = (100, 400) if short else (100, 1000, 10_000)
    with EmulatorProcess() as emulator:
        settings = Settings(turn_latency=latency, events_per_turn=20)
        emulator.settings = settings
        batch = _batch(emulator, many)
        emulator.settings = settings
        environment = {"BENCH_URL": emulator.url, "BENCH_KEY": emulator.api_key}
        began = time.perf_counter()
        sdk = fresh(SDK.format(count=few), environment=environment)["seconds"]
        assert time.perf_counter() - began > few * latency
        emulator.reset()
        emulator.settings = settings
        mapped, one_task, version = _airflow(emulator, mapped_count)
        emulator.reset()
        memory = {}
        for size in sizes:
            emulator.settings = Settings(turn_latency=0.02, events_per_turn=20)
            memory[size] = _batch(emulator, size)
    ideal = math.ceil(many / CONCURRENCY) * latency
    sdk_all, mapped_all = sdk / few * many, mapped / mapped_count * many
    batch_seconds = batch["seconds"]
    walls = table(
        f"{many:,} prompts",
        ("how", "ratio to the ideal", "seconds"),
        [
            (f"ideal: {many:,} / {CONCURRENCY} turns of {latency:g} s", "1.00x", f"{ideal:.1f}"),
            (
                f"ChatBatchOperator's engine, {CONCURRENCY} at once",
                f"{batch_seconds / ideal:.2f}x",
                f"{batch_seconds:.1f}",
            ),
            (
                f"a mapped task for each, {MAPPED_AT_ONCE} at once (extrapolated from {mapped_count})",
                f"{mapped_all / ideal:.1f}x",
                f"{mapped_all:.0f}",
            ),
            (f"official SDK in a loop (extrapolated from {few})", f"{sdk_all / ideal:.1f}x", f"{sdk_all:.0f}"),
        ],
        f"Each prompt in a session of its own, opened within the measured time; the emulator in a process of its own. The batch took "
        f"{1000 * batch['cpu'] / many:.1f} ms of CPU for each prompt. Target: at most 1.15x.",
    )
    tasks = table(
        "What a task for each prompt costs",
        ("how", "seconds for each prompt", f"seconds for {mapped_count}"),
        [
            ("one ChatBatchOperator, its task's start included", f"{one_task / mapped_count:.2f}", f"{one_task:.1f}"),
            (f"mapped tasks, {MAPPED_AT_ONCE} at once", f"{mapped / mapped_count:.2f}", f"{mapped:.1f}"),
        ],
        f"Airflow {version}, LocalExecutor, scheduler and API server on the same machine. Mapped tasks: from the moment their prompts were "
        f"known to the last one's end; the batch: from the order to run it to its end. Turns of {latency:g} s.",
    )
    base = memory[sizes[0]]["peak"]
    flat = table(
        "Memory of a batch",
        ("prompts", f"ratio to {sizes[0]}", "peak RSS", "before the batch", "prompts a second"),
        [
            (
                f"{size:,}",
                f"{found['peak'] / base:.2f}x",
                f"{found['peak']:.0f} MiB",
                f"{found['before']:.0f} MiB",
                f"{size / found['seconds']:.0f}",
            )
            for size, found in memory.items()
        ],
        f"One process, {CONCURRENCY} turns of 0.02 s at once; results merged and written. Growth from {sizes[0]:,} to {sizes[-1]:,} "
        f"prompts: {1024 * (memory[sizes[-1]]['peak'] - base) / (sizes[-1] - sizes[0]):.1f} KiB for each.",
    )
    return f"{walls}\n{tasks}\n{flat}"
