"""Runs a schedule's Dag as a scheduler would: tries, retries, deferrals, a teardown; and kills processes on the way."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.chaos import tries
from tests.chaos.plans import Kill, Schedule, Task, prompt

PATIENCE = 150.0
"""Seconds that one process may take: a batch that was refused several times asks slowly, all else is over in a fraction of it."""

RETRY_DELAY = 0.05
"""Seconds between two processes of a task: real ones are seconds apart, and what a killed one had sent has arrived by then."""

End = Literal["success", "failed", "skipped"]


@dataclass
class Processed:
    """What became of one process.

    :ivar result: what it left; None when it was killed.
    """

    step: str
    try_number: int
    killed: bool
    result: dict[str, Any] | None


@dataclass
class TaskRun:
    """What became of a task: its rounds are the first run and, if a user cleared it, the second."""

    task: Task
    folder: Path
    ends: list[End] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    usages: list[Any] = field(default_factory=list)
    processes: list[Processed] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        """Everything that its processes wrote."""
        path = self.folder / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def told(self) -> str:
        """What a user of Airflow would read of that: without what the transport or this harness says."""
        silent = ("httpx ", "httpcore", tries.ASIDE)
        return "\n".join(line for line in self.log.splitlines() if not line.startswith(silent))

    @property
    def xcoms(self) -> dict[str, Any]:
        """The XComs of its last try."""
        return tries.xcoms(self.folder)

    @property
    def kills(self) -> int:
        """How many of its processes were killed."""
        return sum(process.killed for process in self.processes)


class DagRun:
    """One run of a schedule's Dag.

    :param folder: an empty folder for everything that the tasks leave.
    """

    def __init__(self, schedule: Schedule, folder: Path) -> None:
        self.schedule = schedule
        self.folder = folder
        self.tasks: dict[str, TaskRun] = {}

    def run(self) -> None:
        """Run all tasks, one after the other."""
        upstream: End = "success"
        for task in self.schedule.tasks:
            run = TaskRun(task, self.folder / task.name)
            run.folder.mkdir()
            self.tasks[task.name] = run
            # A teardown runs whatever became of the tasks before it, if its setup was successful.
            due = self.tasks["create"].ends == ["success"] if task.kind == "delete" else upstream == "success"
            if not due:
                run.ends.append("skipped")
                continue
            tried = self._round(run, first=1)
            if task.again and run.ends[-1] == "success":
                self._round(run, first=tried + 1)
            upstream = run.ends[-1]

    def _arguments(self, task: Task) -> dict[str, Any]:
        arguments = dict(task.arguments)
        if task.kind in {"ask", "delete"}:
            arguments["session_id"] = self.tasks["create"].xcoms["session_id"]
        if task.kind == "ask":
            arguments["prompt"] = prompt(task.vaults[0])
        if task.kind == "batch":
            if arguments["output_path"] is not None:
                arguments["output_path"] = str(self.folder / task.name / arguments["output_path"])
            prompts: list[dict[str, Any]] = [{"prompt": prompt(vault)} for vault in task.vaults]
            for item in prompts[: task.own_session]:
                item["session_id"] = self.tasks["create"].xcoms["session_id"]
            arguments["prompts"] = prompts
        return arguments

    def _round(self, run: TaskRun, first: int) -> int:
        """Try the task until it has succeeded or no retry is left; return the last try's number."""
        retries = run.task.retries
        # As Airflow counts: clearing a task adds the tries that it had to those that it may have.
        max_tries = first - 1 + retries
        for try_number in range(first, max_tries + 2):
            (run.folder / "xcoms.jsonl").unlink(missing_ok=True)
            result = self._try(run, try_number, max_tries)
            if result is not None and result["state"] == "success":
                run.ends.append("success")
                run.answers.append(run.xcoms.get("return_value"))
                run.usages.append(run.xcoms.get("usage"))
                return try_number
            if result is not None and result["final"]:
                break
        run.ends.append("failed")
        return try_number

    def _try(self, run: TaskRun, try_number: int, max_tries: int) -> dict[str, Any] | None:
        """One try, in as many processes as it takes; None when it was killed."""
        result = self._process(run, "execute", {}, try_number, max_tries)
        if result is None or result["state"] != "deferred":
            return result
        deferral = json.loads(json.dumps(result))
        fired = None
        for _ in range(4):
            # A trigger that is lost with its triggerer is made again from what is in the database.
            fired = self._process(run, "trigger", deferral["trigger"], try_number, max_tries)
            if fired is not None and fired["state"] == "fired":
                break
            # Airflow takes its time to replace a triggerer: the next start is not within a moment of the deferral.
            deferral["trigger"]["arguments"]["deferred_at"] -= 30.0
        else:
            return fired
        return self._process(run, "resume", {**deferral["resume"], "event": fired["event"]}, try_number, max_tries)

    def _process(
        self, run: TaskRun, step: Any, payload: dict[str, Any], try_number: int, max_tries: int
    ) -> dict[str, Any] | None:
        task, schedule = run.task, self.schedule
        number = len(run.processes)
        last = step != "trigger" and try_number == max_tries + 1
        if step == "trigger":
            last = len(run.processes) >= 3 and all(one.killed and one.step == "trigger" for one in run.processes[-3:])
        kill = schedule.kill(task.name, number, last=last)
        order = tries.Order(
            step=step,
            task=task.name,
            kind=task.kind,
            arguments=self._arguments(task),
            folder=run.folder,
            try_number=try_number,
            max_tries=max_tries,
            retries=task.retries,
            store=schedule.store,
            debug=schedule.debug,
            backoff=schedule.backoff,
            payload=payload,
            kill=kill,
        )
        result_path = run.folder / "result.json"
        result_path.unlink(missing_ok=True)
        time.sleep(RETRY_DELAY if number else 0.0)
        killed, status = _live(order)
        if status is None:
            run.complaints.append(f"try {try_number} ({step}) did not end within {PATIENCE:.0f} s")
        elif not killed and os.waitstatus_to_exitcode(status) != 0:
            run.complaints.append(f"try {try_number} ({step}) ended with {os.waitstatus_to_exitcode(status)}")
        # What a process that was told to stop still achieves is not listened to: Airflow has set the task's state by then.
        result = json.loads(result_path.read_text()) if result_path.exists() and not killed else None
        run.processes.append(Processed(step, try_number, killed, result))
        return result


def _live(order: tries.Order) -> tuple[bool, int | None]:
    """Let a process live and, if it is to be killed, die. Return whether it was killed, and its status; None for one that hung."""
    pid = os.fork()
    if pid == 0:
        tries.run(order)
    with os.fdopen(os.pidfd_open(pid)) as handle:
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        kill: Kill | None = order.kill
        killed = False
        if kill is not None and kill.seconds is not None and not ended.poll(1000 * kill.seconds):
            killed = True
            if kill.signal == "TERM":
                os.kill(pid, signal.SIGTERM)
                ended.poll(1000)
            os.kill(pid, signal.SIGKILL)
        hung = not ended.poll(1000 * PATIENCE)
        if hung:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if hung:
        return True, None
    at_point = kill is not None and kill.point != "" and os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    return killed or at_point, status
