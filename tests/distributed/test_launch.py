"""Commands that start one process for each device, or are one of several."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import forked
import pytest
import submitit
import torch
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from ssl_bench import cli
from ssl_bench.distributed import collectives, launcher, rendezvous
from ssl_bench.distributed import environment as places
from ssl_bench.errors import UserError
from ssl_bench.training import resume, training_state
from ssl_bench.utils.signals import Interrupted, raise_on_signal

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "here", "MASTER_PORT": "29500"}
SUBMITIT = {"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1"}
SUBMITIT |= {"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_JOB_ID": "77"}
SLURM = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "5"}
SLURM |= {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_ID": "0"}
SLURM |= {"SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_CPUS_PER_TASK": "3"}


def test_nobody_has_started_others() -> None:
    assert places.find({}, 2, 1) is None
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "5"}
    assert places.find(batch_script, 2, 1) is None  # no srun: there is one process
    assert places.find(SUBMITIT | {"SUBMITIT_LOCAL_NTASKS": "1"}, 2, 1) is None


def test_places_are_as_their_starters_say() -> None:
    by_torchrun = places.find(TORCHRUN, 2, 1)
    assert by_torchrun == places.DistributedEnvironment(1, 2, 1, 2, "here", 29500)
    by_submitit = places.find(SUBMITIT, 2, 1)
    assert by_submitit and by_submitit.address == "127.0.0.1"
    assert (by_submitit.rank, by_submitit.world) == (1, 2)
    by_slurm = places.find(SLURM, 2, 2)
    assert by_slurm and (by_slurm.rank, by_slurm.world) == (3, 4)
    assert (by_slurm.local_rank, by_slurm.local_world, by_slurm.threads) == (1, 2, 3)
    assert by_slurm.address == "gpu07"


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "problem"),
    [
        (TORCHRUN, 4, 1, "2 processes were started, 2 of them on this machine"),
        (SLURM, 4, 1, "--devices 2 --nodes 2 would match"),
        (SLURM | {"SLURM_PROCID": "2"}, 2, 2, "srun --distribution=block would work"),
    ],
)
def test_other_processes_than_asked_for_are_refused(
    environment: dict[str, str], devices: int, nodes: int, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        places.find(environment, devices, nodes)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("a", "a"), ("a,b", "a"), ("n[1-3]", "n1"), ("n[03,5]", "n03"), ("a,n[1-3]", "a")],
)
def test_the_first_host_is_rank_0s(hosts: str, first: str) -> None:
    place = places.find(SLURM | {"SLURM_STEP_NODELIST": hosts}, 2, 2)
    assert place and place.address == first


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1))
def test_every_process_of_a_job_meets_at_one_port(job: str) -> None:
    both = [
        places.find(SUBMITIT | {"SUBMITIT_LOCAL_JOB_ID": job, **own}, 2, 1)
        for own in ({}, {"SUBMITIT_LOCAL_GLOBALID": "0", "SUBMITIT_LOCAL_LOCALID": "0"})
    ]
    [port] = {place.port for place in both if place}
    assert 20000 <= port < 32000


def test_one_process_starts_no_other() -> None:
    done: list[int] = []
    assert launcher.on_devices(["run"], 1, 1, lambda: done.append(os.getpid())) == 0
    assert done == [os.getpid()]


def test_far_more_processes_than_cores_are_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def start(argv: list[str], count: int) -> int:
        started.append(count)
        return 0

    monkeypatch.setattr(launcher, "_start", start)
    assert launcher.on_devices(["run"], 4, 1, lambda: None) == 0
    with pytest.raises(UserError, match=r"--devices 64 .* --devices 2 would work"):
        launcher.on_devices(["run"], 64, 1, lambda: None)
    assert started == [4]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def signalled(number: int, seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.start()
    return timer


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_the_wait_for_others(rank: int) -> None:
    place = places.DistributedEnvironment(rank, 2, rank, 2, "127.0.0.1", free_port())
    with pytest.raises(Interrupted), raise_on_signal():
        signalled(signal.SIGTERM, 0.5)
        rendezvous.meet(place)


def test_all_meet_and_the_marker_says_so(tmp_path: Path) -> None:
    port, marker = free_port(), tmp_path / "met"
    both = [
        places.DistributedEnvironment(n, 2, n, 2, "127.0.0.1", port, marker=str(marker))
        for n in (1, 0)
    ]
    with ThreadPoolExecutor() as pool:
        second, first = (pool.submit(rendezvous.meet, place) for place in both)
        first.result(60).set("said", "so")
        assert second.result(60).get("said") == b"so"
    assert marker.exists()


def test_a_rank_that_leaves_early_tells_those_that_wait() -> None:
    port = free_port()
    orphan = places.DistributedEnvironment(
        1, 3, 1, 3, "127.0.0.1", port, parent=os.getpid()
    )  # which it is itself
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(
            rendezvous.meet, places.DistributedEnvironment(0, 3, 0, 3, "127.0.0.1", port)
        )
        leaving = pool.submit(rendezvous.meet, orphan)
        with pytest.raises(UserError, match="the command that started this process has ended"):
            leaving.result(60)
        with pytest.raises(UserError, match="process 1 ended before all had met"):
            waiting.result(60)


def starting(monkeypatch: pytest.MonkeyPatch, *codes: str) -> list[subprocess.Popen[bytes]]:
    """Let each process that `launcher` starts run its own line of Python; those it starts."""
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        code = codes[len(started)]
        started.append(real([sys.executable, "-c", code], **options))
        if "# signal" in code:
            signal.raise_signal(signal.SIGTERM)
        return started[-1]

    monkeypatch.setattr(launcher.subprocess, "Popen", popen)
    return started


SLEEP = "import time; time.sleep(100)"


def test_a_process_that_ends_before_all_met_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher, "_SECONDS_TO_MEET", 0.2)
    says = "import sys; print('stopped; the same command goes on', file=sys.stderr)"
    started = starting(monkeypatch, SLEEP, f"{says}; raise SystemExit(143)")
    with pytest.raises(UserError, match="process 1 of 2 ended with SIGTERM; the same command"):
        launcher.on_devices([], 2, 1, lambda: None)
    assert started[0].returncode == -signal.SIGKILL


def test_one_that_is_stopped_when_all_have_met_leaves_the_others_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher, "_SECONDS_TO_MEET", 0.0)
    saving = "import time; time.sleep(1); raise SystemExit(143)"
    meets = "import os; open(os.environ['SSL_BENCH_MARKER'], 'w'); raise SystemExit(143)"
    starting(monkeypatch, saving, meets)
    assert launcher.on_devices([], 2, 1, lambda: None) == 143


@pytest.mark.parametrize("codes", [(SLEEP + "  # signal", SLEEP), (SLEEP, SLEEP + "  # signal")])
def test_a_signal_among_the_starts_reaches_all(
    monkeypatch: pytest.MonkeyPatch, codes: tuple[str, str]
) -> None:
    started = starting(monkeypatch, *codes)
    with pytest.raises(Interrupted) as stopped:
        launcher.on_devices([], 2, 1, lambda: None)
    assert stopped.value.signal == signal.SIGTERM
    assert all(process.returncode for process in started)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGTERM, Interrupted),
        (signal.SIGUSR2, Interrupted),
        (signal.SIGINT, KeyboardInterrupt),
    ],
)
def test_processes_stopped_before_they_can_tell_count_as_stopped(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, error: type[BaseException]
) -> None:
    starting(monkeypatch, SLEEP, SLEEP)
    monkeypatch.setattr(launcher, "_wait", after_signal(number))
    with pytest.raises(error):
        launcher.on_devices([], 2, 1, lambda: None)


def after_signal(number: signal.Signals) -> Any:
    real = launcher._wait

    def wait(*arguments: Any) -> Any:
        signalled(number, 0.2)
        return real(*arguments)

    return wait


def test_ignored_signals_stay_ignored_while_processes_run() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        before = signal.getsignal(signal.SIGTERM)
        with launcher._forwarding([]):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGHUP, former)


def test_every_process_reads_the_checkpoint_that_the_first_one_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    monkeypatch.setattr(collectives, "on_rank_zero", lambda look: 4)
    with pytest.raises(UserError, match=r"process 1 does not see checkpoint .* of step 4"):
        training_state.read(tmp_path)
    resume.save(tmp_path / "checkpoint.pt", {"step": 4, "losses": torch.arange(3.0)})
    assert training_state.read(tmp_path)["losses"].tolist() == [0, 1, 2]
    monkeypatch.setattr(collectives, "on_rank_zero", lambda look: None)
    assert training_state.read(tmp_path) == {}


FAILING = """
\"\"\"Fails, as it is told.\"\"\"
import os, time
from dataclasses import dataclass
from torch import nn
from ssl_bench.distributed import collectives
from ssl_bench.transforms.augmentations import Augmentation
from ssl_bench.api import Method
from ssl_bench.errors import UserError
from ssl_bench.config.recipes import OptimizerConfig

@dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig):
    \"\"\"How to fail.\"\"\"
    fail: str = ""
    \"\"\"How.\"\"\"

class Pretraining(Method):
    def __init__(self, config, backbone, data):
        super().__init__(config, backbone, data)
        self.head = nn.Linear(backbone.embed_dim, 1)

    def transforms(self):
        return {"image": Augmentation(size=self.data.image_size, crop_scale=(0.2, 1.0))}

    def loss(self, batch, step):
        if collectives.world_size() == 2 and self.config.fail == "sleep":
            print("asleep", flush=True)
            time.sleep(100)
        if collectives.rank() == 1 and self.config.fail == "complain":
            raise UserError("image 7 cannot be read")
        if collectives.rank() == 1 and self.config.fail == "die":
            os.kill(os.getpid(), 9)
        return self.head(self.encoder.forward_features(batch.views["image"])).square().mean()
"""


@pytest.fixture
def command(tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """On the CPU, a run that trains in two processes; of a method that fails with ``--fail``."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "failing.py").write_text(FAILING)
    words = ["run", "--method", str(tmp_path / "failing.py"), "--data", str(image_folder)]
    words += ["--batch-size", "12", "--epochs", "1", "--precision", "fp32", "--evals", "knn"]
    words += ["--backbone", "vit_nano", "--runs-dir", str(tmp_path / "runs"), "--devices", "2"]
    return [sys.executable, "-m", "ssl_bench", *words]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def forking(words: list[str]) -> None:
    """A command whose processes are forked from it, in a process that has imported everything."""
    launcher.subprocess = forked.subprocess  # type: ignore[assignment]
    sys.exit(cli.main(words[3:]))


