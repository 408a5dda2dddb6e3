"""Dags that the harness tries itself on."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, BaseOperator, task


class WaitInTriggerer(BaseOperator):
    """Defers for some seconds, and says whether it came back by itself."""

    def __init__(self, *, seconds: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def execute(self, context: Any) -> None:
        """Hand over to the triggerer."""
        from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=self.seconds)), method_name="resume")

    def resume(self, context: Any, event: Any = None) -> str:
        """Finish on a worker."""
        return f"resumed in try {context['ti'].try_number}"


with DAG(dag_id="harness_trivial", schedule=None, catchup=False):

    @task
    def double(params: dict[str, int] | None = None) -> dict[str, int]:
        number = int((params or {}).get("number", 21))
        print(f"doubling {number}")
        return {"doubled": number * 2}

    @task
    def report(told: dict[str, int]) -> int:
        return told["doubled"]

    report(double())

with DAG(dag_id="harness_sleeping", schedule=None, catchup=False):

    @task(retries=1, retry_delay=timedelta(seconds=1))
    def sleep_first(ti: object = None) -> int:
        tried = int(getattr(ti, "try_number", 0))
        print(f"try {tried}")
        if tried == 1:
            time.sleep(300)
        return tried

    sleep_first()

with DAG(dag_id="harness_deferred", schedule=None, catchup=False):
    WaitInTriggerer(task_id="wait", seconds=12)
