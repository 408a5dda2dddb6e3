"""The memory of a task across its attempts, in Airflow 3.3's task state store."""

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
    """Whether this attempt is a retry, and not the first attempt or the first one after the task was cleared.

    Clearing a task increases ``max_tries`` by the number of attempts, so the first attempt is ``max_tries - retries + 1``.
    """
    ti: Any = context["ti"]
    retries = getattr(context["task"], "retries", 0) or 0
    return int(ti.try_number) > int(ti.max_tries) - int(retries) + 1


def is_stale(context: Context, try_number: Any) -> bool:
    """Whether the event that resumes a task belongs to an earlier attempt.

    If an attempt fails after its deferral, Airflow 3.0 and 3.1 resume its retry with the old event.

    :param try_number: number of the attempt that deferred. None (deferred by an older release) means the current attempt.
    """
    return try_number is not None and int(try_number) != int(context["ti"].try_number)


GRACE = timedelta(seconds=60)
"""Time in which a trigger can still report after its deadline, before the deferral times out."""


def deferral_timeout(context: Context, seconds: float) -> timedelta:
    """Return the timeout of a deferral: the time of its trigger or the rest of ``execution_timeout``, and a grace period.

    :param seconds: maximum duration of the trigger.
    """
    limit = timedelta(seconds=seconds)
    if (allowed := getattr(context["task"], "execution_timeout", None)) is not None:
        started = getattr(context["ti"], "start_date", None) or datetime.now(tz=UTC)
        limit = min(limit, started + allowed - datetime.now(tz=UTC))
    return max(limit, timedelta()) + GRACE


def is_deferral_timeout(next_method: str, next_kwargs: Mapping[str, Any] | None) -> bool:
    """Whether Airflow resumes a task because its deferral timed out. Takes the arguments of ``resume_execution``."""
    return next_method == "__fail__" and "timeout" in str((next_kwargs or {}).get("error")).lower()


class TaskMemory:
    """The memory of a task across its attempts, in Airflow 3.3's task state store. Without a store, nothing is remembered.

    If the store fails, a warning is logged and the task continues without it, unless the value is ``required``.

    A *round* is a first attempt and its retries. Clearing the task starts another round. Values of :meth:`set_in_round` belong to a
    round, so that a retry does not use the turn of an earlier round.

    :ivar has_failed: whether the store has been unavailable.
    """

    def __init__(self, context: Context, log: Any) -> None:
        # Only this key is read, because Airflow 2 warns when deprecated keys are read.
        self._store: Any = cast("Mapping[str, Any]", context).get("task_state_store")
        self._ti: Any = context["ti"]
        self._log = log
        self.has_failed = False
        # Only clearing a task increases it.
        self._round = int(self._ti.max_tries)

    @property
    def exists(self) -> bool:
        """Whether this Airflow has a task state store."""
        return self._store is not None

    def get(self, key: str, *, required: bool = False) -> Any:
        """Return the value that an earlier attempt stored under ``key``, or None.

        :param required: raise an error if the store is unavailable.
        :raises LlamaCloudTaskStateError: the store is unavailable, and the value is required.
        """
        return self._use(lambda store: store.get(key), required=required)

    def set(self, key: str, value: Any, *, required: bool = False) -> None:
        """Store ``value`` under ``key`` for later attempts; see :meth:`get` for ``required``."""
        self._use(lambda store: store.set(key, value), required=required)

    def _use(self, access: Callable[[Any], Any], *, required: bool) -> Any:
        if self._store is None:
            return None
        try:
            return access(self._store)
        except Exception as problem:  # the store's backends raise exceptions of any class
            self.has_failed = True
            if required:
                raise LlamaCloudTaskStateError(
                    "Airflow's task state store is unavailable, so nothing was sent. Retry the task when the store is available. "
                    f"Cause: {type(problem).__name__}."
                ) from problem
            self._log.warning(
                "Airflow's task state store is unavailable (%s). Later attempts may not know what this attempt asked.",
                type(problem).__name__,
            )
            return None

    def recall(self, key: str) -> tuple[Any, bool]:
        """Return the last value that :meth:`set_in_round` stored under ``key``, or None, and whether it belongs to this round."""
        kept = self.get(key)
        if not isinstance(kept, dict):
            return None, False
        return kept.get("value"), kept.get("round") == self._round

    def recall_unfinished(self, key: str) -> Any:
        """Return the value of this round, or of an earlier round whose result Airflow did not store, or None."""
        value, is_ours = self.recall(key)
        if value is None or is_ours or not self.has_result():
            return value
        # Airflow has already deleted the result, so a retry of this attempt could not detect it.
        self.set_in_round(key, None)
        return None

    def set_in_round(self, key: str, value: Any, *, required: bool = False) -> None:
        """Store ``value`` under ``key`` for the retries of this round; see :meth:`set`."""
        self.set(key, {"round": self._round, "value": value}, required=required)

    def has_result(self) -> bool:
        """Whether the previous attempt pushed a return value. Return True if this is not known.

        A task that failed after its work was done (in ``post_execute``, or in an XCom backend) has none. Airflow deletes the XComs of
        the previous attempt when a task starts, and its task runner has the list of deleted keys.
        """
        server = getattr(self._ti, "_ti_context_from_server", None)
        keys = getattr(server, "xcom_keys_to_clear", None)
        task = getattr(self._ti, "task", None)
        return keys is None or "return_value" in keys or not getattr(task, "do_xcom_push", True)


