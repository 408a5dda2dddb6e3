"""Checks arguments before any request is sent: plain values, rendered templates, XComs, and JSON in strings."""

from __future__ import annotations

import ast
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import PurePath
from typing import Any, Literal, get_args

from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.redaction import describe, excerpt

MAX_ID = 512
"""Maximum length of an id: longer than any real one, and short enough for a URL."""

SharedAccess = Literal["query", "read_only"]
"""What the share link of a session grants."""
OnInterrupted = Literal["fail", "ask_again"]
"""What a retry does if an earlier turn stopped partway."""
SessionMode = Literal["per_prompt", "shared"]
"""Whether each prompt of a batch has its own session."""
TranscriptFormat = Literal["markdown", "json", "html"]
"""The form of a transcript."""
OnItemError = Literal["collect", "fail_fast"]
"""What a batch does if a prompt fails."""
OnEmpty = Literal["skip", "succeed", "fail"]
"""What a batch does if it has no prompts."""

_NONE = {"None", "null"}
_NO_PROMPT = r"[][(){},\s]*((None|null)[][(){},\s]*)*"
"""A prompt that holds nothing. ``[None, None]`` is what ``xcom_pull`` with a list of task ids renders to."""


def is_nothing(value: Any) -> bool:
    """Whether ``value`` is None, blank, or what None renders to in a template."""
    return value is None or (isinstance(value, str) and value.strip() in {"", *_NONE})


def says_nothing(text: str) -> bool:
    """Whether a prompt is blank, or what None, or a list without values, renders to in a template."""
    return re.fullmatch(_NO_PROMPT, text) is not None


def given(value: Any, name: str) -> Any:
    """Return an optional argument. None and blank text mean that it was not given.

    :raises InvalidArgumentError: it is what None renders to. The default may be a larger budget, or another project, than was meant.
    """
    if not is_nothing(value):
        return value
    if value is None or value.strip() not in _NONE:
        return None
    raise InvalidArgumentError(
        f"{name} rendered to {got(value)} To leave {name} out, let the template render to an empty text."
    )


def path(value: Any) -> Any:
    """Return a path in a form that Airflow renders. Of path objects, Airflow renders only its own."""
    is_local = isinstance(value, PurePath) and "://" not in str(value)
    return str(value) if is_local else value


def scope(project_id: Any, organization_id: Any) -> dict[str, Any]:
    """Return the project and organization arguments for a client. None means that the connection decides.

    :raises InvalidArgumentError: one of them is not a UUID.
    """
    values = {"project_id": project_id, "organization_id": organization_id}
    return {name: checked_uuid(name, given(value, name)) for name, value in values.items()}


def checked_uuid(name: str, value: Any) -> str | None:
    """Return ``value`` as a canonical UUID string, or None if it is None or blank.

    :raises InvalidArgumentError: it is anything else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return str(value if isinstance(value, uuid.UUID) else uuid.UUID(str(value).strip()))
    except ValueError:
        raise InvalidArgumentError(
            f"{name} must be a UUID (as shown in the URL of the LlamaCloud project), got {describe(value)}."
        ) from None


def id_list(value: Any, name: str = "index_ids", *, several: str | None = None) -> list[str] | None:
    """Return ``value`` as a list of ids, or None if it was not given.

    Accepts a list (or another iterable, such as the lazy sequence that an XComArg of mapped tasks becomes), a JSON or Python
    list in a string (what a template renders to without native types) and one plain id. Duplicates are dropped, order is kept.

    :param several: what to do if a string contains several ids. None means that a list is fine.
    :raises InvalidArgumentError: anything else, an empty id, or something in the list that is not a string.
    """
    value = given(value, name)
    if value is None:
        return None
    items: list[Any]
    if isinstance(value, str):
        text = value.strip()
        items = parsed_list(text, name) if text.startswith(("[", "(", "{")) else [text]
    elif isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | dict):
        items = list(value)
    else:
        raise InvalidArgumentError(f"{name} must be a list of index ids, got {got_type(value)}")
    for position, item in enumerate(items):
        if not isinstance(item, str) or is_nothing(item):
            raise InvalidArgumentError(
                f"{name}[{position}] must be an index id (a string that is not empty), got {got_type(item)}"
            )
        if len(item) > MAX_ID or not _is_text(item):
            raise InvalidArgumentError(
                f"{name}[{position}] is not an index id: {_shown(item)} ({len(item)} characters)."
            )
        _check_one(item, name if isinstance(value, str) else f"{name}[{position}]", several)
    return list(dict.fromkeys(item.strip() for item in items))


def _check_one(text: str, name: str, several: str | None) -> None:
    if len(ids := re.split(r"[\s,;]+", text.strip())) > 1:
        remedy = several or f"Pass a list: {excerpt(json.dumps(ids), limit=200)}."
        raise InvalidArgumentError(f"{name} contains several ids in one string. {remedy}")


def index_id(value: Any, several: str, name: str = "index_id") -> str:
    """Return ``value`` as the id of one index.

    :param several: what to do to get several indexes.
    :raises InvalidArgumentError: it is not the id of one index.
    """
    ids = id_list(value, name, several=several)
    if not ids or len(ids) != 1:
        raise InvalidArgumentError(f"{name} must be the id of one index. {several}")
    return ids[0]


def ids_to_wait_for(value: Any, name: str = "index_ids") -> list[str]:
    """Return ``value`` as a list of at least one id; see :func:`id_list`."""
    ids = id_list(value, name)
    if not ids:
        raise InvalidArgumentError(f"{name} must contain at least one index to wait for.")
    return ids


def parsed_list(text: str, name: str) -> list[Any]:
    """Return the list that a rendered template holds.

    :raises InvalidArgumentError: it is neither a JSON nor a Python list.
    """
    parsed = _parsed(text)
    if isinstance(parsed, list | tuple):
        return list(parsed)
    raise InvalidArgumentError(
        f'{name} must be a JSON or Python list. Write it as ["one", "two"]. Got: {_shown(text)}.'
    )


def _parsed(text: str) -> Any:
    """Return the value of a rendered template that is JSON or a Python literal. Return None for any other text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def connection_id(value: Any) -> str:
    """Return ``value`` as the id of an Airflow connection.

    :raises InvalidArgumentError: it is not a string, or blank, or what None renders to.
    """
    if not isinstance(value, str) or is_nothing(value):
        raise InvalidArgumentError(f"llamacloud_conn_id must be the id of an Airflow connection, got {got_type(value)}")
    return value


