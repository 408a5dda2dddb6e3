"""One writer for each output path: whoever writes there says so beside it, again and again. Blocking: not for an event loop.

No store has a lock that all stores have, so this is an agreement: a claim is written first and the others' are read after it, so of two
that begin together at least one sees the other. A claim that was not renewed for :data:`STALE` seconds belongs to a process that is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from airflow_provider_llamachat.batch.items import Scope
from airflow_provider_llamachat.batch.storage import Folder
from airflow_provider_llamachat.exceptions import ChatBatchError, InvalidArgumentError

log = logging.getLogger(__name__)

NAME = ".writer"
"""The claim's file in a batch's folder of parts; releases that do not know it pass over names with a dot."""
BEAT = 15.0
"""Seconds between two signs of life."""
STALE = 90.0
"""Seconds after which a claim without a sign of life counts for nothing; the clocks of two workers may differ by a minute."""
PAUSE = 0.5
"""Seconds between two looks at a claim that is about to be given up or to be confirmed."""

REMEDY = (
    "Give each run and each mapped task a path of its own, with {{ run_id }} and {{ ti.map_index }}. Nothing was asked."
)


class Claim:
    """A batch's claim to its output path.

    :param above: the folder in which each batch with this output path has its folder of parts.
    :param scope: the task instance that claims.
    """

    def __init__(
        self,
        above: Folder,
        scope: Scope,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._above = above
        self._folder = above.below(scope.digest)
        self._scope = scope
        self._now = now
        self._sleep = sleep
        self._ended = threading.Event()
        self._is_taken = False
        self._beating: threading.Thread | None = None

    def take(self) -> None:
        """Claim the path until :meth:`release`.

        :raises InvalidArgumentError: another task of the same run writes there.
        :raises ChatBatchError: another run writes there, or nobody can.
        """
        self._say("waiting")
        self._is_taken = True
        try:
            while self._has_to_wait():
                self._sleep(PAUSE)
                self._say("waiting")
            self._say("writing")
        except BaseException:
            self.release()
            raise
        self._beating = threading.Thread(target=self._beat, name="batch-claim", daemon=True)
        self._beating.start()

    def release(self) -> None:
        """Give the path up; what a retry needs stays. Once is enough, twice is no error."""
        if not self._is_taken or self._ended.is_set():
            return
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
        with contextlib.suppress(ChatBatchError):
            self._say("ended")  # where nothing may be removed, this has to do
        self._folder.discard(NAME)
        self._folder.remove_if_empty()
        self._above.remove_if_empty()

    def _has_to_wait(self) -> bool:
        """Whether another batch that began in the same moment, and has to give way, did not do so yet."""
        wait = False
        for digest in self._above.names():
            if digest == self._scope.digest or (claim := self._read(digest)) is None or claim["state"] == "ended":
                continue
            # Two that wait know of each other, or one of them is about to write: it read the claims before ours was there.
            if claim["state"] == "writing" or digest < self._scope.digest:
                raise self._refusal(claim)
            wait = True
        return wait

    def _read(self, digest: str) -> dict[str, Any] | None:
        try:
            claim = json.loads(self._above.below(digest).read(NAME) or b"")
            age = self._now() - float(claim["at"])
            return {**claim, "state": str(claim["state"]), "age": age} if age < STALE else None
        except (ValueError, KeyError, TypeError):
            return None  # none, torn, or of a later release's form

    def _refusal(self, claim: dict[str, Any]) -> ChatBatchError | InvalidArgumentError:
        text = f"Another batch writes to this output_path now: {written_by(claim)}, seen {max(0.0, claim['age']):.0f} s ago. "
        if is_same_run(claim, self._scope):
            return InvalidArgumentError(f"{text}{REMEDY} Place: {self._above.url}")
        return ChatBatchError(f"{text}A retry goes on when that one has ended. {REMEDY} Place: {self._above.url}")

    def _say(self, state: str) -> None:
        self._folder.write(NAME, json.dumps({"state": state, "at": self._now(), **asdict(self._scope)}).encode())

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self._say("writing")
            except ChatBatchError as problem:
                log.warning("The claim to the output path could not be renewed; trying again. %s", problem)


def written_by(origin: dict[str, Any]) -> str:
    """Names the task instance of a claim or of a line of results."""
    index = origin.get("map_index", -1)
    mapped = "" if index == -1 else f", map index {index}"
    return f"Dag {origin.get('dag_id')}, task {origin.get('task_id')}{mapped}, run {origin.get('run_id')}"


def is_same_run(origin: dict[str, Any], scope: Scope) -> bool:
    """Whether a claim or a line of results comes from the run that ``scope`` belongs to."""
    return (origin.get("dag_id"), origin.get("run_id")) == (scope.dag_id, scope.run_id)
