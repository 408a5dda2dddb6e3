"""``make demo``: the example Dag on a real Airflow, and what its tasks hand to each other, printed.

Without LLAMA_CLOUD_API_KEY it talks to the embedded emulator. With it, to the real service, which needs LLAMA_CLOUD_INDEX_IDS
(comma-separated), takes LLAMA_CLOUD_REGION (us or eu), LLAMA_CLOUD_PROJECT_ID and LLAMA_CLOUD_PROMPT into account, and costs one turn.

With KEEP=1, Airflow runs on until Ctrl-C, so that one can look at its pages.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from airflow_provider_llamachat.testing import INDEX_FILINGS, INDEX_HANDBOOK, EmulatorProcess
from tests.system.stack import AirflowStack

REPOSITORY = Path(__file__).resolve().parents[2]
DAG_FILE = REPOSITORY / "dags_examples" / "llamachat_create_and_use.py"
DAG_ID = "llamachat_create_and_use"
WIDTH = min(shutil.get_terminal_size((100, 24)).columns, 110)


class UnusableError(Exception):
    """What the user asked for cannot work; the text says why."""


@dataclass
class Service:
    """Where the Dag asks, and what."""

    name: str
    connection: str
    conf: dict[str, Any]
    emulator: EmulatorProcess | None = None


def choose_service(stack: contextlib.ExitStack) -> Service:
    """Return the real service if a key is given, else an emulator that ends with ``stack``.

    :raises UnusableError: there is a key, but nothing to ask.
    """
    key = os.environ.get("LLAMA_CLOUD_API_KEY", "").strip()
    prompt = os.environ.get("LLAMA_CLOUD_PROMPT", "").strip()
    if not key:
        emulator = stack.enter_context(EmulatorProcess())
        conf: dict[str, Any] = {"index_ids": [INDEX_FILINGS, INDEX_HANDBOOK], **({"prompt": prompt} if prompt else {})}
        return Service(f"the embedded emulator at {emulator.url}", emulator.airflow_connection_json, conf, emulator)
    index_ids = [item.strip() for item in os.environ.get("LLAMA_CLOUD_INDEX_IDS", "").split(",") if item.strip()]
    if not index_ids:
        raise UnusableError(
            "LLAMA_CLOUD_API_KEY is set, so the demo would ask the real LlamaCloud; it needs the ids of your indexes for that: "
            "set LLAMA_CLOUD_INDEX_IDS=id,id,... Or unset LLAMA_CLOUD_API_KEY to use the embedded emulator."
        )
    given = {name: os.environ.get(f"LLAMA_CLOUD_{name.upper()}", "").strip() for name in ("region", "project_id")}
    extra = {name: value for name, value in given.items() if value}
    connection = json.dumps({"conn_type": "llamacloud", "password": key, "extra": extra})
    prompt = prompt or "What are these documents about, in one sentence?"
    return Service(f"LlamaCloud ({extra.get('region', 'us')})", connection, {"index_ids": index_ids, "prompt": prompt})


def show(task_id: str, state: str, xcoms: dict[str, Any]) -> None:
    """Print what one task handed on."""
    print(f"\n  {task_id}  [{state}]")
    for key, value in sorted(xcoms.items(), key=lambda item: (item[0] == "return_value", item[0])):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines = textwrap.wrap(text, WIDTH - 24, break_on_hyphens=False) or [""]
        print(f"    {key:<17} {lines[0]}")
        for line in lines[1:12]:
            print(f"    {'':<17} {line}")
        if len(lines) > 12:
            print(f"    {'':<17} … ({len(text)} characters)")


def show_failure(airflow: AirflowStack, run: str) -> None:
    """Print the logs of the tasks that failed."""
    for name, state in airflow.task_states(run).items():
        if state == "failed":
            print(f"\n  The log of {name}:\n" + textwrap.indent(airflow.task_log(run, name)[-4000:], "    "))


def keep(airflow: AirflowStack, page: str) -> None:
    """Leave Airflow running until an interruption."""
    print(f"\nAirflow is still running. See the conversation: {page}\nCtrl-C ends it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while airflow.running("api-server"):
            time.sleep(0.5)


def demo() -> int:
    """Run the example once; return the exit code."""
    began = time.monotonic()
    keeps = os.environ.get("KEEP", "") not in {"", "0"}
    with contextlib.ExitStack() as stack:
        service = choose_service(stack)
        print(f"Starting Airflow for the Dag {DAG_ID}, which asks {service.name} ...", flush=True)
        airflow = AirflowStack(dags=[DAG_FILE])
        stack.callback(airflow.stop)
        airflow.set_connection("llamacloud_default", service.connection)
        airflow.start(["api-server", "scheduler", "dag-processor"])
        print(
            f"Airflow {airflow.version_text} is up ({time.monotonic() - began:.0f} s). Running the Dag ...", flush=True
        )
        run = airflow.trigger(DAG_ID, service.conf)
        state = airflow.wait(run, timeout=900 if service.emulator is None else 120)
        print(f"\nThe run ended: {state}. What its tasks pushed to XCom:")
        states = airflow.task_states(run)
        for task_id in sorted(states, key=lambda name: str(airflow.task(run, name)["start_date"])):
            pushed = airflow.xcoms(run, task_id)
            show(
                task_id, states[task_id], {key: value for key, value in pushed.items() if not key.startswith("_link_")}
            )
        if state != "success":
            show_failure(airflow, run)
            return 1
        if service.emulator is not None:
            print(
                f"\n  The emulator was asked {service.emulator.posts()} time(s), finished {service.emulator.completed()} turn(s), "
                f"and deleted {len(service.emulator.deleted)} session(s)."
            )
        took = time.monotonic() - began
        page = f"{airflow.url}/plugin/llamacloud-chats#{urlencode({'dag_id': DAG_ID, 'run_id': run})}"
        if keeps:
            keep(airflow, page)
    print(
        f"\nDone in {took:.0f} s; everything that was started has ended."
        f"\nNext: read {DAG_FILE.relative_to(REPOSITORY)}, put it into your Dags folder, and set up the connection as README.md says."
    )
    if service.emulator is not None:
        print("With your own documents: LLAMA_CLOUD_API_KEY=llx-... LLAMA_CLOUD_INDEX_IDS=id,id make demo")
    if not keeps:
        print(
            f"The page of this conversation was {page}; `make demo KEEP=1` leaves Airflow running, so that you can look at it."
        )
    return 0


def main() -> int:
    """Run the demo; what cannot work is said in one sentence, and an interruption ends everything in good order."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return demo()
    except (UnusableError, RuntimeError) as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; everything that was started has ended.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
