"""What a submitted job does, and what Slurm's answers mean, without a Slurm."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import Signals
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import stored
from hypothesis import given
from hypothesis import strategies as st

from ssl_bench.config.sweep_settings import ClusterSettings
from ssl_bench.errors import UserError
from ssl_bench.experiment import running
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.sweep import jobs
from ssl_bench.sweep.backends import clusters, slurm, slurm_queue
from ssl_bench.sweep.jobs import Job


class Requeued(BaseException):
    """Raised by what stands for submitit's handler."""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a job of one process, as submitit and Slurm have it."""

    def requeue(number: int, frame: object) -> None:
        raise Requeued

    found = SimpleNamespace(
        cluster="slurm",
        global_rank=0,
        job_id="7_0",
        raw_job_id="8",
        paths=SimpleNamespace(folder=tmp_path, result_pickle=tmp_path / "7_0_0_result.pkl"),
    )
    monkeypatch.setattr(jobs.submitit, "JobEnvironment", lambda: found)
    monkeypatch.setattr(jobs, "_is_running", lambda environment: True)
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, requeue)
    signal.signal(signal.SIGTERM, lambda *_: None)
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def performing(monkeypatch: pytest.MonkeyPatch, work: Callable[[], int | None]) -> None:
    monkeypatch.setattr(jobs, "perform", lambda config, run: work() or 0)


def test_submitit_can_store_a_job(tmp_path: Path) -> None:
    job = Job(stored("--epochs", 1), "mae-x", "evaluate", str(tmp_path))
    assert pickle.loads(pickle.dumps(job)) == job
    assert job.checkpoint().function == job


@pytest.mark.parametrize("number", [Signals.SIGUSR2, Signals.SIGTERM])
def test_stopped_job_is_queued_again(
    environment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: Signals
) -> None:
    performing(monkeypatch, lambda: signal.raise_signal(number))
    environment.paths.result_pickle.touch()
    with pytest.raises(Requeued):
        Job(stored("--runs-dir", tmp_path), "mae-x", cwd=str(tmp_path))()
    assert not environment.paths.result_pickle.exists()
    assert jobs.failure_noted(tmp_path, "7_0") == []


