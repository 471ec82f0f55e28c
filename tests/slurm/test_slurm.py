"""Sweeps on a real Slurm: arrays, failures, preemption, time limits, and a controller that is down.

Serial, with two CPUs. Slurm lets a job that was queued again wait for two minutes; `let_go` does
not.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from helpers import stored

from ssl_bench import cli
from ssl_bench.config.sweep_settings import ClusterSettings
from ssl_bench.errors import UserError
from ssl_bench.sweep.backends import clusters, slurm
from ssl_bench.sweep.jobs import Job

pytestmark = pytest.mark.slurm

SMALL = (
    *("--method", "mae", "--backbone", "vit_nano", "--patch-size", "4", "--batch-size", "8"),
    *("--decoder-embed-dim", "32"),
)
LONG = (*SMALL, "--epochs", "100")  # 600 steps of some 10 ms
MEMORY = "3G"  # a process of 1 GB is counted twice for the moment in which it starts git
ONE_CPU = ClusterSettings(time="10m", cpus=1, memory=MEMORY)
PATIENCE = 120


def cell(images: Path, runs: Path, *words: str, evaluate: bool = True, run: str = "") -> list[Job]:
    """The stages of a cell."""
    every = [*words, "--data", str(images), "--runs-dir", str(runs)]
    pretrain = Job(stored(*every, "--evals", "none"), run, "pretrain")
    both = [pretrain, Job(stored(*every, "--evals", "knn"), run, "evaluate")]
    return both if evaluate else [pretrain]


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.3)


def ended(ids: Iterable[str], folder: Path) -> dict[str, str]:
    """The states of stages, once all of them are over."""
    known = list(ids)
    until(
        lambda: not clusters.ACTIVE & set(clusters.states(known, folder).values()), f"{known} end"
    )
    return dict(clusters.states(known, folder))


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True, capture_output=True, text=True)


def let_go(job: str, folder: Path) -> None:
    """Wait until a job is queued again, and have it start without the usual two minutes."""
    until(lambda: clusters.states([job], folder)[job] == "requeued", f"{job} is queued again")
    until(lambda: clusters.reasons([job]).get(job) == "BeginTime", f"{job} waits")
    time.sleep(3)  # sooner, slurmd may refuse it
    scontrol("update", f"jobid={job}", "StartTime=now")


def steps(runs: Path) -> list[int]:
    """The steps recorded so far by the only run there."""
    found = list(runs.glob("*/metrics.jsonl"))
    lines = found[0].read_text().splitlines(keepends=True) if found else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def weights(runs: Path) -> dict[str, str]:
    """What the only run there has learned."""
    [folder] = [path.parent for path in runs.glob("*/encoder.json")]
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("encoder.safetensors", "method.safetensors")
    }


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in this process; jobs get the environment of whoever submits them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, str]]:
    """The weights of `LONG`, trained once and without a stop."""
    runs = tmp_path_factory.mktemp("uninterrupted")

    def learned(images: Path) -> dict[str, str]:
        if not list(runs.iterdir()):
            words = [*LONG, "--data", str(images), "--runs-dir", str(runs), "--evals", "none"]
            assert cli.main(["run", *words]) == 0
        return weights(runs)

    return learned


def task(job: str) -> int:
    """The process of a job's first task."""
    shown = subprocess.run(["scontrol", "listpids", job], capture_output=True, text=True)
    rows = [line.split() for line in shown.stdout.splitlines()]
    [number] = [row[0] for row in rows if row[2:4] == ["0", "0"]]
    return int(number)


