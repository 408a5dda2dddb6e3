"""``make bench``: every benchmark in one run, printed, and written to ``docs/BENCHMARKS.md`` unless ``--short``.

Ratios come first: they compare what ran in the same minutes on the same machine. Absolute figures are of that machine.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import time

from tests.bench.tables import ROOT, machine, versions

PARTS = ("imports", "calls", "loops", "streams", "batch", "page")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="part", help=f"some of {', '.join(PARTS)}")
    parser.add_argument(
        "--short", action="store_true", help="small numbers, nothing written: whether it all still runs"
    )
    options = parser.parse_args()
    chapters = []
    for part in options.parts:
        began = time.monotonic()
        text = importlib.import_module(f"tests.bench.{part}").measure(short=options.short)
        print(text, f"({part}: {time.monotonic() - began:.0f} s)\n", sep="\n", flush=True)
        chapters.append(text)
    if options.short or set(options.parts) != set(PARTS):
        return
    packages = ("apache-airflow", "airflow-provider-llamachat", "httpx", "llama-cloud", "requests")
    peers = ("apache-airflow-providers-http", "apache-airflow-providers-openai", "apache-airflow-providers-anthropic")
    head = (
        "# Benchmarks\n\nWritten by `make bench`; run it yourself. Peers ran in the same run, beside this package.\n\n"
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {machine()}; {versions(*packages, *peers)}.\n"
    )
    (ROOT / "docs" / "BENCHMARKS.md").write_text("\n".join([head, *chapters]).rstrip() + "\n")


if __name__ == "__main__":
    main()