def only_folder(tmp_path: Path) -> Path:
    [folder] = [path.parent for path in (tmp_path / "runs").glob("failing-*/config.json")]
    return folder


def test_a_run_in_two_processes_speaks_with_one_voice(command: list[str], tmp_path: Path) -> None:
    done = run(command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("run folder:") == 1
    assert "2 processes (ddp)" in done.stdout
    folder = only_folder(tmp_path)
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["devices"], environment["nodes"]) == (2, 1)
    assert environment["strategy"] == "ddp"
    recorded = environment["command"]
    assert recorded[:2] == ["ssl-bench", "run"] and "--devices" in recorded
    output = tmp_path / "output.txt"
    process = forked.start(forking, [*command[:-2], "--devices", "1"], output=output)
    process.join(300)
    again = output.read_text()
    assert "pre-trained already: reused" in again  # the number is in no folder's name
    assert only_folder(tmp_path) == folder


@pytest.mark.parametrize(
    ("fail", "message"),
    [("complain", "image 7 cannot be read"), ("die", "another process was lost")],
)
def test_a_failure_of_one_process_ends_all_with_one_line(
    command: list[str], tmp_path: Path, fail: str, message: str
) -> None:
    errors = tmp_path / "errors.txt"
    process = forked.start(forking, [*command, "--fail", fail], errors=errors)
    process.join(300)
    assert process.exitcode == 2, errors.read_text()
    [line] = errors.read_text().splitlines()
    assert line.startswith("ssl-bench: ") and message in line
    failed = json.loads((only_folder(tmp_path) / "failed.json").read_text())
    assert message in failed["error"]


def children(pid: int) -> set[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(pid) for pid in found}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_command(
    command: list[str], tmp_path: Path, how: signal.Signals
) -> None:
    output = tmp_path / "output.txt"
    process = forked.start(forking, [*command, "--fail", "sleep"], output=output)
    try:
        until(lambda: output.exists() and "asleep\n" in output.read_text(), 300)
        started = children(process.pid)
        assert len(started) == 2
        os.kill(process.pid, how)
        if how == signal.SIGINT:  # the first one asks for the end of a step, which never comes
            time.sleep(1)
            os.kill(process.pid, how)
        process.join(60)
        assert process.exitcode == (130 if how == signal.SIGINT else -how)
        until(lambda: not any(is_running(pid) for pid in started), 30)
    finally:
        process.kill()


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def job(words: list[str]) -> int:
    """What a submitted job of two tasks does in each of them."""
    from ssl_bench.cli import main

    return main(words)


def test_the_tasks_of_a_submitted_job_are_the_processes(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(tasks_per_node=2, timeout_min=5)
    submitted = executor.submit(job, command[3:])
    assert submitted.results() == [0, 0]
    first, second = (submitted.task(number).stdout() or "" for number in (0, 1))
    assert "2 processes (ddp)" in first and "run folder" not in second
    assert (only_folder(tmp_path) / "encoder.json").exists()
