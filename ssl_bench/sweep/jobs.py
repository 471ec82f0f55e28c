"""What a submitted job does: one stage of a cell, saved and handed back when it is asked to stop.

submitit calls a `Job` on a node of the cluster, in every task of the job. A local worker runs the
same as a program: ``python -m ssl_bench.sweep.jobs RUN CONFIG``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import submitit

from ssl_bench.errors import UserError, in_one_line, require
from ssl_bench.experiment import run_config
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.runs import run_folder
from ssl_bench.utils import signals
from ssl_bench.utils.files import Unreadable, load_bytes, load_json, write_json
from ssl_bench.utils.signals import Interrupted

State = Literal[
    "pending", "running", "requeued", "done", "failed", "killed", "cancelled", "timeout",
    "out of memory", "lost", "unknown",
]  # fmt: skip
"""What became of a stage. *requeued*: it waits to be resumed. *killed*: by a signal, or with its
node. *cancelled*: by the user, or because the stage before it failed. *lost*: it is unfinished and
no process is running it. *unknown*: the cluster does not answer."""
WAITING: frozenset[State] = frozenset({"pending", "requeued"})
ACTIVE: frozenset[State] = WAITING | {"running"}
_FRUITLESS_STARTS = 5
_TAIL_OF_LOG = 2**20
_SECONDS_FOR_RANK_0 = 60.0


@dataclass
class Job:
    """One stage of a cell, to be called by submitit.

    Attributes:
        config: of the run, as JSON; a pre-training's has no evaluations.
        run: name of the run folder that it must lead to, as found out before submission; "" where
            any will do.
        stage: "pretrain" or "evaluate", for people.
        cwd: the folder that relative paths in the config start from.
        nodes, devices: how many there are, and processes on each node.
    """

    config: Mapping[str, Any]
    run: str = ""
    stage: str = "pretrain"
    cwd: str = field(default_factory=os.getcwd)
    nodes: int = 1
    devices: int = 1
    _progress: Sequence[int] = ()
    _fruitless: int = 0

    def __call__(self) -> None:
        """Do it. Asked to stop, it saves, and is queued again unless somebody cancelled it.

        Raises:
            UserError: the config leads to another run than when they were submitted, a setting is
                wrong, or it was stopped again and again without getting any further.
        """
        environment = submitit.JobEnvironment()
        # An interrupted start may have left one, which is not this start's.
        environment.paths.result_pickle.unlink(missing_ok=True)
        os.chdir(self.cwd)
        if environment.global_rank:
            self._follow()
            return
        noted = _failure_path(environment.paths.folder, environment.job_id)
        noted.unlink(missing_ok=True)
        try:
            try:
                with signals.raise_on_signal():
                    _succeed(perform(RunConfig.from_json(self.config), self.run))
            except Interrupted as stopped:
                self._hand_back(stopped, environment)
        except Exception as error:
            write_json(noted, {"lines": lines_of(error)})
            if isinstance(error, UserError):
                raise error.with_traceback(None) from None
            raise

    def _follow(self) -> None:
        """Do it as one of several processes. Rank 0 alone says how the job ended: whatever ends
        this one, such as the loss of rank 0, which is being queued again, is no result."""
        try:
            with signals.raise_on_signal():
                _succeed(perform(RunConfig.from_json(self.config), self.run))
        except BaseException as error:
            if isinstance(error, Exception):
                traceback.print_exc()
            _wait_to_be_ended()
            if isinstance(error, Exception):
                raise
            sys.exit(0)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues again: the same job, as the run folder knows how far it got."""
        return submitit.helpers.DelayedSubmission(self)

    def _hand_back(self, stopped: Interrupted, environment: submitit.JobEnvironment) -> None:
        """Have submitit queue the job again, and end this process.

        Raises:
            UserError: there was no progress for too many starts.
        """
        print(_how_stopped(stopped), file=sys.stderr, flush=True)
        if stopped.signal == signal.SIGTERM and not _is_running(environment):
            sys.exit(128 + stopped.signal)
        progress = self._measure_progress()
        self._fruitless = self._fruitless + 1 if progress == self._progress else 1
        self._progress = progress
        require(
            self._fruitless < _FRUITLESS_STARTS,
            f"stopped {_FRUITLESS_STARTS} times in a row without getting any further; "
            "a longer --time would help",
        )
        signal.raise_signal(signal.SIGUSR2)  # submitit's handler stores the job and queues it

    def _measure_progress(self) -> Sequence[int]:
        """Numbers that change as soon as the run gets further: a state that is saved has at least
        one step more than the one before.

        Nothing is read, nor torch needed, whose import may be what the signal interrupted.
        """
        folder = run_config.settings_of(self.config).runs_dir / self.run
        numbers = []
        for path in sorted(folder.rglob("*.pt")):
            with contextlib.suppress(OSError):  # somebody else's, or one being replaced
                numbers.append(path.stat().st_mtime_ns)
        return (*numbers, sum(1 for _ in folder.rglob("*.json")))


