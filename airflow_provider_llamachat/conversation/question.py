"""A question, and what is known about its turn. Operators, triggers, task state and batches share these values. No I/O."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypedDict

from airflow_provider_llamachat.models import Event, UserInputEvent


class Scope(TypedDict, total=False):
    """Project and organization (UUIDs) of one call. None means the configured ones."""

    project_id: str | None
    organization_id: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and where. The values are already checked.

    :param index_ids: indexes that the turn may use. Empty means those the session is bound to.
    :param require_all_indexes: refuse the turn if an index is not ready.
    :param project_id: project (UUID) that overrides the one of the connection.
    :param organization_id: organization (UUID) that overrides the one of the connection.
    :param others: what this process knows about other prompts of the session: the positions of their turns, and the
        :func:`fingerprint` of each as the server recorded it. It counts where the text of a prompt does not tell whose turn it is.
    """

    session_id: str
    prompt: str
    index_ids: list[str] = field(default_factory=list)
    require_all_indexes: bool = False
    project_id: str | None = None
    organization_id: str | None = None
    others: Container[int | str | None] = field(default=frozenset(), repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the question as JSON values, without what this process knows about others."""
        values = asdict(replace(self, others=frozenset()))
        del values["others"]
        return values

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Question | None:
        """Read the result of :meth:`as_dict`, possibly among other values. Return None if there is no question."""
        given = {name: values[name] for name in cls.__slots__ if name != "others" and values.get(name) is not None}
        if not isinstance(given.get("session_id"), str) or not isinstance(given.get("prompt"), str):
            return None
        return cls(**given)

    @property
    def scope(self) -> Scope:
        """Project and organization of each call about this question."""
        return {"project_id": self.project_id, "organization_id": self.organization_id}


@dataclass(frozen=True, slots=True)
class Trace:
    """What is known about a question's turn. The task state, the trigger, its event and a batch's journal contain it.

    :param baseline: number of turns in the session before the question was first asked. This is the turn's own position.
    :param intended_at: epoch seconds until which a post of the prompt may have left. None if no post is in doubt.
    :param accepted: the server is known to have accepted the prompt.
    :param recorded: :func:`fingerprint` of the prompt as the server recorded it. None if this is not known.
    :param answered: the end of the turn was seen.
    :param anchor: digest of the beginning of the history (:func:`~.history.anchor`), to detect a history that lost its beginning.
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

    @property
    def may_run(self) -> bool:
        """Whether a turn of ours may still run, and be billed."""
        return self.is_open and not self.answered

    def after(self, event: Event) -> Trace:
        """Return what is known after ``event`` of our own stream: the same object if nothing is new."""
        known = self if self.accepted else replace(self, accepted=True)
        if isinstance(event, UserInputEvent) and known.recorded is None:
            known = replace(known, recorded=fingerprint(event.content))
        return known

    def withdrawn(self) -> Trace:
        """Return the trace for when no post of ours is in doubt any more."""
        return Trace(self.baseline, anchor=self.anchor)

    def as_dict(self) -> dict[str, Any]:
        """Return the trace as flat JSON values, with the names of 1.0.0 where it had them."""
        values = asdict(self)
        return {("done" if name == "answered" else name): value for name, value in values.items()}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Trace | None:
        """Read the result of :meth:`as_dict`, possibly among other values. Return None if there is no trace.

        Values of 1.0.0 do not say when the prompt was posted. Then a post is in doubt, and was made long ago.
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
    """Return a short, stable digest of a prompt. It shows whether two prompts are the same, and is safe to store."""
    folded = " ".join(unicodedata.normalize("NFC", prompt).split())
    return hashlib.sha256(folded.encode("utf-8", "replace")).hexdigest()[:24]


_QUOTES = re.compile("[\"'`\u00ab\u00b4\u00bb\u2018-\u201f\u2039\u203a\u300c-\u300f\uff02\uff07]+")
_ESCAPED_AGAIN = re.compile("&(?:amp;)+")


def _plain(text: str) -> str:
    """Return ``text`` without everything that a server may change when it records a prompt."""
    text = unicodedata.normalize("NFKD", _seen(text)).casefold()
    # One more escaping than ours had, or one less, must not count; decomposed, a cut may fall between a letter and its accent.
    text = html.unescape(_ESCAPED_AGAIN.sub("&", text))
    return _seen(unicodedata.normalize("NFKD", text).casefold())


def _seen(text: str) -> str:
    """Return ``text`` without what is not compared: white space, quotes, and control, format and other invisible characters."""
    return "".join(
        char for char in _QUOTES.sub("", text) if not char.isspace() and unicodedata.category(char)[0] != "C"
    )


def is_same_text(recorded: str, prompt: str) -> bool:
    """Whether ``recorded`` is ``prompt`` except for case, quotes, white space, Unicode form, HTML entities and invisible characters."""
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
