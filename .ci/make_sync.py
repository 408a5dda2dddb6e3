"""Generates the synchronous client from the asynchronous one: ``make_sync.py [--check]``.

Lines between ``# <async>`` and ``# </async>`` are left out, and lines after ``# sync|`` are taken in their place. ``--check`` fails when
a generated file is not up to date.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "airflow_provider_llamachat"
FILES = {
    "client/aio.py": "client/sync.py",
    "client/sender.py": "client/sender_sync.py",
}

ASYNC_ONLY = re.compile(r"^ *# <async>\n.*?^ *# </async>\n", re.MULTILINE | re.DOTALL)
SYNC_ONLY = re.compile(r"^( *)# sync\| ?(.*)$", re.MULTILINE)
WORDS = (
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\bAsyncGenerator\[([\w.]+), None\]", r"Generator[\1, None, None]"),
    (r"\bAsync(Generator|Iterator|Client|LlamaCloudClient|Sender|Keep)\b", r"\1"),
    (r"\ba(closing|close|iter_raw|next|iter|until|sleep|decode|trace)\b", r"\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\b(client\.sender)\b", r"\1_sync"),
)


def synchronous(source: str, origin: str) -> str:
    """Return the synchronous form of a module's source."""
    code = SYNC_ONLY.sub(lambda found: (found[1] + found[2]).rstrip(), ASYNC_ONLY.sub("", source))
    for pattern, replacement in WORDS:
        code = re.sub(pattern, replacement, code)
    code = code.replace("asynchronous ", "synchronous ")
    code = re.sub(r" ``(sync|sender_sync)\.py`` is generated from this file by ``make sync``\.", "", code)
    code = f"# Generated from {origin} by `make sync`; do not edit by hand.\n{code}"
    for command in (["check", "--quiet", "--fix-only", "--select", "F401,I"], ["format", "--quiet"]):
        path = str(PACKAGE / "generated.py")
        code = subprocess.run(  # noqa: S603  # this environment's own ruff
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", path, "-"],
            input=code, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    return code


def main() -> int:
    """Write the generated files, or compare them."""
    stale = []
    for origin, target in FILES.items():
        made = synchronous((PACKAGE / origin).read_text(), origin)
        path = PACKAGE / target
        if path.exists() and path.read_text() == made:
            continue
        stale.append(target)
        if "--check" not in sys.argv:
            path.write_text(made)
    if stale:
        print(f"{'Not up to date (run `make sync`)' if '--check' in sys.argv else 'Written'}: {', '.join(stale)}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
