"""Jobs on Slurm, through submitit: the same stage of all cells is one array."""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import _make_sbatch_string

from ssl_bench.config.sweep_settings import ClusterSettings
from ssl_bench.errors import UserError, first_line
from ssl_bench.sweep.backends import slurm_queue
from ssl_bench.sweep.jobs import Job, failure_noted, text_of_log
from ssl_bench.utils.formatting import many
from ssl_bench.utils.formatting import time as duration

ID = "[0-9]{1,18}(?:_[0-9]{1,9})?"
"""Of a job, or of one of an array."""
_MOST_REQUEUES = 1_000_000
"""As often as Slurm takes it away; `Job` ends what makes no progress."""


_NOISE = re.compile(
    r"^(submitit (INFO|WARNING) |slurmstepd: error: \*\*\* STEP .* CANCELLED"
    r"|srun: (launch/slurm: _step_signal|Force Terminated))"
)


class Refused(UserError):
    """Slurm did not take all of the jobs.

    Attributes:
        submitted: the ids of those that it took, of each cell's stages.
    """

    def __init__(self, message: str, submitted: Sequence[Sequence[str]]) -> None:
        super().__init__(message)
        self.submitted = submitted


def submit_cells(
    cells: Sequence[Sequence[Job]],
    settings: ClusterSettings,
    folder: Path,
    name: str,
    limit: int | None = None,
    after: Sequence[str | None] | None = None,
) -> list[list[str]]:
    """Submit the stages of cells, as few arrays as there can be.

    A cell's stage waits until the one before has succeeded; where that fails, Slurm cancels it.

    Args:
        folder: for logs and what submitit needs; every node must see it.
        name: in ``squeue``, before the stage's.
        limit: how many jobs of an array may run at a time.
        after: for each cell a job that its first stage waits for in the same way, or None.

    Returns:
        The ids of each cell's stages.

    Raises:
        UserError: Slurm does not answer, or is not here.
        Refused: it refuses the request, in its own words.
    """
    slurm_queue.check_controller()
    ids: list[list[str]] = [[] for _ in cells]
    waited = after or [None] * len(cells)
    stages = dict.fromkeys(job.stage for cell in cells for job in cell)
    try:
        for stage in stages:
            jobs = {n: job for n, cell in enumerate(cells) for job in cell if job.stage == stage}
            before = {n: ids[n][-1] if ids[n] else waited[n] for n in jobs}
            for dependency, numbers in _batches(jobs, before):
                first = jobs[numbers[0]]
                executor = _executor(settings, folder, dependency, limit, first)
                executor.update_parameters(job_name=f"{name}-{stage}")
                for number, job_id in zip(
                    numbers, _submit(executor, [jobs[n] for n in numbers]), strict=True
                ):
                    ids[number].append(job_id)
    except UserError as error:
        raise Refused(str(error), ids) from error
    return ids


def previews(
    cells: Sequence[Sequence[Job]],
    settings: ClusterSettings,
    folder: Path,
    name: str,
    limit: int | None = None,
) -> Iterator[tuple[str, str]]:
    """What `submit_cells` would hand to sbatch, for jobs that wait for no other sweep's: each
    stage in a few words, and the text of its script. Slurm need not be here."""
    for stage in dict.fromkeys(job.stage for cell in cells for job in cell):
        of_stage = [job for cell in cells for job in cell if job.stage == stage]
        waits = any(cell[0].stage != stage for cell in cells if stage in {j.stage for j in cell})
        for nodes, devices in sorted({(job.nodes, job.devices) for job in of_stage}):
            alike = [job for job in of_stage if (job.nodes, job.devices) == (nodes, devices)]
            dependency = "aftercorr:JOB" if waits else ""
            asked = _parameters(settings, dependency, limit, alike[0])
            several: dict[str, Any] = {"map_count": len(alike)} if len(alike) > 1 else {}
            command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)])
            text = _make_sbatch_string(
                command, folder, job_name=f"{name}-{stage}", **asked, **several
            )
            words = [
                many(len(alike), "job"),
                f"partition {settings.partition or '(the default)'}",
                f"time {duration(60 * settings.minutes)}",
                f"{many(nodes, 'node')} with {devices} process{'es' * (devices > 1)}",
                f"{many(asked.get('gpus_per_node', 0), 'GPU')} on each",
                *([f"memory {asked['mem']}"] if "mem" in asked else []),
                *([f"account {settings.account}"] if settings.account else []),
                *(["each after the same cell's stage before"] if waits else []),
            ]
            yield f"{stage}: {', '.join(words)}", text


