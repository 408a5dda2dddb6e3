"""One question, and what is known of its turn: the two values that operators, triggers, task state and batches share. No I/O."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypedDict

from airflow_provider_llamachat.models import Event, UserInputEvent


class Scope(TypedDict, total=False):
    """Project and organization (UUIDs) of one call, in place of the configured ones; None leaves it to those."""

    project_id: str | None
    organization_id: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and where. Its values were checked when it was made.

    :param index_ids: indexes that the turn may use; empty means those the session is bound to.
    :param require_all_indexes: refuse the turn when an index is not ready.
    :param project_id: project (UUID) in place of the connection's.
    :param organization_id: organization (UUID) in place of the connection's.
    """

    session_id: str
    prompt: str
    index_ids: list[str] = field(default_factory=list)
    require_all_indexes: bool = False
    project_id: str | None = None
    organization_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The question as JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Question | None:
        """Read what :meth:`as_dict` gave, among other values; None for what holds no question."""
        given = {name: values[name] for name in cls.__slots__ if values.get(name) is not None}
        if not isinstance(given.get("session_id"), str) or not isinstance(given.get("prompt"), str):
            return None
        return cls(**given)

    @property
    def scope(self) -> Scope:
        """Project and organization of each call about this question."""
        return {"project_id": self.project_id, "organization_id": self.organization_id}


@dataclass(frozen=True, slots=True)
class Trace:
    """What is known of a question's turn. It travels in the task state, the trigger, its event, and a batch's journal.

    :param baseline: turns the session had before the question was first asked; the turn's own position.
    :param intended_at: epoch seconds at which a post of the prompt may have left last; None when no post is in doubt.
    :param accepted: the server was seen to take the prompt.
    :param recorded: :func:`fingerprint` of the prompt as the server recorded it; None as long as nobody has seen it.
    :param answered: the turn was seen to end.
    :param anchor: digest of how the history began (:func:`~.history.anchor`), to notice a history that lost its beginning.
    """

    baseline: int
    intended_at: float | None = None
    accepted: bool = False
    recorded: str | None = None
    answered: bool = False
    anchor: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether a post of ours may be on its way, or have become a turn."""
        return self.accepted or self.answered or self.intended_at is not None

    def after(self, event: Event) -> Trace:
        """What is known after ``event`` arrived in the stream of our own post; the same object when it tells nothing new."""
        known = self if self.accepted else replace(self, accepted=True)
        if isinstance(event, UserInputEvent) and known.recorded is None:
            known = replace(known, recorded=fingerprint(event.content))
        return known

    def withdrawn(self) -> Trace:
        """The trace when no post of ours is in doubt any more."""
        return Trace(self.baseline, anchor=self.anchor)

    def as_dict(self) -> dict[str, Any]:
        """The trace as JSON values, flat, under the names that 1.0.0 used where it had them."""
        values = asdict(self)
        return {("done" if name == "answered" else name): value for name, value in values.items()}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Trace | None:
        """Read what :meth:`as_dict` gave, among other values; None for what holds no trace.

        What 1.0.0 left behind does not tell when the prompt was posted: a post of it is in doubt, since long ago.
        """
        baseline, intended_at = values.get("baseline"), values.get("intended_at", 0.0)
        if not isinstance(baseline, int):
            return None
        recorded, anchor = values.get("recorded"), values.get("anchor")
        return cls(
            baseline,
            intended_at=float(intended_at) if isinstance(intended_at, int | float) else None,
            accepted=values.get("accepted") is True,
            recorded=recorded if isinstance(recorded, str) else None,
            answered=values.get("done") is True,
            anchor=anchor if isinstance(anchor, str) else None,
        )


def fingerprint(prompt: str) -> str:
    """A short, stable digest of a prompt: enough to tell whether two are the same, and safe to store."""
    folded = " ".join(unicodedata.normalize("NFC", prompt).split())
    return hashlib.sha256(folded.encode("utf-8", "replace")).hexdigest()[:24]


_QUOTES = re.compile("[\"'`\u00ab\u00b4\u00bb\u2018-\u201f\u2039\u203a\u300c-\u300f\uff02\uff07]+")
_ESCAPED_AGAIN = re.compile("&(?:amp;)+")


def _plain(text: str) -> str:
    """``text`` without whatever a server may change when it records a prompt."""
    text = unicodedata.normalize("NFKD", _seen(text)).casefold()
    # One more escaping than ours had, or one less, must not count; decomposed, a cut may fall between a letter and its accent.
    text = html.unescape(_ESCAPED_AGAIN.sub("&", text))
    return _seen(unicodedata.normalize("NFKD", text).casefold())


def _seen(text: str) -> str:
    """``text`` without what is not compared at all: white space, quotes, and control, format and other unseen characters."""
    return "".join(
        char for char in _QUOTES.sub("", text) if not char.isspace() and unicodedata.category(char)[0] != "C"
    )


def is_same_text(recorded: str, prompt: str) -> bool:
    """Whether ``recorded`` is ``prompt`` but for case, quotes, white space, Unicode form, HTML entities and unseen characters."""
    return recorded == prompt or _plain(recorded) == _plain(prompt)


_ENOUGH = 8
"""Plain characters that two prompts must have in common for one to be a part of the other. Fewer are a word that happens to occur."""


def may_be_same_text(recorded: str, prompt: str) -> bool:
    """Whether ``recorded`` may be ``prompt``, cut or with something added. A blank text may be any prompt.

    The beginning of a prompt is enough, because a cut leaves that. Otherwise, the shorter one must be a quarter of the longer one.
    """
    one, other = _plain(recorded), _plain(prompt)
    beginning = one.rstrip(".")
    shorter, longer = sorted((one, other), key=len)
    is_cut = len(beginning) >= _ENOUGH and other.startswith(beginning)
    is_part = len(shorter) >= max(_ENOUGH, len(longer) / 4) and shorter in longer
    return not one or is_cut or is_part
