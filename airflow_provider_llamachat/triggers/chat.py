"""The trigger that asks a question, or resumes its turn, without occupying a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.triggers.events import ANSWERED, TurnEvent
from airflow_provider_llamachat.triggers.pacing import wait_for_start

if TYPE_CHECKING:
    from airflow_provider_llamachat.conversation.question import Trace

MOMENT = 3.0
"""Seconds after the deferral within which a start counts as the first one.

Airflow moves the triggers of a dead triggerer to another one after ``triggerer_health_check_threshold`` (30 seconds by default), but the
triggers of a stopped triggerer immediately. A trigger that is cancelled after its post therefore delays the stop until this time is over.
"""


class ChatTurnTrigger(BaseTrigger):
    """Ask one question, and fire when its turn has ended.

    The trigger contains ids, the prompt, what is known about the turn and a deadline, but neither an API key nor an answer. It reads
    the session's history before it posts. If the history shows the turn, the trigger resumes it. If not, and the trigger starts
    shortly after the deferral, it posts the prompt immediately. When it starts later, for example after a restart of the triggerer,
    it posts only if the history has not shown the turn for ``history_lag`` seconds.

    Arguments of earlier releases are accepted, and unknown arguments are ignored, so that deferred tasks survive an upgrade or
    downgrade of the provider.

    :param baseline: number of turns in the session before the task first asked.
    :param deadline: epoch seconds at which waiting ends.
    :param deferred_at: epoch seconds at which the task deferred; None if unknown (1.0.0).
    :param accepted: the server is known to have accepted the prompt in an earlier attempt.
    :param ask_again: the prompt may be posted once more if the earlier turn stopped partway. Set for a retry with
        ``on_interrupted="ask_again"``, and for a task that was cleared.
    :param known: other fields of :class:`~..conversation.question.Trace`.
    :raises InvalidArgumentError: an argument is invalid.
    :ivar question: the question.
    :ivar trace: what was known about the turn when the task deferred.
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
        from airflow_provider_llamachat.conversation.question import Question, Trace

        if known.get("intended_at") is not None:
            known["intended_at"] = arguments.moment(known["intended_at"], "intended_at")
        known |= {"baseline": _count(baseline), "accepted": arguments.flag(accepted, "accepted")}
        self.llamacloud_conn_id = arguments.connection_id(llamacloud_conn_id)
        self.question = Question(
            arguments.session_id(session_id),
            _prompt(prompt),
            _ids(index_ids),
            arguments.flag(require_all_indexes, "require_all_indexes"),
            **arguments.scope(project_id, organization_id),
        )
        self.trace = Trace.read(known) or Trace(0, intended_at=0.0)
        self._trace = self.trace
        self.deadline = arguments.moment(deadline, "deadline")
        self.deferred_at = None if deferred_at is None else arguments.moment(deferred_at, "deferred_at")
        self.ask_again = arguments.flag(ask_again, "ask_again")
        self.log_answer = arguments.flag(log_answer, "log_answer")
        self._has_posted = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments of this trigger."""
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
        """Ask, or resume the turn, and fire once."""
        from airflow_provider_llamachat.airflow_support.turn_log import TurnLog
        from airflow_provider_llamachat.client import AsyncLlamaCloudClient
        from airflow_provider_llamachat.exceptions import LlamaCloudError
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

        log = TurnLog(self.log, shows_texts=self.log_answer)
        # The clocks of worker and triggerer may differ slightly. If a clock is far behind, the start does not count as the first.
        is_first = self.deferred_at is not None and -1.0 <= time.time() - self.deferred_at <= MOMENT
        self._trace = self.trace if is_first else replace(self.trace, intended_at=time.time())
        await wait_for_start()
        try:
            config = await LlamaCloudHook(self.llamacloud_conn_id).get_async_config()
            # A triggerer runs a thousand turns, and each would keep the connection of its first read.
            async with await AsyncLlamaCloudClient.open(config, keep_alive=False) as client:
                turn = await client.answer(
                    self.question,
                    self._trace,
                    deadline=self.deadline,
                    ask_again=self.ask_again,
                    look_first=True,
                    keep=self._keep,
                    on_event=log,
                )
            log.answered(turn, has_posted=self._has_posted)
            event = TurnEvent(ANSWERED, self.question, self._trace, adopted=not self._has_posted)
        except asyncio.CancelledError:
            if is_first and self._trace.is_open and self.deferred_at is not None:
                # If the clock was set back in the meantime, no start counts as the first one until the clock has caught up.
                await asyncio.sleep(min(self.deferred_at + MOMENT - time.time(), MOMENT + 1.0))
            raise
        except LlamaCloudError as problem:
            event = TurnEvent.of(problem, self.question, self._trace)
        yield TriggerEvent(event.as_dict())  # type: ignore[no-untyped-call]  # Airflow does not type it

    async def _keep(self, trace: Trace, is_intent: bool) -> None:  # called by position
        # A triggerer cannot access the task's memory, so the event passes the trace to the worker.
        self._trace = trace
        self._has_posted = self._has_posted or is_intent

    async def on_kill(self) -> None:
        """Log what happens to a turn that may run. Airflow 3.3 calls this when a user stops the deferred task. Nothing is deleted."""
        if self._trace.may_run:
            self.log.warning(
                "The task was stopped and no longer waits for the turn. LlamaCloud may finish, and bill, the turn. Session: %s.",
                self.question.session_id,
            )


def _prompt(value: Any) -> str:
    # Less than operators demand, because 1.0.0 asked prompts that this release refuses.
    if not isinstance(value, str) or not value.strip():
        raise InvalidArgumentError(f"prompt must be text that is not blank, got {arguments.got_prompt(value)}")
    return value


def _ids(value: Any) -> list[str]:
    # Of any form, because they may be those that the server bound the session to.
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise InvalidArgumentError(f"index_ids must be a list of index ids, got {arguments.got_type(value)}")
    return list(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidArgumentError(f"baseline must be a whole number of at least 0, got {arguments.got(value)}")
    return value