def ids_in(folder: Path) -> list[str]:
    """The jobs that were submitted, by the files that submitit has written for them."""
    found = (re.fullmatch(rf"({ID})_submitted\.pkl", path.name) for path in folder.glob("*.pkl"))
    return sorted(match[1] for match in found if match)


def failure(job_id: str, folder: Path, lines: int) -> list[str]:
    """The last lines of what went wrong: what the job said itself, else the end of its log."""
    noted = failure_noted(folder, job_id)
    if not noted:
        text = text_of_log(log(job_id, folder))
        noted = [line for line in text.splitlines() if line.strip() and not _NOISE.match(line)]
    return noted[-lines:]


def log(job_id: str, folder: Path) -> Path:
    """Where the job's first process writes its errors and its progress."""
    return folder.absolute() / f"{job_id}_0_log.err"


def _batches(
    jobs: Mapping[int, Job], after: Mapping[int, str | None]
) -> list[tuple[str, list[int]]]:
    """Which jobs can be submitted at once, and what they depend on."""
    batches: list[tuple[str, list[int]]] = []
    for ranks in sorted({(job.nodes, job.devices) for job in jobs.values()}):
        alike = [n for n, job in jobs.items() if (job.nodes, job.devices) == ranks]
        free = [number for number in alike if after[number] is None]
        held = {n: each for n in alike if (each := after[n]) is not None}
        batches += [("", free)] if free else []
        arrays = sorted({each.split("_")[0] for each in held.values()})
        in_step = [f"{array}_{task}" for array in arrays for task in range(len(held))]
        if len(held) > 1 and in_step == list(held.values()):
            batches.append((f"aftercorr:{arrays[0]}", list(held)))
        else:
            batches += [(f"afterok:{each}", [number]) for number, each in held.items()]
    return batches


def _executor(
    settings: ClusterSettings, folder: Path, dependency: str, limit: int | None, job: Job
) -> submitit.SlurmExecutor:
    """What submits jobs like this one."""
    executor = submitit.SlurmExecutor(folder, max_num_timeout=_MOST_REQUEUES)
    executor.update_parameters(**_parameters(settings, dependency, limit, job))
    return executor


def _parameters(
    settings: ClusterSettings, dependency: str, limit: int | None, job: Job
) -> dict[str, Any]:
    """What is asked of Slurm for jobs like this one: a job with fewer processes than a node has
    GPUs asks for no more than its share of a node."""
    gpus = min(settings.gpus, job.devices)
    share = gpus / settings.gpus if settings.gpus else 1.0
    memory = settings.memory_mib
    asked: dict[str, Any] = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "gpus_per_node": gpus,
        "cpus_per_task": settings.cpus,
        "mem": f"{math.ceil(memory * share)}M" if memory else "",
        "constraint": settings.constraint,
        "dependency": dependency,
        "array_parallelism": limit,
        "setup": list(settings.setup),
    }
    options = {"requeue": True, "kill-on-invalid-dep": "yes"}
    options |= dict(option.split("=", 1) for option in settings.slurm_options)
    return {
        "time": settings.minutes,
        "nodes": job.nodes,
        "ntasks_per_node": job.devices,
        "signal_delay_s": _notice(settings.minutes),
        # One process that fails ends the others, which would wait for it.
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": options,
        **{name: value for name, value in asked.items() if value},
    }


def _notice(minutes: int) -> int:
    """How many seconds before its time is over a job is told: a tenth of the time, if that is a
    sensible time for writing a checkpoint. Slurm tells up to a minute earlier."""
    return max(10, min(120, 6 * minutes))


def _submit(executor: submitit.SlurmExecutor, jobs: Sequence[Job]) -> list[str]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # sbatch's words, which the error has, too
            return [job.job_id for job in executor.submit_array(list(jobs))]
    except (FailedJobError, FailedSubmissionError) as error:
        words = " ".join(str(error).split()) or first_line(error)
        raise UserError(f"Slurm refuses: {words}") from error
    except OSError as error:
        raise UserError(f"cannot submit: {error}") from error
