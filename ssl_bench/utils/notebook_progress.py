"""Rich's progress bar in a notebook, where rich itself would need ipywidgets."""

from __future__ import annotations

import time
from typing import Any

from IPython import get_ipython
from IPython.display import HTML, display
from rich.progress import Progress, TaskID

_SECONDS_BETWEEN = 0.2
_outputs: dict[int, Any] = {}


class NotebookProgress(Progress):
    """A bar that is drawn anew as it moves, and is gone at the end.

    All bars of a cell, one after the other, share one of its outputs.
    """

    def start(self) -> None:
        """Show it."""
        cell = get_ipython().execution_count
        if cell not in _outputs:
            _outputs.clear()
            _outputs[cell] = display(HTML(""), display_id=True)
        self._output, self._shown = _outputs[cell], time.monotonic()

    def stop(self) -> None:
        """Take it away."""
        self._output.update(HTML(""))

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """Move the bar; it is drawn a few times a second."""
        super().update(task_id, **fields)
        now = time.monotonic()
        if now - self._shown > _SECONDS_BETWEEN:
            self._shown = now
            self._output.update(self)
