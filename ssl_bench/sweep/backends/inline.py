"""Cells in this process, in the foreground: ``--cluster debug``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.sweep.backends import records
from ssl_bench.sweep.backends.records import Record
from ssl_bench.sweep.jobs import Job, lines_of, perform
from ssl_bench.utils.locks import taken


def run(cells: Sequence[Sequence[Job]], folder: Path) -> list[list[str]]:
    """Do the cells now, in this process, one after the other; one that fails fails alone.

    Returns:
        The ids of each cell's stages.
    """
    batch = records.new_batch(folder, "debug", cells)
    for cell, stages in enumerate(cells):
        failed = ""
        with taken(records.cell_lock(batch.folder, cell), 0):
            for stage, job in enumerate(stages):
                path = batch.folder / batch.name(cell, stage)
                if failed:
                    records.update(path, "cancelled", None, [f"its {failed} failed"])
                elif not _perform_here(job, path):
                    failed = job.stage
    return batch.ids()


def _perform_here(job: Job, path: Path) -> bool:
    """Whether it succeeded."""
    records.write(path, Record("running", starts=1))
    try:
        with contextlib.chdir(job.cwd):
            code = perform(RunConfig.from_json(job.config), job.run)
    except Exception as error:
        records.update(path, "failed", None, lines_of(error))
        print("\n".join(lines_of(error)), file=sys.stderr)
        return False
    except BaseException:  # somebody wants all of it to end
        records.update(path, "cancelled", None, [])
        raise
    records.update(path, "failed" if code else "done", code, [])
    return not code
