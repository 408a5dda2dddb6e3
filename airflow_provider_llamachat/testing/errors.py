"""Errors in FastAPI's shape, and the checks of query and body that raise them.

Bodies follow https://fastapi.tiangolo.com/tutorial/handling-errors/: ``{"detail": "text"}``, or for 422 a list of
``{"type", "loc", "msg", "input"}``.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

Query = Mapping[str, str | list[str]]


class ApiError(Exception):
    """An answer with an error status; ``detail`` is what its body says."""

    def __init__(self, status: int, detail: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


def problem(kind: str, loc: tuple[str | int, ...], msg: str, value: Any, **ctx: Any) -> dict[str, Any]:
    """One entry of a 422's list."""
    entry = {"type": kind, "loc": list(loc), "msg": msg, "input": value}
    return {**entry, "ctx": ctx} if ctx else entry


def refuse(*problems: dict[str, Any]) -> ApiError:
    """The 422 that lists ``problems``."""
    return ApiError(422, list(problems))


class Checker:
    """Collects every problem of one request, as FastAPI does, before any of it is acted upon."""

    def __init__(self, query: Query) -> None:
        self.problems: list[dict[str, Any]] = []
        self._query = query

    def raise_if_any(self) -> None:
        """:raises ApiError: 422 when something was wrong."""
        if self.problems:
            raise refuse(*self.problems)

    def text(self, name: str) -> str | None:
        """A query parameter's last value, None when not given."""
        value = self._query.get(name)
        return value[-1] if isinstance(value, list) else value

    def values(self, name: str) -> list[str]:
        """All values of a repeatable query parameter."""
        value = self._query.get(name, [])
        return value if isinstance(value, list) else [value]

    def uuid(self, name: str, *, path: str | None = None) -> str | None:
        """A UUID of the query (or of the path), in its canonical form."""
        value = self.text(name) if path is None else path
        if value is None:
            return None
        try:
            return str(uuid.UUID(value))
        except ValueError as error:
            where = "query" if path is None else "path"
            self.problems.append(
                problem(
                    "uuid_parsing", (where, name), f"Input should be a valid UUID, {error}", value, error=str(error)
                )
            )
            return None

    def page_size(self, default: int, most: int) -> int:
        """``page_size`` of the query, at most ``most``."""
        value = self.text("page_size")
        if value is None:
            return default
        loc = ("query", "page_size")
        try:
            size = int(value)
        except ValueError:
            msg = "Input should be a valid integer, unable to parse string as an integer"
            self.problems.append(problem("int_parsing", loc, msg, value))
            return default
        if size < 1:
            self.problems.append(
                problem("greater_than_equal", loc, "Input should be greater than or equal to 1", value, ge=1)
            )
        return min(size, most)

    def body(self, raw: bytes, content_type: str, *, required: bool) -> dict[str, Any] | None:
        """The JSON object in the body; None where there is none (a problem if ``required``)."""
        if not raw:
            if required:
                self.problems.append(problem("missing", ("body",), "Field required", None))
            return None
        # FastAPI hands a body of another content type on as bytes, which then is no object.
        kind = content_type.partition(";")[0].strip().lower()
        value: Any = None
        if kind in ("", "application/json") or kind.endswith("+json"):
            try:
                value = json.loads(raw)
            except json.JSONDecodeError as error:
                self.problems.append(
                    problem("json_invalid", ("body", error.pos), "JSON decode error", {}, error=error.msg)
                )
                return None
            except (ValueError, RecursionError):
                raise ApiError(400, "There was an error parsing the body") from None
            if value is None and not required:
                return None
        if not isinstance(value, dict):
            msg = "Input should be a valid dictionary or object to extract fields from"
            self.problems.append(problem("model_attributes_type", ("body",), msg, value))
            return None
        return value

    def string(self, body: dict[str, Any], name: str, *, most: int) -> str | None:
        """A required text field of at most ``most`` characters."""
        if name not in body:
            self.problems.append(problem("missing", ("body", name), "Field required", body))
            return None
        return self._string(body[name], ("body", name), most)

    def _string(self, value: Any, loc: tuple[str | int, ...], most: int | None = None) -> str | None:
        if not isinstance(value, str):
            self.problems.append(problem("string_type", loc, "Input should be a valid string", value))
            return None
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            msg = "Input should be a valid string, unable to parse raw data as a unicode string"
            self.problems.append(problem("string_unicode", loc, msg, None))
            return None
        if most is not None and len(value) > most:
            msg = f"String should have at most {most} characters"
            self.problems.append(problem("string_too_long", loc, msg, value, max_length=most))
            return None
        return value

    def strings(
        self, body: dict[str, Any], name: str, *, required: bool, least: int = 0, most: int | None = None
    ) -> list[str] | None:
        """A list of texts; an optional one may be null or left out."""
        loc = ("body", name)
        if name not in body:
            if required:
                self.problems.append(problem("missing", loc, "Field required", body))
            return None
        value = body[name]
        if value is None and not required:
            return None
        if not isinstance(value, list):
            self.problems.append(problem("list_type", loc, "Input should be a valid list", value))
            return None
        count = len(value)
        if count < least:
            msg = f"List should have at least {least} item{'s' * (least != 1)} after validation, not {count}"
            self.problems.append(
                problem("too_short", loc, msg, value, field_type="List", min_length=least, actual_length=count)
            )
        if most is not None and count > most:
            msg = f"List should have at most {most} item{'s' * (most != 1)} after validation, not {count}"
            self.problems.append(
                problem("too_long", loc, msg, value, field_type="List", max_length=most, actual_length=count)
            )
        items = [self._string(item, (*loc, place)) for place, item in enumerate(value)]
        return [item for item in items if item is not None]

    def choice(self, body: dict[str, Any], name: str, choices: tuple[str, ...]) -> str | None:
        """An optional field with a fixed set of values."""
        value = body.get(name)
        if value is None or (isinstance(value, str) and value in choices):
            return value
        expected = " or ".join(repr(choice) for choice in choices)
        self.problems.append(
            problem("literal_error", ("body", name), f"Input should be {expected}", value, expected=expected)
        )
        return None

    def flag(self, body: dict[str, Any], name: str) -> bool:
        """An optional boolean, False when left out, as lenient as pydantic's."""
        value = body.get(name, False)
        if isinstance(value, (bool, int)) and value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.lower() in (
            "true",
            "false",
            "1",
            "0",
            "yes",
            "no",
            "on",
            "off",
            "t",
            "f",
            "y",
            "n",
        ):
            return value.lower() in ("true", "1", "yes", "on", "t", "y")
        kind = "bool_parsing" if isinstance(value, (str, int)) else "bool_type"
        msg = "Input should be a valid boolean" + (", unable to interpret input" if kind == "bool_parsing" else "")
        self.problems.append(problem(kind, ("body", name), msg, value))
        return False
