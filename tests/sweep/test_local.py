"""Cells of local workers: what runs, fails, is killed, cancelled, or loses its worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
from helpers import ROOT, stored

from ssl_bench.cli import flags
from ssl_bench.errors import UserError
from ssl_bench.sweep import jobs
from ssl_bench.sweep.backends import clusters, local, records
from ssl_bench.sweep.jobs import Job

WORKER = """
import sys
from pathlib import Path
from ssl_bench.sweep.backends import local

local.command_of = lambda job, path: [sys.executable, *job.config["args"]]
local.Worker(Path(sys.argv[1]), int(sys.argv[2]), 1, "")()
"""
"""A worker whose stages are any Python programs."""
GOOD = ("-c", "print('fine')")
BAD = ("-c", "raise SystemExit('ssl-bench: no such thing')")
KILLED = ("-c", "import os; os.kill(os.getpid(), 9)")
SLEEPING = (
    "-c",
    "import pathlib, signal, sys, time\n"
    "def end(number, frame):\n"
    "    pathlib.Path('saved').touch()\n"
    "    sys.exit(128 + number)\n"
    "signal.signal(signal.SIGTERM, end)\n"
    "signal.signal(signal.SIGUSR2, end)\n"
    "print('asleep', flush=True)\n"
    "time.sleep(600)",
)


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


class Workers:
    """Workers of one batch, as processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def submit(self, *cells: Sequence[Sequence[str]], workers: int = 1) -> list[list[str]]:
        names = ("pretrain", "evaluate")
        made = [
            [
                Job({"args": args}, stage=name, cwd=str(self.folder))
                for name, args in zip(names, stages, strict=False)
            ]
            for stages in cells
        ]
        batch = records.new_batch(self.folder, "local", made)
        for number in range(workers):
            self.start(batch.folder, number)
        return batch.ids()

    def start(self, batch: Path, number: int = 0) -> None:
        command = [sys.executable, "-c", WORKER, str(batch), str(number)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.processes.append(subprocess.Popen(command, env=environment))
        until((batch / f"worker-{number}.lock").exists, "the worker begins")

    def state(self, stage: str) -> str:
        """As another process sees it."""
        return clusters.states([stage], self.folder)[stage]

    def await_state(self, stage: str, state: str) -> None:
        until(lambda: self.state(stage) == state, f"{stage} is {state}")

    def asleep(self, stage: str) -> None:
        log = clusters.log(stage, self.folder)
        until(lambda: log.exists() and "asleep" in log.read_text(), f"{stage} sleeps")

    def wait(self) -> None:
        for process in self.processes:
            process.wait(60)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    found = Workers(tmp_path)
    yield found
    for process in found.processes:
        process.kill()
        process.wait()


def children(process: subprocess.Popen[bytes]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in found.split()]


def test_a_cell_that_fails_fails_alone(workers: Workers) -> None:
    ids = workers.submit([GOOD, GOOD], [BAD, GOOD], [GOOD, KILLED], [GOOD])
    workers.wait()
    found = clusters.states([each for stages in ids for each in stages], workers.folder)
    assert [[found[each] for each in stages] for stages in ids] == [
        ["done", "done"],
        ["failed", "cancelled"],
        ["done", "killed"],
        ["done"],
    ]
    assert clusters.failure(ids[1][0], workers.folder) == ["ssl-bench: no such thing"]
    assert clusters.failure(ids[1][1], workers.folder) == ["its pretrain failed"]
    [line] = clusters.failure(ids[2][1], workers.folder)
    assert line.startswith("killed by SIGKILL")
    assert clusters.failure(ids[0][0], workers.folder) == []
    assert "fine" in clusters.log(ids[0][0], workers.folder).read_text()


def test_workers_share_the_cells(workers: Workers) -> None:
    step = "import time; time.sleep(0.3)"
    ids = workers.submit(*[[("-c", step)] for _ in range(6)], workers=2)
    workers.wait()
    assert set(clusters.states([one for [one] in ids], workers.folder).values()) == {"done"}
    starts = [records.read(workers.folder / one) for [one] in ids]
    assert [record and record.starts for record in starts] == [1] * 6


def test_killed_worker_loses_its_cell(workers: Workers) -> None:
    [[running, later]] = workers.submit([SLEEPING, GOOD])
    workers.asleep(running)
    assert workers.state(running) == "running"
    assert workers.state(later) == "pending"
    workers.processes[0].kill()
    workers.await_state(running, "lost")
    assert workers.state(later) == "lost"


def test_another_worker_takes_the_cell_of_one_that_was_killed(workers: Workers) -> None:
    once = (
        "-c",
        "import pathlib, time\n"
        "first = not pathlib.Path('begun').exists()\n"
        "pathlib.Path('begun').touch()\n"
        "print('asleep', flush=True)\n"
        "time.sleep(600 * first)",
    )
    [[stage]] = workers.submit([once])
    workers.asleep(stage)
    [orphan] = children(workers.processes[0])
    workers.processes[0].kill()
    workers.await_state(stage, "lost")
    os.kill(orphan, signal.SIGKILL)
    workers.start((workers.folder / stage).parent, number=1)
    workers.await_state(stage, "done")


def test_child_that_is_stopped_alone_goes_on(workers: Workers) -> None:
    twice = (
        "-c",
        "import os, pathlib, signal\n"
        "if not pathlib.Path('begun').exists():\n"
        "    pathlib.Path('begun').touch()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)",
    )
    [[stage]] = workers.submit([twice])
    workers.wait()
    assert workers.state(stage) == "done"
    record = records.read(workers.folder / stage)
    assert record and record.starts == 2


def test_child_that_is_stopped_again_and_again_fails(workers: Workers) -> None:
    stopped = ("-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    [[stage]] = workers.submit([stopped])
    workers.wait()
    assert workers.state(stage) == "failed"
    assert clusters.failure(stage, workers.folder) == ["killed by SIGTERM"]


def test_cancelled_stages_save_and_others_go_on(workers: Workers) -> None:
    ids = workers.submit([SLEEPING, GOOD], [GOOD], [GOOD])
    workers.asleep(ids[0][0])
    clusters.cancel([*ids[0], *ids[2]], workers.folder)
    workers.wait()
    found = clusters.states([each for stages in ids for each in stages], workers.folder)
    assert list(found.values()) == ["cancelled", "cancelled", "done", "cancelled"]
    assert (workers.folder / "saved").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_that_is_told_to_stop_has_its_cell_save(
    workers: Workers, number: signal.Signals
) -> None:
    ids = workers.submit([SLEEPING], [GOOD])
    workers.asleep(ids[0][0])
    workers.processes[0].send_signal(number)
    workers.wait()
    assert workers.state(ids[0][0]) == "cancelled"
    assert workers.state(ids[1][0]) == "lost"
    assert number == signal.SIGINT or (workers.folder / "saved").exists()


def test_second_batch_waits_for_the_first(workers: Workers) -> None:
    [[first]] = workers.submit([SLEEPING])
    workers.asleep(first)
    [[second]] = workers.submit([GOOD])
    time.sleep(0.5)
    assert workers.state(second) == "pending"
    clusters.cancel([first], workers.folder)
    workers.await_state(second, "done")


def test_recycled_process_number_is_not_taken_for_ours(tmp_path: Path) -> None:
    batch = records.new_batch(tmp_path, "local", [[Job({"args": GOOD})]])
    [[stage]] = batch.ids()
    content = json.loads((batch.folder / "batch.json").read_text())
    content["processes"] = [os.getpid()]
    (batch.folder / "batch.json").write_text(json.dumps(content))
    assert clusters.states([stage], tmp_path) == {stage: "lost"}


def test_submitted_workers_outlive_who_submits_them(tmp_path: Path) -> None:
    """With a config that is wrong, so that it is quick."""
    script = (
        "import sys; from pathlib import Path; from ssl_bench.sweep.backends import clusters\n"
        "from ssl_bench.sweep.jobs import Job\n"
        "cells = [[Job({'method': 'odd'}), Job({}, stage='evaluate')]] * 2\n"
        "ids = clusters.submit(cells, 'local', Path(sys.argv[1]), limit=2)\n"
        "print(*[each for stages in ids for each in stages])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    ids = done.stdout.split()
    assert len(ids) == 4
    until(lambda: not clusters.ACTIVE & set(clusters.states(ids, tmp_path).values()), "they end")
    found = clusters.states(ids, tmp_path)
    assert list(found.values()) == ["failed", "cancelled"] * 2
    [line] = clusters.failure(ids[0], tmp_path)
    assert line.startswith("ssl-bench: ") and "config" in line
    assert records.read(tmp_path / ids[0]).exit_code == 2  # type: ignore[union-attr]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux to tell of deaths")
def test_training_saves_when_its_worker_is_killed_and_goes_on(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = ("--backbone", "vit_nano", "--patch-size", "4", "--epochs", "40", "--batch-size", "8")
    words = ["--data", str(image_folder), *small, "--evals", "none", "--runs-dir"]
    runs, folder = tmp_path / "runs", tmp_path / "jobs"

    def submit() -> tuple[str, Any]:
        batch = records.new_batch(folder, "local", [[Job(stored(*words, runs))]])
        process = forked.start(worker, batch.folder)
        until((batch.folder / "worker-0.lock").exists, "the worker begins")
        [[stage]] = batch.ids()
        return stage, process

    stage, process = submit()
    until(lambda: any(p.read_text() for p in runs.glob("*/metrics.jsonl")), "training begins")
    process.kill()
    until(lambda: clusters.states([stage], folder) == {stage: "lost"}, "the worker is gone")
    until(lambda: list(runs.glob("*/checkpoint.pt")), "the training saves")
    stage, process = submit()
    process.join(60)
    assert clusters.states([stage], folder) == {stage: "done"}, "it goes on to its end"
    jobs.perform(flags.parse_run([*words, str(tmp_path / "alone")]))
    learned = [
        next(path.glob("*/encoder.safetensors")).read_bytes() for path in (runs, tmp_path / "alone")
    ]
    assert learned[0] == learned[1]


def worker(batch: Path) -> None:
    """A worker whose stages are forked from it."""
    local.subprocess = forked.subprocess  # type: ignore[assignment]
    local.Worker(batch, 0, 1, "")()


def test_cells_here_and_now(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--backbone", "vit_nano", "--patch-size", "4", "--epochs", "1", "--batch-size", "16")
    words = [*small, "--data", str(image_folder), "--runs-dir", str(tmp_path / "runs")]
    odd = {**stored(*words), "method_config": {"mask_ratio": 2}}
    cells = [
        [
            Job(stored(*words, "--evals", "none")),
            Job(stored(*words, "--evals", "knn"), stage="evaluate"),
        ],
        [Job(odd), Job(odd, stage="evaluate")],
        [Job(stored(*words, "--evals", "none"), run="mae-images-seed0-00000000")],
    ]
    ids = clusters.submit(cells, "debug", tmp_path / "jobs")
    found = clusters.states([each for stages in ids for each in stages], tmp_path / "jobs")
    assert list(found.values()) == ["done", "done", "failed", "cancelled", "failed"]
    assert "--mask-ratio 2" in capsys.readouterr().err
    assert "not 'mae-images-seed0-00000000'" in clusters.failure(ids[2][0], tmp_path / "jobs")[0]
    assert list((tmp_path / "runs").glob("*/evals/knn-*/scores.json"))


def test_local_cluster_is_one_machine(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nodes 2: the local cluster is this machine"):
        clusters.submit([[Job({"args": GOOD}, nodes=2)]], "local", tmp_path)


def test_gpus_are_those_that_a_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, MIG-7")
    assert local.visible_gpus() == ["2", "MIG-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.visible_gpus() == []


def test_stage_as_a_program_tells_by_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.main(["", "nothing.json"]) == 2
    assert capsys.readouterr().err.startswith("ssl-bench: ")
