"""No test reads or replaces a private name of another module without a reason beside it.

ruff sees attributes (SLF001); this sees names in texts and imports as well, and that each exception has its reason.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

SETTERS = {"setattr", "getattr", "delattr", "hasattr", "setitem", "object", "patch"}
PRIVATE = re.compile(r"(^|\.)_(?!_)\w*$")
EXEMPTION = re.compile(r"#\s*noqa:[\s\w,]*")


def looks_inside(tree: ast.AST) -> Iterator[int]:
    """The lines that name something private of another module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.search(node.attr):
            if ast.unparse(node) != "os._exit" and ast.unparse(node.value) not in {"self", "cls"}:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.lineno for alias in node.names if PRIVATE.search(alias.name))
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [part for part in node.args[:2] if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            if name in SETTERS:
                yield from (text.lineno for text in texts if PRIVATE.search(str(text.value)))


def without_reason(source: str) -> list[int]:
    """The same without those that give a reason in a comment on their line."""
    comments = {
        token.start[0]: EXEMPTION.sub("", token.string).strip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return sorted({line for line in looks_inside(ast.parse(source)) if not comments.get(line)})


@pytest.mark.long
def test_no_test_uses_private_names_without_a_reason(repository: Path) -> None:
    found = [
        f"{path.relative_to(repository)}:{line}"
        for path in sorted((repository / "tests").rglob("*.py"))
        for line in without_reason(path.read_text())
    ]
    assert not found, f"private names of other modules; go another way, or give the reason in a comment: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "hook._client",
        "hook._client = None  # noqa: SLF001",
        "hook._client.close()  # noqa: SLF001, B010",
        'setattr(hook, "_client", None)',
        'monkeypatch.setattr(module, "_contexts", {})',
        'monkeypatch.setattr("package.module._contexts", {})',
        'mock.patch.object(module, "_contexts")',
        "from package.module import _contexts",
        "from package._module import name, _contexts as contexts",
    ],
)
def test_the_check_finds_private_names(line: str) -> None:
    assert without_reason(line) == [1]
    assert without_reason(f"{line}  # it has no public way") == []


@pytest.mark.parametrize(
    "line", ["self._client", "hook.client", "hook.__class__", 'setattr(hook, "client", "_x")', "from a import b"]
)
def test_the_check_ignores_allowed_names(line: str) -> None:
    assert without_reason(line) == []
