"""The trigger that asks, or waits for what was asked, while no worker is held."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_llamachat.triggers.events import ANSWERED, FAILED, Failure, TurnEvent
from airflow_provider_llamachat.triggers.pacing import wait_for_start

if TYPE_CHECKING:
    from airflow_provider_llamachat.conversation.question import Question, Trace

MOMENT = 3.0
"""Seconds after the deferral within which a start is the trigger's first one: no triggerer is replaced that quickly."""


class ChatTurnTrigger(BaseTrigger):
    """Asks one question and fires when its turn has ended.

    It carries ids, the prompt, what is known of the turn and an epoch deadline; never a key and never an answer. A start within a
    moment of the deferral is the first one, and posts at once. A later start, after a triggerer was restarted for instance, reads
    the session's history first and resumes the turn.

    Arguments of earlier releases stay accepted, and unknown ones are ignored, so that tasks which are deferred while the
    provider is upgraded (or downgraded) come through.

    :param baseline: turns the session had before the task first asked.
    :param deadline: epoch seconds at which waiting ends.
    :param deferred_at: epoch seconds at which the task deferred; None (1.0.0) when nobody knows.
    :param accepted: an earlier try saw the server take the prompt.
    :param ask_again: the task may post once more where an earlier attempt's turn has no end: a retry with
        ``on_interrupted="ask_again"``, or a task that was cleared.
    :param known: the rest of a :class:`~..conversation.question.Trace`.
    """

    def __init__(
        self,
        *,
        llamacloud_conn_id: str,
        session_id: str,
        prompt: str,
        index_ids: list[str],
        baseline: int,
        deadline: float,
        deferred_at: float | None = None,
        require_all_indexes: bool = False,
        accepted: bool = False,
        ask_again: bool = False,
        project_id: str | None = None,
        organization_id: str | None = None,
        log_answer: bool = True,
        **known: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow does not type it
        self.llamacloud_conn_id = llamacloud_conn_id
        self.session_id = session_id
        self.prompt = prompt
        self.index_ids = index_ids
        self.baseline = baseline
        self.deadline = deadline
        self.deferred_at = deferred_at
        self.require_all_indexes = require_all_indexes
        self.accepted = accepted
        self.ask_again = ask_again
        self.project_id = project_id
        self.organization_id = organization_id
        self.log_answer = log_answer
        self._known = known

    @property
    def question(self) -> Question:
        """What is asked."""
        from airflow_provider_llamachat.conversation.question import Question

        return Question(
            self.session_id,
            self.prompt,
            self.index_ids,
            self.require_all_indexes,
            self.project_id,
            self.organization_id,
        )

    @property
    def trace(self) -> Trace:
        """What was known of the turn when the task deferred."""
        from airflow_provider_llamachat.conversation.question import Trace

        trace = Trace.read({**self._known, "baseline": self.baseline, "accepted": self.accepted})
        return trace or Trace(0, intended_at=0.0)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments that make this trigger again."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "llamacloud_conn_id": self.llamacloud_conn_id,
                "deadline": self.deadline,
                "deferred_at": self.deferred_at,
                "ask_again": self.ask_again,
                "log_answer": self.log_answer,
                **self.question.as_dict(),
                **self.trace.as_dict(),
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Ask, or take up what was asked, and fire once."""
        from airflow_provider_llamachat.exceptions import LlamaCloudError
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
        from airflow_provider_llamachat.progress import TurnLog

        # Clocks of a worker and a triggerer differ a little; one that is far behind would take every start for the first.
        is_first = self.deferred_at is not None and -1.0 <= time.time() - self.deferred_at <= MOMENT
        self._trace = self.trace if is_first else replace(self.trace, intended_at=time.time())
        await wait_for_start()
        try:
            async with await LlamaCloudHook(self.llamacloud_conn_id).get_async_conn() as client:
                turn = await client.answer(
                    self.question,
                    self._trace,
                    deadline=self.deadline,
                    ask_again=self.ask_again,
                    keep=self._keep,
                    on_event=TurnLog(self.log) if self.log_answer else None,
                )
            event = TurnEvent(ANSWERED, self.question, self._trace, turn.position)
        except LlamaCloudError as problem:
            event = TurnEvent(FAILED, self.question, self._trace, failure=Failure.of(problem))
        yield TriggerEvent(event.as_dict())  # type: ignore[no-untyped-call]  # Airflow does not type it

    async def _keep(self, trace: Trace, is_intent: bool) -> None:  # called by position
        # A triggerer cannot reach the task's memory; the event takes it to the worker.
        self._trace = trace

    async def on_kill(self) -> None:
        """Say what becomes of the turn (Airflow 3.3 calls this when a user acts on the deferred task); nothing is deleted."""
        self.log.warning(
            "The task was stopped; no longer waiting for the turn. LlamaCloud may finish, and bill, it. Session: %s.",
            self.session_id,
        )
