"""What README and the pages under docs/ say, for tests of it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def text_of(name: str) -> str:
    """A page under docs/, or all of them and README after each other."""
    if name:
        return (ROOT / name).read_text()
    return "\n".join(path.read_text() for path in PAGES)


def commands() -> list[str]:
    """Each command line in a block of shell, without its comment."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text_of(""), flags=re.MULTILINE | re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.partition(" #")[0].strip() for line in joined.splitlines() if line.strip()]