class TurnMemory:
    """What the attempts of a task know about the turn of their question.

    :ivar question: the question.
    :ivar trace: what is currently known; None before :meth:`begin`.
    :ivar is_cleared: whether this is the first attempt after the task was cleared without an answer.
    :ivar has_posted: whether this attempt posted the prompt.
    """

    KEY = "turn"

    def __init__(self, context: Context, log: Any, question: Question) -> None:
        from airflow_provider_llamachat.conversation.question import fingerprint

        self._context = context
        self._log = log
        self._store = TaskMemory(context, log)
        self.question = question
        self._about = {"session_id": question.session_id, "prompt": fingerprint(question.prompt)}
        self.trace: Trace | None = None
        self.is_cleared = False
        self.has_posted = False
        self._recalled: tuple[Any, bool] | None = None

    def recall(self) -> tuple[Any, bool]:
        """Return what earlier attempts stored, and whether it belongs to this round.

        Call this before anything can fail. Clearing a task that pushed its answer asks again, and only the first attempt after the
        clear can detect this.
        """
        if self._recalled is None:
            value, is_in_round = self._store.recall(self.KEY)
            if isinstance(value, dict) and value.get("done") is True and not is_in_round:
                value = self._store.recall_unfinished(self.KEY)
            self._recalled = value, is_in_round
        return self._recalled

    def _kept(self) -> tuple[Trace | None, bool]:
        """Return what earlier attempts stored, and whether one of them may have asked and stored nothing."""
        from airflow_provider_llamachat.conversation.question import Trace

        value, _ = self.recall()
        # 1.0.0 did not store when it posted: it may have been a moment ago.
        kept = Trace.read({"intended_at": time.time(), **value}) if isinstance(value, dict) else None
        # With a store, an attempt that left nothing did not ask. However, what it left may be unreadable.
        is_unknown = kept is None and (not self._store.exists or self._store.has_failed or value is not None)
        return kept, is_unknown and is_retry(self._context)

    def may_have_asked(self) -> bool:
        """Whether a post of an earlier attempt may have become a turn."""
        kept, may_have_asked = self._kept()
        return may_have_asked if kept is None else kept.is_open

    def begin(self, session: Session) -> Trace:
        """Return what is known about the turn at the start of this attempt."""
        from airflow_provider_llamachat.conversation.history import begin

        value, is_in_round = self.recall()
        kept, may_have_asked = self._kept()
        if kept is not None and not self._is_about_this(value, is_in_round=is_in_round):
            kept = None
        self.trace = begin(session, self.question, memory=kept, is_retry=may_have_asked, now=time.time())
        self.is_cleared = kept is not None and self.trace.is_open and not is_in_round
        if self.is_cleared:
            self._log.info(
                "This task was cleared before it had an answer. Looking for the answer in the session's history first. "
                "If there is none, the prompt is sent once more. Session: %s.",
                session.session_id,
            )
        elif self.trace.is_open:
            self._log.info(
                "This is a retry. Looking for the answer in the session's history first. Session: %s.",
                session.session_id,
            )
        return self.trace

    def _is_about_this(self, value: dict[str, Any], *, is_in_round: bool) -> bool:
        is_same_prompt = value.get("prompt") == self._about["prompt"]
        if is_in_round and not is_same_prompt:
            self._log.warning(
                "An earlier attempt sent a different prompt, so this prompt is sent and paid for. Do not use values in prompts that "
                "change between attempts, such as the time or try_number."
            )
        return is_same_prompt and value.get("session_id") == self._about["session_id"]

    def keep(self, trace: Trace, is_intent: bool = False) -> None:  # called by position
        """Store what is known about the turn for later attempts.

        :param is_intent: a post follows, so the store must be available.
        :raises LlamaCloudTaskStateError: a post follows, and the store is unavailable.
        """
        self.trace = trace
        self._store.set_in_round(self.KEY, {**self._about, **trace.as_dict()}, required=is_intent)
        self.has_posted = self.has_posted or is_intent
