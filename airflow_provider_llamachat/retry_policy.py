"""A retry policy for Airflow 3.3 and later: the server decides when a task that it refused is retried."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import LlamaCloudError

try:
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
except ImportError:
    raise ImportError(
        "ServerRetryPolicy requires Airflow 3.3 or newer, which introduced retry policies. Remove retry_policy from the task, or upgrade "
        "Airflow. On older versions, retry_delay decides when a task is retried."
    ) from None

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context


class ServerRetryPolicy(RetryPolicy):
    """Retry a task when the server asked for it with ``Retry-After``, and otherwise as the task's own arguments say.

    Use it for any task of this provider::

        SendChatMessageOperator(..., retries=5, retry_policy=ServerRetryPolicy())

    It applies to errors with a ``retry_after``: 429, 5xx and 409 (busy). The number of retries is unchanged. See
    https://airflow.apache.org/docs/apache-airflow/stable/core-concepts/tasks.html for retry policies.

    :param max_delay: maximum delay, in seconds or as a timedelta, whatever the server asks for.
    :raises InvalidArgumentError: ``max_delay`` is invalid.
    """

    def __init__(self, max_delay: float | timedelta = 3600.0) -> None:
        self.max_delay = arguments.seconds(max_delay, "max_delay")

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Return the delay that the server asked for. Airflow calls this on the worker."""
        asked = exception.retry_after if isinstance(exception, LlamaCloudError) else None
        if asked is None:
            return RetryDecision.default()
        delay = min(float(asked), self.max_delay)
        return RetryDecision.retry(timedelta(seconds=delay), f"LlamaCloud asked to retry after {asked:.0f} s.")

    def serialize(self) -> dict[str, Any]:
        """Return the arguments that make this policy again."""
        return {"max_delay": self.max_delay}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> ServerRetryPolicy:
        """Make a policy from what :meth:`serialize` returned."""
        return cls(**data)
