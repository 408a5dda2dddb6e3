"""Ensures that one batch at a time writes to an output path, with a claim file that is renewed. Blocking: do not use in an event loop.

Object stores have no common lock. A batch therefore writes its own claim before it reads the others, so that of two batches that
start together at least one sees the other. A claim that was not renewed for :data:`STALE` seconds is ignored.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any

from airflow_provider_llamachat.batch.items import BatchScope
from airflow_provider_llamachat.batch.storage import Folder
from airflow_provider_llamachat.exceptions import ChatBatchError, InvalidArgumentError

log = logging.getLogger(__name__)

NAME = ".writer"
"""Name of the claim file in a batch's folder of parts. Older releases ignore names that begin with a dot."""
BEAT = 15.0
"""Seconds between two renewals of a claim."""
STALE = 90.0
"""Seconds without a renewal after which a claim is ignored. The clocks of two workers may differ by a minute."""
PAUSE = 0.5
"""Seconds between two reads of a claim that is about to be confirmed or released."""

REMEDY = (
    "Use {{ run_id }} and {{ ti.map_index }} in output_path, so that each run and mapped task has its own path. "
    "Nothing was asked in this attempt."
)


@dataclass(eq=False, repr=False)
class Claim:
    """The claim of a batch to its output path.

    :param above: the folder that contains the parts folders of all batches with this output path.
    :param scope: the task instance of the batch.
    """

    above: Folder
    scope: BatchScope
    _: KW_ONLY
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    _beating: threading.Thread | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._folder = self.above.below(self.scope.digest)
        self._is_free = threading.Event()
        self._is_free.set()

    def take(self) -> None:
        """Claim the path until :meth:`release`.

        :raises InvalidArgumentError: another task of the same run is writing to the path.
        :raises ChatBatchError: another run is writing to the path, or it is not writable.
        """
        self._say("waiting")
        self._is_free.clear()
        try:
            while self._has_to_wait():
                self.sleep(PAUSE)
                self._say("waiting")
            self._say("writing")
        except BaseException:
            self.release()
            raise
        self._beating = threading.Thread(target=self._beat, name="batch-claim", daemon=True)
        self._beating.start()

    def release(self) -> None:
        """Release the path, and keep what a retry needs. Calling it again has no effect."""
        if self._is_free.is_set():
            return
        self._is_free.set()
        if self._beating is not None:
            self._beating.join()
        with contextlib.suppress(ChatBatchError):
            self._say("ended")  # for stores where nothing may be deleted
        self._folder.discard(NAME)
        self._folder.remove_if_empty()
        self.above.remove_if_empty()

    def _has_to_wait(self) -> bool:
        """Whether another batch that started at the same time has to give way and has not done so yet."""
        wait = False
        for digest in self.above.names():
            if digest == self.scope.digest or (claim := self._read(digest)) is None or claim["state"] == "ended":
                continue
            # Of two waiting batches, the one that does not see the other has read the claims before ours existed and will write.
            if claim["state"] == "writing" or digest < self.scope.digest:
                raise self._refusal(claim)
            wait = True
        return wait

    def _read(self, digest: str) -> dict[str, Any] | None:
        try:
            claim = json.loads(self.above.below(digest).read(NAME) or b"")
            age = self.now() - float(claim["at"])
            return {**claim, "state": str(claim["state"]), "age": age} if age < STALE else None
        except (ValueError, KeyError, TypeError):
            return None  # missing, damaged, or written by a later release

    def _refusal(self, claim: dict[str, Any]) -> ChatBatchError | InvalidArgumentError:
        text = "Another batch is writing to this output_path."
        details = f"Writer: {written_by(claim)}, seen {max(0.0, claim['age']):.0f} s ago. Folder: {self.above.url}"
        if is_same_run(claim, self.scope):
            return InvalidArgumentError(f"{text} {REMEDY} {details}")
        return ChatBatchError(f"{text} A retry succeeds after it has ended. {REMEDY} {details}")

    def _say(self, state: str) -> None:
        self._folder.write(NAME, json.dumps({"state": state, "at": self.now(), **asdict(self.scope)}).encode())

    def _beat(self) -> None:
        while not self._is_free.wait(BEAT):
            try:
                self._say("writing")
            except ChatBatchError as problem:
                log.warning("The claim to the output path could not be renewed. Retrying. %s", problem)


def written_by(origin: dict[str, Any]) -> str:
    """Describe the task instance of a claim or of a line of results."""
    index = origin.get("map_index", -1)
    mapped = "" if index == -1 else f", map index {index}"
    return f"Dag {origin.get('dag_id')}, task {origin.get('task_id')}{mapped}, run {origin.get('run_id')}"


def is_same_run(origin: dict[str, Any], scope: BatchScope) -> bool:
    """Whether a claim or a line of results comes from the run that ``scope`` belongs to."""
    return (origin.get("dag_id"), origin.get("run_id")) == (scope.dag_id, scope.run_id)
