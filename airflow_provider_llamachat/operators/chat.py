"""The life of a conversation as tasks: create a session, ask in it, delete it."""

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
    NotFoundError,
)
from airflow_provider_llamachat.operators.base import LlamaCloudOperator, TaskMemory, is_retry, is_stale

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.client import LlamaCloudClient
    from airflow_provider_llamachat.models import ChatTurn, Event, SessionSummary
    from airflow_provider_llamachat.turns import Opening

ON_INTERRUPTED = ("fail", "ask_again")


class CreateChatSessionOperator(LlamaCloudOperator):
    """Create a LlamaCloud chat session, and hand its id to the tasks after it.

    XComs: ``session_id`` (text, pushed the moment the API answers), ``index_ids`` (list of text, empty for an unbound
    session), ``return_value`` (the whole session as JSON).

    A retry on Airflow 3.3 and later takes over the session that the earlier try created, if it is untouched. On older versions
    a retry may leave an empty session over; it costs nothing, and the log names what is known of it.

    API: POST /api/v1/chat (https://developers.llamaindex.ai/reference/).

    :param index_ids: indexes the session is bound to, at most ten: a list, an XComArg, a JSON list in a string, or one id.
        None makes an unbound session. The first message locks them. (templated)
    :param shared_access: what the session's share link grants: ``query`` or ``read_only``; None leaves it to the server. (templated)
    :param wait_for_indexes: wait, on the worker, until all ``index_ids`` are ready. For long waits put an
        :class:`~..sensors.index.IndexReadySensor` before: it can defer. (templated)
    :param index_timeout: seconds (or a timedelta) to wait for them at the most. (templated)
    :raises InvalidArgumentError: an argument is not usable; nothing was sent.
    :raises IndexFailedError: ``wait_for_indexes``, and the build of one has failed.
    :raises IndexNotReadyError: ``wait_for_indexes``, and ``index_timeout`` passed.
    :raises LlamaCloudError: see :mod:`airflow_provider_llamachat.exceptions`.
    """

    template_fields: Sequence[str] = (
        *LlamaCloudOperator.template_fields,
        "index_ids",
        "shared_access",
        "wait_for_indexes",
        "index_timeout",
    )

    def __init__(
        self,
        *,
        index_ids: list[str] | str | None = None,
        shared_access: str | None = None,
        wait_for_indexes: bool | str = False,
        index_timeout: float | str | timedelta = 3600,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.index_ids = index_ids
        self.shared_access = shared_access
        self.wait_for_indexes = wait_for_indexes
        self.index_timeout = index_timeout

    def execute(self, context: Context) -> dict[str, Any]:
        """Create (or, on a retry, take over) the session and push its ids."""
        index_ids = arguments.id_list(self.index_ids)
        shared_access = arguments.optional_choice(self.shared_access, "shared_access", ("query", "read_only"))
        patience = arguments.seconds(self.index_timeout, "index_timeout")
        wait = arguments.flag(self.wait_for_indexes, "wait_for_indexes")
        with self.get_hook().get_conn() as client:
            if wait:
                self._wait(client, index_ids or [], time.time() + patience)
            session = self._earlier_session(context, client, index_ids, shared_access)
            if session is None:
                session = client.create_session(index_ids, shared_access=shared_access, **self.scope())
                self.log.info("Created chat session %s.", session.session_id)
                TaskMemory(context, self.log).set("session_id", session.session_id)
        self.push(context, "session_id", session.session_id)
        # Never None: Airflow 3.0 refuses that as an XCom, and a task that failed for it would leave its session behind.
        self.push(context, "index_ids", session.index_ids or [])
        return session.model_dump(mode="json")

    def _wait(self, client: LlamaCloudClient, index_ids: list[str], deadline: float) -> None:
        from airflow_provider_llamachat.readiness import wait_until_ready

        scope: dict[str, Any] = self.scope()
        wait_until_ready(lambda: (client.get_index(index_id, **scope) for index_id in index_ids), deadline)

    def _earlier_session(
        self, context: Context, client: LlamaCloudClient, index_ids: list[str] | None, shared_access: str | None
    ) -> SessionSummary | None:
        if not is_retry(context):
            return None
        memory = TaskMemory(context, self.log)
        session_id = memory.get("session_id")
        if not isinstance(session_id, str):
            if not memory.exists:
                self.log.info(
                    "This is a retry. If an earlier try got as far as creating a session, that session is left over, empty and "
                    "without cost: this Airflow has no task state store (3.3 has) to remember it in."
                )
            return None
        try:
            session = client.get_session_summary(session_id, **self.scope())
        except NotFoundError:
            return None
        pristine = session.job_metadata is None and set(session.index_ids or []) == set(index_ids or [])
        if not pristine or (shared_access is not None and session.shared_access not in {None, shared_access}):
            self.log.info(
                "Session %s of an earlier try was used or bound otherwise since: creating another one.", session_id
            )
            return None
        self.log.info("Taking over session %s, which an earlier try created.", session_id)
        return session


class SendChatMessageOperator(LlamaCloudOperator):
    """Ask in a chat session, and pay for the answer once.

    XComs: ``return_value`` (the answer's text), ``usage`` (``total_input_tokens``, ``total_output_tokens``, ``turns`` (model calls),
    ``duration_ms``, ``try_number``; pushed on failure too, with None for what is not known), ``skipped_index_ids`` (list of text).

    The session's history on the server is asked before a prompt is posted again, so a retried task, a restarted triggerer or a
    lost connection finds the answer instead of buying another one. Clearing a finished task asks anew.

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

    def execute(self, context: Context) -> str:
        """Ask, or take up what an earlier try asked; defer if told to."""
        return self._ask(context)

    def _ask(self, context: Context) -> str:
        from airflow_provider_llamachat.lineage import record_inputs
        from airflow_provider_llamachat.turns import indexes_to_ask

        session_id = arguments.session_id(self.session_id)
        prompt = arguments.prompt(self.prompt)
        given = arguments.id_list(self.index_ids)
        require_all = arguments.flag(self.require_all_indexes, "require_all_indexes")
        on_interrupted = arguments.choice(self.on_interrupted, "on_interrupted", ON_INTERRUPTED)
        deadline = time.time() + arguments.seconds(self.turn_timeout, "turn_timeout")
        hook = self.get_hook()
        with hook.get_conn() as client, self._usage_on_failure(context):
            session = client.get_session(session_id, **self.scope())
            index_ids = indexes_to_ask(session, given)
            begin = self._opening(context, session, prompt)
            question: dict[str, Any] = {
                "session_id": session_id,
                "prompt": prompt,
                "index_ids": index_ids,
                "require_all_indexes": require_all,
                "baseline": begin.baseline,
                "accepted": begin.accepted,
                "ask_again": begin.resume and on_interrupted == "ask_again",
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
                    self._remember(context, session_id, begin.baseline, prompt, accepted=True)
                raise
        record_inputs(hook, index_ids, client.config.base_url)
        return self._finish(context, turn)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None, **known: Any) -> str:
        """Resume after the trigger: read the answer from the session's history, or raise what the trigger met.

        :param known: ``try_number``, ``baseline``, ``prompt`` and ``index_ids`` as they were when the task was deferred; a Dag that changed
            meanwhile, or a template that renders differently now, does not make the task look for another question's answer.
        """
        if is_stale(context, known.get("try_number")):
            return self._ask(context)
        from airflow_provider_llamachat.lineage import record_inputs
        from airflow_provider_llamachat.triggers.events import TurnEvent
        from airflow_provider_llamachat.turns import State, judge

        with self._usage_on_failure(context):
            outcome = TurnEvent.parse(event)
            baseline = known.get("baseline", outcome.baseline)
            prompt = known.get("prompt") or arguments.prompt(self.prompt)
            try:
                outcome.raise_for_failure()
            except ChatTurnInterruptedError as problem:
                if problem.accepted:
                    self._remember(context, outcome.session_id, baseline, prompt, accepted=True)
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
        record_inputs(hook, known.get("index_ids") or session.index_ids or [], client.config.base_url)
        return self._finish(context, verdict.turn)

    def on_kill(self) -> None:
        """Stop waiting; a turn has no way to be cancelled, and nothing is deleted."""
        self.log.warning(
            "Stopped waiting for the turn in chat session %s. It may go on, and be billed, at LlamaCloud; its answer will then be in "
            "the session's history. Nothing was deleted.",
            self.session_id,
        )

    def _opening(self, context: Context, session: Any, prompt: str) -> Opening:
        from airflow_provider_llamachat.turns import Memory, opening

        memory = TaskMemory(context, self.log)
        begin = opening(
            session,
            prompt,
            retry=is_retry(context),
            memory=Memory.from_value(memory.get_in_round("turn")),
            has_store=memory.exists,
        )
        self._remember(context, session.session_id, begin.baseline, prompt, accepted=begin.accepted)
        if begin.resume:
            self.log.info(
                "This is a retry, and session %s was already asked this: looking before asking.", session.session_id
            )
        return begin

    def _remember(self, context: Context, session_id: str, baseline: int, prompt: str, *, accepted: bool) -> None:
        from airflow_provider_llamachat.turns import Memory, fingerprint

        turn = Memory(session_id, baseline, fingerprint(prompt), accepted)
        TaskMemory(context, self.log).set_in_round("turn", turn.as_dict())

    def _watcher(self, context: Context, begin: Opening, session_id: str, prompt: str) -> Callable[[Event], None]:
        """Show events as they arrive; the first one is the proof that the server took the prompt, for the retries to know."""
        from airflow_provider_llamachat.progress import TurnLog

        shown = TurnLog(self.log) if self.log_answer else None
        proved = begin.accepted

        def watch(event: Event) -> None:
            nonlocal proved
            if not proved:
                proved = True
                self._remember(context, session_id, begin.baseline, prompt, accepted=True)
            if shown is not None:
                shown(event)

        return watch

    @staticmethod
    def _answered(session: Any, begin: Opening, prompt: str) -> bool:
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

            self._push_usage(context, problem.usage)
            count_turn("failed" if isinstance(problem, ChatTurnFailedError) else "interrupted", problem.usage)
            raise


class DeleteChatSessionOperator(LlamaCloudOperator):
    """Delete a chat session with its history. Fits ``.as_teardown()``.

    API: DELETE /api/v1/chat/{session_id} (https://developers.llamaindex.ai/reference/).

    :param session_id: the session to delete, or the whole session as its task returned it. (templated)
    :param ignore_missing: a session that does not exist (any more), or that was never created because the task before failed,
        is no error. (templated)
    :raises NotFoundError: there is no such session, and ``ignore_missing`` is false.
    """

    template_fields: Sequence[str] = (*LlamaCloudOperator.template_fields, "session_id", "ignore_missing")

    def __init__(self, *, session_id: str | dict[str, Any], ignore_missing: bool | str = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.session_id = session_id
        self.ignore_missing = ignore_missing

    def execute(self, context: Context) -> None:
        """Delete the session."""
        ignore_missing = arguments.flag(self.ignore_missing, "ignore_missing")
        given: Any = self.session_id
        if ignore_missing and (given is None or (isinstance(given, str) and given.strip() in {"", "None"})):
            self.log.info("No session was created, so there is none to delete.")
            return
        session_id = arguments.session_id(given)
        with self.get_hook().get_conn() as client:
            try:
                client.delete_session(session_id, **self.scope())
            except NotFoundError:
                if not ignore_missing:
                    raise
                self.log.info("Chat session %s does not exist (any more): nothing to delete.", session_id)
            else:
                self.log.info("Deleted chat session %s.", session_id)
