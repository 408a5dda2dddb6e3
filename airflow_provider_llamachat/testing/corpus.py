"""The seeded projects, indexes and documents: filings and a handbook of a company that does not exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from airflow_provider_llamachat import testing as ids


class Snippet(NamedTuple):
    """A piece of a document, as retrieval finds it."""

    document: str
    page: int
    text: str


PROJECTS = (
    {
        "id": ids.DEFAULT_PROJECT_ID,
        "name": "Default",
        "organization_id": ids.DEFAULT_ORGANIZATION_ID,
        "is_default": True,
    },
    {
        "id": ids.OTHER_PROJECT_ID,
        "name": "Contracts",
        "organization_id": ids.DEFAULT_ORGANIZATION_ID,
        "is_default": False,
    },
    {"id": ids.FOREIGN_PROJECT_ID, "name": "Default", "organization_id": ids.OTHER_ORGANIZATION_ID, "is_default": True},
)

_FILINGS = """
Halden Instruments, report Q1 2025
2 Revenue in Q1 was 41.2 million euros, 6 % above the year before; operating margin was 11.8 %.
5 In Q1 two customers accounted for 34 % of receivables, which the board names as the main risk.
Halden Instruments, report Q2 2025
2 Revenue in Q2 was 43.9 million euros, 8 % above the year before; operating margin was 12.4 %.
6 In Q2 the second production line for flow sensors started in Trondheim; capital expenditure was 7.1 million euros.
Halden Instruments, report Q3 2025
2 Revenue in Q3 was 47.5 million euros, 11 % above the year before; operating margin was 13.1 %.
4 The main findings in Q3: flow sensors outsold pressure gauges for the first time, and the order backlog grew to 96 million euros.
7 Risk factors in Q3: a single supplier of ceramic membranes, and the exchange rate of the Norwegian krone.
Halden Instruments, report Q4 2025
2 Revenue in Q4 was 45.0 million euros, 3 % above the year before; operating margin was 12.0 %.
Halden Instruments, annual report 2025
3 The board proposes a dividend of 1.40 euros a share for the year 2025; headcount at its end was 612.
"""

_HANDBOOK = """
Employee handbook
4 Employees have 28 days of paid vacation a year; five unused days can be carried over until the end of March.
7 Working from home is possible on up to three days a week, agreed with the team lead.
9 Parental leave is 32 weeks at full pay, to be announced three months ahead.
12 Travel expenses are refunded within ten days when receipts are handed in within one month.
15 Security incidents are reported to the duty officer at once, by telephone and at any hour; passwords are never shared.
18 Each employee has a training budget of 1,500 euros a year.
"""

_DRAFTS = """
Draft report Q1 2026
1 Revenue in Q1 2026 is expected between 44 and 46 million euros.
2 The acquisition of a maker of ceramic membranes is being prepared.
"""

_CONTRACTS = """
Supply contract, ceramic membranes
3 The supplier delivers within six weeks; a delay costs one percent of the order value a week.
Lease, Trondheim plant
1 The lease of the Trondheim plant runs until 2034 and can be ended with a notice of 18 months.
"""

_ENCRYPTED = "Parsing failed: letters-1998.pdf is encrypted."

INDEXES = (
    (ids.INDEX_FILINGS, ids.DEFAULT_PROJECT_ID, "Filings", "Quarterly and annual reports", "ready", None, _FILINGS),
    (ids.INDEX_HANDBOOK, ids.DEFAULT_PROJECT_ID, "Handbook", "Rules for employees", "ready", None, _HANDBOOK),
    (ids.INDEX_BUILDING, ids.DEFAULT_PROJECT_ID, "Drafts", "Reports to come", "building", None, _DRAFTS),
    (ids.INDEX_FAILED, ids.DEFAULT_PROJECT_ID, "Scans", "Scanned letters", "failed", _ENCRYPTED, ""),
    (ids.INDEX_OTHER_PROJECT, ids.OTHER_PROJECT_ID, "Contracts", "Contracts with suppliers", "ready", None, _CONTRACTS),
)
"""Id, project, name, description, status, error and content of each index."""


def snippets_of(content: str) -> list[Snippet]:
    """The numbered pages of documents, which follow the document's name."""
    found = []
    document = ""
    for line in content.strip().splitlines():
        page, _, text = line.partition(" ")
        if page.isdecimal():
            found.append(Snippet(document, int(page), text))
        else:
            document = line
    return found


def snippets_from(documents: Sequence[str | Mapping[str, Any]]) -> list[Snippet]:
    """What an index that a test adds knows: texts, or ``{"document", "page", "text"}`` objects.

    :raises ValueError: anything else.
    """
    found = []
    for number, given in enumerate(documents, start=1):
        document: Any = {"text": given} if isinstance(given, str) else given
        if not isinstance(document, Mapping) or not isinstance(document.get("text"), str):
            raise ValueError(f"Document {number} is neither a text nor an object with 'text': {given!r}")
        name = str(document.get("document", f"Document {number}"))
        found.append(Snippet(name, int(document.get("page", 1)), document["text"]))
    return found
