"""The objects of the API as pydantic models. Each module of them is loaded on first use: most tasks need one.

Every model keeps unknown fields (``extra="allow"``), so that a new field of the API neither breaks a Dag nor gets lost in XCom.
Reference: https://developers.llamaindex.ai/reference/ (chat, projects, indexes).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_llamachat.models.base import ApiModel
    from airflow_provider_llamachat.models.chat_session import JobMetadata, Session, SessionPage, SessionSummary, Usage
    from airflow_provider_llamachat.models.resources import AttachmentUrl, Index, IndexMetadata, IndexPage, Project
    from airflow_provider_llamachat.models.turn import (
        ChatTurn,
        Event,
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

_SESSIONS = {"JobMetadata", "Session", "SessionPage", "SessionSummary", "Usage"}
_RESOURCES = {"AttachmentUrl", "Index", "IndexMetadata", "IndexPage", "Project"}

__all__ = ["ApiModel", "AttachmentUrl", "Index", "IndexMetadata", "IndexPage", "JobMetadata", "Project"]
__all__ += ["Session", "SessionPage", "SessionSummary", "Usage"]
__all__ += ["ChatTurn", "Event", "StopEvent", "TextDeltaEvent", "TextEvent", "ThinkingDeltaEvent", "ThinkingEvent"]
__all__ += ["ToolCallEvent", "ToolResultEvent", "ToolUse", "UserInputEvent", "parse_event"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "chat_session" if name in _SESSIONS else "resources" if name in _RESOURCES else "turn"
    return globals().setdefault(name, getattr(importlib.import_module(f"{__name__}.{home}"), name))
