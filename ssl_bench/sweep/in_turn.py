"""Cells in, runs out, one after the other."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import lru_cache

from ssl_bench.experiment import loading, running
from ssl_bench.experiment.preparation import prepare_run
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.experiment.running import Run


def run(cells: Sequence[RunConfig]) -> list[Run]:
    """Do one cell after the other, once all of them are known to be possible.

    Each is what ``ssl-bench run`` makes of the same settings, run folder included: what is done is
    reused, and what was interrupted is resumed.

    Returns:
        The run of each cell, in their order.

    Raises:
        UserError: a cell is impossible, and nothing has been trained.
    """
    load = lru_cache(maxsize=2)(loading.load)
    for config in cells:
        prepare_run(config, loading.data_of(config, load))
    finished = []
    for number, config in enumerate(cells, start=1):
        loading.console.rule(f"cell {number} of {len(cells)}")
        loading.console.print(shlex.join(["ssl-bench", "run", *config.argv()]), soft_wrap=True)
        finished.append(running.run(config, loading.data_of(config, load)))
    return finished
