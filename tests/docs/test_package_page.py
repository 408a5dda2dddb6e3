"""The pages as others show them: a package index the README, `make docs` the site."""

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


def test_the_site_has_every_page_and_no_page_links_to_a_markdown_file_that_the_site_lacks() -> None:
    """What `make docs` would refuse minutes later, in a build."""
    pages = {page.stem: page.read_text() for page in (ROOT / "docs").glob("*.md")}
    listed = re.findall(r"^   (\w[\w-]*)$", (ROOT / "docs" / "index.rst").read_text(), re.MULTILINE)
    assert sorted({*pages} - {*listed}) == []
    linked = {link for text in pages.values() for link in re.findall(r"\]\(([^):#]+\.md)", text)}
    assert sorted(linked - {f"{page}.md" for page in pages} - {"../CHANGELOG.md"}) == []
