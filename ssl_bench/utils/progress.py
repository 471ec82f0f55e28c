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

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    kind: type[Progress] = Progress
    if in_notebook():
        from ssl_bench.utils.notebook_progress import NotebookProgress

        kind = NotebookProgress
    with kind(*columns, console=console, expand=True, transient=True) as progress:
        yield Bar(title, total, progress)
