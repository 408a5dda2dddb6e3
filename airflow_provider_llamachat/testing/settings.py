"""The behaviour of LlamaCloud that its documentation leaves open, as switches.

A test that must hold whatever the service does runs with every position of the switches it depends on.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass
class Settings:
    """How the emulator behaves where the API's documentation is silent, and how fast it is.

    ``python -m airflow_provider_llamachat.testing --help`` explains each setting. Every attribute can be changed while the emulator
    runs; a change applies from the next request or event. An assignment raises ``ValueError`` if the setting does not take the value,
    and ``AttributeError`` if there is no such setting. The defaults are the likeliest reading of the documentation, or the stricter of
    two likely ones. What is documented has no switch: paths, status codes, the existence of limits, bearer keys, event types and their
    fields, the order of a turn's events, ``stop.is_error`` as the verdict (https://developers.llamaindex.ai/reference/).
    """

    # A turn and its client
    survives_disconnect: bool = _setting(True, "a turn outlives its client; off: it ends with it, without a stop event")
    records: Literal["start", "end"] = _setting("start", "the history gets events one by one, or all when a turn ends")
    history_lag: float = _setting(0.0, "seconds until GET shows events; with the first come job_metadata and the title")
    history_window: int | None = _setting(None, "GET full session shows only this many last events; not given: all")
    recorded_as: Literal[
        "verbatim", "trimmed", "nfc", "nfkc", "html", "lower", "quotes", "no_zero_width", "no_control", "prefix", "suffix", "cut", "empty"
    ] = _setting(
        "verbatim", "the prompt in its user_input event, in stream and history (the log of turns keeps it as sent): NFC or NFKC,"
        " HTML-escaped, in lower case, with typographic quotes, without surrounding white space, without zero-width or control characters"
        " (line ends included), with a fixed text before or after it, its first half only, or empty",
    )  # fmt: skip
    text_in: Literal["both", "history"] = _setting("both", "the answer's text: in stream and history, or history only")
    malformed_text: Literal["none", "broken_json", "null", "list"] = _setting(
        "none", "the stream's text event: broken JSON, or content that is null or a list; no text deltas are sent then"
    )
    foreign_first: str | None = _setting(None, "another client's prompt that enters the history before each turn's own")
    concurrent_turns: Literal["queue", "refuse", "allow"] = _setting(
        "queue", "a second turn in a busy session waits (200, keep-alives), is refused (409), or runs beside the first"
    )
    delete_while_running: Literal["finish", "refuse"] = _setting("finish", "DELETE lets a turn finish, or gets a 409")
    # A turn's sources
    mismatch: Literal["refuse", "accept"] = _setting(
        "refuse", "a turn names other indexes than those of its locked session: 422, or it is answered from them"
    )
    unlocked_mismatch: Literal["rebind", "refuse"] = _setting(
        "rebind", "the first turn of a bound session names other indexes: the session is bound to these, or 422"
    )
    binds_unbound: bool = _setting(False, "the first turn of an unbound session binds it; off: index_ids stays null")
    unknown_index: Literal["refuse", "skip"] = _setting("refuse", "an index that the project lacks: 404, or skipped")
    unready_required: Literal["refuse", "error_stop"] = _setting(
        "refuse", "require_all_indexes with an index that is not ready: 422, or the turn fails (error stop)"
    )
    nothing_to_query: Literal["error_stop", "answer"] = _setting(
        "error_stop", "every index of a turn is skipped: it fails, or answers that there is nothing to search"
    )
    # Shapes
    omit_shared_access: bool = _setting(False, "leave out shared_access, as the API did before it had the field")
    default_shared_access: Literal["read_only", "query"] = _setting("read_only", "shared_access of new sessions")
    page_end: Literal["null", "omit"] = _setting("null", "next_page_token on the last page")
    default_page_size: int = _setting(20, "items on a page when page_size is not given")
    max_page_size: int = _setting(100, "maximum items on a page; a larger page_size gives this many")
    max_prompt: int = _setting(1000, "maximum length of a prompt in characters")
    max_indexes: int = _setting(10, "maximum number of index ids that a session can be bound to")
    # Indexes
    sync_seconds: float = _setting(1.0, "duration of a sync in seconds; last_synced_at changes at its end")
    sync_status: str | None = _setting(None, "metadata.status during a sync; not given: unchanged")
    # Pace and form of the stream
    turn_latency: float = _setting(0.0, "seconds from first event to stop, spread evenly; applies to running turns too")
    delta_chars: int = _setting(24, "characters in one delta event")
    events_per_turn: int | None = _setting(None, "events of a turn; deltas are cut to fit, and delta_chars is ignored")
    answer_chars: int | None = _setting(None, "length of an answer in characters; the text is cut or repeated to fit")
    keepalive_interval: float | None = _setting(15.0, "seconds of silence before a comment line is sent; 'none': never")
    newline: Literal["\n", "\r\n", "\r"] = _setting("\n", "line end of the stream")
    # Rate limit
    requests_per_minute: int | None = _setting(None, "requests that a key may make in a sliding minute; more get 429")
    rate_window: float = _setting(60.0, "length of the 'minute' of requests_per_minute, in seconds")
    rate_limits: Literal["all", "turns"] = _setting("all", "what requests_per_minute counts and refuses")
    retry_after_style: Literal["seconds", "date", "none"] = _setting("seconds", "form of Retry-After on a 429")

    # A remote control sets this on the settings that it returns, and so sends each assignment to the emulator.
    _on_change: ClassVar[Callable[..., None] | None] = None

    def __setattr__(self, name: str, value: Any) -> None:
        kinds = setting_kinds().get(name)
        if kinds is None:
            raise AttributeError(f"There is no setting {name!r}. Settings: {', '.join(setting_kinds())}")
        # A whole number fits where a float does, but True is not a number.
        fits = value in kinds or type(value) in kinds or (float in kinds and type(value) is int)
        if not fits or (type(value) in (int, float) and value < 0):
            taken = Settings.__annotations__[name]
            raise ValueError(f"Setting {name} cannot be {value!r}. It takes {taken}; a number must be at least 0.")
        object.__setattr__(self, name, value)
        if self._on_change is not None:
            self._on_change(**{name: value})

    def update(self, **values: Any) -> None:
        """Change several settings; raises what an assignment raises."""
        for name, value in values.items():
            setattr(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return asdict(self)


@functools.cache
def setting_kinds() -> dict[str, tuple[Any, ...]]:
    """What each setting takes: types, or the values of a choice."""
    hints = typing.get_type_hints(Settings)
    return {item.name: typing.get_args(hints[item.name]) or (hints[item.name],) for item in fields(Settings)}
