"""What a package index shows of the README: no link or picture there may lead to a file of the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_has_only_absolute_links_and_keeps_their_words() -> None:
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"][
        "fancy-pypi-readme"
    ]
    readme = shown = (ROOT / "README.md").read_text()
    assert hook["fragments"] == [{"path": "README.md"}]
    for substitution in hook["substitutions"]:
        shown = re.sub(substitution["pattern"], substitution["replacement"], shown)
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", shown) == []
    assert "](docs/" in readme
    assert "quickstart, walkthrough, glossary" in shown.replace("\n", " ")
    assert "[LlamaCloud](https://cloud.llamaindex.ai)" in shown
    assert "```python" in shown
    assert shown.count("\n## ") == readme.count("\n## ")
