"""The local cluster: workers, which are submitit's local jobs, do one cell after the other.

submitit's local executor starts at once whatever it is given, so it is given as many workers as
cells may run at a time. A worker takes a cell that nobody has, and does its stages, each in a
process of its own: one that crashes fails its cell alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import submitit

from ssl_bench.distributed import environment
from ssl_bench.errors import UserError
from ssl_bench.sweep.backends import records
from ssl_bench.sweep.backends.records import LocalBatch, Record
from ssl_bench.sweep.jobs import Job, State, text_of_log
from ssl_bench.utils.locks import taken

_POLL = 0.2
_LINES = 20
_SECONDS_TO_SAVE = 300.0
_MOST_STARTS = 50
_MOST_QUICK_STOPS = 5
_SOON = 30.0
"""Seconds: a stage that is stopped sooner has made no progress to speak of."""
_STOPPING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)
_STOPPED = {code for number in _STOPPING for code in (128 + number, -number)}
_WHATEVER_THERE_IS = "*"
_NO_TIME_LIMIT = 60 * 24 * 365


def submit(
    cells: Sequence[Sequence[Job]],
    folder: Path,
    limit: int | None = None,
    devices: int = 1,
    workers_folder: Path | None = None,
) -> list[list[str]]:
    """Start workers in the background; they outlive this process and its terminal.

    Workers that were submitted with the same ``workers_folder`` before come first.

    Args:
        cells: the stages of each, to be done in turn.
        folder: for records, logs, and what submitit needs.
        limit: how many cells may run at a time. Default: one for each GPU, or for each ``devices``
            of them; without a GPU, one.
        devices: how many GPUs each cell wants, where there are any.
        workers_folder: for the locks that let one worker of each number work. Default: ``folder``.

    Returns:
        The ids of each cell's stages.

    Raises:
        UserError: the workers cannot be started.
    """
    batch = records.new_batch(folder, "local", cells, workers_folder)
    gpus = visible_gpus()
    most = len(gpus) // devices if gpus else limit or 1
    count = max(1, min(limit or most, most, len(cells)))
    shares = [",".join(gpus[k * devices : (k + 1) * devices]) for k in range(count)]
    if not gpus and "CUDA_VISIBLE_DEVICES" not in os.environ:
        shares = [_WHATEVER_THERE_IS] * count
    # In a session of its own, no key and no closing of the terminal reaches what it starts.
    output = batch.folder / "submission.log"
    with output.open("wb") as stream:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ssl_bench.sweep.backends.local"),
                *(str(batch.folder), *shares),
            ],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            check=False,
        )
    if done.returncode:
        said = output.read_text("utf-8", errors="replace").splitlines()
        raise UserError(f"the local workers cannot be started: {(said or ['?'])[-1]} ({output})")
    return batch.ids()


def visible_gpus() -> list[str]:
    """The CUDA devices that a process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    try:
        shown = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = [line for line in shown.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(found))]


