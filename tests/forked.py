"""Processes that begin with everything imported, forked from one that has done nothing else.

A new Python takes seconds to import what a command needs. Where a test is about what processes do
to each other, and not about how Python begins, this saves most of its time.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, forkserver
from pathlib import Path
from subprocess import DEVNULL
from types import SimpleNamespace
from typing import IO, Any
from unittest import mock

import timm.layers
import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "ssl_bench.distributed.process_group",  # first, for what it does before torch is there
        *("conftest", "forked", "lightning_fabric", "torch.distributed.fsdp"),
        *(
            "ssl_bench.experiment.running",
            "ssl_bench.experiment.figures",
            "ssl_bench.evaluation.finetuning",
        ),
    ]
)
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def start(
    work: Callable[..., object],
    *arguments: Any,
    output: Path | None = None,
    errors: Path | None = None,
) -> Any:
    """Call a function of a module in a new process, which has this one's environment.

    Args:
        output, errors: files to which to add what is printed.
    """
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS="1"):
        forkserver.ensure_running()
    how = (work, arguments, dict(os.environ), output, errors)
    process = CONTEXT.Process(target=_work, args=how)
    process.start()
    return process


def together(work: Callable[..., object], count: int, *arguments: Any) -> None:
    """Call a function in so many processes at once, with the number of each first."""
    with tempfile.NamedTemporaryFile() as errors:
        path = Path(errors.name)
        processes = [start(work, number, *arguments, errors=path) for number in range(count)]
        try:
            waiting = processes
            while waiting:
                connection.wait([process.sentinel for process in waiting])
                assert not any(process.exitcode for process in processes), path.read_text()
                waiting = [process for process in waiting if process.exitcode is None]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _work(
    work: Callable[..., object],
    arguments: Sequence[Any],
    environment: Mapping[str, str],
    output: Path | None,
    errors: Path | None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for path, number in ((output, 1), (errors, 2)):
        if path:
            with path.open("ab") as stream:
                os.dup2(stream.fileno(), number)
    _begin()
    work(*arguments)


def _begin() -> None:
    """Be as a new Python is, and as `conftest` has this one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    torch.set_num_threads(1)
    timm.layers.set_fused_attn(False)


class Popen:
    """Stands for `subprocess.Popen` of a Python program, in a process that `start` has begun."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        process_group: int | None = None,
        **streams: IO[bytes] | int,
    ) -> None:
        how = (list(words), env, cwd, process_group, streams)
        self._process = multiprocessing.get_context("fork").Process(target=_program, args=how)
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    returncode = property(poll)

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


subprocess = SimpleNamespace(Popen=Popen, DEVNULL=DEVNULL)
"""In place of the module, for a module of ours that starts programs."""


def _program(
    words: list[str],
    env: Mapping[str, str] | None,
    cwd: str | None,
    process_group: int | None,
    streams: Mapping[str, IO[bytes] | int],
) -> None:
    if process_group is not None:
        os.setpgid(0, process_group)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if name in streams:
            given = streams[name]
            file = os.open(os.devnull, os.O_RDWR) if isinstance(given, int) else given.fileno()
            os.dup2(file, number)
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    if cwd is not None:
        os.chdir(cwd)
    _begin()
    how, what, *arguments = [word for word in words[1:] if word != "-P"]
    sys.argv = [how, *arguments]
    if how == "-c":
        exec(what, {"__name__": "__main__"})
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)