def session_id(value: Any) -> str:
    """Return ``value`` as a session id. A whole session, as ``CreateChatSessionOperator`` returns it, is also accepted.

    Mapped tasks need the whole session, because Airflow maps only over return values and not over other XComs. The session may
    also be text that a template rendered.

    :raises InvalidArgumentError: it is not a string, or empty, or several ids, or what an XCom that was never pushed renders to.
    """
    found = value
    if isinstance(found, str) and found.strip().startswith(("{", "[", "(")):
        found = _parsed(found.strip())
    if isinstance(found, Mapping):
        found = found.get("session_id")
    if not isinstance(found, str) or is_nothing(found):
        raise InvalidArgumentError(
            f"session_id must be the id of a chat session, got {got_type(value)} "
            'Take it from the task that created the session: create.output["session_id"].'
        )
    _check_one(found, "session_id", "Pass the id of one session. To use several sessions, map the task.")
    return found.strip()


def prompt(value: Any) -> str:
    """Return ``value`` as a prompt, unchanged.

    :raises InvalidArgumentError: it is not a string, or blank, or what None renders to, or contains half a surrogate pair, which
        cannot be sent as UTF-8.
    """
    if not isinstance(value, str) or says_nothing(value):
        raise InvalidArgumentError(f"prompt must be text that is not blank, got {got_prompt(value)}")
    if not _is_text(value):
        raise InvalidArgumentError(
            "prompt contains half of a surrogate pair, so it cannot be sent. Check how the text was cut or decoded."
        )
    return value


def choice(value: Any, name: str, kind: Any) -> str:
    """Return ``value`` if it is one of the values of ``kind``, a ``Literal``.

    :raises InvalidArgumentError: it is not.
    """
    choices = get_args(kind)
    if value not in choices:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, got {got(value)}")
    return str(value)


def optional_choice(value: Any, name: str, kind: Any) -> str | None:
    """Like :func:`choice`, but return None if it was not given."""
    value = given(value, name)
    return None if value is None else choice(value, name, kind)


def flag(value: Any, name: str) -> bool:
    """Return ``value`` as a bool. A rendered template gives it as text.

    :raises InvalidArgumentError: it is neither a bool nor one of true, false, t, f, 1, 0, yes, no, on, off.
    """
    if isinstance(value, bool):
        return value
    text = "" if value is None else str(value).strip().lower()
    if text in {"true", "t", "1", "yes", "on"}:
        return True
    if text in {"false", "f", "0", "no", "off", ""}:
        return False
    raise InvalidArgumentError(f"{name} must be true or false, got {got(value)}")


def seconds(value: Any, name: str) -> float:
    """Return ``value`` (a number, a ``timedelta``, or a number in a rendered string) as seconds above zero.

    :raises InvalidArgumentError: it is none of these.
    """
    result = _positive(value.total_seconds() if hasattr(value, "total_seconds") else value)
    if result is None:
        raise InvalidArgumentError(f"{name} must be a number of seconds above 0, got {got(value)}")
    return result


