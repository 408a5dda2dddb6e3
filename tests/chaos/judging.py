"""The invariants: a Dag run against what the emulator saw. Nothing that the provider says of itself is taken for granted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_llamachat.testing import RequestRecord, TurnRecord
from tests.chaos.dagruns import DagRun, TaskRun
from tests.chaos.plans import VAULTS, code, prompt

ASKED_AGAIN = "Asking once more in session "


@dataclass(frozen=True, slots=True)
class Evidence:
    """The emulator's log after a Dag run, when nothing moves any more.

    :ivar sessions: those that were not deleted, with their histories.
    """

    requests: list[RequestRecord]
    turns: list[TurnRecord]
    sessions: dict[str, dict[str, Any]]
    key: str


@dataclass(slots=True)
class Finding:
    """What the judge found.

    :ivar violations: broken promises; there has to be none.
    :ivar known: departures that docs/RELIABILITY.md announces, by what they are.
    """

    violations: list[str] = field(default_factory=list)
    known: Counter[str] = field(default_factory=Counter)


def judge(run: DagRun, evidence: Evidence) -> Finding:
    """Check everything."""
    finding = Finding()
    _tries(run, finding)
    _paid_once(run, evidence, finding)
    _answers(run, evidence, finding)
    _reasons(run, evidence, finding)
    _batches(run, evidence, finding)
    _sessions(run, evidence, finding)
    _key(run.folder, evidence.key, finding)
    return finding


def _tries(run: DagRun, finding: Finding) -> None:
    for task in run.tasks.values():
        finding.violations += [f"{task.task.name}: {complaint}" for complaint in task.complaints]
        for process in task.processes:
            result = process.result
            if result is not None and result["state"] == "failed" and not result["typed"]:
                finding.violations.append(
                    f"{task.task.name}: an error of no class of ours, {result['error']}: {result['message']}"
                )


def _asked(run: DagRun) -> dict[int, list[TaskRun]]:
    """By question: the tasks that ask it, as often as they may."""
    found: dict[int, list[TaskRun]] = {}
    for task in run.tasks.values():
        for vault in task.task.vaults:
            found.setdefault(vault, []).extend([task] * max(1, len(task.ends)))
    return found


def _paid_once(run: DagRun, evidence: Evidence, finding: Finding) -> None:
    asked = _asked(run)
    known = {prompt(vault) for vault in asked}
    for turn in evidence.turns:
        if turn.prompt not in known:
            finding.violations.append(f"the server was asked something that nobody asks: {turn.prompt!r}")
    for vault, tasks in asked.items():
        turns = [turn for turn in evidence.turns if turn.prompt == prompt(vault)]
        completed = [turn for turn in turns if turn.state == "completed"]
        surplus = len(completed) - len(tasks)
        if surplus <= 0:
            continue
        again = sum(task.log.count(ASKED_AGAIN + turn.session_id) for turn in turns[:1] for task in set_of(tasks))
        finding.known["asked once more, as on_interrupted='ask_again' said"] += min(surplus, again)
        if surplus > again:
            times = [(turn.session_id, turn.position, turn.state) for turn in turns]
            finding.violations.append(
                f"{prompt(vault)!r} was completed {len(completed)} times for {len(tasks)} task(s): {times}"
            )


def set_of(tasks: list[TaskRun]) -> list[TaskRun]:
    """The tasks, each one once."""
    return list({task.task.name: task for task in tasks}.values())


def _answers(run: DagRun, evidence: Evidence, finding: Finding) -> None:
    for task in run.tasks.values():
        if task.task.kind != "ask":
            continue
        name, vault = task.task.name, task.task.vaults[0]
        for answer, usage in zip(task.answers, task.usages, strict=True):
            finding.violations += [f"{name}: {problem}" for problem in wrong_answer(answer, vault)]
            tokens = {
                turn.output_tokens
                for turn in evidence.turns
                if turn.prompt == prompt(vault) and turn.state == "completed"
            }
            if not isinstance(usage, dict) or usage["total_output_tokens"] not in tokens:
                finding.violations.append(f"{name}: usage {usage}, but the server counted {tokens}")
        completed = sum(turn.prompt == prompt(vault) and turn.state == "completed" for turn in evidence.turns)
        answers = sum(len(other.answers) for other in set_of(_asked(run)[vault]))
        if answers > completed:
            finding.violations.append(
                f"{name}: {answers} answers to one question, but only {completed} completed turn(s)"
            )


def _reasons(run: DagRun, evidence: Evidence, finding: Finding) -> None:
    """What an error says of the turn has to be so."""
    for task in run.tasks.values():
        if task.task.kind != "ask":
            continue
        asked = prompt(task.task.vaults[0])
        states = [turn.state for turn in evidence.turns if turn.prompt == asked]
        if any(request.prompt == asked and request.fault == "huge" for request in evidence.requests):
            continue  # a stream that begins, and belongs to no turn
        for process in task.processes:
            result = process.result
            if result is None or result["state"] != "failed":
                continue
            if result["error"] == "ChatTurnInterruptedError" and result["accepted"] and not states:
                finding.violations.append(f"{task.task.name}: never taken, but told: {result['message']}")
            if result["error"] == "ChatTurnFailedError" and "failed" not in states:
                finding.violations.append(f"{task.task.name}: no turn failed, but told: {result['message']}")


def wrong_answer(answer: Any, vault: int, vaults: int = VAULTS) -> Iterator[str]:
    """Say what is wrong with an answer, if the index holds that many vaults."""
    if not isinstance(answer, str) or code(vault) not in answer:
        yield f"{answer!r} is no answer to {prompt(vault)!r}"
    elif any(code(other) in answer for other in range(vaults) if other != vault):
        yield f"{answer!r} answers more than {prompt(vault)!r}"


def _batches(run: DagRun, evidence: Evidence, finding: Finding) -> None:
    for task in run.tasks.values():
        if task.task.kind != "batch" or task.ends[-1] != "success":
            continue
        name = task.task.name
        manifest = task.answers[-1]
        output = manifest["output_path"]
        lines = (
            [json.loads(line) for line in Path(output).read_text().splitlines()] if output else task.xcoms["results"]
        )
        if [line["prompt"] for line in lines] != [prompt(vault) for vault in task.task.vaults]:
            finding.violations.append(f"{name}: the results are not one line for each prompt, in order")
            continue
        outcomes = Counter(line["outcome"] for line in lines)
        if any(manifest[outcome] != outcomes[outcome] for outcome in ("answered", "failed", "interrupted", "unasked")):
            finding.violations.append(f"{name}: the manifest says {manifest}, the lines {outcomes}")
        for vault, line in zip(task.task.vaults, lines, strict=True):
            if line["outcome"] == "answered":
                finding.violations += [f"{name}: {problem}" for problem in wrong_answer(line["answer"], vault)]
                if not any(
                    turn.session_id == line["session_id"]
                    and turn.prompt == line["prompt"]
                    and turn.state == "completed"
                    for turn in evidence.turns
                ):
                    finding.violations.append(
                        f"{name}: no completed turn of {line['prompt']!r} in {line['session_id']}"
                    )
            elif not line["error"]["message"]:
                finding.violations.append(f"{name}: no reason for the outcome of {line['prompt']!r}")
        if output and list(Path(output).parent.glob("*.parts")):
            finding.violations.append(f"{name}: parts were left beside the results")


def _sessions(run: DagRun, evidence: Evidence, finding: Finding) -> None:
    lied = any(
        (request.endpoint, request.status, request.fault) == ("delete", 404, "status") for request in evidence.requests
    )
    for task in run.tasks.values():
        if task.task.kind == "delete" and task.ends == ["success"] and not lied:
            session_id = run.tasks["create"].xcoms["session_id"]
            if session_id in evidence.sessions:
                finding.violations.append(f"{task.task.name} succeeded, but session {session_id} is there")
    batches = [task for task in run.tasks.values() if task.task.kind == "batch"]
    if any(not task.task.arguments["delete_sessions"] for task in batches):
        return
    logs = "\n".join(task.told for task in run.tasks.values())
    for session_id, session in evidence.sessions.items():
        if session_id in logs:
            finding.known["a session was left over, named in the log"] += 1
        elif not session["events"] and not any(turn.session_id == session_id for turn in evidence.turns):
            finding.known["an empty session was left over by a lost answer to its creation"] += 1
        else:
            finding.violations.append(f"session {session_id} was left over, with a history, and no log names it")


def _key(folder: Path, key: str, finding: Finding) -> None:
    wanted = key.encode()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and wanted in path.read_bytes():
            finding.violations.append(f"the key is in {path.relative_to(folder)}")
