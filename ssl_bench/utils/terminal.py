"""Printing tables and lines without control characters from untrusted names."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ssl_bench.utils.formatting import plain


def in_notebook() -> bool:
    """Whether a notebook runs this, which can show more than text."""
    ipython: Any = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")


def _without_caption(table: Table) -> Table:
    bare = copy.copy(table)
    bare.caption = None
    return bare


class Console(rich.console.Console):
    """Rich's console without markup, which prints only visible characters.

    An escape sequence in an untrusted name could change the window's title or the clipboard, or
    hide a line.
    """

    def __init__(self, **options: Any) -> None:
        # In a notebook rich would make an output of HTML of every line.
        plain_text = {"markup": False, "highlight": False, "force_jupyter": False}
        super().__init__(**{**plain_text, **options})

    def print(self, *objects: Any, **options: Any) -> None:
        """Rich's print; lines of text are left to the terminal to wrap.

        A table's caption has the width of the terminal, and not of a table that may be narrow.
        """
        is_text = all(isinstance(each, str | Text) for each in objects)
        captions = [each.caption for each in objects if isinstance(each, Table) and each.caption]
        bare = (_without_caption(each) if isinstance(each, Table) else each for each in objects)
        super().print(*bare, **{"soft_wrap": is_text, **options})
        for caption in captions:
            super().print(Text(str(caption), style="table.caption"))

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        """Rich's segments without control characters."""
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))
