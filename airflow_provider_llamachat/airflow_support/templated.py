"""The type of templated arguments. Import it only for type checking, because it imports Airflow."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from airflow.providers.common.compat.sdk import XComArg

T = TypeVar("T")
Templated: TypeAlias = T | str | XComArg
"""Type of a templated argument: a value, a template, or the output of another task."""