def test_job_whose_own_processes_were_stopped_is_queued_again(
    environment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    performing(monkeypatch, lambda: 128 + signal.SIGUSR2)
    with pytest.raises(Requeued):
        Job(stored("--runs-dir", tmp_path), cwd=str(tmp_path))()
    performing(monkeypatch, lambda: 2)
    with pytest.raises(UserError, match="exit code 2"):
        Job(stored(), cwd=str(tmp_path))()


def test_cancelled_job_is_not_queued_again(
    environment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    performing(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(jobs, "_is_running", lambda environment: False)
    with pytest.raises(SystemExit) as left:
        Job(stored(), cwd=str(tmp_path))()
    assert left.value.code == 143


def test_job_that_makes_no_progress_ends(
    environment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    performing(monkeypatch, lambda: signal.raise_signal(signal.SIGUSR2))
    job = Job(stored("--runs-dir", tmp_path), "mae-x", cwd=str(tmp_path))
    (tmp_path / "mae-x").mkdir()
    state = tmp_path / "mae-x" / "checkpoint.pt"
    state.touch()
    monkeypatch.setitem(sys.modules, "torch", None)  # whose import a signal may interrupt
    for saved_at in (1, 1, 1, 2, 2, 2, 2):
        os.utime(state, ns=(saved_at, saved_at))
        with pytest.raises(Requeued):
            job()
        job = pickle.loads(pickle.dumps(job))
    with pytest.raises(UserError, match="stopped 5 times in a row without getting any further"):
        job()
    [line] = jobs.failure_noted(tmp_path, "7_0")
    assert line.startswith("ssl-bench: stopped 5 times")


def test_failure_is_noted_until_the_next_start(
    environment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("by nothing")

    performing(monkeypatch, fail)
    job = Job(stored(), cwd=str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        job()
    lines = jobs.failure_noted(tmp_path, "7_0")
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: by nothing"
    assert clusters.failure("7_0", tmp_path, lines=1) == lines[-1:]
    performing(monkeypatch, lambda: None)
    job()
    assert jobs.failure_noted(tmp_path, "7_0") == []


def test_other_ranks_leave_no_result_when_the_job_is_ended(
    environment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lose() -> None:
        raise RuntimeError("Connection closed by peer")

    performing(monkeypatch, lose)
    environment.global_rank = 1
    monkeypatch.setattr(jobs.time, "sleep", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        Job(stored(), cwd=str(tmp_path))()
    assert left.value.code == 0
    monkeypatch.setattr(jobs.time, "sleep", lambda _: None)  # nobody ends it
    with pytest.raises(RuntimeError):
        Job(stored(), cwd=str(tmp_path))()


@given(st.sets(st.integers(0, 300), min_size=1), st.integers(1, 50))
def test_every_job_of_an_array_is_found(numbers: set[int], limit: int) -> None:
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][-1] == number - 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    shown = [f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans]
    rows = slurm_queue._rows(f"7_[{','.join(shown)}%{limit}]|PENDING\n9|CANCELLED by 0\n")
    assert rows == {**{f"7_{n}": "PENDING" for n in numbers}, "9": "CANCELLED"}


@pytest.mark.parametrize(
    "text", ["7_[0-2]|CANCELLED\n7_1|RUNNING", "7_1|RUNNING\n7_[0-2]|CANCELLED"]
)
def test_line_of_its_own_is_right(text: str) -> None:
    assert slurm_queue._rows(text) == {"7_0": "CANCELLED", "7_1": "RUNNING", "7_2": "CANCELLED"}


def batches(after: Mapping[int, str | None], *large: int) -> list[tuple[str, list[int]]]:
    jobs = {number: Job(stored(), devices=2 if number in large else 1) for number in after}
    return slurm._batches(jobs, after)


def test_dependencies_are_few() -> None:
    assert batches({0: "7_0", 2: "7_1", 5: "7_2"}) == [("aftercorr:7", [0, 2, 5])]
    assert batches({0: None, 1: "7_0", 2: "7_1"}) == [("", [0]), ("aftercorr:7", [1, 2])]
    assert batches({0: "7"}) == [("afterok:7", [0])]
    assert batches({0: "7_1", 1: "7_0"}) == [("afterok:7_1", [0]), ("afterok:7_0", [1])]
    assert batches({0: None, 1: None, 2: None}, 1) == [("", [0, 2]), ("", [1])]


def test_a_job_asks_for_its_share_of_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srun").touch(0o755)  # submitit refuses to prepare a job where there is none
    monkeypatch.setenv("PATH", str(tmp_path))
    node = ClusterSettings(gpus=8, memory="400G", cpus=6)
    for devices, gpus, memory in ((8, 8, "409600M"), (1, 1, "51200M")):
        executor = slurm._executor(
            node, tmp_path, "", None, Job(stored(), nodes=1, devices=devices)
        )
        asked = executor.parameters
        assert (asked["gpus_per_node"], asked["mem"]) == (gpus, memory)
        assert (asked["ntasks_per_node"], asked["cpus_per_task"]) == (devices, 6)


def test_what_sbatch_would_be_given_is_known_without_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    node = ClusterSettings(gpus=4, memory="32G", time="2h", partition="gpu", setup=("module load",))
    cells = [
        [Job(stored(), f"mae-{n}", "pretrain", devices=4), Job(stored(), f"mae-{n}", "evaluate")]
        for n in range(3)
    ]
    (first, script), (second, later) = slurm.previews(cells, node, tmp_path, "sweep-x", limit=2)
    for word in ("pretrain: 3 jobs", "partition gpu", "2 h 00 min", "4 GPUs", "memory 32768M"):
        assert word in first
    for line in ("--partition=gpu", "--time=120", "--gpus-per-node=4", "--array=0-2%2"):
        assert f"#SBATCH {line}\n" in script
    assert "module load" in script and "dependency" not in script
    assert "1 GPU on" in second and "--dependency=aftercorr:" in later
    assert not list(tmp_path.iterdir())


def test_only_jobs_of_the_folder_are_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever numbers a record names: they may be those of somebody's other jobs."""
    asked: list[tuple[str, ...]] = []

    def answer(*command: str) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        ours, theirs = tmp_path / "jobs/submission.sh", "/home/me/train.sh"
        lines = f"7_0|{ours}\n7_1|{ours}\n8|{theirs}\n9_0|{theirs}\n"
        return subprocess.CompletedProcess(command, 0, lines, "")

    monkeypatch.setattr(slurm_queue, "_ask", answer)
    monkeypatch.setattr(slurm_queue, "check_controller", lambda: None)
    slurm_queue.cancel(["8", "7_0", "9_0", "10_0"], tmp_path / "jobs")
    assert asked[-1] == ("scancel", "7_0")
    slurm_queue.cancel(["8", "9_0"], tmp_path / "jobs")
    assert asked[-1][0] == "squeue"


def test_what_a_signal_ended_is_no_mistake_of_the_cell() -> None:
    rows = slurm_queue._rows(
        "7_0|FAILED|1:0\n7_1|FAILED|9:0\n7_2|FAILED|0:15\n7_3|FAILED|143:0\n7|X|0:0"
    )
    assert list(rows.values()) == ["FAILED", "KILLED", "KILLED", "KILLED", "X"]


@given(st.integers(1, 10_000))
def test_notice_is_in_time_and_leaves_time(minutes: int) -> None:
    assert 10 <= slurm._notice(minutes) <= max(10, minutes * 60 // 4)


def test_no_slurm_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch and srun are not installed"):
        clusters.submit([[Job(stored())]], "slurm", tmp_path, ClusterSettings())
    assert clusters.states(["7_0"], tmp_path) == {"7_0": "unknown"}
    assert clusters.reasons(["7_0"]) == {}


def test_a_stage_of_one_process_writes_no_config(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[RunConfig] = []
    monkeypatch.setattr(running, "run", lambda config, expected: done.append(config))
    monkeypatch.setattr(jobs.tempfile, "TemporaryDirectory", None)
    config = RunConfig.from_json(stored())
    assert jobs.perform(config, "some-run") == 0
    assert done == [config.with_values({"wait": True})]