def test_array_with_a_cell_that_fails(image_folder: Path, tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "jobs"
    seeds = [cell(image_folder, runs, *SMALL, "--epochs", "1", "--seed", s) for s in ("0", "1")]
    broken = cell(image_folder, runs, *SMALL, "--epochs", "1", "--base-lr", "1e30")
    unlike = cell(image_folder, runs, *SMALL, "--epochs", "1", "--seed", "2", run="mae-images-x")
    cells = [seeds[0], broken, seeds[1], unlike[:1]]
    ids = clusters.submit(cells, "slurm", folder, ONE_CPU, "demo", limit=2)
    assert [len(stages) for stages in ids] == [2, 2, 2, 1]
    found = ended([each for stages in ids for each in stages], folder)
    assert [[found[each] for each in stages] for stages in ids] == [
        ["done", "done"],
        ["failed", "cancelled"],
        ["done", "done"],
        ["failed"],
    ]
    [line] = clusters.failure(ids[1][0], folder)
    assert line.startswith("ssl-bench: the loss is")
    [line] = clusters.failure(ids[3][0], folder)
    assert "not 'mae-images-x' as when it was submitted" in line
    scores = list(runs.glob("*/evals/knn-*/scores.json"))
    assert {path.parents[2].name.split("-")[2] for path in scores} == {"seed0", "seed1"}


def test_preempted_run_comes_out_the_same(
    image_folder: Path, tmp_path: Path, uninterrupted: Callable[[Path], dict[str, str]]
) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "jobs"
    all_cpus = ClusterSettings(time="10m", cpus=2, memory=MEMORY)
    long = cell(image_folder, runs, *LONG, evaluate=False)
    [[job]] = clusters.submit([long], "slurm", folder, all_cpus, "preempted")
    until(lambda: steps(runs), "training begins")
    urgent = ["sbatch", "-p", "high", "-c", "2", "--mem", "100M", "-o", "/dev/null"]
    subprocess.run([*urgent, "--wrap", "true"], check=True, capture_output=True)
    let_go(job, folder)
    assert "stopped by SIGUSR2" in clusters.log(job, folder).read_text()
    assert list(runs.glob("*/checkpoint.pt"))
    assert ended([job], folder) == {job: "done"}
    assert weights(runs) == uninterrupted(image_folder)


def test_time_limit_queues_the_job_again(image_folder: Path, tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "jobs"
    minute = ClusterSettings(time="1m", cpus=1, memory=MEMORY, slurm_options=("signal=USR2@25",))
    longer = cell(image_folder, runs, *SMALL, "--epochs", "3000", evaluate=False)
    [[job]] = clusters.submit([longer], "slurm", folder, minute, "time-limit")
    let_go(job, folder)
    reached = steps(runs)[-1]
    assert reached > 0
    until(lambda: len(list(runs.glob("*/environment.json"))) == 1, "there is a run")
    [run] = [path.parent for path in runs.glob("*/environment.json")]
    earlier = json.loads((run / "environment.json").read_text()).get("earlier", [])
    assert not earlier
    until(lambda: steps(runs)[-1] > reached, "it goes on")
    assert len(json.loads((run / "environment.json").read_text())["earlier"]) == 1
    recorded = steps(runs)
    assert recorded == sorted(set(recorded))
    clusters.cancel([job], folder)
    assert ended([job], folder) == {job: "cancelled"}


def test_sigterm_to_the_task_queues_it_again(
    image_folder: Path, tmp_path: Path, uninterrupted: Callable[[Path], dict[str, str]]
) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "jobs"
    long = cell(image_folder, runs, *LONG)
    [[job, after]] = clusters.submit([long], "slurm", folder, ONE_CPU, "term")
    until(lambda: steps(runs), "training begins")
    subprocess.run(["scancel", "--signal", "TERM", job], check=True)
    let_go(job, folder)
    assert clusters.states([after], folder) == {after: "pending"}
    assert ended([job, after], folder) == {job: "done", after: "done"}
    assert weights(runs) == uninterrupted(image_folder)


def test_killed_task_fails_and_goes_on_when_submitted_again(
    image_folder: Path, tmp_path: Path, uninterrupted: Callable[[Path], dict[str, str]]
) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "jobs"
    long = [cell(image_folder, runs, *LONG)]
    [[job, after]] = clusters.submit(long, "slurm", folder, ONE_CPU, "killed")
    until(lambda: steps(runs), "training begins")
    os.kill(task(job), signal.SIGKILL)
    assert ended([job, after], folder) == {job: "killed", after: "cancelled"}
    assert any("Killed" in line for line in clusters.failure(job, folder))
    [[job, after]] = clusters.submit(long, "slurm", folder, ONE_CPU, "again")
    assert ended([job, after], folder) == {job: "done", after: "done"}
    assert weights(runs) == uninterrupted(image_folder)


def test_cancelled_jobs_save_and_are_not_queued_again(image_folder: Path, tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "jobs"
    [[job, after]] = clusters.submit(
        [cell(image_folder, runs, *LONG)], "slurm", folder, ONE_CPU, "cancelled"
    )
    until(lambda: steps(runs), "training begins")
    clusters.cancel([job, after], folder)
    assert ended([job, after], folder) == {job: "cancelled", after: "cancelled"}
    assert list(runs.glob("*/checkpoint.pt"))
    until(lambda: not _processes(job), "its processes end")
    assert clusters.states([job], folder) == {job: "cancelled"}
    clusters.cancel([job, after], folder)  # once more does no harm


@pytest.mark.parametrize(
    "asked",
    [
        {"partition": "nowhere"},
        {"memory": "99999G"},
        {"account": "nobody", "slurm_options": ("gres=gpu:64",)},
        {"slurm_options": ("nodelist=nohost",)},
    ],
)
def test_refused_request_is_told_in_slurms_words(
    image_folder: Path, tmp_path: Path, asked: dict[str, object]
) -> None:
    cells = [cell(image_folder, tmp_path / "runs", *SMALL)]
    settings = ClusterSettings(time="10m", **asked)  # type: ignore[arg-type]
    with pytest.raises(slurm.Refused, match="sbatch: error: ") as refused:
        clusters.submit(cells, "slurm", tmp_path / "jobs", settings)
    assert refused.value.submitted == [[]]
    assert "\n" not in str(refused.value)


def test_controller_that_is_down_loses_nothing(image_folder: Path, tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "jobs"
    cells = [cell(image_folder, runs, *SMALL, "--epochs", "1")]
    home = Path(os.environ["SLURM_CONF"]).parent
    number = int((home / "slurmctld.pid").read_text())
    os.kill(number, 15)
    try:
        until(lambda: not Path(f"/proc/{number}").exists() or _is_zombie(number), "it is down")
        with pytest.raises(UserError, match=r"Slurm does not answer: .*DOWN"):
            clusters.submit(cells, "slurm", folder, ONE_CPU)
        assert set(clusters.states(["1_0"], folder).values()) == {"unknown"}
        with pytest.raises(UserError, match="does not answer"):
            clusters.cancel(["1_0"], folder)
    finally:
        subprocess.run([Path(__file__).with_name("up.sh")], check=True, capture_output=True)
    [ids] = clusters.submit(cells, "slurm", folder, ONE_CPU)
    assert ended(ids, folder) == dict.fromkeys(ids, "done")


def _is_zombie(number: int) -> bool:
    return "\nState:\tZ" in Path(f"/proc/{number}/status").read_text()


def _processes(job: str) -> Sequence[str]:
    shown = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True)
    return shown.stdout.split()


def test_two_tasks_of_one_job_train_together(image_folder: Path, tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "jobs"
    words = (*LONG, "--devices", "2")
    alone = [*words, "--data", str(image_folder), "--runs-dir", str(tmp_path / "alone")]
    started = [sys.executable, "-m", "ssl_bench", "run", *alone, "--evals", "none"]
    subprocess.run(started, check=True, capture_output=True)
    [both] = cell(image_folder, runs, *words, evaluate=False)
    both.devices = 2
    settings = ClusterSettings(time="10m", cpus=1, memory="6G")
    [[job]] = clusters.submit([[both]], "slurm", folder, settings, "ddp")
    until(lambda: steps(runs), "training begins")
    subprocess.run(["scancel", "--signal", "USR2", job], check=True)
    let_go(job, folder)
    assert ended([job], folder) == {job: "done"}
    assert weights(runs) == weights(tmp_path / "alone")
