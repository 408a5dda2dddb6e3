"""Settings of Sphinx: ``make docs`` builds the pages of this folder and an API reference into ``build/docs``."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Any

project = "airflow-provider-llamachat"
version = release = version_of(project)
copyright = "the authors of airflow-provider-llamachat"  # noqa: A001 - the name that Sphinx reads
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"{project} {release}"

# Pages link to headings of each other, as on a Git host.
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autoclass_content = "class"


def _shorten_references(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    # ``~..sensors.index.X`` says where a name lies; Sphinx finds it by ``~.sensors.index.X``.
    lines[:] = [line.replace("`~..", "`~.").replace("`..", "`.") for line in lines]


def _link_to_changelog(_app: Any, _page: str, source: list[str]) -> None:
    # On a Git host, the changelog lies beside this folder.
    source[:] = [text.replace("](../CHANGELOG.md)", "](changelog.rst)") for text in source]


def setup(app: Any) -> None:
    """Register what the settings cannot express."""
    app.connect("source-read", _link_to_changelog)
    app.connect("autodoc-process-docstring", _shorten_references)
