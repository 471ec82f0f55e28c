"""Cells in, runs out, one after the other."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import lru_cache

from ssl_bench.cli import flags
from ssl_bench.cli.flags import Request
from ssl_bench.data import Dataset
from ssl_bench.experiment import commands
from ssl_bench.experiment.commands import Run
from ssl_bench.experiment.preparation import prepare_run


def run(cells: Sequence[Sequence[str]]) -> list[Run]:
    """Do one cell after the other, once all of them are known to be possible.

    Each is what ``ssl-bench run`` makes of the same words, run folder included: what is done is
    reused, and a sweep that was interrupted goes on where it was. As cells are only words, they can
    be sent to other machines as they are.

    Args:
        cells: words of ``ssl-bench run``.

    Returns:
        The run of each cell, in their order.

    Raises:
        UserError: a cell is impossible, and nothing has been trained.
    """
    load = lru_cache(maxsize=1)(commands.load)

    def data_of(request: Request) -> Dataset:
        return load(*commands.source_of(request.settings))

    requests = [flags.parse_run(cell) for cell in cells]
    for request in requests:
        prepare_run(request, data_of(request))
    finished = []
    for number, (cell, request) in enumerate(zip(cells, requests, strict=True), start=1):
        commands.console.rule(f"cell {number} of {len(cells)}")
        commands.console.print(shlex.join(["ssl-bench", "run", *cell]), soft_wrap=True)
        finished.append(commands.run(request, data_of(request)))
    return finished
