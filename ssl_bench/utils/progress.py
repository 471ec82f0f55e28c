"""Progress of long work: a live bar on a terminal or in a notebook, elsewhere a line at times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ssl_bench.utils.terminal import Console, in_notebook

if TYPE_CHECKING:
    from rich.progress import Progress

console = Console(stderr=True)
_SECONDS_BETWEEN_LINES = 20.0
_BAR_FROM = 110
"""Columns of a terminal that has room for the bar itself, too."""


class Bar:
    """The progress of one piece of work."""

    def __init__(self, title: str, total: int, progress: Progress | None) -> None:
        self._title, self._total, self._progress = title, total, progress
        self._task: Any = progress.add_task(title, total=total, note="") if progress else None
        self._started = self._printed = time.monotonic()
        self._done_before: int | None = None

    def of(self, done: int, total: int) -> None:
        """Show progress when the total was not known before."""
        self._total = total
        self.update(done)

    def update(self, done: int, note: str = "") -> None:
        """Show how much is done, with a note."""
        if self._progress:
            self._progress.update(self._task, completed=done, total=self._total, note=note)
            return
        if self._done_before is None:
            self._done_before = done
        now = time.monotonic()
        if now - self._printed > _SECONDS_BETWEEN_LINES and done:
            self._printed = now
            rate = max(1, done - self._done_before) / (now - self._started)
            left = (self._total - done) / rate
            console.print(f"{self._title} {done}/{self._total} {note} {left:.0f} s left")


@contextmanager
def bar(title: str, total: int) -> Iterator[Bar]:
    """A progress bar for ``total`` steps of work."""
    if not (console.is_terminal or in_notebook()):
        yield Bar(title, total, None)
        return
    from rich.progress import (  # which --help need not wait for
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    def whole(width: int) -> Column:
        """A column that is never cut, however narrow the terminal."""
        return Column(no_wrap=True, min_width=width)

    def cut(ratio: int | None = None, largest: int | None = None) -> Column:
        return Column(no_wrap=True, overflow="ellipsis", ratio=ratio, max_width=largest)

    is_wide, third = console.width >= _BAR_FROM, console.width // 3
    done = max(11, 2 * len(str(total)) + 1)
    columns = [
        TextColumn("{task.description}", markup=False, table_column=cut(largest=third)),
        *([BarColumn(bar_width=None)] * is_wide),
        MofNCompleteColumn(table_column=whole(done)),
        TextColumn("{task.fields[note]}", markup=False, table_column=cut(None if is_wide else 1)),
        *([TimeElapsedColumn()] * is_wide),
        TextColumn("left", table_column=whole(4)),
        TimeRemainingColumn(table_column=whole(7)),
    ]
    kind: type[Progress] = Progress
    if in_notebook():
        from ssl_bench.utils.notebook_progress import NotebookProgress

        kind = NotebookProgress
    with kind(*columns, console=console, expand=True, transient=True) as progress:
        yield Bar(title, total, progress)
