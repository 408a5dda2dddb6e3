"""Reading a stream: events a second at three sizes, and memory while a ten-megabyte answer goes to the task log."""

from __future__ import annotations

from tests.bench.tables import fresh, table

FOLD = """
import json, time
from airflow_provider_llamachat.client.sse import EventReader
from airflow_provider_llamachat.conversation.history import TurnFolder
def block(item): return ("event: x\\ndata: " + json.dumps(item) + "\\n\\n").encode()
delta = block(dict(type="text_delta", content="a few words of it "))
def chunks(n):
    for _ in range(n // 10): yield delta * 10
    yield block(dict(type="stop", usage=dict(turns=1), is_error=False, error=None))
best = 1e9
for _ in range(3):
    folder = TurnFolder("s", "p"); began = time.perf_counter(); seen = 0
    reader = EventReader("s")
    for chunk in chunks({count}):
        for event in reader.feed(chunk): folder.add(event); seen += 1
    best = min(best, time.perf_counter() - began)
assert folder.finished and seen == {count} + 1
print(json.dumps(dict(seconds=best)))
"""

MEMORY = """
import json, logging, resource, tracemalloc
from airflow_provider_llamachat.client.sse import EventReader
from airflow_provider_llamachat.airflow_support.turn_log import TurnLog
size = {size}
class Count(logging.Handler):
    lines = 0
    def emit(self, record): self.lines += 1
log = logging.getLogger("turn"); log.setLevel(logging.INFO); log.propagate = False; handler = Count(); log.addHandler(handler)
def block(item): return ("data: " + json.dumps(item) + "\\n\\n").encode()
delta = block(dict(type="text_delta", content="ten words of an answer that goes on for ever "))
def chunks():
    for _ in range(size // 45): yield delta
tracemalloc.start()
shown = TurnLog(log)
reader = EventReader("s")
for chunk in chunks():
    for event in reader.feed(chunk): shown(event)
print(json.dumps(dict(peak=tracemalloc.get_traced_memory()[1] / 1e6, lines=handler.lines)))
"""


def measure(*, short: bool) -> str:
    """Both tables."""
    base = 1_000 if short else 5_000
    counts = (base, 10 * base, 100 * base)
    seconds = [fresh(FOLD.format(count=count))["seconds"] for count in counts]
    rates = [count / took for count, took in zip(counts, seconds, strict=True)]
    folding = table(
        "Decoding and folding a stream",
        ("events", "ratio of the rate to the smallest", "events a second", "time"),
        [
            (f"{c:,}", f"{r / rates[0]:.2f}x", f"{r:,.0f}", f"{s * 1000:.0f} ms")
            for c, r, s in zip(counts, rates, seconds, strict=True)
        ],
        "Bytes to typed events to a turn; best of three. Linear means a ratio near 1.",
    )
    sizes = (100_000, 1_000_000, 10_000_000)
    memory = [fresh(MEMORY.format(size=size)) for size in sizes]
    flat = table(
        "Memory while an answer goes to the task log",
        ("answer", "ratio to the smallest", "peak of Python's memory", "log lines"),
        [
            (f"{s / 1e6:g} MB", f"{m['peak'] / memory[0]['peak']:.2f}x", f"{m['peak']:.2f} MB", f"{m['lines']:,}")
            for s, m in zip(sizes, memory, strict=True)
        ],
        "Flat means a ratio near 1, whatever the size of the answer.",
    )
    return folding + "\n" + flat
