"""How far each cell of a sweep is: its run folder says what is done, its jobs what is to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_bench.errors import UserError, of_system
from ssl_bench.runs import run_folder, schema
from ssl_bench.sweep.backends import clusters
from ssl_bench.sweep.jobs import ACTIVE, WAITING
from ssl_bench.sweep.manifest import Entry, Stage, Submitted, Sweep, jobs_of
from ssl_bench.utils.files import Unreadable

CellState = Literal["done", "running", "pending", "unknown", "failed", "stopped", "new"]
"""*unknown*: it was submitted, and the cluster does not answer. *stopped*: it was begun, and no
process is running it."""
UNDER_WAY: frozenset[CellState] = frozenset({"running", "pending", "unknown"})
_TO_COME = {*ACTIVE, "unknown"}
_FAILED = ("failed", "out of memory")
_KILLED = ("killed", "timeout")
"""The cell resumes when it is submitted again: the failure was not its own."""
_LARGEST = 1e15
"""Of what is measured here: a number beyond is damage."""


@dataclass(frozen=True)
class CellStatus:
    """How far a cell is.

    Attributes:
        stage: what is done now, or next.
        missing: names of evaluations that are not stored.
        uncovered: those of them that no job is to make.
        job: of that stage, "" where there was none.
        waits_for: why Slurm has not started it yet, in Slurm's words.
        step: last one recorded.
        images_per_second: at that step; None where unknown.
        loss: the mean at that step; None where unknown.
        error: why it failed, or what stopped it; "" where neither is known.
        log: file with all that the job of that stage had to say, "" where there was none.
        scores: headline of each evaluation that is stored.
    """

    entry: Entry
    state: CellState
    stage: Stage
    missing: tuple[str, ...]
    uncovered: tuple[str, ...]
    job: str
    waits_for: str
    step: int
    images_per_second: float | None
    loss: float | None
    error: str
    log: str
    scores: Mapping[str, float]

    @property
    def seconds_left(self) -> float | None:
        """Of the pre-training, at the pace of its last steps; None where that is unknown."""
        if self.state != "running" or self.stage != "pretrain" or not self.images_per_second:
            return None
        return (self.entry.steps - self.step) * self.entry.batch_size / self.images_per_second


def statuses_of(sweep: Sweep, sweeps: Sequence[Sweep]) -> list[CellStatus]:
    """How far each cell of a sweep is.

    Args:
        sweeps: all that may have submitted jobs for its runs, itself among them.
    """
    wanted = {entry.run for entry in sweep.entries}
    jobs = {key: found for key, found in jobs_of(sweeps).items() if key[0] in wanted}
    states: dict[tuple[str, str], str] = {}
    reasons: dict[tuple[str, str], str] = {}
    for owner in {found[0].name: found[0] for found in jobs.values()}.values():
        ids = [each.job for other, each in jobs.values() if other.name == owner.name]
        for job, state in clusters.states(ids, owner.jobs_folder).items():
            states[owner.name, job] = state
        waiting = [job for job in ids if states[owner.name, job] in WAITING]
        for job, reason in clusters.reasons(waiting, owner.jobs_folder).items():
            reasons[owner.name, job] = reason
    found = []
    for entry in sweep.entries:
        try:
            found.append(_of(entry, sweep.runs_dir, jobs, states, reasons))
        except OSError as error:  # its folder cannot be looked into
            found.append(_unknown(entry, of_system(error)))
    return found


def _unknown(entry: Entry, why: str) -> CellStatus:
    """A cell of which nothing can be found out."""
    names = tuple(entry.evals)
    return CellStatus(
        entry, "failed", "pretrain", names, names, "", "", 0, None, None, why, "", {}
    )  # fmt: skip


def _of(
    entry: Entry,
    runs_dir: Path,
    jobs: Mapping[tuple[str, Stage], tuple[Sweep, Submitted]],
    states: Mapping[tuple[str, str], str],
    reasons: Mapping[tuple[str, str], str],
) -> CellStatus:
    folder = runs_dir / entry.run
    is_trained = schema.is_trained(folder)
    scores = {name: _score(folder / schema.EVALS / home) for name, home in entry.evals.items()}
    missing = tuple(name for name, score in scores.items() if score is None)
    stage: Stage = "evaluate" if is_trained else "pretrain"

    def state_of(stage: Stage) -> str:
        found = jobs.get((entry.run, stage))
        return states.get((found[0].name, found[1].job), "") if found else ""

    evaluation = jobs.get((entry.run, "evaluate"))
    is_fed = is_trained or state_of("pretrain") in _TO_COME
    to_come: set[str] = set()
    if evaluation and is_fed and state_of("evaluate") in _TO_COME:
        to_come = set(evaluation[1].evals)
    job_state, found = state_of(stage), jobs.get((entry.run, stage))
    error = ""
    state: CellState
    if is_trained and not missing:
        state = "done"
    elif job_state in ACTIVE:
        state = "running" if job_state == "running" else "pending"
    elif run_folder.is_locked(folder):
        state = "running"
    elif job_state == "unknown":
        state = "unknown"
    else:
        noted = schema.failure(folder)
        has_failed = bool(noted) or job_state in _FAILED
        is_begun = bool(found) or (not is_trained and (folder / schema.CONFIG).exists())
        state = "failed" if has_failed else "stopped" if is_begun else "new"
        if has_failed or job_state in _KILLED or job_state == "lost":
            told = clusters.failure(found[1].job, found[0].jobs_folder, 3) if found else []
            error = noted or "\n".join(told) or ("" if job_state == "lost" else job_state)
    record = {} if state == "new" else _last_record(folder / schema.METRICS)
    return CellStatus(
        entry,
        state,
        stage,
        missing,
        uncovered=tuple(name for name in missing if entry.evals[name] not in to_come),
        job=found[1].job if found else "",
        waits_for=reasons.get((found[0].name, found[1].job), "") if found else "",
        step=entry.steps if is_trained else int(_number(record.get("step")) or 0),
        images_per_second=_number(record.get("images_per_second")),
        loss=_number(record.get("loss")),
        error=error,
        log=str(clusters.log(found[1].job, found[0].jobs_folder)) if found else "",
        scores={name: score for name, score in scores.items() if score is not None},
    )


def _score(home: Path) -> float | None:
    """An evaluation's headline; None where it, or its baselines, are not stored."""
    try:
        record = schema.load_object(home / schema.SCORES)
    except UserError:
        return None
    scores = list(schema.mapping(record.get("scores")).values())
    return _number(scores[0]) if "baselines" in record and scores else None


def _number(value: Any) -> float | None:
    """A number as it should be stored; None where it is something else."""
    return float(value) if schema.is_number(value) and abs(value) < _LARGEST else None


def _last_record(metrics: Path) -> Mapping[str, Any]:
    try:
        return schema.last_record(metrics)
    except Unreadable:
        return {}
