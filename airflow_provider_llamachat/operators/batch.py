"""The operator that asks many questions concurrently and writes the results to a file."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.airflow_support.conversation_link import conversation_links
from airflow_provider_llamachat.airflow_support.paths import given_path, resolved_path
from airflow_provider_llamachat.airflow_support.task_state import TaskMemory
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.operators.base import LlamaCloudOperator

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.airflow_support.templated import Templated
    from airflow_provider_llamachat.batch.engine import Report
    from airflow_provider_llamachat.batch.items import Item, Scope
    from airflow_provider_llamachat.batch.journal import Journal
    from airflow_provider_llamachat.batch.sessions import Options

MAX_XCOM_ITEMS = 100
"""Maximum number of prompts without ``output_path``, because the results are pushed to XCom."""
R = TypeVar("R")


class ChatBatchOperator(LlamaCloudOperator):
    """Ask many questions in one task, and pay for each answer once, even if the task is killed.

    Results go to ``output_path`` as JSON Lines, one object per prompt in the order of ``prompts``: ``position``, ``id``, ``outcome``
    (``answered``, ``failed``, ``interrupted``, ``unasked``), ``prompt``, ``answer``, ``sources``, ``session_id``, ``index_ids``,
    ``skipped_index_ids``, ``usage``, ``error`` (``type`` and ``message``), and ``batch``, the task instance that wrote it. The file
    is written atomically when the batch is complete. Until then, results are in part files in ``<output_path>.parts/``, which are
    removed at the end. Buckets are not created.

    XComs: ``return_value`` is the manifest: ``total``, then how many are ``answered``, ``failed``, ``interrupted``, ``unasked``;
    ``total_input_tokens`` and ``total_output_tokens`` of these results; ``output_path``; ``sessions_opened``, ``sessions_deleted``;
    ``kept`` (answered by an earlier attempt) and ``settled`` (asked by an earlier attempt, answer found in the session's history);
    ``rate_limited`` (number of 429 responses); ``seconds``; ``try_number``. Without ``output_path``: ``results``, the list of the
    objects above.

    A retry resumes the batch, and so does clearing a task whose batch was not complete. Answers are kept, the session's history
    shows what happened to prompts in flight, and only the missing prompts are asked. Clearing a complete batch asks all prompts again.
    Without ``output_path``, this requires Airflow 3.3's task state store; on older versions, a retry asks all prompts again.

    Prompts that failed with transient errors (a lost connection, 429, 5xx, an interrupted turn) are retried at the end of the batch,
    after reading the session's history.

    Each run and each mapped task needs its own output path (``{{ run_id }}``, ``{{ ti.map_index }}``). The task fails if another batch
    is writing to the path, or if the path contains the results of another task of the same run. Results of an earlier run are replaced.

    API: POST /api/v1/chat and POST /api/v1/chat/{session_id}/messages/stream (https://developers.llamaindex.ai/reference/).

    :param prompts: a list (an XComArg, or a JSON list in a string) of prompts, or of objects with ``prompt`` and, each
        optional, ``id`` (unique), ``index_ids``, ``session_id`` (an existing session; prompts of one session are asked in order).
        (templated)
    :param index_ids: indexes for all prompts without their own, at most ten. (templated)
    :param max_concurrency: maximum number of concurrent turns. The same number of sessions may be opened ahead. (templated)
    :param requests_per_minute: maximum number of requests per minute, including those that create and delete sessions. None means no
        limit. A 429 slows down the whole batch in any case. (templated)
    :param session_mode: ``per_prompt``: each prompt has its own session; ``shared``: one session, in which prompts are asked in order.
    :param output_path: any path that Airflow's object storage knows (``s3://conn_id@bucket/key``, ``file:///...``), or an absolute
        local path, as text or as a path object. None: results in XCom, for at most :data:`MAX_XCOM_ITEMS` prompts. (templated)
    :param on_item_error: ``collect``: continue, and fail only if no prompt was answered; ``fail_fast``: stop asking, let turns
        in flight finish, and fail.
    :param on_interrupted: what a retry does if the earlier turn stopped partway: ``fail``, or ``ask_again`` once more (the first
        turn may have been billed).
    :param delete_sessions: delete the sessions that the batch created after the results were written. After a failure, sessions that a
        retry needs are kept.
    :param require_all_indexes: fail a turn if an index is not ready. (templated)
    :param turn_timeout: maximum duration of a turn, in seconds or as a timedelta, without waiting for the rate limit. (templated)
    :param llamacloud_conn_id: the Airflow connection. (templated)
    :param project_id: project (UUID) that overrides the one of the connection. (templated)
    :param organization_id: organization (UUID) that overrides the one of the connection. (templated)
    :raises ChatBatchError: an item failed with ``fail_fast``, or no prompt was answered, or the results could not be written.
    :raises AuthenticationError: the API key is invalid.
    :raises PaymentRequiredError: the organization has no credits left.
    :raises InvalidArgumentError: an argument is invalid; nothing was asked. The message names the position of an invalid prompt.
    """

    template_fields: Sequence[str] = (
        *LlamaCloudOperator.template_fields,
        "prompts",
        "index_ids",
        "max_concurrency",
        "requests_per_minute",
        "session_mode",
        "output_path",
        "on_item_error",
        "on_interrupted",
        "delete_sessions",
        "require_all_indexes",
        "turn_timeout",
    )

    operator_extra_links: Any = property(conversation_links)

    def __init__(
        self,
        *,
        prompts: Any,
        index_ids: Templated[list[str]] | None = None,
        max_concurrency: Templated[int] = 8,
        requests_per_minute: Templated[float] | None = None,
        session_mode: Templated[arguments.SessionMode] = "per_prompt",
        output_path: Any = None,
        on_item_error: Templated[arguments.OnItemError] = "collect",
        on_interrupted: Templated[arguments.OnInterrupted] = "fail",
        delete_sessions: Templated[bool] = False,
        require_all_indexes: Templated[bool] = False,
        turn_timeout: Templated[float | timedelta] = 600,
        llamacloud_conn_id: str = "llamacloud_default",
        project_id: Templated[str] | None = None,
        organization_id: Templated[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            llamacloud_conn_id=llamacloud_conn_id, project_id=project_id, organization_id=organization_id, **kwargs
        )
        self.prompts = prompts
        self.index_ids = index_ids
        self.max_concurrency = max_concurrency
        self.requests_per_minute = requests_per_minute
        self.session_mode = session_mode
        self.output_path = given_path(output_path)
        self.on_item_error = on_item_error
        self.on_interrupted = on_interrupted
        self.delete_sessions = delete_sessions
        self.require_all_indexes = require_all_indexes
        self.turn_timeout = turn_timeout
        self._kill: Callable[[], object] | None = None
        self._is_killed = False

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask the missing prompts, write the results, and return the manifest."""
        from airflow_provider_llamachat.airflow_support.lineage import record
        from airflow_provider_llamachat.batch.items import Scope, parse
        from airflow_provider_llamachat.batch.journal import MemoryJournal, PartsJournal

        options = self._options()
        rate = self._rate()
        path = resolved_path(self.output_path, "output_path")
        items = parse(self.prompts, index_ids=options.index_ids, session_mode=options.session_mode)
        ti: Any = context["ti"]
        scope = Scope(ti.dag_id, ti.task_id, ti.run_id, getattr(ti, "map_index", -1))
        journal: Journal
        if path is not None:
            journal = PartsJournal(path, scope, TaskMemory(context, self.log))
        else:
            self._check_xcom(len(items))
            journal = MemoryJournal(TaskMemory(context, self.log))
            if not journal.remembers:
                self.log.info(
                    "A retry asks all prompts again, because there is neither an output_path nor Airflow 3.3's task state store."
                )
        try:
            with journal.claimed():
                report, base_url = self._wait_for(self._run(items, scope, options, journal, rate))
        finally:
            # In a notebook, the same operator may run again. Reset any earlier, a kill before this line would be lost.
            self._is_killed = False
        self._tell_end(report, path)
        record(self.get_hook(), report.index_ids, base_url, None if path is None else str(path))
        if report.results.lines is not None:
            self.push(context, "results", report.results.lines)
        return {
            "total": len(items),
            **report.results.counts,
            "total_input_tokens": report.results.input_tokens,
            "total_output_tokens": report.results.output_tokens,
            "output_path": None if path is None else str(path),
            "sessions_opened": report.opened,
            "sessions_deleted": report.deleted,
            "kept": report.kept,
            "settled": report.settled,
            "rate_limited": report.refused,
            "seconds": round(report.seconds, 3),
            "try_number": ti.try_number,
        }

    def on_kill(self) -> None:
        """Ask nothing more. Turns in flight may continue at the server, and the next attempt looks for their answers."""
        self._is_killed = True
        if self._kill is not None:
            with contextlib.suppress(RuntimeError):  # the loop, and therefore the batch, has already ended
                self._kill()

    def _wait_for(self, run: Coroutine[Any, Any, R]) -> R:
        if not _runs_a_loop():
            return asyncio.run(run)
        # In a notebook or an asynchronous test, a loop is already running in this thread.
        with ThreadPoolExecutor(1, thread_name_prefix="llamachat-batch") as thread:
            result = thread.submit(contextvars.copy_context().run, asyncio.run, run)
            try:
                return result.result()
            except BaseException:
                # Airflow raises timeouts in this thread: the batch in the other thread must end too.
                if not result.done():
                    self.on_kill()
                raise

    def _tell_end(self, report: Report, path: Any) -> None:
        counts, errors = report.results.counts, report.results.errors
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items()))
        self.log.info(
            "%d of %d prompts are answered%s. Results: %s",
            counts["answered"],
            sum(counts.values()),
            f"; without an answer: {kinds}" if kinds else "",
            "XCom" if path is None else path,
        )

    async def _run(
        self, items: list[Item], scope: Scope, options: Options, journal: Journal, rate: float | None
    ) -> tuple[Report, str]:
        from airflow_provider_llamachat.airflow_support.metrics import count_turn
        from airflow_provider_llamachat.batch.engine import Batch
        from airflow_provider_llamachat.client import AsyncLlamaCloudClient
        from airflow_provider_llamachat.client.throttle import Throttle

        config = self.get_hook().get_config()
        async with await AsyncLlamaCloudClient.open(config, throttle=Throttle(rate)) as client:
            batch = Batch(client, items, scope, options, journal, self.log, on_result=count_turn)
            loop = asyncio.get_running_loop()

            def kill() -> None:
                in_flight = batch.in_flight  # before a loop in another thread stops them
                # Signals interrupt the main thread at any point, so the loop is only notified. This comes before the log message, which
                # fails if the signal interrupted another write to the log.
                loop.call_soon_threadsafe(batch.kill)
                self._tell_kill(in_flight, remembers=journal.remembers)

            self._kill = kill
            if self._is_killed:
                batch.kill()
            try:
                return await batch.run(), config.base_url
            finally:
                self._kill = None

    def _tell_kill(self, in_flight: int, *, remembers: bool) -> None:
        if not in_flight:
            self.log.warning("The task was stopped. No turn is in flight, and no session is deleted.")
            return
        then = "The next attempt looks for their answers" if remembers else "A retry asks all prompts again"
        self.log.warning(
            "The task was stopped. LlamaCloud may finish, and bill, %d turns in flight. %s. No session is deleted.",
            in_flight,
            then,
        )

    def _options(self) -> Options:
        from airflow_provider_llamachat.batch.sessions import Options

        return Options(
            index_ids=arguments.id_list(self.index_ids),
            max_concurrency=int(_number(self.max_concurrency, "max_concurrency", whole=True)),
            session_mode=arguments.choice(self.session_mode, "session_mode", arguments.SessionMode),
            fail_fast=arguments.choice(self.on_item_error, "on_item_error", arguments.OnItemError) == "fail_fast",
            ask_again=arguments.choice(self.on_interrupted, "on_interrupted", arguments.OnInterrupted) == "ask_again",
            delete_sessions=arguments.flag(self.delete_sessions, "delete_sessions"),
            require_all_indexes=arguments.flag(self.require_all_indexes, "require_all_indexes"),
            turn_timeout=arguments.seconds(self.turn_timeout, "turn_timeout"),
            **self.scope(),
        )

    def _rate(self) -> float | None:
        given = self.requests_per_minute
        if arguments.is_nothing(given):
            return None
        return _number(given, "requests_per_minute")

    def _check_xcom(self, count: int) -> None:
        if count > MAX_XCOM_ITEMS:
            raise InvalidArgumentError(
                f"The batch has {count} prompts, but XCom can hold the results of at most {MAX_XCOM_ITEMS}. Set output_path. "
                "Nothing was asked."
            )
        if not self.do_xcom_push:
            raise InvalidArgumentError(
                "The answers would be lost, because do_xcom_push is False and output_path is not set. Set output_path. Nothing was asked."
            )


def _runs_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _number(value: Any, name: str, *, whole: bool = False) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not (0 < number < float("inf")) or (whole and number != int(number)):
        kind = "a whole number of at least 1" if whole else "a number above 0"
        raise InvalidArgumentError(f"{name} must be {kind}, got {str(value)[:60]!r}.")
    return number
