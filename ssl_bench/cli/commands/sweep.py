"""``ssl-bench sweep``: what is to be done, shown with its cost, and submitted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from ssl_bench.cli import sweep_args
from ssl_bench.cli.commands import status
from ssl_bench.config.sweep_settings import SweepSettings
from ssl_bench.errors import require
from ssl_bench.experiment import loggers
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.sweep import manifest, search
from ssl_bench.sweep.backends import clusters, slurm
from ssl_bench.sweep.grid import Grid
from ssl_bench.sweep.jobs import Job
from ssl_bench.sweep.manifest import Entry, Stage, Submitted, Sweep
from ssl_bench.sweep.plan import Planner, Work
from ssl_bench.sweep.status import UNDER_WAY, CellStatus, statuses_of
from ssl_bench.utils import locks
from ssl_bench.utils.formatting import count, many
from ssl_bench.utils.formatting import time as duration
from ssl_bench.utils.terminal import Console

_console = Console()


def main(args: Sequence[str]) -> list[Path]:
    """Show the cells and what they may cost, submit what is not done: ``ssl-bench sweep``.

    Returns:
        The run folders of the cells; of a search those of its final runs, or of the trials.
    """
    wanted = sweep_args.parse(args)
    loggers.check([name for cell in wanted.cells for name in cell.config.settings.log])
    planner = Planner(wanted.settings, wanted.resources, wanted.runs_dir)
    entries = planner.entries(wanted.cells)
    while _is_more(args, wanted, planner, entries):
        pass
    stored = manifest.read(wanted.runs_dir / "sweeps" / manifest.name_of(entries)).entries
    known = stored or entries
    finals = [entry for entry in known if not entry.trial]
    return [wanted.runs_dir / entry.run for entry in finals or known]


def work_of(statuses: Sequence[CellStatus], retry_failed: bool) -> list[Work]:
    """What is neither done nor under way.

    Args:
        retry_failed: whether what failed is to be done again.
    """
    found = []
    for each in statuses:
        if each.state == "failed" and not retry_failed:
            continue
        is_live = each.state in UNDER_WAY
        if is_live and each.stage == "pretrain" and not each.job:
            continue  # somebody is at it without a job, and nothing can be made to wait for that
        stages: list[Stage] = []
        if each.stage == "pretrain" and not is_live:
            stages.append("pretrain")
        if each.uncovered:
            stages.append("evaluate")
        if stages:
            after = each.job if is_live and each.stage == "pretrain" else None
            found.append(Work(each.entry, tuple(stages), after))
    return found


def _is_more(args: Sequence[str], wanted: Grid, planner: Planner, entries: Sequence[Entry]) -> bool:
    """Show and submit what there is to do; whether there may be more to do at once."""
    settings = wanted.settings
    home = wanted.runs_dir / "sweeps"
    if not settings.dry_run:
        home.mkdir(parents=True, exist_ok=True)
    # Others who would submit the same cells meanwhile wait.
    with nullcontext() if settings.dry_run else locks.held(home, wait=True):
        sweep, opening_notes = _opened(args, wanted, entries)
        sweeps = [each for each in manifest.every(wanted.runs_dir) if each.name != sweep.name]
        statuses = statuses_of(sweep, [*sweeps, sweep])
        if opening_notes and not settings.dry_run:
            manifest.write(sweep)
        finals, notes = search.best_on_all_images(wanted, statuses, settings.retry_failed)
        if finals:
            sweep = replace(sweep, entries=(*sweep.entries, *planner.entries(finals)))
            statuses = statuses_of(sweep, [*sweeps, sweep])
        work = work_of(statuses, settings.retry_failed)
        _console.print(f"{sweep.name}: {status.summary(statuses)}")
        if work:
            _show(statuses, work)
        for note in (*opening_notes, *notes, *planner.notes(work)):
            _console.print(f"note: {note}")
        if settings.dry_run and work and settings.cluster == "slurm":
            _preview(sweep, work, wanted)
        if settings.dry_run or not work:
            why = "as --dry-run asks" if settings.dry_run else _nothing(statuses)
            _console.print(f"nothing is submitted: {why}")
            return False
        if settings.cluster != "debug":
            _submit(sweep, work, wanted)
    if settings.cluster == "debug":
        manifest.write(sweep)
        _submit(sweep, work, wanted)
        return bool(wanted.finals) and not finals
    which = sweep.name + sweep.place
    _console.print(f"`ssl-bench status {which}` follows it, `ssl-bench cancel {which}` ends it")
    return False


def _opened(args: Sequence[str], wanted: Grid, entries: Sequence[Entry]) -> tuple[Sweep, list[str]]:
    """The sweep over these cells with the jobs that it has, and what a person should know of it."""
    folder = wanted.runs_dir / "sweeps" / manifest.name_of(entries)
    sweep = Sweep(folder, wanted.settings.cluster, tuple(args), tuple(entries), ())
    if not folder.exists():
        return sweep, []
    known = manifest.read(folder)
    if not known.damage:
        return replace(sweep, submitted=known.submitted), []
    live = clusters.under_way(clusters.ids_in(sweep.jobs_folder), sweep.jobs_folder)
    reason = known.damage.partition("; ")[0]
    require(
        not live,
        f"{reason}, and {many(len(live), 'job')} of it may be under way; `ssl-bench cancel "
        f"{sweep.name}{sweep.place}` ends them, then the same command resumes the others",
    )
    return sweep, [f"{reason}; it is written again"]


def _submit(sweep: Sweep, work: Sequence[Work], wanted: Grid) -> None:
    """Submit, and note every job that is there, whatever happens."""
    settings = wanted.settings
    cells = [[_job(each.entry, stage, settings) for stage in each.stages] for each in work]
    folder = sweep.jobs_folder
    problem = None
    try:
        found: Sequence[Sequence[str]] = clusters.submit(
            *(cells, settings.cluster, folder, wanted.resources, sweep.name),
            limit=settings.parallel_jobs,
            after=[each.after for each in work],
            workers_folder=folder.parents[1],
        )
    except slurm.Refused as error:
        problem, found = error, error.submitted
    now = datetime.now(UTC).isoformat()
    noted = [
        Submitted(
            *(each.entry.run, stage, job, now),
            evals=tuple(each.entry.evals.values()) if stage == "evaluate" else (),
        )
        for each, jobs in zip(work, found, strict=True)
        for stage, job in zip(each.stages, jobs, strict=False)
    ]
    if not noted and not os.path.lexists(sweep.folder / "sweep.json"):
        shutil.rmtree(sweep.folder, ignore_errors=True)  # what submitit wrote before it was refused
    if noted:
        manifest.write(replace(sweep, submitted=(*sweep.submitted, *noted)))
    if problem:
        raise problem
    how = "did" if settings.cluster == "debug" else "submitted"
    _console.print(f"{how} {many(len(noted), 'job')} for {many(len(work), 'cell')}")


def _preview(sweep: Sweep, work: Sequence[Work], wanted: Grid) -> None:
    """What sbatch would be given."""
    cells = [[_job(each.entry, stage, wanted.settings) for stage in each.stages] for each in work]
    asked = wanted.resources, sweep.jobs_folder.absolute(), sweep.name
    for words, text in slurm.previews(cells, *asked, wanted.settings.parallel_jobs):
        _console.print(words, highlight=False, soft_wrap=True)
        _console.print(text, markup=False, highlight=False, soft_wrap=True)


def _job(entry: Entry, stage: Stage, settings: SweepSettings) -> Job:
    """What does a stage of a cell; evaluations have devices of their own."""
    config = RunConfig.from_json(entry.config)
    if stage == "pretrain":
        config = config.with_values({"evals": ("none",)})
    else:  # it has no need of several machines
        alone = {"strategy": "auto", "nodes": 1, "devices": settings.eval_devices}
        config = config.with_values(alone)
    nodes, devices = config.settings.nodes, config.settings.devices
    return Job(config.to_json(), entry.run, stage, os.getcwd(), nodes, devices)


def _show(statuses: Sequence[CellStatus], work: Sequence[Work]) -> None:
    """The cells, what becomes of each, and what that may cost."""
    table = Table()
    for name in ("cell", "state", "to do"):
        table.add_column(name, overflow="fold")
    for name in ("images", "FLOPs", "device time"):
        table.add_column(name, justify="right")
    to_do = {each.entry.run: each for each in work}
    images, flops, seconds, is_known = 0, 0, 0.0, True
    for each in statuses:
        entry, own = each.entry, to_do.get(each.entry.run)
        share = 0.0
        if own and "pretrain" in own.stages:
            share = 1 - each.step / entry.steps if entry.steps else 0.0
        ahead = round(share * entry.steps) * entry.batch_size
        costs = ["", "", ""]
        if own:
            costs = [count(ahead), count(share * entry.flops)] if share else ["", ""]
            known = None
            if entry.pretrain_seconds is not None and entry.eval_seconds is not None:
                known = share * entry.pretrain_seconds + bool(each.uncovered) * entry.eval_seconds
            costs.append(duration(known) if known is not None else "?")
            images, flops = images + ahead, flops + round(share * entry.flops)
            seconds, is_known = seconds + (known or 0.0), is_known and known is not None
        stages = ", ".join(own.stages) if own else ""
        table.add_row(entry.label, each.state, stages, *costs)
    table.add_section()
    total = duration(seconds) if is_known else f"{duration(seconds)} + ?" if seconds else "?"
    table.add_row("to be done", "", many(len(work), "cell"), count(images), count(flops), total)
    _console.print(table)


def _nothing(statuses: Sequence[CellStatus]) -> str:
    failed = sum(each.state == "failed" for each in statuses)
    live = sum(each.state in UNDER_WAY for each in statuses)
    parts = []
    if live:
        parts.append(f"{many(live, 'cell')} under way")
    if failed:
        parts.append(f"{failed} failed, which --retry-failed does again")
    return "; ".join(parts) or "everything is done; `ssl-bench compare` shows it"
