"""The operator that asks many questions concurrently and writes the results to a file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.operators.base import LlamaCloudOperator, conversation_links

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.airflow_support.templated import Templated
    from airflow_provider_llamachat.batch.items import BatchScope, Item
    from airflow_provider_llamachat.batch.journal import Journal
    from airflow_provider_llamachat.batch.report import Report
    from airflow_provider_llamachat.batch.sessions import Options

MAX_XCOM_ITEMS = 100
"""Maximum number of prompts without ``output_path``, because the results are pushed to XCom."""


class ChatBatchOperator(LlamaCloudOperator):
    """Ask many questions in one task, and pay for each answer once, even if the task is killed.

    Results go to ``output_path`` as JSON Lines, one object per prompt in the order of ``prompts``: ``position``, ``id``, ``outcome``
    (``answered``, ``failed``, ``interrupted``, ``unasked``), ``prompt``, ``answer``, ``sources``, ``session_id``, ``index_ids``,
    ``skipped_index_ids``, ``usage``, ``error`` (``type`` and ``message``), ``extra`` (fields of the prompt that the batch does not
    know), and ``batch``, the task instance that wrote it. The file is written atomically when everything was asked. Until then, results
    are in part files in ``<output_path>.parts/``, which are removed when enough prompts were answered. Buckets are not created.

    XComs: ``return_value`` is the manifest: ``total``, then how many are ``answered``, ``failed``, ``interrupted``, ``unasked``;
    ``total_input_tokens`` and ``total_output_tokens`` of these results; ``output_path``; ``sessions_opened``, ``sessions_deleted``;
    ``kept`` (answered by an earlier attempt) and ``settled`` (asked by an earlier attempt, answer found in the session's history);
    ``rate_limited`` (number of 429 responses); ``seconds``; ``try_number``; ``stopped_by`` (``max_total_tokens`` or ``max_turns``
    if prompts were not asked because of this limit, or None). Without ``output_path``: ``results``, the list of the objects
    above. All are also pushed if fewer than ``min_answered`` prompts were answered. On Airflow 2.10 and later, events of the task's
    outlet assets have the counts and ``output_path`` in their ``extra``.

    A retry resumes the batch, and so does clearing a task whose batch was not complete. Answers are kept, the session's history
    shows what happened to prompts in flight, and only the missing prompts are asked. Clearing a complete batch asks all prompts again.
    Without ``output_path``, this requires Airflow 3.3's task state store; on older versions, a retry asks all prompts again.

    Prompts that failed with transient errors (a lost connection, 429, 5xx, an interrupted turn) are retried at the end of the batch,
    after reading the session's history.

    Each run and each mapped task needs its own output path (``{{ run_id }}``, ``{{ ti.map_index }}``). The task fails if another batch
    is writing to the path, or if the path contains the results of another task of the same run. Results of an earlier run are replaced.

    API: POST /api/v1/chat and POST /api/v1/chat/{session_id}/messages/stream (https://developers.llamaindex.ai/reference/).

    :param prompts: a list (an XComArg, or a JSON list in a string) of prompts, or of objects with ``prompt`` and,
        optionally, ``id`` (unique), ``index_ids``, ``session_id`` (an existing session; prompts of one session are asked in order). Other
        fields are passed on to the results as ``extra``. (templated)
    :param prompts_path: instead of ``prompts``, a CSV file or JSON Lines file with the same fields, in UTF-8, on any path as in
        ``output_path``. It is copied to the local disk and checked before anything is asked. (templated)
    :param index_ids: indexes for all prompts without their own, at most ten. (templated)
    :param max_concurrency: maximum number of concurrent turns. The same number of sessions may be opened ahead. (templated)
    :param requests_per_minute: maximum number of requests per minute, including those that create and delete sessions. None means no
        limit. A 429 slows down the whole batch in any case. (templated)
    :param session_mode: ``per_prompt``: each prompt has its own session; ``shared``: one session, in which prompts are asked in order.
    :param output_path: any path that Airflow's object storage knows (``s3://conn_id@bucket/key``, ``file:///...``), or an absolute
        local path, as text or as a path object. None: results in XCom, for at most :data:`MAX_XCOM_ITEMS` prompts. (templated)
    :param on_item_error: ``collect``: continue, and fail only if fewer than ``min_answered`` prompts were answered; ``fail_fast``:
        stop asking, let turns in flight finish, and fail.
    :param min_answered: minimum number of answered prompts: a count (90), or a share with a decimal point (0.9, 1.0). If there are
        fewer, the task fails after all results were written. None means one. (templated)
    :param on_empty: what happens if there are no prompts: ``skip`` the task, ``succeed``, or ``fail``. (templated)
    :param max_total_tokens: input and output tokens, over all attempts, after which nothing more is asked. Turns in flight end and may
        exceed it. None means no limit. (templated)
    :param max_turns: maximum number of turns over all attempts of the run. None means no limit. (templated)
    :param on_interrupted: what a retry does if the earlier turn stopped partway: ``fail``, or ``ask_again`` once more (the first
        turn may have been billed).
    :param delete_sessions: delete the sessions that the batch created after the results were written. After a failure, sessions that a
        retry needs are kept.
    :param require_all_indexes: fail a turn if an index is not ready. (templated)
    :param turn_timeout: maximum duration of a turn, in seconds or as a timedelta, not counting the time spent waiting for the rate
        limit. (templated)
    :param llamacloud_conn_id: the Airflow connection. (templated)
    :param project_id: project (UUID) that overrides the one of the connection. (templated)
    :param organization_id: organization (UUID) that overrides the one of the connection. (templated)
    :raises ChatBatchError: an item failed with ``fail_fast``, or too few prompts were answered, or the results could not be written.
    :raises ChatBatchRefusedError: too few prompts were answered, and a retry would answer no more.
    :raises AuthenticationError: the API key is invalid.
    :raises PaymentRequiredError: the organization has no credits left.
    :raises InvalidArgumentError: an argument is invalid; nothing was asked. The message names the position of an invalid prompt.
    """

    template_fields: Sequence[str] = (
        *LlamaCloudOperator.template_fields,
        "prompts",
        "prompts_path",
        "index_ids",
        "max_concurrency",
        "requests_per_minute",
        "session_mode",
        "output_path",
        "on_item_error",
        "on_interrupted",
        "min_answered",
        "on_empty",
        "max_total_tokens",
        "max_turns",
        "delete_sessions",
        "require_all_indexes",
        "turn_timeout",
    )

    operator_extra_links: Any = property(conversation_links)

    def __init__(
        self,
        *,
        prompts: Any = None,
        prompts_path: Any = None,
        index_ids: Templated[list[str]] | None = None,
        max_concurrency: Templated[int] = 8,
        requests_per_minute: Templated[float] | None = None,
        session_mode: Templated[arguments.SessionMode] = "per_prompt",
        output_path: Any = None,
        on_item_error: Templated[arguments.OnItemError] = "collect",
        on_interrupted: Templated[arguments.OnInterrupted] = "fail",
        min_answered: Templated[float] | None = None,
        on_empty: Templated[arguments.OnEmpty] = "skip",
        max_total_tokens: Templated[int] | None = None,
        max_turns: Templated[int] | None = None,
        delete_sessions: Templated[bool] = False,
        require_all_indexes: Templated[bool] = False,
        turn_timeout: Templated[float | timedelta] = 600,
        llamacloud_conn_id: Templated[str] = "llamacloud_default",
        project_id: Templated[str] | None = None,
        organization_id: Templated[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            llamacloud_conn_id=llamacloud_conn_id, project_id=project_id, organization_id=organization_id, **kwargs
        )
        self.prompts = prompts
        self.prompts_path = arguments.path(prompts_path)
        self.index_ids = index_ids
        self.max_concurrency = max_concurrency
        self.requests_per_minute = requests_per_minute
        self.session_mode = session_mode
        self.output_path = arguments.path(output_path)
        self.on_item_error = on_item_error
        self.on_interrupted = on_interrupted
        self.min_answered = min_answered
        self.on_empty = on_empty
        self.max_total_tokens = max_total_tokens
        self.max_turns = max_turns
        self.delete_sessions = delete_sessions
        self.require_all_indexes = require_all_indexes
        self.turn_timeout = turn_timeout
        self._kill: Callable[[], object] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask the missing prompts, write the results, and return the manifest."""
        from airflow_provider_llamachat.airflow_support.paths import resolved_path

        options = self._options()
        on_empty = arguments.choice(self.on_empty, "on_empty", arguments.OnEmpty)
        path = resolved_path(self.output_path, "output_path")
        with self._items(options, path) as items:
            if not items and on_empty != "succeed":
                text = f"The batch has no prompts, and on_empty is {on_empty!r}."
                raise AirflowSkipException(text) if on_empty == "skip" else InvalidArgumentError(text)
            if items and isinstance(options.min_answered, int) and options.min_answered > len(items):
                raise InvalidArgumentError(
                    f"min_answered is {options.min_answered}, but the batch has only {len(items)} prompts. "
                    "Nothing was asked in this attempt."
                )
            report, base_url = self._ask_all(context, items, options, path)
        return self._finish(context, report, base_url, path)

    def _ask_all(self, context: Context, items: Sequence[Item], options: Options, path: Any) -> tuple[Report, str]:
        # Lineage is needed at the end. It is loaded now, so that no answer is lost if that fails.
        from airflow_provider_llamachat.airflow_support import lineage, own_loop  # noqa: F401  # see above
        from airflow_provider_llamachat.airflow_support.task_state import TaskMemory
        from airflow_provider_llamachat.batch.items import BatchScope
        from airflow_provider_llamachat.batch.journal import MemoryJournal, PartsJournal

        ti: Any = context["ti"]
        scope = BatchScope(ti.dag_id, ti.task_id, ti.run_id, getattr(ti, "map_index", -1))
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
                return own_loop.run(self._run(items, scope, options, journal), self.on_kill)
        finally:
            # In a notebook, the same operator may run again. Reset any earlier, a kill before this line would be lost.
            self._is_killed = False

    @contextlib.contextmanager
    def _items(self, options: Options, output: Any) -> Iterator[Sequence[Item]]:
        from airflow_provider_llamachat.airflow_support.paths import is_same_file, resolved_path
        from airflow_provider_llamachat.batch import items, prompt_files

        path = resolved_path(self.prompts_path, "prompts_path")
        if (arguments.given(self.prompts, "prompts") is None) is (path is None):
            given = "neither is" if path is None else "both are"
            raise InvalidArgumentError(
                f"Set either prompts or prompts_path, but {given} set. Nothing was asked in this attempt."
            )
        how: Any = {"index_ids": options.index_ids, "session_mode": options.session_mode}
        if path is None:
            yield items.parse(self.prompts, **how)
            return
        if output is not None and is_same_file(path, output):
            raise InvalidArgumentError(
                f"prompts_path and output_path are the same file, so the results would replace the prompts. Set another output_path. "
                f"Nothing was asked in this attempt. File: {path}"
            )
        with contextlib.closing(prompt_files.read(path, **how)) as stored:
            self.log.info("Read %d prompts from %s.", len(stored), path)
            yield stored

    def _finish(self, context: Context, report: Report, base_url: str, path: Any) -> dict[str, Any]:
        """Log the end, push the results, and return the manifest.

        :raises ChatBatchError: too few prompts were answered.
        """
        from airflow_provider_llamachat.airflow_support.lineage import describe_outlets, record

        results = report.results
        output = None if path is None else str(path)
        self._tell_end(report, output)
        record(self.get_hook(), report.index_ids, base_url, output)
        counts = {
            "total": sum(results.counts.values()),
            **results.counts,
            "total_input_tokens": results.input_tokens,
            "total_output_tokens": results.output_tokens,
            "output_path": output,
        }
        manifest = counts | {
            "sessions_opened": report.opened,
            "sessions_deleted": report.deleted,
            "kept": report.kept,
            "settled": report.settled,
            "rate_limited": report.refused,
            "seconds": round(report.seconds, 3),
            "try_number": context["ti"].try_number,
            "stopped_by": report.stopped_by,
        }
        pushed = {} if results.lines is None else {"results": results.lines}
        if report.failure is not None:
            try:
                self._push_all(context, pushed | {"return_value": manifest})
            except Exception as problem:  # noqa: BLE001  # must not hide why the batch failed
                self.log.warning("The manifest could not be pushed to XCom (%s).", type(problem).__name__)
            raise report.failure
        self._push_all(context, pushed)
        describe_outlets(context, self.outlets, counts)
        return manifest

    def _push_all(self, context: Context, values: dict[str, Any]) -> None:
        for key, value in values.items():
            self.push(context, key, value)

    def on_kill(self) -> None:
        """Ask nothing more. Turns in flight may continue at the server, and the next attempt looks for their answers."""
        super().on_kill()
        if self._kill is not None:
            with contextlib.suppress(RuntimeError):  # the loop, and therefore the batch, has already ended
                self._kill()

    def _tell_end(self, report: Report, output: str | None) -> None:
        if report.opened > report.deleted and not arguments.flag(self.delete_sessions, "delete_sessions"):
            self.log.info(
                "The batch leaves the %d sessions that it opened. The results name them in session_id. To delete them, set "
                "delete_sessions, or use DeleteChatSessionOperator.",
                report.opened,
            )
        counts, errors = report.results.counts, report.results.errors
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items()))
        self.log.info(
            "%d of %d prompts are answered%s. Results: %s",
            counts["answered"],
            sum(counts.values()),
            f"; without an answer: {kinds}" if kinds else "",
            output or "XCom",
        )

    async def _run(
        self, items: Sequence[Item], scope: BatchScope, options: Options, journal: Journal
    ) -> tuple[Report, str]:
        from airflow_provider_llamachat.airflow_support.metrics import count_turn
        from airflow_provider_llamachat.batch.engine import Batch
        from airflow_provider_llamachat.client import AsyncLlamaCloudClient
        from airflow_provider_llamachat.client.throttle import Throttle

        config = self.get_hook().get_config()
        async with await AsyncLlamaCloudClient.open(config, throttle=Throttle(options.requests_per_minute)) as client:
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

        rate = arguments.given(self.requests_per_minute, "requests_per_minute")
        return Options(
            index_ids=arguments.id_list(self.index_ids),
            max_concurrency=int(arguments.number(self.max_concurrency, "max_concurrency", whole=True)),
            requests_per_minute=None if rate is None else arguments.number(rate, "requests_per_minute"),
            session_mode=arguments.choice(self.session_mode, "session_mode", arguments.SessionMode),
            fail_fast=arguments.choice(self.on_item_error, "on_item_error", arguments.OnItemError) == "fail_fast",
            ask_again=arguments.choice(self.on_interrupted, "on_interrupted", arguments.OnInterrupted) == "ask_again",
            delete_sessions=arguments.flag(self.delete_sessions, "delete_sessions"),
            require_all_indexes=arguments.flag(self.require_all_indexes, "require_all_indexes"),
            turn_timeout=arguments.seconds(self.turn_timeout, "turn_timeout"),
            min_answered=arguments.count_or_share(self.min_answered, "min_answered") or 1,
            max_total_tokens=arguments.limit(self.max_total_tokens, "max_total_tokens"),
            max_turns=arguments.limit(self.max_turns, "max_turns"),
            **self.scope(),
        )

    def _check_xcom(self, count: int) -> None:
        if count > MAX_XCOM_ITEMS:
            raise InvalidArgumentError(
                f"The batch has {count} prompts, but XCom can hold the results of at most {MAX_XCOM_ITEMS}. Set output_path. "
                "Nothing was asked in this attempt."
            )
        if not self.do_xcom_push:
            raise InvalidArgumentError(
                "The answers would be lost, because do_xcom_push is False and output_path is not set. Set output_path. "
                "Nothing was asked in this attempt."
            )
