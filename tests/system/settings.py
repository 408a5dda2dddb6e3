"""How a whole Airflow is set up for tests: quick to notice, quiet, on loopback, in a home of its own; per version.

Options: https://airflow.apache.org/docs/apache-airflow/stable/configurations-ref.html
"""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path

from tests.system.celery_workers import CeleryWorkers

COMPONENTS_2 = ("webserver", "scheduler", "triggerer")
COMPONENTS_3 = ("api-server", "scheduler", "dag-processor", "triggerer")


@dataclass(frozen=True)
class StackSettings:
    """What a test may choose.

    :param heartbeat_timeout: whole seconds without a heartbeat after which a task, or a triggerer, counts as dead. Too short a time takes
        a busy machine for a dead one.
    :param parallelism: tasks that run at once; each slot is a process.
    :param celery: Celery workers that run the tasks, in place of processes beside the scheduler.
    """

    home: Path
    version: tuple[int, ...]
    port: int
    database_url: str
    dags_folder: Path
    heartbeat_timeout: int = 10
    parallelism: int = 4
    executor: str | None = None
    celery: CeleryWorkers | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """All components that this version consists of."""
        own = COMPONENTS_3 if self.version >= (3,) else COMPONENTS_2
        return own + (self.celery.components if self.celery else ())

    def command(self, component: str) -> list[str]:
        """Return the arguments of ``airflow`` that run a component."""
        if self.celery and component in self.celery.components:
            return self.celery.command(component)
        # Serving logs to other machines takes two more processes, and everything is on this one.
        return {
            "api-server": ["api-server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"],
            "webserver": ["webserver", "--hostname", "127.0.0.1", "--port", str(self.port), "--workers", "1"],
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "triggerer": ["triggerer", "--skip-serve-logs"],
            "dag-processor": ["dag-processor"],
        }[component]

    def environment(self) -> dict[str, str]:
        """Return the configuration as environment variables."""
        options = {
            **self._common(),
            **(self._airflow_3() if self.version >= (3,) else self._airflow_2()),
            **(self.celery.options(self.database_url) if self.celery else {}),
        }
        variables = {f"AIRFLOW__{section.upper()}__{key.upper()}": text for (section, key), text in options.items()}
        return {"AIRFLOW_HOME": str(self.home), **variables}

    def _common(self) -> dict[tuple[str, str], str]:
        dead = str(self.heartbeat_timeout)
        return {
            ("core", "dags_folder"): str(self.dags_folder),
            ("core", "load_examples"): "False",
            ("core", "dags_are_paused_at_creation"): "False",
            ("core", "fernet_key"): urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            ("core", "parallelism"): str(self.parallelism),
            ("core", "max_active_tasks_per_dag"): "64",
            ("core", "test_connection"): "Enabled",
            ("core", "executor"): self.executor or self._default_executor(),
            ("core", "default_task_retry_delay"): "1",
            ("database", "sql_alchemy_conn"): self.database_url,
            ("database", "load_default_connections"): "False",
            ("logging", "base_log_folder"): str(self.home / "logs"),
            ("logging", "colored_console_log"): "False",
            ("scheduler", "job_heartbeat_sec"): "1",
            ("scheduler", "scheduler_heartbeat_sec"): "1",
            ("scheduler", "scheduler_idle_sleep_time"): "0.2",
            ("scheduler", "scheduler_health_check_threshold"): dead,
            ("scheduler", "orphaned_tasks_check_interval"): "5",
            ("scheduler", "trigger_timeout_check_interval"): "2",
            ("triggerer", "job_heartbeat_sec"): "1",
            ("triggerer", "triggerer_health_check_threshold"): dead,
            ("usage_data_collection", "enabled"): "False",
        }

    def _default_executor(self) -> str:
        if self.celery:
            return "CeleryExecutor"
        sqlite_2 = self.version < (3,) and self.database_url.startswith("sqlite")
        return "SequentialExecutor" if sqlite_2 else "LocalExecutor"

    def _airflow_3(self) -> dict[tuple[str, str], str]:
        return {
            ("core", "auth_manager"): "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
            ("core", "simple_auth_manager_all_admins"): "True",
            ("core", "execution_api_server_url"): f"http://127.0.0.1:{self.port}/execution/",
            ("api", "base_url"): f"http://127.0.0.1:{self.port}",
            ("api", "secret_key"): secrets.token_hex(16),
            ("api_auth", "jwt_secret"): secrets.token_hex(32),
            ("workers", "min_heartbeat_interval"): "1",
            ("scheduler", "task_instance_heartbeat_timeout"): str(self.heartbeat_timeout),
            ("scheduler", "task_instance_heartbeat_timeout_detection_interval"): "2",
            # New files are seen at once; a file is parsed again now and then only, because each time costs a process.
            ("dag_processor", "refresh_interval"): "2",
            ("dag_processor", "bundle_refresh_check_interval"): "1",
            ("dag_processor", "min_file_process_interval"): "30",
            ("dag_processor", "parsing_processes"): "1",
        }

    def _airflow_2(self) -> dict[tuple[str, str], str]:
        return {
            ("api", "auth_backends"): "airflow.api.auth.backend.default",
            ("webserver", "base_url"): f"http://127.0.0.1:{self.port}",
            ("webserver", "secret_key"): secrets.token_hex(16),
            ("webserver", "expose_config"): "False",
            ("scheduler", "local_task_job_heartbeat_sec"): "1",
            ("scheduler", "scheduler_zombie_task_threshold"): str(self.heartbeat_timeout),
            ("scheduler", "zombie_detection_interval"): "2",
            ("scheduler", "dag_dir_list_interval"): "2",
            ("scheduler", "min_file_process_interval"): "30",
            ("scheduler", "parsing_processes"): "1",
        }

    def write_files(self) -> None:
        """Write what only a file can say: on Airflow 2, that whoever reaches loopback is an admin."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.dags_folder.mkdir(parents=True, exist_ok=True)
        (self.home / "logs").mkdir(exist_ok=True)
        if self.version < (3,):
            (self.home / "webserver_config.py").write_text(
                '"""Whoever reaches this web server, which listens on loopback only, is an admin."""\n'
                'AUTH_ROLE_PUBLIC = "Admin"\nWTF_CSRF_ENABLED = False\n'
            )
