"""One attempt of a batch as a process of its own, in the environment of the object store. Prints its result as the last line."""

from __future__ import annotations

import json
import sys
from typing import Any

from airflow_provider_llamachat.exceptions import LlamaCloudError
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from tests.airflow.tries import a_try
from tests.chaos.upload import peak


def main(number: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run attempt ``number``, and return the manifest, the error, and the peak of the memory in MiB."""
    task = ChatBatchOperator(task_id="night", retries=1000, **arguments)
    context = a_try(task, number)
    error = None
    try:
        context["ti"].pushes["return_value"] = task.execute(context)
    except LlamaCloudError as problem:
        error = type(problem).__name__
    return {"error": error, "manifest": context["ti"].pushes.get("return_value"), "peak": peak()}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), json.loads(sys.argv[2]))), flush=True)
