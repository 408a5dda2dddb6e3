"""Writes the runs that the tests of the page look at into the database of the Airflow of this environment."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.utils.session import create_session

from tests.unit.test_transcripts import HOSTILE
from tests.view.rows import MANIFEST, NOW, SOURCES, Asked, add_runs, line, questions, usage

DAG = "quarterly_reports"
RUN = "scheduled__latest"
ANSWERS = {
    "ask_revenue": (
        "What was the revenue of Halden Instruments in Q3 2025?",
        "Revenue in Q3 2025 was EUR 42.7 million, 9 % above Q2. Instruments for water analysis grew most.",
    ),
    "ask_outlook": (
        "And what does the board expect of Q4?",
        "The board expects EUR 44 to 46 million, and names one open tender in Norway as the main uncertainty.",
    ),
}


def latest() -> list[Asked]:
    """A run with everything in it."""
    asked = []
    for number, (task_id, (question, answer)) in enumerate(ANSWERS.items()):
        pushed = {"return_value": answer, "usage": usage(adopted=number == 1, tokens=180 + 40 * number)}
        asked.append(Asked(task_id, xcoms={**pushed, "sources": SOURCES}, rendered=rendered(question)))
    lost = {"usage": usage("interrupted", adopted=None, tokens=20)}
    asked.append(Asked("ask_risks", state="failed", xcoms=lost, rendered=rendered("Which risks does the report name?")))
    asked += [
        Asked("ask_region", map_index=index, rendered=rendered(f"How did {region} develop?"))
        for index, region in enumerate(("Norway", "Austria"))
    ]
    lines = [
        line(
            0, "answered", prompt="Who signed the report?", answer="Ingrid Halden and Tomas Berg.", sources=SOURCES[:1]
        ),
        line(1, "failed", prompt="Is the report audited?"),
        line(2, "interrupted", prompt="How many people work there?"),
    ]
    batch = {"return_value": MANIFEST, "results": lines}
    asked.append(Asked("nightly_batch", operator="ChatBatchOperator", xcoms=batch, rendered={"prompts": []}))
    return asked


def rendered(question: str) -> dict[str, Any]:
    """The rendered fields of a question."""
    return {"prompt": question, "session_id": "ses-20f6", "index_ids": ["idx-filings"]}


def hostile() -> list[Asked]:
    """Texts that would run a script if they became markup, wherever a text can be."""
    found = []
    for number, text in enumerate(HOSTILE):
        source = {"tool": text, "file_name": text, "text": text, "index_id": text, "pages": [text]}
        pushed = {"return_value": text, "usage": usage(), "sources": [source], "skipped_index_ids": [text]}
        fields = {"prompt": text, "session_id": text, "index_ids": text}
        found.append(Asked(f"hostile_{number}", xcoms=pushed, rendered=fields))
    lines = [
        line(number, text, prompt=text, answer=text, id=text, error={"message": text})
        for number, text in enumerate(HOSTILE)
    ]
    batch = {"return_value": {**MANIFEST, "output_path": HOSTILE[0]}, "results": lines}
    return [*found, Asked("batch", operator="ChatBatchOperator", xcoms=batch, rendered={})]


def main() -> None:
    """Write them."""
    with create_session() as session:
        days = {
            f"scheduled__{day:02}": (
                NOW - timedelta(days=day, minutes=5),
                questions(2 + day % 3) + latest()[2 : 3 + day % 2],
            )
            for day in range(1, 14)
        }
        add_runs(session, DAG, {RUN: (NOW - timedelta(minutes=5), latest()), **days})
        for name, every, count in (("contract_review", 2, 4), ("secret_merger", 3, 1)):
            runs = {f"manual__{day:02}": (NOW - timedelta(days=day), questions(count)) for day in range(1, 14, every)}
            add_runs(session, name, runs)
        many = {f"hourly__{number:03}": (NOW - timedelta(days=3, hours=number), questions(1)) for number in range(40)}
        add_runs(session, "inbox", many)
        add_runs(session, "hostile", {HOSTILE[0][:200]: (NOW - timedelta(days=20), hostile())})


if __name__ == "__main__":
    main()
