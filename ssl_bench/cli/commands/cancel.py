"""``ssl-bench cancel``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ssl_bench.cli.commands import status
from ssl_bench.config.sweep_settings import CancelSettings
from ssl_bench.sweep import manifest
from ssl_bench.sweep.backends import clusters
from ssl_bench.utils.formatting import many
from ssl_bench.utils.terminal import Console


def cancel(settings: CancelSettings) -> None:
    """End all jobs of a sweep: ``ssl-bench cancel``. What they have saved stays."""
    sweep = status.find(settings.runs_dir, settings.sweep)
    if sweep.damage:
        asked = _cancel(clusters.ids_in(sweep.jobs_folder), sweep.jobs_folder)
    else:
        wanted = {entry.run for entry in sweep.entries}
        asked = 0
        for owner in manifest.every(settings.runs_dir):  # another sweep may have the same cells
            jobs = [each.job for each in owner.submitted if each.run in wanted]
            asked += _cancel(jobs, owner.jobs_folder)
    Console().print(
        f"{many(asked, 'job')} of {sweep.folder.name} asked to end; what runs saves first, and the "
        "same `ssl-bench sweep` resumes it"
    )


def _cancel(jobs: Iterable[str], folder: Path) -> int:
    """End those of the jobs that are not over; how many."""
    known = list(dict.fromkeys(jobs))
    live = clusters.under_way(known, folder)
    clusters.cancel(live, folder)
    return len(live)
