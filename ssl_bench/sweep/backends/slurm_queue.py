"""What Slurm says of jobs: one question for all of them, and none that hangs."""

from __future__ import annotations

import os
import pickletools
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ssl_bench.errors import UserError, require
from ssl_bench.sweep.jobs import ACTIVE, WAITING, State
from ssl_bench.utils.files import Unreadable, load_bytes

_SECONDS = 20
_WORDS: Mapping[State, str] = {
    "pending": "PENDING",
    "requeued": "REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT",
    "running": "RUNNING COMPLETING CONFIGURING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED",
    "done": "COMPLETED",
    "failed": "FAILED",
    "killed": "BOOT_FAIL KILLED NODE_FAIL",
    "cancelled": "CANCELLED PREEMPTED REVOKED",
    "timeout": "DEADLINE TIMEOUT",
    "out of memory": "OUT_OF_MEMORY",
}
"""Slurm's words for each state."""
_STATES = {word: state for state, words in _WORDS.items() for word in words.split()}
_NOT_OVER: frozenset[State] = ACTIVE | {"lost"}


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
        f"Slurm does not answer: {_one_line(answer)}; nothing is lost, the same command resumes "
        "once it does",
    )


def states(ids: Iterable[str], folder: Path) -> dict[str, State]:
    """The state of each job, as `clusters.states` has it, in two questions for all."""
    wanted = list(ids)
    numbers = sorted({each.split("_")[0] for each in wanted})
    if not wanted:
        return {}
    accounted = _ask("sacct", "-nPX", "-j", ",".join(numbers), "-o", "JobID,State,ExitCode")
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
        else:
            known[each] = _result(each, folder) or "lost"
    return known


def reasons(ids: Iterable[str]) -> dict[str, str]:
    """Why jobs wait, in Slurm's words: "Resources", "Dependency", "PartitionTimeLimit"..."""
    wanted = list(ids)
    queue = _queue(sorted({each.split("_")[0] for each in wanted})) if wanted else None
    return {
        i: queue[i].reason for i in wanted if queue and i in queue and queue[i].state in WAITING
    }


def cancel(ids: Iterable[str], folder: Path) -> None:
    """Cancel jobs that were submitted from a folder; those that are over are left alone.

    A number that a record names may have become another job's, or always have been.

    Raises:
        UserError: Slurm does not answer.
    """
    asked = sorted(set(ids))
    if not asked:
        return
    check_controller()
    numbers = ",".join(sorted({each.split("_")[0] for each in asked}))
    answer = _ask("squeue", "-hr", "-j", numbers, "-o", "%i|%o")
    submitted = (line.partition("|") for line in answer.stdout.splitlines())
    own = {
        name.strip()
        for name, _, script in submitted
        if Path(script.strip()).parent.resolve() == folder.resolve()
    }
    wanted = [each for each in asked if each in own]
    if not wanted:
        return
    answer = _ask("scancel", *wanted)
    over = "Invalid job id"
    require(
        answer.returncode == 0 or over in answer.stderr,
        f"Slurm does not cancel: {_one_line(answer)}",
    )


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's programs; one that does not come back in time has failed."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            env={**os.environ, "SLURM_BITSTR_LEN": "0"},  # every number of an array
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {_SECONDS} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _one_line(answer: subprocess.CompletedProcess[str]) -> str:
    return " ".join(f"{answer.stdout} {answer.stderr}".split())


def _rows(text: str) -> dict[str, str]:
    """The state of each job from lines like ``7_0|FAILED|1:0`` and ``7_[1-2,5%4]|PENDING|0:0``.

    The second kind may name jobs that have a line of their own, which is the right one. Slurm has
    no state for a job that a signal ended; here it is KILLED.
    """
    lines = [(*line.split("|"), "", "")[:3] for line in text.splitlines()]
    found = {name: (state, code) for line, state, code in lines for name in _expand(line)}
    found |= {name: (state, code) for name, state, code in lines if "[" not in name}
    states = {}
    for name, (state, code) in found.items():
        states[name] = (state.split() or [""])[0]
        exit_code, _, number = code.partition(":")
        was_killed = (
            int(number or 0) or exit_code == str(signal.SIGKILL) or int(exit_code or 0) > 128
        )
        if states[name] == "FAILED" and was_killed:
            states[name] = "KILLED"
    return states


def _expand(name: str) -> list[str]:
    """The jobs that one line of Slurm's stands for."""
    found = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", name)
    if not found:
        return [name]
    spans = [span.partition("-") for span in found[2].split(",")]
    numbers = (range(int(low), int(high or low) + 1) for low, _, high in spans)
    return [f"{found[1]}_{number}" for span in numbers for number in span]


class _Queued(NamedTuple):
    """A job as the controller reports it; ``reason`` says why it is waiting."""

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
    """Done or failed, where the job left its result: a pickle of "success" or "error", and more.

    It is not loaded, which could run what somebody else has put there.
    """
    try:
        stored = load_bytes(folder.absolute() / f"{job_id}_0_result.pkl")
        words = (each for _, each, _ in pickletools.genops(stored))
        outcome = next(each for each in words if isinstance(each, str))
    except (Unreadable, ValueError, StopIteration):
        return None
    return "done" if outcome == "success" else "failed"
