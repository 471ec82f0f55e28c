"""What is printed: tables and lines whose names command no terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from ssl_bench.utils.formatting import plain


class Console(rich.console.Console):
    """Rich's, which takes no text for markup, and shows of a name only what can be seen.

    Names of folders and whatever they hold come from anywhere: an escape sequence in one of them
    could write into the window's title or the clipboard, or hide a line.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, **options})

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        """Segments as Rich's, without such characters."""
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))
