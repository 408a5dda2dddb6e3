"""Many questions in one task: asked concurrently, each paid for once, the results in one file."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import re
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.operators.base import LlamaCloudOperator, TaskMemory

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.batch.engine import Report
    from airflow_provider_llamachat.batch.items import Item, Scope
    from airflow_provider_llamachat.batch.journal import Journal
    from airflow_provider_llamachat.batch.preparing import Options
    from airflow_provider_llamachat.operators.base import Templated

MAX_XCOM_ITEMS = 100
"""Prompts that a batch without ``output_path`` may have: its results travel through XCom."""
ON_ITEM_ERROR = ("collect", "fail_fast")
ON_INTERRUPTED = ("fail", "ask_again")
SESSION_MODES = ("per_prompt", "shared")
FILE_SYSTEMS = {
    "s3": "apache-airflow-providers-amazon[s3fs]",
    "s3a": "apache-airflow-providers-amazon[s3fs]",
    "gs": "apache-airflow-providers-google",
    "gcs": "apache-airflow-providers-google",
    "abfs": "apache-airflow-providers-microsoft-azure",
    "abfss": "apache-airflow-providers-microsoft-azure",
    "adl": "apache-airflow-providers-microsoft-azure",
    "sftp": "apache-airflow-providers-sftp",
    "ssh": "apache-airflow-providers-sftp",
}
"""The packages that bring Airflow the file systems which results are written to most."""

R = TypeVar("R")


class ChatBatchOperator(LlamaCloudOperator):
    """Ask many questions in one task, and pay for each answer once, whatever kills the task.

    Results go to ``output_path`` as JSON Lines, one object per prompt in the order of ``prompts``: ``position``, ``id``, ``outcome``
    (``answered``, ``failed``, ``interrupted``, ``unasked``), ``prompt``, ``answer``, ``session_id``, ``index_ids``,
    ``skipped_index_ids``, ``usage``, ``error`` (``type`` and ``message``), and ``batch``, the task instance that wrote it. The file
    appears when the batch is complete, at once. Until then everything is in part files in ``<output_path>.parts/``; they are removed at
    the end. Buckets are not created.

    XComs: ``return_value`` is the manifest: ``total``, then how many are ``answered``, ``failed``, ``interrupted``, ``unasked``;
    ``total_input_tokens`` and ``total_output_tokens`` of these results; ``output_path``; ``sessions_opened``, ``sessions_deleted``;
    ``kept`` (answered by an earlier try) and ``settled`` (asked by an earlier try, answer found in the session's history);
    ``rate_limited`` (requests answered with 429); ``seconds``; ``try_number``. Without ``output_path``: ``results``, the list of the
    objects above.

    A retry, and a task that is cleared before its batch was complete, goes on where the earlier try stopped: what is answered
    is kept, what was in flight is settled by the session's history, and only the rest is asked; what failed is asked again. Clearing a
    complete batch asks everything anew. Without ``output_path`` that needs Airflow 3.3's task state store; before, a retry asks
    everything again.

    What met passing trouble (a lost connection, 429, 5xx, an interrupted turn) is looked after once more at the end of the batch, history
    first, so that a short outage costs no answer.

    Two runs, or two mapped tasks, need two output paths (``{{ run_id }}``, ``{{ ti.map_index }}``). A batch refuses a path that another
    one writes to now, or that holds the results of another task of the same run; the results of an earlier run are replaced.

    API: POST /api/v1/chat and POST /api/v1/chat/{session_id}/messages/stream (https://developers.llamaindex.ai/reference/).

    :param prompts: a list (an XComArg, or a JSON list in a string) of prompts, or of objects with ``prompt`` and, each
        optional, ``id`` (unique), ``index_ids``, ``session_id`` (an existing session; prompts of one session are asked in order).
        (templated)
    :param index_ids: indexes for all prompts that do not name their own, at most ten. (templated)
    :param max_concurrency: turns that may run at the same time. As many sessions again may be open ahead of them. (templated)
    :param requests_per_minute: never send more requests than that in any minute, opening and deleting sessions included; None: no
        limit of our own. A 429 slows the whole batch either way. (templated)
    :param session_mode: ``per_prompt``: each prompt in a session of its own; ``shared``: one session, prompts asked in order.
    :param output_path: any path that Airflow's object storage knows (``s3://conn_id@bucket/key``, ``file:///...``), or a local path; a
        path object too.
        None: results in XCom, for at most :data:`MAX_XCOM_ITEMS` prompts. (templated)
    :param on_item_error: ``collect``: go on, and fail only if no prompt at all was answered; ``fail_fast``: ask no more, let
        turns in flight finish, and fail.
    :param on_interrupted: what a retry does with a turn that is in the history, unfinished and no longer growing: ``fail``, or
        ``ask_again`` (once more; the first may have been billed).
    :param delete_sessions: delete the sessions that the batch opened, once the results are safe. After a failure, those that a retry
        would look into stay.
    :param require_all_indexes: refuse a turn when an index is not ready. (templated)
    :param turn_timeout: seconds (or a timedelta) that one turn may take in all, not counting waits for the rate limit. (templated)
    :raises ChatBatchError: an item failed with ``fail_fast``, or no prompt was answered, or the results could not be written.
    :raises AuthenticationError: or ``PaymentRequiredError``: nothing more could be asked.
    :raises InvalidArgumentError: an argument is not usable; nothing was asked. The position of the prompt concerned is named.
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

    def __init__(
        self,
        *,
        prompts: Any,
        index_ids: Templated[list[str]] | None = None,
        max_concurrency: Templated[int] = 8,
        requests_per_minute: Templated[float] | None = None,
        session_mode: Templated[str] = "per_prompt",
        output_path: Any = None,
        on_item_error: Templated[str] = "collect",
        on_interrupted: Templated[str] = "fail",
        delete_sessions: Templated[bool] = False,
        require_all_indexes: Templated[bool] = False,
        turn_timeout: Templated[float | timedelta] = 600,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompts = prompts
        self.index_ids = index_ids
        self.max_concurrency = max_concurrency
        self.requests_per_minute = requests_per_minute
        self.session_mode = session_mode
        # Airflow renders text in a path object of its own only.
        is_local = isinstance(output_path, PurePath) and "://" not in str(output_path)
        self.output_path = str(output_path) if is_local else output_path
        self.on_item_error = on_item_error
        self.on_interrupted = on_interrupted
        self.delete_sessions = delete_sessions
        self.require_all_indexes = require_all_indexes
        self.turn_timeout = turn_timeout
        self._kill: Callable[[], object] | None = None
        self._is_killed = False

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask what is missing, write the results, and return the manifest."""
        from airflow_provider_llamachat.batch.items import Scope, parse
        from airflow_provider_llamachat.batch.journal import MemoryJournal, PartsJournal
        from airflow_provider_llamachat.lineage import record

        options = self._options()
        rate = self._rate()
        path = self._path()
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
                    "Without output_path, and without Airflow 3.3's task state store, a retry of this task asks everything again."
                )
        self._is_killed = False
        with journal.claimed():
            report, base_url = self._wait_for(self._run(items, scope, options, journal, rate))
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
        """Ask nothing more and leave the turns in flight to the server; what is known of them stays for the next try."""
        self._is_killed = True
        if self._kill is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile, and the batch with it
                self._kill()

    def _wait_for(self, run: Coroutine[Any, Any, R]) -> R:
        if not _runs_a_loop():
            return asyncio.run(run)
        # A notebook, or an asynchronous test, runs a loop in this thread already.
        with ThreadPoolExecutor(1, thread_name_prefix="llamachat-batch") as thread:
            result = thread.submit(contextvars.copy_context().run, asyncio.run, run)
            try:
                return result.result()
            except BaseException:
                # Airflow's time-outs are raised in this thread: the other one has to end, too.
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
        from airflow_provider_llamachat.batch.engine import Batch
        from airflow_provider_llamachat.client import AsyncLlamaCloudClient
        from airflow_provider_llamachat.client.throttle import Throttle
        from airflow_provider_llamachat.lineage import count_turn

        config = self.get_hook().get_config()
        async with await AsyncLlamaCloudClient.open(config, throttle=Throttle(rate)) as client:
            batch = Batch(client, items, scope, options, journal, self.log, on_result=count_turn)
            loop = asyncio.get_running_loop()

            def kill() -> None:
                # Signals come to the main thread at any moment; the loop takes the order up where it can. Before the log, which may fail
                # because the signal came while something else was being written there.
                loop.call_soon_threadsafe(batch.kill)
                self._tell_kill(batch.in_flight, remembers=journal.remembers)

            self._kill = kill
            if self._is_killed:
                batch.kill()
            try:
                return await batch.run(), config.base_url
            finally:
                self._kill = None

    def _tell_kill(self, in_flight: int, *, remembers: bool) -> None:
        if not in_flight:
            self.log.warning("Stopping the batch. No turn is in flight, and no session is deleted.")
            return
        then = "the next try takes up their answers" if remembers else "a retry asks everything again"
        self.log.warning(
            "Stopping the batch. %d turn(s) in flight may go on, and be billed, at LlamaCloud; %s. No session is deleted.",
            in_flight,
            then,
        )

    def _options(self) -> Options:
        from airflow_provider_llamachat.batch.preparing import Options

        return Options(
            index_ids=arguments.id_list(self.index_ids),
            max_concurrency=int(_number(self.max_concurrency, "max_concurrency", whole=True)),
            session_mode=arguments.choice(self.session_mode, "session_mode", SESSION_MODES),
            fail_fast=arguments.choice(self.on_item_error, "on_item_error", ON_ITEM_ERROR) == "fail_fast",
            ask_again=arguments.choice(self.on_interrupted, "on_interrupted", ON_INTERRUPTED) == "ask_again",
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

    def _path(self) -> Any:
        from airflow.providers.common.compat.sdk import ObjectStoragePath

        given = self.output_path
        if arguments.is_nothing(given):
            return None
        text = str(given).strip()
        if "{{" in text or "{%" in text:
            raise InvalidArgumentError(
                f"output_path still holds a template, got {text[:200]!r}: Airflow renders text, and its own ObjectStoragePath. Give it as "
                "one of them."
            )
        if "://" not in text and not isinstance(given, ObjectStoragePath):
            try:
                local = Path(text).expanduser()
            except RuntimeError as problem:
                raise InvalidArgumentError(f"output_path cannot be used, got {text[:200]!r}: {problem}") from None
            if not local.is_absolute():
                raise InvalidArgumentError(
                    f"output_path has to be an absolute path or a URL, got {text[:200]!r}: what a relative one means is up to the worker."
                )
            text = str(local) + text[len(text.rstrip("/")) :]
        try:
            path = given if isinstance(given, ObjectStoragePath) else ObjectStoragePath(text)
            path.fs  # noqa: B018  # made, and therefore missing, only now
        except (ImportError, ValueError) as problem:
            if not isinstance(problem, ImportError) and not re.search("registered|not known|nsupported", str(problem)):
                raise InvalidArgumentError(f"output_path cannot be used, got {text[:200]!r}: {problem}") from problem
            scheme = text.partition("://")[0]
            package = FILE_SYSTEMS.get(scheme)
            remedy = f"Install {package}" if package else "Install an Airflow provider that brings one"
            raise InvalidArgumentError(
                f"output_path begins with {scheme}://, and this Airflow has no file system for that. {remedy} where tasks run. "
                f"Airflow says: {str(problem)[:300]}"
            ) from problem
        if not path.name or text.endswith("/"):
            raise InvalidArgumentError(f"output_path has to be the path of a file, got {text[:200]!r}.")
        return path

    def _check_xcom(self, count: int) -> None:
        if count > MAX_XCOM_ITEMS:
            raise InvalidArgumentError(
                f"The batch has {count} prompts and no output_path. Results travel through XCom for at most {MAX_XCOM_ITEMS}: give an "
                "output_path. Nothing was asked."
            )
        if not self.do_xcom_push:
            raise InvalidArgumentError(
                "The batch has neither an output_path nor XCom (do_xcom_push=False), so its answers would be lost. Nothing was asked."
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
        raise InvalidArgumentError(f"{name} has to be {kind}, got {str(value)[:60]!r}.")
    return number
