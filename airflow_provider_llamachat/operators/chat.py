"""The life of a conversation as tasks: create a session, ask in it, delete it (the first and the last from :mod:`.session`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import (
    ChatTurnError,
    ChatTurnFailedError,
    ChatTurnInterruptedError,
)
from airflow_provider_llamachat.operators.base import LlamaCloudOperator, TaskMemory, is_retry, is_stale
from airflow_provider_llamachat.operators.session import CreateChatSessionOperator, DeleteChatSessionOperator

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.models import ChatTurn, Event, Session
    from airflow_provider_llamachat.turns import Memory, Opening

__all__ = ["CreateChatSessionOperator", "DeleteChatSessionOperator", "SendChatMessageOperator"]

ON_INTERRUPTED = ("fail", "ask_again")


class SendChatMessageOperator(LlamaCloudOperator):
    """Ask in a chat session, and pay for the answer once.

    XComs: ``return_value`` (the answer's text), ``usage`` (``total_input_tokens``, ``total_output_tokens``, ``turns`` (model calls),
    ``duration_ms``, ``try_number``; pushed on failure too, with None for what is not known), ``skipped_index_ids`` (list of text).

    The session's history on the server is asked before a prompt is posted again, so a retried task, a restarted triggerer or a
    lost connection finds the answer instead of buying another one. Clearing a finished task asks anew; clearing one that failed looks
    for the answer first (Airflow 3.3 and later).

    API: POST /api/v1/chat/{session_id}/messages/stream (https://developers.llamaindex.ai/reference/).

    :param session_id: the session to ask in, normally ``create.output["session_id"]``; to map over sessions,
        ``create.output`` (Airflow maps over return values only). (templated)
    :param prompt: what to ask; the API takes at most 1,000 characters today. (templated)
    :param index_ids: indexes to use; None means those the session is bound to. (templated)
    :param require_all_indexes: refuse the turn when an index is not ready, instead of leaving it out and naming it in
        ``skipped_index_ids``. (templated)
    :param deferrable: wait in the triggerer instead of on a worker. Default: Airflow's ``[operators] default_deferrable``.
    :param turn_timeout: seconds (or a timedelta) that the turn may take in all. (templated)
    :param on_interrupted: what a *retry* does with a turn that is in the history, unfinished and no longer growing: ``fail``,
        or ``ask_again`` (once more; the first may have been billed). (templated)
    :param log_answer: whether the answer appears in the task log as it arrives.
    :raises ChatTurnFailedError: the server ended the turn with an error.
    :raises ChatTurnInterruptedError: the end of the turn could not be seen; nothing was asked twice.
    :raises InvalidArgumentError: an argument is not usable, or does not match the indexes the session is locked to.
    """

    template_fields: Sequence[str] = (
        *LlamaCloudOperator.template_fields,
        "session_id",
        "prompt",
        "index_ids",
        "require_all_indexes",
        "turn_timeout",
        "on_interrupted",
    )

    def __init__(
        self,
        *,
        session_id: str | dict[str, Any],
        prompt: str,
        index_ids: list[str] | str | None = None,
        require_all_indexes: bool | str = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        turn_timeout: float | str | timedelta = 600,
        on_interrupted: str = "fail",
        log_answer: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.session_id = session_id
        self.prompt = prompt
        self.index_ids = index_ids
        self.require_all_indexes = require_all_indexes
        self.deferrable = deferrable
        self.turn_timeout = turn_timeout
        self.on_interrupted = on_interrupted
        self.log_answer = log_answer
        self._asked_in: str | None = None

    def execute(self, context: Context) -> str:
        """Ask, or take up what an earlier try asked; defer if told to."""
        return self._ask(context)

    def _ask(self, context: Context) -> str:
        from airflow_provider_llamachat.lineage import record
        from airflow_provider_llamachat.turns import indexes_to_ask

        self._asked_in = session_id = arguments.session_id(self.session_id)
        prompt = arguments.prompt(self.prompt)
        given = arguments.id_list(self.index_ids)
        require_all = arguments.flag(self.require_all_indexes, "require_all_indexes")
        on_interrupted = arguments.choice(self.on_interrupted, "on_interrupted", ON_INTERRUPTED)
        deadline = time.time() + arguments.seconds(self.turn_timeout, "turn_timeout")
        hook = self.get_hook()
        with hook.get_conn() as client, self._usage_on_failure(context):
            session = client.get_session(session_id, **self.scope())
            index_ids = indexes_to_ask(session, given)
            begin, cleared = self._opening(context, session, prompt)
            question: dict[str, Any] = {
                "session_id": session_id,
                "prompt": prompt,
                "index_ids": index_ids,
                "require_all_indexes": require_all,
                "baseline": begin.baseline,
                "accepted": begin.accepted,
                "ask_again": begin.resume and (cleared or on_interrupted == "ask_again"),
                "deadline": deadline,
                **self.scope(),
            }
            if self.deferrable and not self._answered(session, begin, prompt):
                self._defer(context, question)
            watcher = self._watcher(context, begin, session_id, prompt)
            try:
                turn = client.send_message(**question, resume=begin.resume, on_event=watcher)
            except ChatTurnInterruptedError as problem:
                if problem.accepted:
                    self._remember_accepted(context, session_id, begin.baseline, prompt)
                raise
        record(hook, index_ids, client.config.base_url)
        return self._finish(context, turn)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None, **known: Any) -> str:
        """Resume after the trigger: read the answer from the session's history, or raise what the trigger met.

        :param known: ``try_number``, ``baseline``, ``prompt`` and ``index_ids`` as they were when the task was deferred; a Dag that changed
            meanwhile, or a template that renders differently now, does not make the task look for another question's answer.
        """
        if is_stale(context, known.get("try_number")):
            return self._ask(context)
        from airflow_provider_llamachat.lineage import record
        from airflow_provider_llamachat.triggers.events import TurnEvent
        from airflow_provider_llamachat.turns import State, judge

        with self._usage_on_failure(context):
            outcome = TurnEvent.parse(event)
            baseline = known.get("baseline", outcome.baseline)
            # Airflow's dag.test() resumes with the event alone.
            prompt = known.get("prompt") or outcome.prompt or arguments.prompt(self.prompt)
            try:
                outcome.raise_for_failure()
            except ChatTurnInterruptedError as problem:
                if problem.accepted:
                    self._remember_accepted(context, outcome.session_id, baseline, prompt)
                raise
            hook = self.get_hook()
            with hook.get_conn() as client:
                session = client.get_session(outcome.session_id, **self.scope())
            verdict = judge(session.events, baseline, prompt, session_id=outcome.session_id)
            if verdict.state is not State.FINISHED or verdict.turn is None:
                raise ChatTurnError(
                    f"The trigger saw the turn in session {outcome.session_id} finish, but its history does not hold the answer "
                    "(any more). A retry asks the history again.",
                    session_id=outcome.session_id,
                )
        record(hook, known.get("index_ids") or session.index_ids or [], client.config.base_url)
        return self._finish(context, verdict.turn)

    def on_kill(self) -> None:
        """Stop waiting; a turn has no way to be cancelled, and nothing is deleted."""
        self.log.warning(
            "Stopped waiting for the turn in chat session %s. It may go on, and be billed, at LlamaCloud; its answer will then be in "
            "the session's history. Nothing was deleted.",
            self._asked_in,
        )

    def _opening(self, context: Context, session: Session, prompt: str) -> tuple[Opening, bool]:
        """How this try begins, and whether it is the first after somebody cleared the task without an answer."""
        from airflow_provider_llamachat.turns import Memory, fingerprint, opening

        store = TaskMemory(context, self.log)
        value, in_this_round = store.recall("turn")
        kept = Memory.from_value(value)
        # Clearing a task that handed its answer on asks anew.
        memory = kept if kept is not None and (in_this_round or not kept.done) else None
        # Where there is a store, an earlier try that left nothing did not come as far as asking; what it left may be unreadable, though.
        is_unknown = not store.exists or (value is not None and kept is None)
        begin = opening(session, prompt, retry=is_unknown and is_retry(context), memory=memory)
        cleared = begin.resume and memory is not None and not in_this_round
        self._remember(context, Memory(session.session_id, begin.baseline, fingerprint(prompt), begin.accepted))
        if in_this_round and kept is not None and kept.prompt != fingerprint(prompt):
            self.log.warning(
                "An earlier try asked another prompt, so this one is asked, and paid for, anew. Keep what differs from try to try (the "
                "time, try_number) out of prompts."
            )
        if cleared:
            self.log.info(
                "This task was cleared before its question had an answer: looking for it in session %s first. Should there be none, the "
                "question is asked once more.",
                session.session_id,
            )
        elif begin.resume:
            self.log.info(
                "This is a retry, and session %s was already asked this: looking before asking.", session.session_id
            )
        return begin, cleared

    def _remember(self, context: Context, turn: Memory) -> None:
        TaskMemory(context, self.log).set_in_round("turn", turn.as_dict())

    def _remember_accepted(self, context: Context, session_id: str, baseline: int, prompt: str) -> None:
        from airflow_provider_llamachat.turns import Memory, fingerprint

        self._remember(context, Memory(session_id, baseline, fingerprint(prompt), accepted=True))

    def _watcher(self, context: Context, begin: Opening, session_id: str, prompt: str) -> Callable[[Event], None]:
        """Show events as they arrive; the first one is the proof that the server took the prompt, for the retries to know."""
        from airflow_provider_llamachat.progress import TurnLog

        shown = TurnLog(self.log) if self.log_answer else None
        proved = begin.accepted

        def watch(event: Event) -> None:
            nonlocal proved
            if not proved:
                proved = True
                self._remember_accepted(context, session_id, begin.baseline, prompt)
            if shown is not None:
                shown(event)

        return watch

    @staticmethod
    def _answered(session: Session, begin: Opening, prompt: str) -> bool:
        from airflow_provider_llamachat.turns import State, judge

        return begin.resume and judge(session.events, begin.baseline, prompt).state is State.FINISHED

    def _defer(self, context: Context, question: dict[str, Any]) -> None:
        from airflow_provider_llamachat.triggers.chat import ChatTurnTrigger

        self.defer(
            trigger=ChatTurnTrigger(llamacloud_conn_id=self.llamacloud_conn_id, log_answer=self.log_answer, **question),
            method_name="execute_complete",
            kwargs={
                **{name: question[name] for name in ("baseline", "prompt", "index_ids")},
                "try_number": context["ti"].try_number,
            },
        )

    def _finish(self, context: Context, turn: ChatTurn) -> str:
        from airflow_provider_llamachat.lineage import count_turn
        from airflow_provider_llamachat.turns import Memory, fingerprint

        self._push_usage(context, turn.usage_as_dict())
        count_turn("answered", turn.usage_as_dict())
        self.push(context, "skipped_index_ids", turn.skipped_index_ids)
        if turn.skipped_index_ids:
            self.log.warning("The turn left out indexes that were not ready: %s.", ", ".join(turn.skipped_index_ids))
        usage = turn.usage
        self.log.info(
            "Answered in session %s: %d characters, %s input and %s output tokens, %s ms.",
            turn.session_id,
            len(turn.answer),
            usage.total_input_tokens,
            usage.total_output_tokens,
            usage.duration_ms,
        )
        answered = Memory(turn.session_id, turn.position or 0, fingerprint(turn.prompt), accepted=True, done=True)
        self._remember(context, answered)
        return turn.answer

    def _push_usage(self, context: Context, usage: dict[str, Any] | None) -> None:
        empty = dict.fromkeys(("total_input_tokens", "total_output_tokens", "turns", "duration_ms"))
        self.push(context, "usage", {**empty, **(usage or {}), "try_number": context["ti"].try_number})

    @contextmanager
    def _usage_on_failure(self, context: Context) -> Iterator[None]:
        """Push what is known of the turn's cost when the block ends with its failure."""
        try:
            yield
        except ChatTurnError as problem:
            from airflow_provider_llamachat.lineage import count_turn

            try:
                self._push_usage(context, problem.usage)
            except Exception as another:  # noqa: BLE001  # whatever keeps the figures back must not hide why the turn failed
                self.log.warning("The turn's usage could not be pushed (%s).", type(another).__name__)
            count_turn("failed" if isinstance(problem, ChatTurnFailedError) else "interrupted", problem.usage)
            raise
