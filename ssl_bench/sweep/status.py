"""How far each cell of a sweep is: its run folder says what is done, its jobs what is to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_bench.errors import UserError, of_system
from ssl_bench.runs import run_folder, schema
from ssl_bench.sweep.backends import clusters
from ssl_bench.sweep.jobs import ACTIVE, WAITING, State
from ssl_bench.sweep.manifest import Entry, Stage, Submitted, Sweep
from ssl_bench.utils.files import Unreadable

CellState = Literal["done", "running", "pending", "unknown", "failed", "stopped", "new"]
"""*unknown*: it was submitted, and the cluster does not answer. *stopped*: it was begun, and no
process is running it."""
UNDER_WAY: frozenset[CellState] = frozenset({"running", "pending", "unknown"})
_STAGES: tuple[Stage, ...] = ("pretrain", "evaluate")
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


@dataclass(frozen=True)
class _Job:
    """The latest job for a stage of a run, and what the cluster says of it."""

    folder: Path
    submitted: Submitted
    state: State
    reason: str


def statuses_of(sweep: Sweep, sweeps: Sequence[Sweep]) -> list[CellStatus]:
    """How far each cell of a sweep is.

    Args:
        sweeps: all that may have submitted jobs for its runs, itself among them.
    """
    jobs = _jobs_of(sweeps, {entry.run for entry in sweep.entries})
    found = []
    for entry in sweep.entries:
        own = {stage: jobs[entry.run, stage] for stage in _STAGES if (entry.run, stage) in jobs}
        try:
            found.append(_of(entry, sweep.runs_dir / entry.run, own))
        except OSError as error:  # its folder cannot be looked into
            names, why = tuple(entry.evals), of_system(error)
            found.append(
                CellStatus(
                    *(entry, "failed", "pretrain", names, names, "", "", 0),
                    *(None, None, why, "", {}),
                )
            )
    return found


def _jobs_of(sweeps: Sequence[Sweep], runs: AbstractSet[str]) -> dict[tuple[str, Stage], _Job]:
    latest: dict[tuple[str, Stage], tuple[Path, Submitted]] = {}
    for sweep in sweeps:
        for each in (each for each in sweep.submitted if each.run in runs):
            key = (each.run, each.stage)
            if key not in latest or latest[key][1].at <= each.at:
                latest[key] = (sweep.jobs_folder, each)
    found = {}
    for folder in {folder for folder, _ in latest.values()}:
        own = {key: each for key, (home, each) in latest.items() if home == folder}
        states = clusters.states([each.job for each in own.values()], folder)
        waiting = [job for job, state in states.items() if state in WAITING]
        reasons = clusters.reasons(waiting)
        for key, each in own.items():
            found[key] = _Job(folder, each, states[each.job], reasons.get(each.job, ""))
    return found


def _of(entry: Entry, folder: Path, jobs: Mapping[Stage, _Job]) -> CellStatus:
    is_trained = schema.is_trained(folder)
    scores = {name: _score(folder / schema.EVALS / home) for name, home in entry.evals.items()}
    missing = tuple(name for name, score in scores.items() if score is None)
    stage: Stage = "evaluate" if is_trained else "pretrain"
    job, pretraining, evaluation = jobs.get(stage), jobs.get("pretrain"), jobs.get("evaluate")
    is_fed = is_trained or bool(pretraining and pretraining.state in _TO_COME)
    to_come: Sequence[str] = ()
    if evaluation and is_fed and evaluation.state in _TO_COME:
        to_come = evaluation.submitted.evals
    job_state = job.state if job else ""
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
        is_begun = bool(job) or (not is_trained and (folder / schema.CONFIG).exists())
        state = "failed" if has_failed else "stopped" if is_begun else "new"
        if has_failed or job_state in _KILLED or job_state == "lost":
            told = clusters.failure(job.submitted.job, job.folder, 3) if job else []
            error = noted or "\n".join(told) or ("" if job_state == "lost" else job_state)
    record: Mapping[str, Any] = {}
    with suppress(Unreadable):
        record = {} if state == "new" else schema.last_record(folder / schema.METRICS)
    return CellStatus(
        entry,
        state,
        stage,
        missing,
        uncovered=tuple(name for name in missing if entry.evals[name] not in to_come),
        job=job.submitted.job if job else "",
        waits_for=job.reason if job else "",
        step=entry.steps if is_trained else int(_number(record.get("step")) or 0),
        images_per_second=_number(record.get("images_per_second")),
        loss=_number(record.get("loss")),
        error=error,
        log=str(clusters.log(job.submitted.job, job.folder)) if job else "",
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
