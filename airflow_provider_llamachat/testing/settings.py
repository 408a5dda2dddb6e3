"""The one place for everything LlamaCloud does not document: each assumption of the emulator is a switch in :class:`Settings`.

A test that must hold whatever the service does runs under both positions of the switch it depends on.
"""

from __future__ import annotations

import functools
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

_KINDS = {
    bool: "True or False",
    int: "a whole number, 0 or more",
    float: "a number, 0 or more",
    str: "text",
    type(None): "None",
}


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(eq=False)
class Settings:
    """How the emulator behaves where the API's documents are silent, and how fast it is.

    Every attribute can be changed while the emulator runs and counts from the next request or event on. The help texts below
    (also ``python -m airflow_provider_llamachat.testing --help``) say what each one assumes; the defaults are the reading that
    seems likeliest, or the stricter one where both seem likely. A value that does not fit its type raises ``ValueError``, a
    misspelt name ``AttributeError``.

    Documented, hence without a switch: paths, statuses, limits' existence, bearer keys, event types and their fields, the
    order of a turn's events, ``stop.is_error`` as verdict (https://developers.llamaindex.ai/reference/).
    """

    # A turn and its client
    survives_disconnect: bool = _setting(
        True, "a turn runs on to its end when its client is gone; off: it stops where it is, without a stop event"
    )
    records: Literal["start", "end"] = _setting(
        "start", "when events enter the history: as they come to be, or the whole turn at its end"
    )
    history_lag: float = _setting(
        0.0,
        "seconds after which a turn's events enter the history that GET shows; before the first turn's are in, job_metadata and"
        " generated_title are null (counts when the history is read: lowering it lets the history catch up)",
    )
    history_window: int | None = _setting(
        None, "GET full session shows only this many events, the last ones; not given: all"
    )
    recorded_as: Literal[
        "verbatim", "trimmed", "nfc", "nfkc", "html", "lower", "quotes", "no_zero_width", "no_control", "prefix", "suffix", "cut", "empty"
    ] = _setting(
        "verbatim",
        "how the prompt reads in its user_input event, in the stream and in the history (the log of turns keeps it as sent): NFC or"
        " NFKC, HTML-escaped, in lower case, with typographic quotes, without white space around it, without zero-width or without"
        " control characters (line ends included), after or before a fixed text, its first half, or nothing of it",
    )  # fmt: skip
    text_in: Literal["both", "history"] = _setting(
        "both", "where the answer's text is: in stream and history, or in the history only (the stream has its stop)"
    )
    malformed_text: Literal["none", "broken_json", "null", "list"] = _setting(
        "none",
        "what is wrong with the stream's text event, which then comes without text deltas: broken JSON, or a content that is null"
        " or a list; the history is whole",
    )
    foreign_first: str | None = _setting(
        None, "prompt of somebody else that enters the history before each turn's own, at once and without an answer"
    )
    concurrent_turns: Literal["queue", "refuse", "allow"] = _setting(
        "queue",
        "a second turn in a busy session waits (200 and keep-alives meanwhile), is refused with 409, or runs beside the first",
    )
    delete_while_running: Literal["finish", "refuse"] = _setting(
        "finish", "deleting a session whose turn runs: deleted, and the stream goes on to its end; or refused with 409"
    )

    # A turn's sources
    mismatch: Literal["refuse", "accept"] = _setting(
        "refuse",
        "a turn names other indexes than the locked session has: 422, or answered from what it names (order never matters)",
    )
    unlocked_mismatch: Literal["rebind", "refuse"] = _setting(
        "rebind", "a bound session's first turn names other indexes: the session is bound to these, or 422"
    )
    binds_unbound: bool = _setting(
        False, "the first turn of an unbound session binds it to the turn's indexes; off: index_ids stays null"
    )
    unknown_index: Literal["refuse", "skip"] = _setting(
        "refuse", "a turn names an index that does not exist in the project: 404, or skipped"
    )
    unready_required: Literal["refuse", "error_stop"] = _setting(
        "refuse", "require_all_indexes with an index that is not ready: 422, or a turn that fails (stop with is_error)"
    )
    nothing_to_query: Literal["error_stop", "answer"] = _setting(
        "error_stop", "every index of a turn is skipped: the turn fails, or answers that there is nothing to search"
    )

    # Shapes
    omit_shared_access: bool = _setting(False, "leave shared_access out, as the API did before it had the field")
    default_shared_access: Literal["read_only", "query"] = _setting(
        "read_only", "shared_access of a session created without one"
    )
    page_end: Literal["null", "omit"] = _setting("null", "next_page_token on the last page")
    default_page_size: int = _setting(20, "items of a page when page_size is not given")
    max_page_size: int = _setting(100, "items of a page at most; a larger page_size gives this many")
    max_prompt: int = _setting(1000, "characters of a prompt at most")
    max_indexes: int = _setting(10, "index ids that a session can be bound to at most")

    # Indexes
    sync_seconds: float = _setting(1.0, "seconds that a sync takes; then last_synced_at moves on")
    sync_status: str | None = _setting(None, "metadata.status while a sync runs; not given: the status stays as it was")

    # Pace and form of the stream
    turn_latency: float = _setting(0.0, "seconds from a turn's first event to its stop, spread evenly over the events")
    delta_chars: int = _setting(24, "characters in one delta event")
    events_per_turn: int | None = _setting(
        None, "events in a turn's stream (deltas are cut to fit, one character at least); wins over delta_chars"
    )
    answer_chars: int | None = _setting(None, "characters of an answer: the text is cut or repeated to this length")
    keepalive_interval: float | None = _setting(
        15.0, "seconds of silence after which a comment line is sent; 'none': never"
    )
    newline: Literal["\n", "\r\n", "\r"] = _setting("\n", "line end of the stream")

    # Rate limit
    requests_per_minute: int | None = _setting(None, "accepted requests of one key in a sliding minute; above it 429")
    rate_window: float = _setting(60.0, "length in seconds of the 'minute' of requests_per_minute")
    rate_limits: Literal["all", "turns"] = _setting("all", "what requests_per_minute counts and refuses")
    retry_after_style: Literal["seconds", "date", "none"] = _setting("seconds", "form of Retry-After on a 429")

    def __setattr__(self, name: str, value: Any) -> None:
        kinds = setting_kinds().get(name)
        if kinds is None:
            raise AttributeError(f"There is no setting {name!r}. Settings: {', '.join(setting_kinds())}")
        if not any(_fits(value, kind) for kind in kinds):
            taken = ", ".join(_KINDS[kind] if isinstance(kind, type) else repr(kind) for kind in kinds)
            raise ValueError(f"Setting {name} cannot be {value!r}; it takes {taken}")
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        # By value: the settings that a remote control reads are of a class of their own.
        return isinstance(other, Settings) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # mutable; said aloud because the dataclass decorator leaves it alone here

    def update(self, **values: Any) -> None:
        """Set several settings.

        :raises AttributeError: a name that is no setting.
        :raises ValueError: a value that does not fit.
        """
        for name, value in values.items():
            setattr(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return {name: getattr(self, name) for name in setting_kinds()}


@functools.cache
def setting_kinds() -> dict[str, tuple[Any, ...]]:
    """What each setting takes: types, or the values of a choice."""
    return {name: typing.get_args(hint) or (hint,) for name, hint in typing.get_type_hints(Settings).items()}


def _fits(value: Any, kind: Any) -> bool:
    if not isinstance(kind, type):
        return bool(value == kind)
    exact = type(value) is kind or (kind is float and type(value) is int)
    return exact and (kind not in (int, float) or value >= 0)
