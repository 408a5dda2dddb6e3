"""Arguments as Dags really give them: rendered templates, XComs, JSON in strings; checked before any request."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.redaction import excerpt

MAX_ID = 512
"""Characters of an id at most: far more than any has, and few enough for a URL."""

_NOTHING = {"", "None", "null"}


def is_nothing(value: Any) -> bool:
    """Whether ``value`` is None, blank, or what None renders to in a template."""
    return value is None or (isinstance(value, str) and value.strip() in _NOTHING)


def scope(project_id: Any, organization_id: Any) -> dict[str, Any]:
    """Project and organization as a client takes them; None leaves it to the connection."""
    values = {"project_id": project_id, "organization_id": organization_id}
    return {name: None if is_nothing(value) else value for name, value in values.items()}


def id_list(value: Any, name: str = "index_ids") -> list[str] | None:
    """Return ``value`` as a list of ids, None for "not given".

    Accepts a list (or another iterable, such as the lazy sequence that an XComArg of mapped tasks becomes), a JSON or Python
    list in a string (what a template renders to without native types) and one plain id. Duplicates are dropped, order is kept.

    :raises InvalidArgumentError: anything else, an empty id, or something in the list that is not a string.
    """
    if is_nothing(value):
        return None
    items: list[Any]
    if isinstance(value, str):
        text = value.strip()
        items = parsed_list(text, name) if text.startswith(("[", "(", "{")) else [text]
    elif isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | dict):
        items = list(value)
    else:
        raise InvalidArgumentError(f"{name} has to be a list of index ids, got {_given(value)}")
    for position, item in enumerate(items):
        if not isinstance(item, str) or is_nothing(item):
            raise InvalidArgumentError(
                f"{name}[{position}] has to be an index id (a string that is not empty), got {_given(item)}"
            )
        if len(item) > MAX_ID or not _is_text(item):
            raise InvalidArgumentError(f"{name}[{position}] is no index id: {_shown(item)} ({len(item)} characters).")
        if len(several := re.split(r"[\s,;]+", item.strip())) > 1:
            place = name if isinstance(value, str) else f"{name}[{position}]"
            raise InvalidArgumentError(
                f"{place} holds several ids in one text. Write a list: {excerpt(json.dumps(several), limit=200)}."
            )
    return list(dict.fromkeys(item.strip() for item in items))


def parsed_list(text: str, name: str) -> list[Any]:
    """Return the list that a rendered template holds.

    :raises InvalidArgumentError: it is neither a JSON nor a Python list.
    """
    parsed = _parsed(text)
    if isinstance(parsed, list | tuple):
        return list(parsed)
    raise InvalidArgumentError(
        f'{name} has to be a list, and this is neither a JSON nor a Python list: {_shown(text)}. Write it like ["one", "two"].'
    )


def _parsed(text: str) -> Any:
    """What a rendered template stands for, read as JSON or as Python; None when it is neither."""
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
        raise InvalidArgumentError(f"llamacloud_conn_id has to be the id of an Airflow connection, got {_given(value)}")
    return value


def session_id(value: Any) -> str:
    """Return ``value`` as a session id; a whole session, as ``CreateChatSessionOperator`` returns it, stands for its id.

    The latter is for mapped tasks: Airflow maps over return values only, not over XComs with another key. A session that a template
    rendered to text is understood too.

    :raises InvalidArgumentError: it is not a string, or empty, or what an XCom that was never pushed renders to.
    """
    found = value
    if isinstance(found, str) and found.strip().startswith(("{", "[", "(")):
        found = _parsed(found.strip())
    if isinstance(found, Mapping):
        found = found.get("session_id")
    if not isinstance(found, str) or is_nothing(found):
        raise InvalidArgumentError(
            f"session_id has to be the id of a chat session, got {_given(value)} "
            'Take it from the task that created the session: create.output["session_id"].'
        )
    return found.strip()


def prompt(value: Any) -> str:
    """Return ``value`` as a prompt, unchanged.

    :raises InvalidArgumentError: it is not a string, or blank, or what None renders to, or contains half a surrogate pair, which
        cannot be sent as UTF-8.
    """
    if not isinstance(value, str) or is_nothing(value):
        raise InvalidArgumentError(f"prompt has to be text that is not blank, got {_given(value)}")
    if not _is_text(value):
        raise InvalidArgumentError(
            "prompt contains half of a surrogate pair: it was cut or decoded wrongly and cannot be sent."
        )
    return value


def choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``choices``.

    :raises InvalidArgumentError: it is not.
    """
    if value not in choices:
        raise InvalidArgumentError(f"{name} has to be one of {', '.join(map(repr, choices))}, got {_shown(value)}.")
    return str(value)


def optional_choice(value: Any, name: str, choices: tuple[str, ...]) -> str | None:
    """Like :func:`choice`, with None (or what None renders to) meaning "not given"."""
    if is_nothing(value):
        return None
    return choice(value, name, choices)


def flag(value: Any, name: str) -> bool:
    """Return ``value`` as a truth value; a rendered template gives it as text.

    :raises InvalidArgumentError: it is neither a bool nor one of true, false, 1, 0, yes, no.
    """
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in {"true", "1", "yes"}:
        return True
    if text in {"false", "0", "no", "none", ""}:
        return False
    raise InvalidArgumentError(f"{name} has to be true or false, got {_shown(value)}.")


def seconds(value: Any, name: str) -> float:
    """Return ``value`` (a number, a ``timedelta``, or a number in a rendered string) as seconds above zero.

    :raises InvalidArgumentError: it is none of these.
    """
    number = value.total_seconds() if hasattr(value, "total_seconds") else value
    try:
        result = float("nan") if isinstance(number, bool) else float(number)
    except (TypeError, ValueError, OverflowError):
        result = float("nan")
    if not 0 < result < float("inf"):
        raise InvalidArgumentError(f"{name} has to be a number of seconds above 0, got {_shown(value)}.")
    return result


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _given(value: Any) -> str:
    """The rest of a sentence about a value of the wrong kind, with how a template comes to give it."""
    shown = f"{type(value).__name__} {_shown(value)}."
    if value is None or (isinstance(value, str) and value.strip() and is_nothing(value)):
        return f"{shown} A template that finds nothing renders to this: check what it refers to."
    if isinstance(value, int | float | list | tuple | dict | set):
        return (
            f"{shown} With render_template_as_native_obj=True, Airflow turns rendered text that looks like a Python value into that "
            "value: write some words around it, or set render_template_as_native_obj=False on the Dag."
        )
    return shown


def _shown(value: Any) -> str:
    return excerpt(repr(value), limit=80)
