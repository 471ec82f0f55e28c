"""Starting one process for each device; each of them, a rank, runs the whole command.

On one machine a command starts its ranks itself and waits for them: it forwards signals, ends the
other ranks when one dies, and leaves none behind. Slurm (srun, submitit), submitit's local executor
and torchrun have started the ranks already: then each joins the others. Nothing here imports torch.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssl_bench.config.settings import Strategy
from ssl_bench.distributed import environment
from ssl_bench.errors import UserError, require
from ssl_bench.utils.signals import ENDING, SECONDS_TO_SAVE, error_of, handled

_GRACE_SECONDS = 20.0
_SECONDS_TO_MEET = 5.0
_MOST_PROCESSES_A_CORE = 8


def on_devices(
    argv: Sequence[str],
    devices: int,
    nodes: int,
    work: Callable[[], None],
    strategy: Strategy = "auto",
    note: Callable[[str], None] = lambda reason: None,
) -> int:
    """Do a command's work in this process, or in one process for each device.

    Args:
        argv: the command line for the processes that are started.
        devices: on each machine.
        work: done by a single process, or by each rank.
        note: called on rank 0 with why any rank failed, to correct what is noted of the run.

    Returns:
        The exit code.

    Raises:
        UserError: the work failed, or the processes cannot be started.
        Interrupted, KeyboardInterrupt: on a signal that the ranks have not reported themselves.
    """
    world = devices * nodes
    if world == 1:
        work()
        return 0
    found = environment.find(os.environ, devices, nodes)
    if found is None:
        require(
            nodes == 1,
            f"--nodes {nodes}: processes on several machines are started by Slurm, such as by "
            f"srun --nodes {nodes} --ntasks-per-node {devices} ssl-bench ..., or by a sweep; here "
            "--nodes 1 would work",
        )
        cores = os.cpu_count() or 1
        require(
            devices <= _MOST_PROCESSES_A_CORE * cores,
            f"--devices {devices} are more processes than the {cores} cores of this machine could "
            f"start, each with a copy of the data; --devices {cores} would work",
        )
        return _start(argv, devices)
    from ssl_bench.distributed import process_group

    with process_group.initialised(found, strategy, note):
        work()
    return 0


def _start(argv: Sequence[str], count: int) -> int:
    """Run the command in that many processes; returns its exit code."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from ssl_bench.cli import entry; entry()"
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            environment.PARENT: str(os.getpid()),
            environment.MARKER: str(Path(folder, "met")),
        }
        free.close()
        processes: list[subprocess.Popen[bytes]] = []
        failed: int | None = None
        with _forwarding(processes) as received:
            try:
                for rank in range(count):
                    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    null = subprocess.DEVNULL
                    with Path(folder, str(rank)).open("wb") as errors:
                        quiet: Any = {"stdin": null, "stdout": null, "stderr": errors}
                        # A process group of its own: signals of the terminal come only from here.
                        process = subprocess.Popen(
                            [sys.executable, "-P", "-c", code, *argv],
                            env={**os.environ, **shared, **own},
                            process_group=0,
                            **(quiet if rank else {}),
                        )
                    processes.append(process)
                    if received:  # perhaps before this process existed; it has nothing to save yet
                        break
                else:
                    failed = _wait(processes, Path(folder, "met"))
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
        codes = [process.returncode for process in processes]
        if received and any(codes):
            if codes[0] == 128 + received[0]:  # rank 0 has reported the signal
                return codes[0]
            raise error_of(received[0])
        return _exit_code(codes, failed, Path(folder))


def _wait(processes: Sequence[subprocess.Popen[bytes]], met: Path) -> int | None:
    """Wait for all processes, or some seconds after one has failed; returns the first that did.

    Most processes notice by themselves that another is gone; the others are killed.

    Args:
        met: a file that exists once the processes have met; before that, none has state to save.
    """
    first: int | None = None
    since = 0.0
    while True:
        is_running = any([process.poll() is None for process in processes])
        if first is None:
            first = next((rank for rank, each in enumerate(processes) if each.returncode), None)
            since = time.monotonic()
        if not is_running:
            return first
        if first is not None:
            was_signalled = processes[first].returncode > 128  # and rank 0 may be saving
            patience = SECONDS_TO_SAVE if was_signalled else _GRACE_SECONDS
            if time.monotonic() > since + (patience if met.exists() else _SECONDS_TO_MEET):
                for process in processes:
                    process.kill()
        time.sleep(0.05)


def _exit_code(codes: Sequence[int], first: int | None, folder: Path) -> int:
    """The exit code of the command; an error where rank 0 has not reported the first failure."""
    if codes[0] > 0 or first is None:
        return codes[0]
    cause = f"exit code {codes[first]}"
    number = -codes[first] if codes[first] < 0 else codes[first] - 128
    if number in signal.valid_signals():
        name = signal.Signals(number).name
        cause = f"{name}{' (for want of memory?)' if name == 'SIGKILL' else ''}"
    elif first:
        lines = Path(folder, str(first)).read_text("utf-8", errors="replace").splitlines()
        cause = ": ".join([cause, *lines[-1:]])
    raise UserError(
        f"process {first} of {len(codes)} ended with {cause}; the same command resumes it from "
        "the last checkpoint, if there is one"
    )


@contextmanager
def _forwarding(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Forward signals to the processes during the block; a third Ctrl-C kills them.

    Ignored signals, such as SIGHUP under ``nohup``, stay ignored.

    Yields:
        The signals that ask to stop, as they are received.
    """
    received: list[int] = []

    def forward(number: int) -> None:
        if number in ENDING:
            received.append(number)
        for process in processes:
            if process.poll() is None:
                is_urgent = received.count(signal.SIGINT) > 2
                process.send_signal(signal.SIGKILL if is_urgent else number)

    with handled(forward, (*ENDING, signal.SIGUSR1)):
        yield received
