"""The operator that asks in a chat session. It also re-exports the operators that create, save and delete sessions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import conf

from airflow_provider_llamachat import arguments, exceptions
from airflow_provider_llamachat.operators.base import LlamaCloudOperator, conversation_links
from airflow_provider_llamachat.operators.session import CreateChatSessionOperator, DeleteChatSessionOperator

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.airflow_support.task_state import TurnMemory
    from airflow_provider_llamachat.airflow_support.templated import Templated
    from airflow_provider_llamachat.conversation.question import Question, Scope, Trace
    from airflow_provider_llamachat.models import ChatTurn
    from airflow_provider_llamachat.operators.transcript import SaveTranscriptOperator

__all__ = [
    "CreateChatSessionOperator",
    "DeleteChatSessionOperator",
    "SaveTranscriptOperator",
    "SendChatMessageOperator",
]


def __getattr__(name: str) -> Any:
    # Loaded by a Dag that names it: most Dags save no transcript.
    if name != "SaveTranscriptOperator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from airflow_provider_llamachat.operators.transcript import SaveTranscriptOperator

    return SaveTranscriptOperator


READ_TIME = 30.0
"""Seconds that a worker has, in addition to the history lag, for reading an answer that its trigger received."""


class SendChatMessageOperator(LlamaCloudOperator):
    """Ask in a chat session, and pay for the answer once.

    XComs: ``return_value`` (the answer's text), ``usage`` (``total_input_tokens``, ``total_output_tokens``, ``turns`` (model calls),
    ``duration_ms``, ``try_number``, ``outcome`` (``answered``, ``failed``, ``interrupted``), ``adopted`` (whether the answer was found
    in the session's history, so that this attempt paid nothing); also pushed on failure, with None for unknown values),
    ``skipped_index_ids`` (list of text),
    ``sources`` (list of what the answer is based on, see :func:`~..evidence.sources`; bounded by :func:`~..evidence.bounded`).

    The operator reads the session's history before it posts a prompt again. After a retry, a restart of the triggerer or a lost
    connection, it finds the answer instead of paying for another one. Clearing a successful task asks again. Clearing a failed task
    looks for the answer first (Airflow 3.3 and later).

    API: POST /api/v1/chat/{session_id}/messages/stream (https://developers.llamaindex.ai/reference/).

    :param session_id: the session to ask in, normally ``create.output["session_id"]``; to map over sessions,
        ``create.output`` (Airflow maps over return values only). (templated)
    :param prompt: what to ask; the API takes at most 1,000 characters today. A text that ends in ``.prompt`` or ``.prompt.md``
        is the name of a file next to the Dag, or in its ``template_searchpath``, whose content is asked. (templated)
    :param index_ids: indexes to use; None means those the session is bound to. (templated)
    :param require_all_indexes: fail the turn if an index is not ready, instead of skipping the index and adding it to
        ``skipped_index_ids``. (templated)
    :param deferrable: wait in the triggerer instead of on a worker. Default: Airflow's ``[operators] default_deferrable``.
    :param turn_timeout: maximum duration of the turn, in seconds or as a timedelta. (templated)
    :param on_interrupted: what a *retry* does if the earlier turn stopped partway: ``fail``, or ``ask_again`` once more (the first
        turn may have been billed). (templated)
    :param max_total_tokens: input and output tokens of the session after which nothing more is asked in it, as far as its history shows
        them. A turn may exceed it. None means no limit. (templated)
    :param log_answer: whether the question, the answer as it arrives, and the names of its sources are logged.
    :param push_sources: whether the sources of the answer are pushed to XCom.
    :param llamacloud_conn_id: the Airflow connection. (templated)
    :param project_id: project (UUID) that overrides the one of the connection. (templated)
    :param organization_id: organization (UUID) that overrides the one of the connection. (templated)
    :raises ChatTurnFailedError: the server ended the turn with an error.
    :raises ChatTurnInterruptedError: the end of the turn was not seen; nothing was asked twice.
    :raises BudgetReachedError: the session has used ``max_total_tokens``; nothing was asked.
    :raises InvalidArgumentError: an argument is invalid, or does not match the indexes the session is locked to.
    """

    template_fields: Sequence[str] = (
        *LlamaCloudOperator.template_fields,
        "session_id",
        "prompt",
        "index_ids",
        "require_all_indexes",
        "turn_timeout",
        "on_interrupted",
        "max_total_tokens",
    )
    template_ext: Sequence[str] = arguments.PROMPT_FILES

    operator_extra_links: Any = property(conversation_links)

    def __init__(
        self,
        *,
        session_id: Templated[dict[str, Any]],
        prompt: Templated[str],
        index_ids: Templated[list[str]] | None = None,
        require_all_indexes: Templated[bool] = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        turn_timeout: Templated[float | timedelta] = 600,
        on_interrupted: Templated[arguments.OnInterrupted] = "fail",
        max_total_tokens: Templated[int] | None = None,
        log_answer: bool = True,
        push_sources: bool = True,
        llamacloud_conn_id: Templated[str] = "llamacloud_default",
        project_id: Templated[str] | None = None,
        organization_id: Templated[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            llamacloud_conn_id=llamacloud_conn_id, project_id=project_id, organization_id=organization_id, **kwargs
        )
        self.session_id = session_id
        self.prompt = prompt
        self.index_ids = index_ids
        self.require_all_indexes = require_all_indexes
        self.deferrable = deferrable
        self.turn_timeout = turn_timeout
        self.on_interrupted = on_interrupted
        self.max_total_tokens = max_total_tokens
        self.log_answer = log_answer
        self.push_sources = push_sources
        self._memory: TurnMemory | None = None

    def execute(self, context: Context) -> str:
        """Ask, or resume the turn of an earlier attempt. Defer if ``deferrable`` is set."""
        return self._ask(context)

    def _ask(self, context: Context) -> str:
        from airflow_provider_llamachat.airflow_support.lineage import record
        from airflow_provider_llamachat.airflow_support.task_state import TurnMemory
        from airflow_provider_llamachat.airflow_support.turn_log import TurnLog
        from airflow_provider_llamachat.conversation.history import State, indexes_to_ask, judge

        question = self._question()
        may_ask_again = arguments.choice(self.on_interrupted, "on_interrupted", arguments.OnInterrupted) == "ask_again"
        deadline = time.time() + arguments.seconds(self.turn_timeout, "turn_timeout")
        most = arguments.limit(self.max_total_tokens, "max_total_tokens")
        log = TurnLog(self.log, shows_texts=self.log_answer)
        hook = self.get_hook()
        with hook.get_conn() as client, self._usage_on_failure(context):
            self.watch(client)
            self._memory = memory = TurnMemory(context, self.log, question)
            read = client.get_known_session if memory.may_have_asked() else client.get_session
            session = read(question.session_id, **question.scope)
            question = replace(question, index_ids=indexes_to_ask(session, question.index_ids))
            log.asks(question)
            trace = memory.begin(session)
            # A turn that may be there already is looked for in any case.
            if most is not None and session.total_tokens >= most and not trace.is_open:
                raise exceptions.BudgetReachedError(
                    f"The session has used its max_total_tokens, so nothing was asked. Raise max_total_tokens ({most}), or ask in another "
                    f"session. Used: {session.total_tokens} tokens. Session: {question.session_id}.",
                    session_id=question.session_id,
                )
            ask_again = trace.is_open and (memory.is_cleared or may_ask_again)
            is_answered = trace.is_open and judge(session.events, question, trace).state is State.FINISHED
            if self.deferrable and not is_answered and not client.is_stopped:
                log.defers(deadline)
                self._defer(context, question, trace, deadline, ask_again=ask_again)
            turn = client.answer(
                question, trace, deadline=deadline, ask_again=ask_again, keep=memory.keep, on_event=log
            )
            log.answered(turn, has_posted=memory.has_posted)
        record(hook, question.index_ids, client.config.base_url)
        return self._finish(context, turn, adopted=not memory.has_posted)

    def _question(self) -> Question:
        from airflow_provider_llamachat.client.calls import question

        return question(
            arguments.session_id(self.session_id),
            arguments.no_file_name(arguments.prompt(self.prompt), "prompt"),
            arguments.id_list(self.index_ids),
            require_all_indexes=arguments.flag(self.require_all_indexes, "require_all_indexes"),
            scope=cast("Scope", self.scope()),
        )

    def _defer(self, context: Context, question: Question, trace: Trace, deadline: float, *, ask_again: bool) -> None:
        from airflow_provider_llamachat.airflow_support.task_state import deferral_timeout
        from airflow_provider_llamachat.triggers.chat import ChatTurnTrigger

        now = time.time()
        if self._memory is not None:
            # The trigger cannot access the task's memory. It may post at any time until the deadline.
            self._memory.keep(replace(trace, intended_at=deadline), is_intent=True)
        self.defer(
            trigger=ChatTurnTrigger(
                llamacloud_conn_id=arguments.connection_id(self.llamacloud_conn_id),
                log_answer=self.log_answer,
                deadline=deadline,
                deferred_at=now,
                ask_again=ask_again,
                **question.as_dict(),
                **trace.as_dict(),
            ),
            timeout=deferral_timeout(context, deadline - now),
            method_name="execute_complete",
            kwargs={"try_number": context["ti"].try_number},
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after a deferral. Airflow calls this.

        :raises ChatTurnInterruptedError: the trigger did not fire in time.
        """
        from airflow_provider_llamachat.airflow_support.task_state import is_deferral_timeout

        if is_deferral_timeout(next_method, next_kwargs):
            with self._usage_on_failure(context):
                raise exceptions.ChatTurnInterruptedError(
                    "turn_timeout or execution_timeout passed while the task was deferred, and no triggerer resumed it. Check that a "
                    "triggerer is running. A retry looks for the answer in the session's history first.",
                    reason="deadline",
                )
        return super().resume_execution(next_method, next_kwargs, context)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None, **known: Any) -> str:
        """Resume after the trigger: read the finished turn from the session's history, or raise the error of the trigger.

        The question is read from the event. If the Dag has changed, or a template now renders differently, the task still finds the
        answer to the question that was asked.

        :param known: ``try_number`` of the attempt that deferred; from 1.0.0 also ``baseline``, ``prompt`` and ``index_ids``.
        """
        from airflow_provider_llamachat.airflow_support.lineage import record
        from airflow_provider_llamachat.airflow_support.task_state import TurnMemory, is_stale
        from airflow_provider_llamachat.triggers.events import TurnEvent

        if is_stale(context, known.get("try_number")):
            return self._ask(context)
        with self._usage_on_failure(context):
            # An event of 1.0.0 does not contain the whole question.
            told = event if isinstance(event, dict) else {}
            scope = {} if "project_id" in told else self.scope()
            outcome = TurnEvent.parse({"prompt": self.prompt, **scope, **known, **told})
            question = outcome.question
            self._memory = memory = TurnMemory(context, self.log, question)
            memory.keep(outcome.trace)
            outcome.raise_for_failure()
            hook = self.get_hook()
            with hook.get_conn() as client:
                self.watch(client)
                deadline = time.time() + client.config.history_lag + READ_TIME
                turn = client.answer(question, outcome.trace, deadline=deadline, keep=memory.keep)
        record(hook, question.index_ids, client.config.base_url)
        return self._finish(context, turn, adopted=outcome.adopted)

    def on_kill(self) -> None:
        """Send nothing more, and stop waiting. A turn cannot be cancelled, and nothing is deleted."""
        super().on_kill()
        if self._memory is not None and self._memory.trace is not None and self._memory.trace.may_run:
            self.log.warning(
                "The task was stopped and no longer waits for the turn. LlamaCloud may finish, and bill, the turn. Its answer is then "
                "in the session's history. Session: %s.",
                self._memory.question.session_id,
            )

    def _finish(self, context: Context, turn: ChatTurn, *, adopted: bool | None) -> str:
        from airflow_provider_llamachat.airflow_support.metrics import count_turn
        from airflow_provider_llamachat.airflow_support.turn_log import TurnLog
        from airflow_provider_llamachat.evidence import MAX_COUNT, bounded

        self._push_usage(context, turn.usage_as_dict(), "answered", adopted=adopted)
        count_turn("answered", turn.usage_as_dict())
        self.push(context, "skipped_index_ids", [_without_nul(index_id) for index_id in turn.skipped_index_ids])
        if turn.skipped_index_ids:
            self.log.warning("The turn skipped indexes that were not ready: %s.", ", ".join(turn.skipped_index_ids))
        sources = bounded(turn.first_sources(MAX_COUNT))
        if self.push_sources:
            try:
                self.push(context, "sources", sources)
            except Exception as problem:  # noqa: BLE001  # an XCom backend's limit must not fail a turn that was paid for
                self.log.warning("The sources could not be pushed to XCom (%s).", type(problem).__name__)
        TurnLog(self.log, shows_texts=self.log_answer).ends(turn, sources)
        return _without_nul(turn.answer)

    def _push_usage(
        self, context: Context, usage: dict[str, Any] | None, outcome: str, *, adopted: bool | None = None
    ) -> None:
        empty = dict.fromkeys(("total_input_tokens", "total_output_tokens", "turns", "duration_ms"))
        about = {"try_number": context["ti"].try_number, "outcome": outcome, "adopted": adopted}
        self.push(context, "usage", {**empty, **(usage or {}), **about})

    @contextmanager
    def _usage_on_failure(self, context: Context) -> Iterator[None]:
        """Push the known usage of the turn if it fails in the block."""
        from airflow_provider_llamachat.airflow_support.metrics import count_turn

        try:
            yield
        except exceptions.ChatTurnError as problem:
            outcome = "failed" if isinstance(problem, exceptions.ChatTurnFailedError) else "interrupted"
            try:
                self._push_usage(context, problem.usage, outcome)
            except Exception as another:  # noqa: BLE001  # must not hide why the turn failed
                self.log.warning("The turn's usage could not be pushed (%s).", type(another).__name__)
            count_turn(outcome, problem.usage)
            raise


def _without_nul(text: str) -> str:
    # PostgreSQL's JSONB, in which Airflow 3 keeps XComs, refuses it. The answer was paid for, and a retry would adopt the same one.
    return text.replace("\x00", " ")
