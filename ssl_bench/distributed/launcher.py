"""Starting one process for each device: each of them, a rank, runs the whole command.

On one machine a command starts its ranks itself, anew, and only waits for them: it hands on
signals, ends the others where one dies, and leaves none behind. Under Slurm the ranks are there
already (srun, submitit), as they are under submitit's local executor with several tasks, or under
torchrun: then each of them goes on by itself. Nothing here imports torch.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ssl_bench.config.settings import Strategy
from ssl_bench.distributed import environment
from ssl_bench.errors import UserError, require
from ssl_bench.utils.signals import SECONDS_TO_SAVE, error_of

_GRACE_SECONDS = 20.0
_SECONDS_TO_MEET = 5.0
_STOPPING = ("SIGINT", "SIGTERM", "SIGUSR2", "SIGHUP")
_HANDED_ON = (*_STOPPING, "SIGUSR1")


def on_devices(
    words: Sequence[str],
    devices: int,
    nodes: int,
    work: Callable[[], None],
    strategy: Strategy = "auto",
    note: Callable[[str], None] = lambda reason: None,
) -> int:
    """Do a command's work in this process, or in as many as there are devices.

    Args:
        words: the command line, which the processes get that are started.
        devices: processes on each machine.
        work: what a single process does, or each of several.
        note: called with why another of several failed, to correct what is noted of the run.

    Returns:
        The exit code.

    Raises:
        UserError: the work failed, or that many processes cannot be had.
        Interrupted, KeyboardInterrupt: this was asked for, and the processes have not told so.
    """
    world = devices * nodes
    if world == 1:
        work()
        return 0
    place = environment.find(os.environ, devices, nodes)
    if place is None:
        require(
            nodes == 1,
            f"nodes {nodes}: processes on several machines are started by Slurm, such as by "
            f"srun --nodes {nodes} --ntasks-per-node {devices} ssl-bench ..., or by a sweep; here "
            "--nodes 1 would work",
        )
        return _start(words, devices)
    from ssl_bench.distributed import process_group

    with process_group.initialised(place, strategy, note):
        work()
    return 0


def _start(words: Sequence[str], count: int) -> int:
    """Run the command in that many processes, and wait for them: its exit code."""
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
        first: int | None = None
        with _handing_on(processes) as wishes:
            try:
                for rank in range(count):
                    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    quiet: dict[str, Any] = {}
                    errors: IO[bytes] | None = None
                    if rank:
                        errors = Path(folder, str(rank)).open("wb")  # noqa: SIM115
                        null = subprocess.DEVNULL
                        quiet = {"stdin": null, "stdout": null, "stderr": errors}
                    # A group of its own: the terminal's signals come once, through this process.
                    process = subprocess.Popen(
                        [sys.executable, "-P", "-c", code, *words],
                        env={**os.environ, **shared, **own},
                        process_group=0,
                        **quiet,
                    )
                    processes.append(process)
                    if errors:
                        errors.close()
                    if wishes:  # which may have missed this process: it has nothing to save yet
                        break
                else:
                    first = _wait(processes, Path(folder, "met"))
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
        codes = [process.returncode for process in processes]
        if wishes and any(codes):
            if codes[0] == 128 + wishes[0]:  # rank 0 has said so
                return codes[0]
            raise error_of(wishes[0])
        return _outcome(processes, first, Path(folder))


def _wait(processes: Sequence[subprocess.Popen[bytes]], met: Path) -> int | None:
    """Wait for all, and some seconds where one has failed: the first one that did, if any.

    Those that wait for one that is gone mostly notice by themselves; the others are killed.

    Args:
        met: a file that is there once the processes have met; before, there is nothing to save.
    """
    first: int | None = None
    since = patience = math.inf
    while any(process.poll() is None for process in processes):
        failed = [rank for rank, process in enumerate(processes) if process.poll()]
        if failed and first is None:
            first, since = failed[0], time.monotonic()
        if first is not None:
            was_stopped = processes[first].returncode > 128  # and rank 0 may be saving
            patience = SECONDS_TO_SAVE if was_stopped else _GRACE_SECONDS
            if not met.exists():
                patience = _SECONDS_TO_MEET
        if time.monotonic() > since + patience:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    failed = [rank for rank, process in enumerate(processes) if process.returncode]
    return failed[0] if failed and first is None else first


def _outcome(processes: Sequence[subprocess.Popen[bytes]], first: int | None, folder: Path) -> int:
    """The exit code. What rank 0 has not told is told here."""
    codes = [process.returncode for process in processes]
    if codes[0] > 0 or first is None:
        return codes[0]
    how, said = f"exit code {codes[first]}", ""
    number = -codes[first] if codes[first] < 0 else codes[first] - 128
    if number in signal.valid_signals():
        how = signal.Signals(number).name
        said = " (for want of memory?)" if how == "SIGKILL" else ""
    elif first:
        lines = Path(folder, str(first)).read_text("utf-8", errors="replace").splitlines()
        said = f": {lines[-1]}" if lines else ""
    raise UserError(
        f"process {first} of {len(codes)} ended with {how}{said}; the same command goes on from "
        "the last checkpoint, if there is one"
    )


@contextmanager
def _handing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Send what signals come on to the processes meanwhile; a third interruption kills them.

    Those that are ignored, such as SIGHUP under ``nohup``, stay so.

    Yields:
        The numbers of the signals that asked to end, as they come.
    """
    wishes: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield wishes
        return
    stopping = {getattr(signal, name, None) for name in _STOPPING}

    def hand_on(number: int, frame: Any) -> None:
        if number in stopping:
            wishes.append(number)
        for process in processes:
            if process.poll() is None:
                is_urgent = wishes.count(signal.SIGINT) > 2
                process.send_signal(signal.SIGKILL if is_urgent else number)

    numbers = [getattr(signal, name) for name in _HANDED_ON if hasattr(signal, name)]
    # None is a handler that Python did not install and could not put back.
    known = {number: signal.getsignal(number) for number in numbers}
    before = {number: h for number, h in known.items() if h not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, hand_on)
        yield wishes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