class _Stop(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@dataclass
class Worker:
    """Does what cells there are, one at a time; called by submitit.

    Attributes:
        folder: of the batch.
        number: of the worker, from 0.
        count: how many there are, which share the cores.
        gpus: those of this worker, separated by commas; "" for none.
    """

    folder: Path
    number: int
    count: int
    gpus: str

    def __call__(self) -> None:
        """Run cells until none is left. When told to stop, let the stage under way save."""
        theirs = signal.getsignal(signal.SIGUSR2)
        told: list[int] = []
        for number in _STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # such as SIGHUP under nohup
                signal.signal(number, lambda number, _: told.append(number))
        batch = LocalBatch.load(self.folder)
        try:
            with (
                _waited_for(records.worker_lock(self.folder, self.number), told),
                _waited_for(records.worker_lock(batch.workers_folder, self.number), told),
            ):
                for cell in range(len(batch.cells)):
                    self._do(batch, cell, told)
        except _Stop as stop:
            if stop.number == signal.SIGUSR2 and callable(theirs):
                signal.signal(signal.SIGUSR2, theirs)
                signal.raise_signal(signal.SIGUSR2)  # submitit's: starts the worker again

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit starts again: the same worker, as records know how far it got."""
        return submitit.helpers.DelayedSubmission(self)

    def _do(self, batch: LocalBatch, cell: int, told: list[int]) -> None:
        """The stages of one cell, unless another worker has it."""
        # Whoever asks whether it is held holds it for an instant.
        with taken(records.cell_lock(self.folder, cell), 0.5) as mine:
            failed = ""
            for stage, job in enumerate(batch.cells[cell] if mine else ()):
                path = self.folder / batch.name(cell, stage)
                known = records.read(path)
                if known is None or known.state == "running":
                    if failed:
                        records.update(path, "cancelled", None, [f"its {failed} failed"])
                    elif records.suffixed(path, "cancel").exists():
                        records.update(path, "cancelled", None, [])
                    else:
                        self._perform(job, path, told)
                    known = records.read(path)
                if known and known.state != "done":
                    failed = job.stage

    def _perform(self, job: Job, path: Path, told: list[int]) -> None:
        """A stage in a process of its own, started again where it alone was stopped."""
        quick = 0
        while True:
            if told:
                raise _Stop(told[0])
            before = records.read(path) or Record("running")
            if before.starts >= _MOST_STARTS:
                lines = [f"begun {before.starts} times without coming to an end"]
                return records.update(path, "failed", before.exit_code, lines)
            records.write(path, replace(Record("running"), starts=before.starts + 1))
            began = time.monotonic()
            code = self._watch(job, path, told)
            if code == 0:
                return records.update(path, "done", 0, [])
            if records.suffixed(path, "cancel").exists():
                return records.update(path, "cancelled", code, [])
            if told:
                state: State = "running" if told[0] == signal.SIGUSR2 else "cancelled"
                name = signal.Signals(told[0]).name
                records.update(path, state, code, [f"its worker was stopped by {name}"])
                raise _Stop(told[0])
            quick = quick + 1 if time.monotonic() - began < _SOON else 0
            if code not in _STOPPED or quick >= _MOST_QUICK_STOPS:
                state = "killed" if code < 0 and code not in _STOPPED else "failed"
                return records.update(
                    path, state, code, how_it_ended(code, records.suffixed(path, "log"))
                )

    def _watch(self, job: Job, path: Path, told: list[int]) -> int:
        """Run the stage to its end, or until it has saved where it is to stop: its exit code."""
        with records.suffixed(path, "log").open("ab") as stream:
            child = subprocess.Popen(
                command_of(job, path),
                cwd=job.cwd,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
            deadline = None
            while (code := child.poll()) is None:
                time.sleep(_POLL)
                now = time.monotonic()
                if deadline is None and (told or records.suffixed(path, "cancel").exists()):
                    child.send_signal(told[0] if told else signal.SIGTERM)
                    deadline = now + _SECONDS_TO_SAVE
                if deadline is not None and now > deadline:
                    child.kill()
        return code

    def _environment(self) -> Mapping[str, str]:
        found = dict(os.environ, SSL_BENCH_WORKER=str(os.getpid()))
        found["CUDA_VISIBLE_DEVICES"] = self.gpus
        if self.gpus == _WHATEVER_THERE_IS:
            del found["CUDA_VISIBLE_DEVICES"]
        found.setdefault("OMP_NUM_THREADS", str(max(1, environment.cores() // self.count)))
        return {k: v for k, v in found.items() if not k.startswith("SUBMITIT_")}


def command_of(job: Job, path: Path) -> list[str]:
    """The program that does the stage whose files have that path."""
    config = str(records.suffixed(path, "config.json"))
    return [sys.executable, "-m", "ssl_bench.sweep.jobs", job.run, config]


def how_it_ended(code: int, log: Path) -> list[str]:
    """The last lines of a failed stage's log, and what killed it."""
    lines = [line for line in text_of_log(log).splitlines() if line.strip()][-_LINES:]
    if code < 0:
        name = signal.Signals(-code).name
        why = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        return [*lines, f"killed by {name}{why}"]
    return lines or [f"exit code {code}"]


@contextlib.contextmanager
def _waited_for(path: Path, told: list[int]) -> Iterator[None]:
    """Hold a lock meanwhile, once it can be had, unless told to stop."""
    while not told:
        with taken(path, _POLL) as mine:
            if mine:
                yield
                return
    raise _Stop(told[0])


def launch(folder: Path, gpus: Sequence[str]) -> None:
    """Start a worker of a batch for each share of the GPUs, as submitit's local jobs.

    They stay in this process's session, and keep its output open.
    """
    batch = LocalBatch.load(folder)
    executor = submitit.LocalExecutor(folder / "submitit", max_num_timeout=1_000_000)
    executor.update_parameters(timeout_min=_NO_TIME_LIMIT, signal_delay_s=120)
    workers = [Worker(folder, number, len(gpus), share) for number, share in enumerate(gpus)]
    jobs = [executor.submit(worker) for worker in workers]
    replace(batch, processes=[int(job.job_id) for job in jobs]).save()


if __name__ == "__main__":
    from ssl_bench.sweep.backends import (
        local,  # so that submitit finds the class under its own name
    )

    local.launch(Path(sys.argv[1]), sys.argv[2:])
