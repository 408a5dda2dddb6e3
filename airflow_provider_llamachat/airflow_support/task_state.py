"""A task's memory across its attempts: Airflow 3.3's task state store, and what it says of a question's turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_llamachat.exceptions import LlamaCloudTaskStateError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_llamachat.conversation.question import Question, Trace
    from airflow_provider_llamachat.models import Session


def is_retry(context: Context) -> bool:
    """Whether this attempt is a retry of an earlier one, and not the first one or the first after the task was cleared.

    Clearing a task raises ``max_tries`` by the tries used, so the first try of each round is ``max_tries - retries + 1``.
    """
    ti: Any = context["ti"]
    retries = getattr(context["task"], "retries", 0) or 0
    return int(ti.try_number) > int(ti.max_tries) - int(retries) + 1


def is_stale(context: Context, try_number: Any) -> bool:
    """Whether the event that a task resumes with is an earlier try's.

    Airflow 3.0 and 3.1 forget to clear how a try that failed after its deferral was resumed, so its retry begins with the old event.

    :param try_number: of the try that deferred; None (deferred by an older release): it is taken for this one.
    """
    return try_number is not None and int(try_number) != int(context["ti"].try_number)


GRACE = timedelta(seconds=60)
"""Time for a trigger to report after its own deadline, before the deferral itself times out."""


def deferral_timeout(context: Context, seconds: float) -> timedelta:
    """How long a task may stay deferred: as long as its trigger may take, or what its ``execution_timeout`` leaves, and a grace.

    :param seconds: how long the trigger may take.
    """
    limit = timedelta(seconds=seconds)
    if (allowed := getattr(context["task"], "execution_timeout", None)) is not None:
        started = getattr(context["ti"], "start_date", None) or datetime.now(tz=UTC)
        limit = min(limit, started + allowed - datetime.now(tz=UTC))
    return max(limit, timedelta()) + GRACE


def is_deferral_timeout(next_method: str, next_kwargs: Mapping[str, Any] | None) -> bool:
    """Whether Airflow resumes a deferred task because its trigger did not fire in time (arguments of ``resume_execution``)."""
    return next_method == "__fail__" and "timeout" in str((next_kwargs or {}).get("error")).lower()


class TaskMemory:
    """A task's own memory across its tries: Airflow 3.3's task state store; without one, nothing is remembered.

    A store that fails is reported and then treated as absent: the memory makes retries more exact, but a task must not fail
    for it. The exception is what a later attempt has to know (:meth:`set_in_round` with ``required``).

    A *round* is a first try with its retries; clearing the task begins another. What :meth:`set_in_round` keeps is told apart from what
    a later round keeps, whose retries must not take an earlier round's turn for their own.

    :ivar has_failed: whether the store was unavailable at some time.
    """

    def __init__(self, context: Context, log: Any) -> None:
        # Only this key: Airflow 2 warns of a dozen old ones when all are looked at.
        self._store: Any = cast("Mapping[str, Any]", context).get("task_state_store")
        self._ti: Any = context["ti"]
        self._log = log
        self.has_failed = False
        # Clearing a task raises it, nothing else does.
        self._round = int(self._ti.max_tries)

    @property
    def exists(self) -> bool:
        """Whether this Airflow has a task state store."""
        return self._store is not None

    def get(self, key: str, *, required: bool = False) -> Any:
        """Return what an earlier try kept under ``key``, or None.

        :param required: nothing may happen unless it is known.
        :raises LlamaCloudTaskStateError: it is required, and could not be read.
        """
        return self._use(lambda store: store.get(key), required=required)

    def set(self, key: str, value: Any, *, required: bool = False) -> None:
        """Keep ``value`` under ``key`` for this task's retries.

        :param required: nothing may happen unless a later attempt can know of it.
        :raises LlamaCloudTaskStateError: it is required, and could not be kept.
        """
        self._use(lambda store: store.set(key, value), required=required)

    def _use(self, access: Callable[[Any], Any], *, required: bool) -> Any:
        if self._store is None:
            return None
        try:
            return access(self._store)
        except Exception as problem:  # the store's backends raise whatever they like
            self.has_failed = True
            if required:
                raise LlamaCloudTaskStateError(
                    "Airflow's task state store is unavailable, so nothing was sent: what is known of earlier attempts, and what "
                    "later ones have to know, is kept there. Retry the task when the store is available. "
                    f"Cause: {type(problem).__name__}."
                ) from problem
            self._log.warning(
                "Airflow's task state store is unavailable (%s). What was asked in one attempt may be unknown to another.",
                type(problem).__name__,
            )
            return None

    def recall(self, key: str) -> tuple[Any, bool]:
        """Return what :meth:`set_in_round` kept under ``key`` last, or None, and whether that was in this round."""
        kept = self.get(key)
        if not isinstance(kept, dict):
            return None, False
        return kept.get("value"), kept.get("round") == self._round

    def recall_unfinished(self, key: str) -> Any:
        """Return what was kept under ``key`` in this round, or in an earlier one whose result Airflow did not keep; else None."""
        value, is_ours = self.recall(key)
        if value is None or is_ours or not self.has_result():
            return value
        # Airflow has deleted the result by now: a retry of this attempt could not tell that there was one.
        self.set_in_round(key, None)
        return None

    def set_in_round(self, key: str, value: Any, *, required: bool = False) -> None:
        """Keep ``value`` under ``key`` for the retries of this round; see :meth:`set`."""
        self.set(key, {"round": self._round, "value": value}, required=required)

    def has_result(self) -> bool:
        """Whether the attempt before this one returned a value that Airflow kept. True where that cannot be known.

        A task that failed after its work was done (in ``post_execute``, or in an XCom back end) has none. Airflow deletes the XComs of
        the earlier attempt when a task starts, and its task runner keeps the list of what it deleted.
        """
        server = getattr(self._ti, "_ti_context_from_server", None)
        keys = getattr(server, "xcom_keys_to_clear", None)
        task = getattr(self._ti, "task", None)
        return keys is None or "return_value" in keys or not getattr(task, "do_xcom_push", True)


class TurnMemory:
    """What a task's attempts know of the turn of their question.

    :ivar session_id: the session that the question is asked in.
    :ivar trace: what is known now; None before :meth:`begin`.
    :ivar is_cleared: whether somebody cleared the task before its question had an answer, and this is the first attempt since.
    """

    KEY = "turn"

    def __init__(self, context: Context, log: Any, question: Question) -> None:
        self._context = context
        self._log = log
        self._store = TaskMemory(context, log)
        self._question = question
        self.session_id = question.session_id
        self.trace: Trace | None = None
        self.is_cleared = False
        self._recalled: tuple[Any, bool] | None = None

    def recall(self) -> tuple[Any, bool]:
        """Return what earlier attempts left, and whether that was in this round.

        To be called before anything can fail: clearing a task that handed its answer on asks again, and only the first attempt
        after the clear can tell that it did.
        """
        if self._recalled is None:
            value, is_in_round = self._store.recall(self.KEY)
            if isinstance(value, dict) and value.get("done") is True and not is_in_round:
                value = self._store.recall_unfinished(self.KEY)
            self._recalled = value, is_in_round
        return self._recalled

    def begin(self, session: Session) -> Trace:
        """Return what is known of the turn as this attempt begins."""
        from airflow_provider_llamachat.conversation.history import begin
        from airflow_provider_llamachat.conversation.question import Trace

        value, is_in_round = self.recall()
        kept = Trace.read(value) if isinstance(value, dict) else None
        # Where there is a store, an attempt that left nothing did not get as far as asking; what it left may be unreadable, though.
        is_unknown = kept is None and (not self._store.exists or self._store.has_failed or value is not None)
        is_about_this = kept is not None and self._is_about_this(value, is_in_round=is_in_round)
        if not is_about_this:
            kept = None
        self.trace = begin(
            session, self._question, memory=kept, is_retry=is_unknown and is_retry(self._context), now=time.time()
        )
        self.is_cleared = kept is not None and self.trace.is_open and not is_in_round
        if self.is_cleared:
            self._log.info(
                "This task was cleared before its question had an answer; looking for the answer in the session's history first. "
                "If there is none, the question is asked once more. Session: %s.",
                session.session_id,
            )
        elif self.trace.is_open:
            self._log.info(
                "This is a retry; looking for the answer in the session's history first. Session: %s.",
                session.session_id,
            )
        return self.trace

    def _is_about_this(self, value: dict[str, Any], *, is_in_round: bool) -> bool:
        from airflow_provider_llamachat.conversation.question import fingerprint

        is_same_prompt = value.get("prompt") == fingerprint(self._question.prompt)
        if is_in_round and not is_same_prompt:
            self._log.warning(
                "An earlier attempt asked another prompt, so this one is asked, and paid for, again. Keep what differs between "
                "attempts (the time, try_number) out of prompts."
            )
        return is_same_prompt and value.get("session_id") == self._question.session_id

    def keep(self, trace: Trace, is_intent: bool = False) -> None:  # called by position
        """Keep what is known of the turn for later attempts.

        :param is_intent: a post follows.
        :raises LlamaCloudTaskStateError: a post follows, and Airflow's store could not keep that.
        """
        from airflow_provider_llamachat.conversation.question import fingerprint

        self.trace = trace
        about = {"session_id": self._question.session_id, "prompt": fingerprint(self._question.prompt)}
        self._store.set_in_round(self.KEY, {**about, **trace.as_dict()}, required=is_intent)
