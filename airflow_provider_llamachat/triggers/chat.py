"""The trigger that asks, or waits for what was asked, while no worker is held."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_llamachat.triggers.events import ANSWERED, FAILED, Failure, TurnEvent
from airflow_provider_llamachat.triggers.pacing import wait_for_start


class ChatTurnTrigger(BaseTrigger):
    """Asks one question and fires when its turn has ended.

    It carries ids, the prompt, the baseline and an epoch deadline; never a key and never an answer. It begins by reading the
    session's history, so that a triggerer that was restarted resumes the turn instead of asking again.

    Arguments of earlier releases stay accepted, and unknown ones are ignored, so that tasks which are deferred while the
    provider is upgraded (or downgraded) come through.

    :param baseline: turns the session had before the task first asked.
    :param deadline: epoch seconds at which waiting ends.
    :param accepted: an earlier try saw the server take the prompt.
    :param ask_again: the task is a retry with ``on_interrupted="ask_again"``.
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
        require_all_indexes: bool = False,
        accepted: bool = False,
        ask_again: bool = False,
        project_id: str | None = None,
        organization_id: str | None = None,
        log_answer: bool = True,
        **_from_other_releases: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow does not type it
        self.llamacloud_conn_id = llamacloud_conn_id
        self.session_id = session_id
        self.prompt = prompt
        self.index_ids = index_ids
        self.baseline = baseline
        self.deadline = deadline
        self.require_all_indexes = require_all_indexes
        self.accepted = accepted
        self.ask_again = ask_again
        self.project_id = project_id
        self.organization_id = organization_id
        self.log_answer = log_answer

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments that make this trigger again."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "llamacloud_conn_id": self.llamacloud_conn_id,
                "session_id": self.session_id,
                "prompt": self.prompt,
                "index_ids": self.index_ids,
                "baseline": self.baseline,
                "deadline": self.deadline,
                "require_all_indexes": self.require_all_indexes,
                "accepted": self.accepted,
                "ask_again": self.ask_again,
                "project_id": self.project_id,
                "organization_id": self.organization_id,
                "log_answer": self.log_answer,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Ask, or take up what was asked, and fire once."""
        from airflow_provider_llamachat.exceptions import LlamaCloudError
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
        from airflow_provider_llamachat.progress import TurnLog

        await wait_for_start()
        try:
            async with await LlamaCloudHook(self.llamacloud_conn_id).get_async_conn() as client:
                await client.send_message(
                    self.session_id,
                    self.prompt,
                    index_ids=self.index_ids,
                    require_all_indexes=self.require_all_indexes,
                    baseline=self.baseline,
                    resume=True,
                    accepted=self.accepted,
                    ask_again=self.ask_again,
                    deadline=self.deadline,
                    on_event=TurnLog(self.log) if self.log_answer else None,
                    project_id=self.project_id,
                    organization_id=self.organization_id,
                )
            event = TurnEvent(ANSWERED, self.session_id, self.baseline, self.prompt)
        except LlamaCloudError as problem:
            event = TurnEvent(FAILED, self.session_id, self.baseline, self.prompt, Failure.of(problem))
        yield TriggerEvent(event.as_dict())  # type: ignore[no-untyped-call]  # Airflow does not type it

    async def on_kill(self) -> None:
        """Stop waiting (Airflow 3.3 calls this when a user acts on the deferred task); nothing is deleted."""
        self.log.warning(
            "Stopped waiting for the turn in chat session %s. It may go on, and be billed, at LlamaCloud. Nothing was deleted.",
            self.session_id,
        )
