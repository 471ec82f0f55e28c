"""Jobs on Slurm, through submitit: submitted as an array, followed with one question for all."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from ssl_bench.errors import UserError, first_line, require
from ssl_bench.settings import ClusterSettings
from ssl_bench.sweep.jobs import ACTIVE, Job, State, failure_noted

_MOST_REQUEUES = 1_000_000
"""As often as Slurm takes it away; `Job` ends what makes no progress."""
_SECONDS = 20
_STATES: Mapping[str, State] = {
    "PENDING": "pending",
    "REQUEUED": "requeued",
    "REQUEUE_HOLD": "requeued",
    "REQUEUE_FED": "requeued",
    "SPECIAL_EXIT": "requeued",
    "RUNNING": "running",
    "COMPLETING": "running",
    "CONFIGURING": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "STOPPED": "running",
    "SUSPENDED": "running",
    "COMPLETED": "done",
    "BOOT_FAIL": "failed",
    "FAILED": "failed",
    "NODE_FAIL": "failed",
    "CANCELLED": "cancelled",
    "PREEMPTED": "cancelled",
    "REVOKED": "cancelled",
    "DEADLINE": "timeout",
    "TIMEOUT": "timeout",
    "OUT_OF_MEMORY": "out of memory",
}
_NOT_OVER: frozenset[State] = ACTIVE | {"lost"}
_NOISE = re.compile(r"^(submitit (INFO|WARNING) |slurmstepd: error: \*\*\* STEP .* CANCELLED)")


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
    nodes: int = 1,
    tasks: int = 1,
) -> list[list[str]]:
    """Submit the stages of cells that ask for the same, as few arrays as there can be.

    A cell's stage waits until the one before has succeeded; where that fails, Slurm cancels it.

    Args:
        folder: for logs and what submitit needs; every node must see it.
        name: in ``squeue``, before the stage's.
        limit: how many jobs of an array may run at a time.
        nodes, tasks: nodes of each job, and processes on each node.

    Returns:
        The ids of each cell's stages.

    Raises:
        UserError: Slurm does not answer, or is not here.
        Refused: it refuses the request, in its own words.
    """
    check_controller()
    ids: list[list[str]] = [[] for _ in cells]
    stages = dict.fromkeys(job.stage for cell in cells for job in cell)
    try:
        for stage in stages:
            jobs = {n: job for n, cell in enumerate(cells) for job in cell if job.stage == stage}
            after = {number: ids[number][-1] if ids[number] else None for number in jobs}
            for dependency, numbers in _batches(after):
                executor = _executor(settings, folder, dependency, limit, nodes, tasks)
                executor.update_parameters(job_name=f"{name}-{stage}")
                for number, job_id in zip(
                    numbers, _submit(executor, [jobs[n] for n in numbers]), strict=True
                ):
                    ids[number].append(job_id)
    except UserError as error:
        raise Refused(str(error), ids) from error
    return ids


def check_controller() -> None:
    """Find out at once whether the controller answers.

    Raises:
        UserError: it does not, or there is no Slurm here.
    """
    require(
        bool(shutil.which("sbatch") and shutil.which("srun")),
        "Slurm is not here: sbatch and srun are not installed; submit from a login node of the "
        "cluster, or use --cluster local",
    )
    answer = _ask("scontrol", "ping")
    require(
        answer.returncode == 0 and " is UP" in answer.stdout,
        f"Slurm does not answer: {_one_line(answer)}; nothing is lost, the same command goes on "
        "once it does",
    )


def states(ids: Iterable[str], folder: Path) -> dict[str, State]:
    """The state of each job, as `cluster.states` has it, in two questions for all."""
    wanted = list(ids)
    numbers = sorted({each.split("_")[0] for each in wanted})
    if not wanted:
        return {}
    accounted = _ask("sacct", "-nPX", "-j", ",".join(numbers), "-o", "JobID,State")
    found = _rows(accounted.stdout) if accounted.returncode == 0 else {}
    known: dict[str, State] = {each: _STATES.get(found.get(each, ""), "lost") for each in wanted}
    if not _NOT_OVER & set(known.values()):
        return known
    # Accounts are a moment behind, and say nothing of a job that waits for its second start.
    queue = _queue(numbers)
    for each in (each for each in wanted if known[each] in _NOT_OVER):
        if queue is None:
            known[each] = _result(each, folder) or "unknown"
        elif each in queue:
            known[each] = queue[each].state
        elif known[each] == "lost" or accounted.returncode:
            known[each] = _result(each, folder) or "lost"
    return known


def reasons(ids: Iterable[str]) -> dict[str, str]:
    """Why jobs wait, in Slurm's words: "Resources", "Dependency", "PartitionTimeLimit"..."""
    wanted = list(ids)
    queue = _queue(sorted({each.split("_")[0] for each in wanted})) if wanted else None
    waiting = ("pending", "requeued")
    return {
        i: queue[i].reason for i in wanted if queue and i in queue and queue[i].state in waiting
    }


