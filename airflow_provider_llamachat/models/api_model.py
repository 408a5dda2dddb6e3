"""What all models share: their configuration, and how an invalid value is read."""

# Without "from __future__ import annotations": pydantic would evaluate the text of each annotation when this is imported.
import json
import threading
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from airflow_provider_llamachat.evidence import MAX_NUMBER, plain

_building = threading.RLock()


class ApiModel(BaseModel):
    """Base of all models: immutable, keeps unknown fields."""

    __module__ = __package__

    # A task uses few of the models, and building all of them takes longer than its first call.
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=(), defer_build=True)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Airflow stores this name with an XCom, and compares it with allowed_deserialization_classes.
        if cls.__module__.startswith(f"{__package__}."):
            cls.__module__ = __package__

    @classmethod
    def model_rebuild(cls, **options: Any) -> bool | None:
        """Build the model, which pydantic does when it is first used. Before pydantic 2.14, only one thread may do so at a time."""
        with _building:
            return super().model_rebuild(**options)

    def as_json(self) -> dict[str, Any]:
        """Return all fields, including unknown ones, as values that every JSON store accepts: no NaN and no very large numbers."""
        fields: dict[str, Any] = plain(self.model_dump(mode="json"))
        return fields


# An invalid value must not make a turn fail that was paid for, so it is read as None.


def _number(value: Any) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if abs(number) < MAX_NUMBER and not isinstance(value, bool) else None


def _count(value: Any) -> int | None:
    return None if (number := _number(value)) is None else int(float(number) if isinstance(number, str) else number)


def _texts(value: Any) -> list[str] | None:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else None


def _verdict(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().lower() not in {"", "0", "false", "no", "none", "null"}
    return bool(value)


def _reason(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return None if isinstance(value, bool) or not isinstance(value, int | float) else str(value)


def _fields(value: Any) -> Any:
    return value if isinstance(value, dict | BaseModel) else {}


def _object(value: Any) -> Any:
    return value if isinstance(value, dict) else None


def _optional_verdict(value: Any) -> bool | None:
    return None if value is None else _verdict(value)


Number = Annotated[float | None, BeforeValidator(_number)]
Count = Annotated[int | None, BeforeValidator(_count)]
Texts = Annotated[list[str] | None, BeforeValidator(_texts)]
Reason = Annotated[str | None, BeforeValidator(_reason)]
Text = Annotated[str | None, BeforeValidator(_text)]
TextOrEmpty = Annotated[str, BeforeValidator(lambda value: _text(value) or "")]
Verdict = Annotated[bool, BeforeValidator(_verdict)]
OptionalVerdict = Annotated[bool | None, BeforeValidator(_optional_verdict)]
Object = Annotated[dict[str, Any] | None, BeforeValidator(_object)]
Fields = BeforeValidator(_fields)
OptionalFields = BeforeValidator(lambda value: None if value is None else _fields(value))
