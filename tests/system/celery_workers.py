"""The Celery workers of an Airflow under test: their commands, and what all components have to know of them.

Options: https://airflow.apache.org/docs/apache-airflow-providers-celery/stable/configurations-ref.html
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CeleryWorkers:
    """Workers that get their tasks from a broker.

    :param broker_url: where that is; ``redis://...``.
    :param components: one name for each worker.
    :param concurrency: tasks that a worker runs at once; each slot is a process.
    :param visibility_timeout: seconds after which Redis gives a task that no worker has finished to another one. Shorter than a task,
        it gives tasks away that are running; longer than a test, what a dead worker had taken and not begun is never begun.
    :param heartbeat_interval: seconds between two heartbeats of a task. Each is a request to the API server.
    """

    broker_url: str
    components: tuple[str, ...] = ("celery-worker-1", "celery-worker-2")
    concurrency: int = 8
    visibility_timeout: int = 60
    heartbeat_interval: int = 4

    def command(self, component: str) -> list[str]:
        """Return the arguments of ``airflow`` that run a worker."""
        # Serving logs takes a port that is the same for all workers of a machine; what workers tell each other is not needed.
        alone = ["--skip-serve-logs", "--without-mingle", "--without-gossip"]
        return ["celery", "worker", "--concurrency", str(self.concurrency), "--celery-hostname", component, *alone]

    def options(self, database_url: str) -> dict[tuple[str, str], str]:
        """Return the configuration that scheduler and workers share.

        :param database_url: where the workers leave their results: the metadata database, as Airflow advises.
        """
        return {
            ("celery", "broker_url"): self.broker_url,
            ("celery", "result_backend"): f"db+{database_url}",
            # How long the scheduler waits for the broker: on a busy machine its own default, a second, is soon over.
            ("celery", "operation_timeout"): "10",
            ("celery", "sync_parallelism"): "1",
            ("celery_broker_transport_options", "visibility_timeout"): str(self.visibility_timeout),
            # A worker looks for such tasks as often as this; without them, every hundred seconds or so.
            ("celery_broker_transport_options", "unacked_restore_interval"): "2",
            ("celery_broker_transport_options", "unacked_restore_throttle"): "1",
            # What a worker had just taken when it was killed may be lost; Airflow sends such a task again, by default after ten minutes.
            ("scheduler", "task_queued_timeout"): "60",
            ("scheduler", "task_queued_timeout_check_interval"): "5",
            ("workers", "min_heartbeat_interval"): str(self.heartbeat_interval),
        }

    @staticmethod
    def ready(said: str) -> bool:
        """Whether a worker listens, by what it wrote since its start: Airflow's API knows nothing of workers."""
        return " ready." in said