def moment(value: Any, name: str) -> float:
    """Return ``value`` (a number, or a number in a string) as epoch seconds.

    :raises InvalidArgumentError: it is neither, or negative.
    """
    is_zero = isinstance(value, int | float) and not isinstance(value, bool) and value == 0
    result = 0.0 if is_zero else _positive(value)
    if result is None:
        raise InvalidArgumentError(f"{name} must be a time in epoch seconds, got {got(value)}")
    return result


def number(value: Any, name: str, *, whole: bool = False) -> float:
    """Return ``value`` (a number, or a number in a rendered string) as a number above zero.

    :raises InvalidArgumentError: it is none of these, or it is not ``whole``.
    """
    result = _positive(value)
    if result is None or (whole and result != int(result)):
        kind = "a whole number of at least 1" if whole else "a number above 0"
        raise InvalidArgumentError(f"{name} must be {kind}, got {got(value)}")
    return result


def _positive(value: Any) -> float | None:
    try:
        result = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if 0 < result < float("inf") else None


def limit(value: Any, name: str) -> int | None:
    """Return ``value`` as a whole number of at least 1, or None if it was not given.

    :raises InvalidArgumentError: it is neither.
    """
    value = given(value, name)
    return None if value is None else int(number(value, name, whole=True))


def count_or_share(value: Any, name: str) -> int | Fraction | None:
    """Return ``value`` as a count (a whole number, such as 90 or "90"), as a share of at most 1 (with a decimal point, such as 0.9,
    "0.9" or 1.0), or None if it was not given.

    :raises InvalidArgumentError: it is none of these.
    """
    value = given(value, name)
    if value is None:
        return None
    text = "" if isinstance(value, bool) else str(value).strip()
    if re.fullmatch(r"0*[1-9][0-9]{0,17}", text):
        return int(text)
    # As a fraction, because 0.07 * 100 is more than 7 in binary floating point.
    if re.fullmatch(r"[0-9]*\.?[0-9]+(e-[0-9]{1,3})?", text) and 0 < (share := Fraction(text)) <= 1:
        return share
    raise InvalidArgumentError(
        f"{name} must be a whole number of at least 1, or a share above 0 and at most 1 with a decimal point (0.9, 1.0), "
        f"got {_shown(value)}."
    )


# ASCII only: a sentence in a script without spaces is no name.
_FILE_NAME = r"(?ia)([a-z]:)?[\w.\-/\\~]+\.(txt|md|markdown|prompt|jinja2?|j2|json|jsonl|ya?ml|csv|sql|docx?|pdf|html?)"

PROMPT_FILES = (".prompt", ".prompt.md")
"""The ends of the names of files whose content is asked."""


def no_file_name(text: str, name: str) -> str:
    """Return ``text`` unless it looks like the name of a file, which nobody means to ask.

    :raises InvalidArgumentError: it does.
    """
    if re.fullmatch(_FILE_NAME, text.strip()):
        raise InvalidArgumentError(
            f"{name} looks like the name of a file, so it was not asked: {_shown(text)}. To ask the content of a file, give the file a "
            f"name that ends in {' or '.join(PROMPT_FILES)}, and write that name in the Dag. To ask this text, add a question mark."
        )
    return text


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_TEMPLATE = "Check the template: one that refers to a missing value renders to this."
_NATIVE = "With render_template_as_native_obj=True, Airflow converts rendered text that looks like a Python value."
_LITERALS = (int, float, complex, bytes, list, tuple, dict, set, type(...))
"""What native rendering makes of text."""


def got(value: Any) -> str:
    """Complete a message about a wrong value, and explain how a template can produce it."""
    is_empty = value is None or (isinstance(value, str) and value.strip() and says_nothing(value))
    return f"{_shown(value)}. {_TEMPLATE}" if is_empty else f"{_shown(value)}."


def got_type(value: Any) -> str:
    """Like :func:`got`, for an id of the wrong type. Native rendering makes numbers of ids."""
    shown = f"{type(value).__name__} {got(value)}"
    is_number = isinstance(value, int | float)
    return f"{shown} {_NATIVE} Set render_template_as_native_obj=False on the Dag." if is_number else shown


def got_prompt(value: Any) -> str:
    """Like :func:`got`, for a prompt of the wrong type."""
    shown = f"{type(value).__name__} {got(value)}"
    if isinstance(value, _LITERALS):
        return f"{shown} {_NATIVE} Add some words to the text, or set render_template_as_native_obj=False on the Dag."
    return shown


def _shown(value: Any) -> str:
    return excerpt(repr(value), limit=80)
