"""What a batch promises, judged by the turns of the simulated server."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from airflow_provider_llamachat.exceptions import ChatTurnFailedError
from tests.batch.simulation.lives import Life, Lived
from tests.batch.simulation.plans import ALIKE
from tests.batch.simulation.server import Turn, answer_to

ANSWERED = "answered"


@dataclass
class Verdict:
    """What a life broke, and which known limits it met."""

    violations: list[str] = field(default_factory=list)
    known: Counter[str] = field(default_factory=Counter)


def judge(life: Life) -> Verdict:
    """Compare what the batch said with what the server knows."""
    verdict = Verdict()
    for number, lived in enumerate(life.attempts):
        verdict.violations += [f"attempt {number}: {what}" for what in _attempt(life, lived)]
    _paid_twice(life, verdict)
    verdict.violations += _busy(life)
    _lost(life, verdict)
    _over_budget(life, verdict)
    return verdict


def _attempt(life: Life, lived: Lived) -> Iterator[str]:
    if lived.is_violation:
        yield f"ended by {lived.end}"
    if lived.report is None:
        if lived.attempt.is_clean and not lived.is_violation:
            yield f"no results, although nothing went wrong: {lived.end}"
        return
    if [line["prompt"] for line in lived.lines] != lived.prompts:
        yield "the results are not one line for each prompt, in order"
    for line in lived.lines:
        if line["outcome"] == ANSWERED and line["answer"] != answer_to(line["prompt"]):
            yield f"wrong answer: {line['prompt']!r} got {line['answer']!r}"
    yield from _told(life, lived)


def _told(life: Life, lived: Lived) -> Iterator[str]:
    """Compare what was told one by one, and what the meter counted, with the results."""
    assert lived.report is not None
    assert lived.meter is not None
    told, meter, kept = Counter(lived.told), lived.meter, lived.report.kept
    lines = Counter(line["outcome"] for line in lived.lines)
    if told[ANSWERED] + kept != lines[ANSWERED]:
        yield f"told {dict(told)} and kept {kept}, but the results are {dict(lines)}"
    if len(lived.told) > len(lived.prompts) - kept:
        yield f"told {len(lived.told)} outcomes and kept {kept} of {len(lived.prompts)}"
    for outcome in ("failed", "interrupted", "unasked"):
        if told[outcome] > lines[outcome]:
            yield f"told {outcome} {told[outcome]} times, but the results are {dict(lines)}"
    if meter.done - meter.failed != told[ANSWERED]:
        yield f"the meter counted {meter.done - meter.failed} answers, but told were {told[ANSWERED]}"
    if not life.plan.is_limited and meter.done + kept != len(lived.prompts):
        yield f"the meter counted {meter.done} prompts and {kept} were kept, of {len(lived.prompts)}"


def _turns(life: Life) -> dict[str, list[Turn]]:
    """The turns of each prompt, in the order in which they arrived."""
    turns: dict[str, list[Turn]] = defaultdict(list)
    for turn in sorted(life.server.turns, key=lambda turn: turn.arrived):
        turns[turn.prompt].append(turn)
    return turns


def _paid_twice(life: Life, verdict: Verdict) -> None:
    for turns in _turns(life).values():
        for before, turn in itertools.pairwise(turns):
            if turn.may_repeat or (before.kind == "error" and before.ends <= turn.arrived):
                continue
            verdict.violations.append(f"paid twice: {before}; then {turn}")


def _busy(life: Life) -> Iterator[str]:
    """Find prompts that were sent into a busy session, unless the attempt may ask again, and so may take a slow turn for a lost one."""
    for post in life.server.busy:
        if post.was_watched or not post.turn.may_repeat:
            yield f"sent into a busy session: {post.turn}; while {post.running}"


def _lost(life: Life, verdict: Verdict) -> None:
    """Find turns that were completed, but whose prompts have no answer at the end."""
    last, turns = life.attempts[-1], _turns(life)
    if last.is_complete and not life.plan.needs_all:
        return  # the batch succeeded before it had all answers
    for line in last.lines:
        if line["outcome"] == ANSWERED:
            continue
        for turn in turns[line["prompt"]]:
            if turn.kind != "ok":
                continue
            if life.plan.record in ALIKE and any(lived.attempt.ask_again for lived in life.attempts):
                verdict.known["an answer was not found after asking again, where prompts are recorded alike"] += 1
            else:
                verdict.violations.append(f"lost: {turn}; but the result is {line['outcome']}: {line['error']}")


def _over_budget(life: Life, verdict: Verdict) -> None:
    turns, limit = life.server.turns, life.plan.max_turns
    if limit is None or len(turns) <= limit:
        return
    failed = sum(turn.kind == "error" for turn in turns)
    asked_again = sum(
        turn.may_repeat and any(one.prompt == turn.prompt and one.kind != "error" for one in turns[:number])
        for number, turn in enumerate(turns)
    )
    recorded = {
        (record["key"], record["baseline"])
        for record in life.records
        if record["kind"] == "result" and (record["line"]["error"] or {}).get("type") == ChatTurnFailedError.__name__
    }
    if len(turns) - limit <= failed - len(recorded) + asked_again:
        verdict.known[
            "max_turns was exceeded by a turn that was asked again, or failed while nobody watched it, or recorded it"
        ] += 1
    else:
        verdict.violations.append(f"over budget: {len(turns)} turns, but max_turns is {limit}")