def perform(config: RunConfig, run: str = "") -> int:
    """Do what ``ssl-bench run`` does with this config, if it still leads to that run.

    Another process that works in the run folder is waited for.

    Returns:
        The exit code: not 0 where this process started others, and they have told what is wrong.

    Raises:
        UserError: it leads to another one, or is wrong.
    """
    from ssl_bench.distributed import environment, launcher

    config = config.with_values({"wait": True})
    settings = config.settings

    def work() -> None:
        from ssl_bench.experiment import running  # torch, which a wrong config need not wait for

        running.run(config, expected=run)

    devices, nodes = settings.devices, settings.nodes
    with contextlib.ExitStack() as stack:
        args: list[str] = []
        if devices * nodes > 1 and environment.find(os.environ, devices, nodes) is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "config.json")
            write_json(path, config.to_json())
            args = ["run", "--config", str(path), "--trust"]
            if run:  # which those that are started, who know the config alone, cannot check
                from ssl_bench.experiment import loading, preparation

                preparation.prepare_run(config, loading.data_of(config), expected=run)
        return launcher.on_devices(
            args, devices, nodes, work, settings.strategy, run_folder.note_failure
        )


def main(args: Sequence[str] | None = None) -> int:
    """Do a stage as a program of its own: the run's name or "", then the config's file.

    Returns:
        The exit code, as of ``ssl-bench run``.
    """
    run, path = sys.argv[1:] if args is None else args
    end_with_parent()
    try:
        with signals.raise_on_signal():
            return perform(run_config.load(Path(path), allow=lambda files: None), run)
    except Interrupted as stopped:
        print(_how_stopped(stopped), file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("ssl-bench: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        print("\n".join(lines_of(error)), file=sys.stderr)
        return 1 if in_one_line(error) is None else 2


def lines_of(error: Exception) -> list[str]:
    """What a person wants to see of an error: one line, or the traceback of a bug."""
    told = in_one_line(error)
    return [told] if told else "".join(traceback.format_exception(error)).splitlines()


def failure_noted(folder: Path, job_id: str) -> list[str]:
    """The lines that a job left when it failed; none if it had no time for that."""
    with contextlib.suppress(Unreadable):
        noted = load_json(_failure_path(folder, job_id))
        lines = noted.get("lines") if isinstance(noted, dict) else None
        return [str(line) for line in lines] if isinstance(lines, list) else []
    return []


def text_of_log(path: Path) -> str:
    """The end of what a stage had to say; nothing where it has said nothing."""
    try:
        return load_bytes(path, tail=_TAIL_OF_LOG).decode(errors="replace")
    except Unreadable:
        return ""


def end_with_parent() -> None:
    """Be sent SIGTERM when the process ends that started this one, as far as the system can."""
    parent = os.environ.pop("SSL_BENCH_WORKER", "")  # not for what this process starts
    if not parent or not sys.platform.startswith("linux"):
        return
    import ctypes

    death_signal = 1
    ctypes.CDLL(None).prctl(death_signal, signal.SIGTERM, 0, 0, 0)
    if str(os.getppid()) != parent:  # it has ended already
        sys.exit(128 + signal.SIGTERM)


def _succeed(code: int) -> None:
    """Raise what the exit code of processes that this one started says."""
    if code - 128 in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
        raise Interrupted(signal.Signals(code - 128))
    require(code == 0, f"the processes of this stage ended with exit code {code}; see its log")


def _how_stopped(stopped: Interrupted) -> str:
    return "; ".join(filter(None, [f"ssl-bench: stopped by {stopped.signal.name}", str(stopped)]))


def _failure_path(folder: Path, job_id: str) -> Path:
    return Path(folder) / f"{job_id}_failed.json"


def _is_running(environment: Any) -> bool:
    """Whether Slurm still runs the job: then the signal came from somewhere else, or before a
    preemption. A job that was cancelled is completing."""
    if environment.cluster != "slurm":
        return False
    command = ["squeue", "--noheader", "--jobs", environment.raw_job_id, "--format", "%T"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.split() == ["RUNNING"]


def _wait_to_be_ended() -> None:
    """Leave no error behind where the whole job is about to be ended: give that a minute."""
    try:
        with signals.raise_on_signal():
            time.sleep(_SECONDS_FOR_RANK_0)
    except Interrupted:
        sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