def failure(job_id: str, folder: Path, lines: int) -> list[str]:
    """The last lines of what went wrong: what the job said itself, else the end of its log."""
    noted = failure_noted(folder, job_id)
    if not noted:
        path = log(job_id, folder)
        text = path.read_text(errors="replace") if path.exists() else ""
        noted = [line for line in text.splitlines() if line.strip() and not _NOISE.match(line)]
    return noted[-lines:]


def log(job_id: str, folder: Path) -> Path:
    """Where the job's first process writes its errors and its progress."""
    return folder.absolute() / f"{job_id}_0_log.err"


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs; those that are over are left alone.

    Raises:
        UserError: Slurm does not answer.
    """
    wanted = list(ids)
    if not wanted:
        return
    check_controller()
    answer = _ask("scancel", *wanted)
    over = "Invalid job id"
    require(
        answer.returncode == 0 or over in answer.stderr,
        f"Slurm does not cancel: {_one_line(answer)}",
    )


def _batches(after: Mapping[int, str | None]) -> list[tuple[str, list[int]]]:
    """Which jobs can be submitted at once, and what they depend on."""
    free = [number for number, each in after.items() if each is None]
    held = {number: each for number, each in after.items() if each is not None}
    batches = [("", free)] if free else []
    arrays = sorted({each.split("_")[0] for each in held.values()})
    in_step = [f"{array}_{task}" for array in arrays for task in range(len(held))]
    if len(held) > 1 and in_step == list(held.values()):
        return [*batches, (f"aftercorr:{arrays[0]}", list(held))]
    return batches + [(f"afterok:{each}", [number]) for number, each in held.items()]


def _executor(
    settings: ClusterSettings,
    folder: Path,
    dependency: str,
    limit: int | None,
    nodes: int,
    tasks: int,
) -> submitit.SlurmExecutor:
    asked: dict[str, Any] = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "gpus_per_node": settings.gpus,
        "cpus_per_task": settings.cpus,
        "mem": f"{settings.memory_mib}M" if settings.memory else "",
        "constraint": settings.constraint,
        "dependency": dependency,
        "array_parallelism": limit,
        "setup": list(settings.setup),
    }
    options = {"requeue": True, "kill-on-invalid-dep": "yes"}
    options |= dict(option.split("=", 1) for option in settings.slurm_options)
    executor = submitit.SlurmExecutor(folder, max_num_timeout=_MOST_REQUEUES)
    executor.update_parameters(
        time=settings.minutes,
        nodes=nodes,
        ntasks_per_node=tasks,
        signal_delay_s=_notice(settings.minutes),
        # One process that fails ends the others, which would wait for it.
        srun_args=["--kill-on-bad-exit=1"],
        additional_parameters=options,
        **{name: value for name, value in asked.items() if value},
    )
    return executor


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


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's programs; one that does not come back in time has failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {_SECONDS} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _one_line(answer: subprocess.CompletedProcess[str]) -> str:
    return " ".join(f"{answer.stdout} {answer.stderr}".split())


def _rows(text: str) -> dict[str, str]:
    """The state of each job from lines like ``7_0|FAILED`` and ``7_[1-2,5%4]|PENDING``.

    The second kind may name jobs that have a line of their own, which is the right one.
    """
    lines = [line.partition("|") for line in text.splitlines()]
    states = {each: state for name, _, state in lines for each in _expand(name)}
    states |= {name: state for name, _, state in lines}
    return {name: (state.split() or [""])[0] for name, state in states.items()}


def _expand(name: str) -> list[str]:
    """The jobs that one line of Slurm's stands for."""
    found = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", name)
    if not found:
        return [name]
    spans = [span.partition("-") for span in found[2].split(",")]
    numbers = (range(int(low), int(high or low) + 1) for low, _, high in spans)
    return [f"{found[1]}_{number}" for span in numbers for number in span]


class _Queued(NamedTuple):
    """What the controller says of a job. The reason is why it waits."""

    state: State
    reason: str


def _queue(numbers: Sequence[str]) -> dict[str, _Queued] | None:
    """The jobs that are queued, running or just over; None where the controller is down."""
    try:
        check_controller()
    except UserError:
        return None
    answer = _ask(
        *("squeue", "-hr", "-t", "all", "-j", ",".join(numbers)),
        *("-O", "JobArrayID:|,State:|,RestartCnt:|,Reason:|"),
    )
    if answer.returncode:
        return {} if "Invalid job id" in answer.stderr else None
    queue: dict[str, _Queued] = {}
    for line in answer.stdout.splitlines():
        name, state, restarts, reason = (part.strip() for part in line.split("|")[:4])
        known = _STATES.get(state, "lost")
        if known == "pending" and int(restarts):
            known = "requeued"
        for each in _expand(name):
            queue[each] = _Queued(known, reason)
    return queue


def _result(job_id: str, folder: Path) -> State | None:
    """Done or failed, where the job left its result."""
    job: submitit.SlurmJob[str] = submitit.SlurmJob(folder, job_id)
    if not job.paths.result_pickle.exists():
        return None
    return "done" if job.exception() is None else "failed"
