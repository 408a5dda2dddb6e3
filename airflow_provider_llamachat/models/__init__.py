"""The objects of the API as pydantic models. Each of the modules here is loaded on first use: most tasks need one.

Every model keeps unknown fields (``extra="allow"``), so that a new field of the API neither breaks a Dag nor gets lost in XCom.
Reference: https://developers.llamaindex.ai/reference/ (chat, projects, indexes).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_llamachat.models.api_model import ApiModel
    from airflow_provider_llamachat.models.chat_session import JobMetadata, SessionPage, SessionSummary, Usage
    from airflow_provider_llamachat.models.resources import AttachmentUrl, Index, IndexMetadata, IndexPage, Project
    from airflow_provider_llamachat.models.turn import (
        EVENT_TYPES,
        MALFORMED,
        MAX_EVENTS,
        ChatTurn,
        Event,
        Session,
        StopEvent,
        TextDeltaEvent,
        TextEvent,
        ThinkingDeltaEvent,
        ThinkingEvent,
        ToolCallEvent,
        ToolResultEvent,
        ToolUse,
        UserInputEvent,
        parse_event,
    )

__all__ = ["ApiModel", "AttachmentUrl", "Index", "IndexMetadata", "IndexPage", "JobMetadata", "Project"]
__all__ += ["EVENT_TYPES", "MALFORMED", "MAX_EVENTS", "SessionPage", "SessionSummary", "Usage"]
__all__ += ["ChatTurn", "Event", "Session", "StopEvent", "TextDeltaEvent", "TextEvent", "ThinkingDeltaEvent"]
__all__ += ["ThinkingEvent", "ToolCallEvent", "ToolResultEvent", "ToolUse", "UserInputEvent", "parse_event"]

_HOMES = {
    "ApiModel": "api_model",
    **dict.fromkeys(("JobMetadata", "SessionPage", "SessionSummary", "Usage"), "chat_session"),
    **dict.fromkeys(("AttachmentUrl", "Index", "IndexMetadata", "IndexPage", "Project"), "resources"),
}
"""The module of each name. All others are in ``turn``."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'turn')}")
    return globals().setdefault(name, getattr(home, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
