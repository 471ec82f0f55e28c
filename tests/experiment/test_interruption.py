"""Signals and kills at any moment: nothing is lost that changes a result."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from signal import Signals
from tempfile import TemporaryDirectory
from typing import Any

import forked
import numpy as np
import pytest
import torch
from helpers import CPU, SHAPE, build, plan, train, write_images
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from ssl_bench import errors
from ssl_bench.api import optimizers, registry
from ssl_bench.api.method import Method
from ssl_bench.api.registry import Plugin
from ssl_bench.api.step import Step
from ssl_bench.data import Dataset
from ssl_bench.evaluation import runner
from ssl_bench.evaluation.features import Encoder
from ssl_bench.models import backbones, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs import run_folder, schema
from ssl_bench.training import budget, pretrain, resume
from ssl_bench.training.resume import EvalCheckpoint
from ssl_bench.utils import locks, signals
from ssl_bench.utils.files import load_json
from ssl_bench.utils.signals import Interrupted, defer_signals, raise_on_signal

Call = Callable[..., tuple[int, str, str]]
Whole = Callable[[str], tuple[dict[str, Any], float]]
ALL = (Signals.SIGTERM, Signals.SIGUSR2, Signals.SIGHUP, Signals.SIGINT)
SCHEDULER = (Signals.SIGTERM, Signals.SIGUSR2, Signals.SIGHUP)  # and a terminal that is closed
LONG: dict[str, Any] = {
    "deadline": None,
    "phases": [Phase.explicit, Phase.generate],  # to shrink takes minutes
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


_UNSTOPPED: dict[str, Any] = {}
"""What trainings and evaluations come to that nothing stops, by name: alike for every example."""


@pytest.fixture(scope="session")
def spec(tiny: Dataset) -> EncoderSpec:
    """No larger than what is asserted needs."""
    return EncoderSpec("vit_micro", 16, 4, 3, tiny.mean, tiny.std, SHAPE)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers of somebody else, which must be there again after every test."""
    before = {number: signal.getsignal(number) for number in ALL}
    theirs = {number: lambda *_: None for number in SCHEDULER}
    for number, handler in theirs.items():
        signal.signal(number, handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    now = {number: signal.getsignal(number) for number in ALL}
    for number, former in before.items():
        signal.signal(number, former)
    assert now == {**theirs, Signals.SIGINT: signal.default_int_handler}


@pytest.mark.parametrize("number", SCHEDULER)
def test_heeded_signal_stops_wherever_the_program_is(number: Signals) -> None:
    with pytest.raises(Interrupted) as stopped, raise_on_signal():
        signal.raise_signal(number)
        pytest.fail("went on")
    assert stopped.value.signal == number
    signal.raise_signal(number)  # theirs again: nothing happens


def test_an_import_that_a_signal_breaks_is_a_stop() -> None:
    with pytest.raises(Interrupted) as stopped, raise_on_signal():
        try:
            signal.raise_signal(signal.SIGUSR2)
        except Interrupted:
            raise ImportError("cannot load module more than once per process") from None
    assert stopped.value.signal == signal.SIGUSR2
    with pytest.raises(KeyboardInterrupt), raise_on_signal():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise AttributeError("half of a module") from None
    with pytest.raises(ImportError), raise_on_signal():
        raise ImportError("nobody asked")


def test_a_training_goes_on_without_its_records(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = registry.find("method", "mae")
    what = plan(plugin, spec, tiny)
    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    method = build(plugin, spec)

    def stop(step: Step) -> None:
        if (step.number + 1) / step.total > 0.5:
            raise KeyboardInterrupt

    method.after_optimizer_step = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(method, tiny, what, tmp_path, CPU)
    (tmp_path / "metrics.jsonl").unlink()
    pretrain.pretrain(build(plugin, spec), tiny, what, tmp_path, CPU)
    first, *_ = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first)["step"] > 1


def test_a_wish_that_is_lost_is_found_at_the_next_step() -> None:
    with pytest.raises(Interrupted), raise_on_signal():
        with contextlib.suppress(Interrupted):  # as Python does with what a destructor raises
            signal.raise_signal(signal.SIGTERM)
        with defer_signals() as wanted:
            assert wanted() == signal.SIGTERM


def test_the_same_wish_does_not_interrupt_what_it_causes() -> None:
    cleaned = False
    with pytest.raises(Interrupted), raise_on_signal():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned = True
    assert cleaned


def test_a_later_wish_counts_where_the_first_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_REQUEST", 0.0)
    with pytest.raises(Interrupted), raise_on_signal():
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)


@given(noted=st.lists(st.sampled_from(SCHEDULER)))
def test_deferred_signals_are_noted_and_raised_in_the_end(noted: list[Signals]) -> None:
    reached = False
    try:
        with raise_on_signal(), defer_signals() as wanted:
            assert wanted() is None
            for number in noted:
                signal.raise_signal(number)
                assert wanted() == noted[0]
            reached = True
    except Interrupted as stopped:
        assert stopped.signal == noted[0]
    else:
        assert not noted
    assert reached


def test_deferred_interrupt_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), defer_signals() as wanted:
        signal.raise_signal(signal.SIGINT)
        assert wanted() == signal.SIGINT


def test_a_second_interrupt_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), defer_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the same wish
        reached.append("twice at once")
        monkeypatch.setattr(signals, "_SAME_REQUEST", 0.0)
        signal.raise_signal(signal.SIGINT)
        reached.append("thrice")
    assert reached == ["twice at once"]


def test_an_interrupt_after_a_stop_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_REQUEST", 0.0)
    with pytest.raises(KeyboardInterrupt), defer_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")


def test_what_was_raised_for_a_noted_signal_is_kept() -> None:
    with pytest.raises(Interrupted, match="step 3"), defer_signals() as wanted:
        signal.raise_signal(signal.SIGTERM)
        number = wanted()
        assert number
        raise signals.error_of(number, "step 3 is saved")


def test_a_failure_does_not_hide_a_noted_signal() -> None:
    """Whoever goes on after failures must not go on after a stop."""
    with pytest.raises(Interrupted) as stopped, defer_signals():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("no number")
    assert isinstance(stopped.value.__cause__, ValueError)


def test_what_is_ignored_stays_ignored() -> None:
    for number in SCHEDULER:  # such as SIGHUP under nohup
        former = signal.signal(number, signal.SIG_IGN)
        try:
            with raise_on_signal(), defer_signals() as wanted:
                signal.raise_signal(number)
                assert wanted() is None
        finally:
            signal.signal(number, former)


def test_other_threads_change_nothing() -> None:
    found: list[object] = []

    def work() -> None:
        with raise_on_signal(), defer_signals() as wanted:
            found.extend([*map(signal.getsignal, ALL), wanted()])

    before = [*map(signal.getsignal, ALL), None]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == before


@given(
    name=st.sampled_from(["mae", "mae", "mocov3"]),
    stops=st.lists(st.tuples(st.sampled_from(ALL), st.integers(1, 4)), min_size=1, max_size=4),
)
@settings(max_examples=5, **LONG)
def test_a_training_stopped_at_any_steps_is_the_same(
    spec: EncoderSpec, tiny: Dataset, name: str, stops: list[tuple[Signals, int]]
) -> None:
    """Its weights, and its records: a mean over steps before and after a stop is of all of them."""
    plugin = registry.find("method", name)
    with TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "_RECORDS_PER_RUN", 3)
        if name not in _UNSTOPPED:
            whole = train(plugin, spec, tiny, Path(home) / "whole")
            _UNSTOPPED[name] = result_of(whole), {path.name for path in whole.iterdir()}
        folder = Path(home) / "stopped"
        folder.mkdir()
        for number, steps in stops:
            with contextlib.suppress(Interrupted, KeyboardInterrupt):
                train_into_signal(plugin, spec, tiny, folder, steps, number)
        pretrain.pretrain(build(plugin, spec), tiny, plan(plugin, spec, tiny), folder, CPU)
        assert (result_of(folder), {path.name for path in folder.iterdir()}) == _UNSTOPPED[name]


def raises_after(method: Method, steps: int, number: Signals) -> None:
    """Have a method's training get a signal during that step of the process."""
    after_step, left = method.after_optimizer_step, iter(range(steps - 1, -1, -1))

    def after(step: Step) -> None:
        after_step(step)
        if next(left, -1) == 0:
            signal.raise_signal(number)

    method.after_optimizer_step = after  # type: ignore[method-assign]


def train_into_signal(
    plugin: Plugin, spec: EncoderSpec, data: Dataset, folder: Path, steps: int, number: Signals
) -> None:
    """Train, or go on, with a signal during that step of the process, which it raises."""
    method = build(plugin, spec)
    raises_after(method, steps, number)
    pretrain.pretrain(method, data, plan(plugin, spec, data), folder, CPU)


def test_a_stop_says_what_is_saved(spec: EncoderSpec, tiny: Dataset, tmp_path: Path) -> None:
    plugin = registry.find("method", "mae")
    with pytest.raises(Interrupted, match="step 3 of 10 is saved"):
        train_into_signal(plugin, spec, tiny, tmp_path, 3, Signals.SIGUSR2)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3


def test_a_signal_during_the_last_step_loses_nothing(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path
) -> None:
    plugin = registry.find("method", "mae")
    whole, folder = train(plugin, spec, tiny, tmp_path / "whole"), tmp_path / "stopped"
    folder.mkdir()
    with pytest.raises(Interrupted):
        train_into_signal(plugin, spec, tiny, folder, 10, Signals.SIGTERM)
    pretrain.pretrain(build(plugin, spec), tiny, plan(plugin, spec, tiny), folder, CPU)
    assert result_of(folder) == result_of(whole)


def test_a_signal_while_the_weights_are_written_waits(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = registry.find("method", "mae")
    save = weights.save

    def interrupted(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        save(*arguments)

    monkeypatch.setattr(weights, "save", interrupted)
    with pytest.raises(Interrupted):
        pretrain.pretrain(build(plugin, spec), tiny, plan(plugin, spec, tiny), tmp_path, CPU)
    assert schema.is_trained(tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "name,flags",
    [
        ("finetune", {"epochs": 1, "batch_size": 30}),
        ("partial-finetune", {"epochs": 1, "batch_size": 30, "blocks": (0.0, 1.0)}),
        ("linear-paper", {"epochs": 2, "batch_size": 40}),
    ],
)
@given(stops=st.lists(st.integers(1, 6), max_size=8))
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_an_evaluation_stopped_at_any_steps_is_the_same(
    name: str, flags: dict[str, Any], spec: EncoderSpec, tiny: Dataset, stops: list[int]
) -> None:
    plugin = registry.find("eval", name)
    config = plugin.config(**flags)
    with TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        folders = [Path(home) / "whole", Path(home) / "stopped"]
        for folder in folders:
            folder.mkdir()
            weights.save(backbones.build(spec, 0), spec, folder)

        def scores_of(folder: Path) -> tuple[Any, ...]:
            arguments = ({plugin: config}, tiny, 0, CPU, folder / "runs", False)
            with raise_on_signal():
                [record] = runner.evaluate_run(folder, *arguments)
            [scores] = folder.glob("evals/*/scores.json")
            predictions = np.load(scores.parent / "predictions.npz")["predictions"].tolist()
            # Scores of few images are often the same; the weights behind them are not.
            states = [torch.load(path) for path in sorted(folder.rglob("*.pt"))]
            trained = [digest_of(state["model"]) for state in states]
            assert trained
            return record["scores"], record["baselines"], predictions, trained

        patch.setattr(EvalCheckpoint, "remove", lambda scratch: None)
        if name not in _UNSTOPPED:
            _UNSTOPPED[name] = scores_of(folders[0])
        set_learning_rate, left = optimizers.set_learning_rate, [0]

        def set_and_signal(*arguments: Any) -> None:
            set_learning_rate(*arguments)
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGUSR2)

        patch.setattr(optimizers, "set_learning_rate", set_and_signal)
        for stop in stops:
            left[0] = stop
            with contextlib.suppress(Interrupted):
                scores_of(folders[1])
        left[0] = 0
        assert scores_of(folders[1]) == _UNSTOPPED[name]


def test_a_stopped_evaluation_goes_on_where_it_was(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start takes at least a step further, however little time there is."""
    plugin = registry.find("eval", "finetune")
    config = plugin.config(epochs=2, batch_size=30)
    encoder = Encoder(backbones.build(spec, 0), spec, CPU, 0)
    taken: list[float] = []
    set_learning_rate = optimizers.set_learning_rate

    def set_and_signal(*arguments: Any) -> None:
        set_learning_rate(*arguments)
        taken.append(arguments[1])
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(optimizers, "set_learning_rate", set_and_signal)
    starts = 0
    while starts < 20:
        starts += 1
        encoder.scratch = EvalCheckpoint(tmp_path)
        with contextlib.suppress(Interrupted):
            plugin.load_class()(config).evaluate(encoder, tiny)
            break
    assert (len(taken), starts) == (8, 9)


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names and values; a file of the same tensors need not have the same bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def result_of(folder: Path) -> dict[str, Any]:
    """All that must not depend on interruptions: weights, records, cost, scores, predictions."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found[str(path.relative_to(folder))] = digest_of(load_file(path))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    found["records"] = [[r[n] for n in ("step", "epoch", "loss", "learning_rate")] for r in records]
    cost = load_json(folder / "cost.json")
    found["cost"] = [cost[n] for n in ("steps", "images_seen", "flops", "flops_per_step")]
    for path in sorted(folder.glob("evals/*/scores.json")):
        record = load_json(path)
        own = {n: record.get(n) for n in ("scores", "baselines", "chosen", "config", "protocol")}
        found[path.parent.name] = own
        predictions = np.load(path.parent / "predictions.npz")
        found[path.parent.name + " predictions"] = predictions["predictions"].tolist()
    return found


@pytest.fixture
def run(ssl_bench: Call, image_folder: Path, tmp_path: Path) -> Call:
    """A training of six steps in this process, without evaluations."""

    def call(*words: object) -> tuple[int, str, str]:
        return ssl_bench(
            *("run", "--data", image_folder, "--runs-dir", tmp_path / "runs", "--batch-size", 8),
            *("--backbone", "vit_nano", "--evals", "none", "--precision", "fp32", *words),
        )

    return call


@pytest.mark.parametrize(
    "number,code,how",
    [
        (Signals.SIGTERM, 143, "stopped by SIGTERM"),
        (Signals.SIGUSR2, 128 + Signals.SIGUSR2, "stopped by SIGUSR2"),
        (Signals.SIGHUP, 129, "stopped by SIGHUP"),
        (Signals.SIGINT, 130, "interrupted"),
    ],
)
def test_a_stop_is_one_line_and_an_exit_code(
    run: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: Signals,
    code: int,
    how: str,
) -> None:
    with monkeypatch.context() as patch:
        signal_during_step(patch, 2, number)
        found, _, err = run("--epochs", 1)
    saved = "step 2 of 6 is saved; the same command resumes from there"
    assert (found, err) == (code, f"ssl-bench: {how}; {saved}\n")
    assert schema.state(only_run(tmp_path)) == "unfinished"
    assert run("--epochs", 1)[0] == 0
    steps = [json.loads(line)["step"] for line in (only_run(tmp_path) / "metrics.jsonl").open()]
    assert steps == [1, 2, 3, 4, 5, 6]


def signal_during_step(patch: pytest.MonkeyPatch, step: int, number: Signals) -> None:
    """Have the first training of this process get a signal."""
    set_learning_rate, left = optimizers.set_learning_rate, iter(range(step - 1, -1, -1))

    def set_and_signal(*arguments: Any) -> None:
        set_learning_rate(*arguments)
        if next(left, None) == 0:
            signal.raise_signal(number)

    patch.setattr(optimizers, "set_learning_rate", set_and_signal)


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"
WRITER = (
    "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"
)
ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
)


@pytest.mark.parametrize(
    ("where", "error", "hint"),
    [
        ("models.weights.save_file", SafetensorError(FULL), "disk"),
        ("training.resume.torch.save", RuntimeError(WRITER), "disk"),
        ("models.weights.save_file", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "disk"),
        ("api.optimizers.set_learning_rate", RuntimeError(ALLOCATOR), "out of memory; a smaller"),
    ],
)
def test_want_of_room_is_told_in_one_line(
    run: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: Exception,
    hint: str,
) -> None:
    """And once there is room, the same command goes on."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(f"ssl_bench.{where}", fail)
        code, _, err = run("--epochs", 1)
    assert (code, err.count("\n")) == (2, 1), err
    assert hint in err
    assert not list(tmp_path.rglob("*.tmp"))
    assert schema.state(only_run(tmp_path)) == "failed"
    assert run("--epochs", 1)[0] == 0


@pytest.mark.parametrize("size", [10**12, 10**17, 10**20])
def test_want_of_memory_names_what_is_set_too_high(run: Call, size: int) -> None:
    words = ("--method", "simclr", "--proj-hidden-dim", size, "--proj-output-dim", 64)
    code, _, err = run(*words)
    assert (code, err.count("\n")) == (2, 1), err
    assert f"a smaller --proj-hidden-dim ({size} now, 512 in preset quick)" in err
    assert "--proj-output-dim" not in err


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (RuntimeError("unexpected pos 704 vs 598"), "disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "file"), "'file'"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of GPU memory"),
        (RuntimeError("CUDA error: out of memory"), "out of GPU memory"),
        (RuntimeError("shape mismatch"), None),
        (SafetensorError("Error while deserializing header: invalid"), None),
        (KeyError("disk"), None),
    ],
)
def test_errors_of_room_are_known_and_bugs_are_not(error: Exception, hint: str | None) -> None:
    line = errors.in_one_line(error)
    assert (line is None) == (hint is None)
    assert hint is None or hint in str(line)
    assert not line or "\n" not in line


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Whatever writes: torch, safetensors and numpy tell it in ways of their own."""
    program = f"""
import resource, sys
from pathlib import Path
import torch
from ssl_bench import errors
from ssl_bench.evaluation import runner
from ssl_bench.models import backbones, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import resume
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
home, many = Path({str(tmp_path)!r}), torch.rand(10**6)
spec = EncoderSpec("vit_nano", 16, 4, 3, (0.5,) * 3, (0.2,) * 3)
for write in (
    lambda: resume.save(home / "x.pt", {{"many": many}}),
    lambda: runner._save_arrays(home / "x.npz", {{"many": many.numpy()}}),
    lambda: weights.save(backbones.build(spec, 0), spec, home),
):
    try:
        write()
        sys.exit("written")
    except Exception as error:
        print(errors.in_one_line(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("disk") == 3, done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("again", [False, True], ids=["removed", "replaced"])
@pytest.mark.parametrize("during", ["api.optimizers.set_learning_rate", "evaluation.gate.admit"])
def test_a_folder_that_is_removed_is_no_success(
    ssl_bench: Call,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    during: str,
    again: bool,
) -> None:
    """In training or evaluation; and nothing is left that looks like a run."""
    runs_dir = tmp_path / "runs"
    module, name = during.rsplit(".", 1)
    original = getattr(importlib.import_module(f"ssl_bench.{module}"), name)

    def remove(*arguments: Any) -> Any:
        if list(runs_dir.glob("*/config.json")):
            run_name = only_run(tmp_path).name
            shutil.rmtree(runs_dir)
            if again:
                (runs_dir / run_name).mkdir(parents=True)
        return original(*arguments)

    monkeypatch.setattr(f"ssl_bench.{during}", remove)
    code, out, err = ssl_bench(
        *("run", "--data", image_folder, "--runs-dir", runs_dir, "--batch-size", 8, "--epochs", 1),
        *("--backbone", "vit_nano", "--evals", "knn", "--precision", "fp32"),
    )
    assert code == 2, (out, err)
    assert err.count("\n") == 1
    assert "/runs/mae-" in err
    assert "run folder:" not in out
    assert not list(runs_dir.glob("*/config.json"))
    assert runs_dir.exists() == again


def only_run(tmp_path: Path) -> Path:
    [path] = (tmp_path / "runs").glob("*/config.json")
    return path.parent


@pytest.mark.parametrize("part", ["", "evals/knn-x", "features", "snapshots/step-1/evals/y"])
def test_what_a_killed_writer_left_is_removed(run: Call, tmp_path: Path, part: str) -> None:
    """By the next process that locks the folder; nothing else is, nor in a folder in use."""
    assert run("--epochs", 1)[0] == 0
    home = only_run(tmp_path) / part
    home.mkdir(parents=True, exist_ok=True)
    left = [home / ".checkpoint.pt.123-0123abcd.tmp", home / ".a.b.99-00000000.tmp"]
    theirs = [home / ".mine.tmp", home / "x.1-01234567.tmp", tmp_path / "runs" / left[0].name]
    stale = only_run(tmp_path) / "checkpoint.pt"
    for path in (*left, *theirs, stale):
        path.touch()
    with run_folder.locked(tmp_path / "runs" / only_run(tmp_path).name):
        for path in (*left, stale):
            assert not path.exists()
            path.touch()
        assert run("--epochs", 1)[0] == 2
        assert all(path.exists() for path in (*left, stale))
    assert run("--epochs", 1)[0] == 0
    assert not any(path.exists() for path in (*left, stale))
    assert all(path.exists() for path in theirs)


def test_records_that_are_not_whole_are_made_again(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path
) -> None:
    plugin = registry.find("method", "mae")
    whole, folder = train(plugin, spec, tiny, tmp_path / "whole"), tmp_path / "stopped"
    folder.mkdir()
    with contextlib.suppress(Interrupted):
        train_into_signal(plugin, spec, tiny, folder, 2, Signals.SIGTERM)
    with (folder / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b'{"step": 3}\n{"step": 1}\0\n\0\0\n\xff\n{"step": 1, "lo')
    pretrain.pretrain(build(plugin, spec), tiny, plan(plugin, spec, tiny), folder, CPU)
    assert result_of(folder) == result_of(whole)


def test_a_file_system_without_locks_is_named(
    run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    code, _, err = run("--epochs", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert f"the file system of '{tmp_path}/runs/" in err
    assert "has no locks (Function not implemented)" in err


@pytest.mark.parametrize("command", ["run", "eval"])
def test_wait_waits(
    ssl_bench: Call, run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """For one that is training the run, too, and then says what it made."""
    monkeypatch.setattr(locks, "_SECONDS_TO_LOOK", -1.0)
    assert run("--epochs", 1)[0] == 0
    folder = only_run(tmp_path)
    made, hidden = folder / "encoder.json", folder / "encoder.hidden"
    made.rename(hidden)
    held, asked = threading.Event(), threading.Event()

    def other() -> None:
        with run_folder.locked(folder):
            held.set()
            asked.wait(60)
            hidden.rename(made)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(60)
    sleep = time.sleep

    def wait(seconds: float) -> None:
        asked.set()
        sleep(seconds)

    monkeypatch.setattr(locks.time, "sleep", wait)
    words = {
        "run": lambda *more: run("--epochs", 1, *more),
        "eval": lambda *more: ssl_bench("eval", folder, "--evals", "knn", *more),
    }
    assert words[command]()[0] == 2
    code, out, err = words[command]("--wait")
    thread.join()
    assert code == 0, err
    assert "waiting for another process" in err
    assert command == "eval" or "reused" in out


def test_processes_that_began_together_buy_one_length(
    run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each measures its own second; the run is the one of who is first."""
    prices = iter([0.08, 0.05])

    def measure(*_: object) -> float:
        own = next(prices)
        if own == 0.08:
            assert run("--budget-time", "0.32s")[0] == 0
        return own

    monkeypatch.setattr(budget, "seconds_per_step", measure)
    code, out, err = run("--budget-time", "0.32s")
    assert code == 0, err
    assert "reused" in out
    assert load_json(only_run(tmp_path) / "cost.json")["steps"] == 6


def test_a_stop_while_a_second_is_measured_leaves_nothing(
    run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "seconds_per_step", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert run("--budget-time", "9s")[0] == 143
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "took,expected", [(0.1, 60.0), (3.0, 60.0), (30.0, 600.0), (300.0, 6000.0)]
)
def test_writing_states_takes_a_twentieth_of_the_time(took: float, expected: float) -> None:
    assert resume.pause(60.0, took) == expected


STEPS = {"--epochs": 6, "--batch-size": 16, "--precision": "fp32", "--backbone": "vit_nano"}
COMMANDS = {
    "mae": ("--evals", "finetune", "--finetune-epochs", 3, "--finetune-batch-size", 16),
    "mocov3": ("--evals", "linear-paper", "--linear-paper-epochs", 5),
}


def command(words: list[str], is_slow: bool) -> None:
    """A process of its own: a command that writes its states after every step.

    Args:
        is_slow: at writing files, so that what comes at random comes then.
    """
    from ssl_bench import cli

    pretrain.SECONDS_BETWEEN_CHECKPOINTS = resume.SECONDS_BETWEEN_STATES = 0.0
    if is_slow:
        save, replace = torch.save, Path.replace

        def slow_save(content: Any, path: Path) -> None:
            save(content, path)
            written = path.read_bytes()
            for end in (len(written) // 2, len(written)):
                path.write_bytes(written[:end])
                time.sleep(0.01)

        def slow_replace(path: Path, target: Path) -> Path:
            time.sleep(0.01)
            replaced = replace(path, target)
            time.sleep(0.01)
            return replaced

        torch.save, Path.replace = slow_save, slow_replace  # type: ignore[assignment]
    os._exit(cli.main(words))


class Trial:
    """The command line on a few images, in processes that can be killed."""

    def __init__(self, home: Path, images: Path) -> None:
        self.home, self.images = home, images

    def start(self, method: str, runs_dir: str, *more: object, is_slow: bool = False) -> Any:
        flags = {"--method": method, "--data": self.images, "--runs-dir": self.home / runs_dir}
        words = [*itertools.chain(*(flags | STEPS).items()), *COMMANDS[method], *more]
        said = self.home / "errors.txt"
        return forked.start(command, ["run", *map(str, words)], is_slow, output=said, errors=said)

    def finish(self, process: Any) -> int:
        process.join(120)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode

    def run(self, *arguments: Any, **options: Any) -> int:
        return self.finish(self.start(*arguments, **options))

    def said(self) -> str:
        path = self.home / "errors.txt"
        return path.read_text() if path.exists() else ""

    def result(self, runs_dir: str) -> dict[str, Any]:
        """Of the only run, nothing of whose making may be left, and of its baselines."""
        [config] = (self.home / runs_dir).glob("*/config.json")
        left = [*config.parent.parent.rglob("*.tmp"), *config.parent.parent.rglob("*.pt")]
        assert not left
        baselines = (self.home / runs_dir).glob("baselines/*/evals/*/scores.json")
        return result_of(config.parent) | {
            path.parent.name + " baseline": load_json(path)["scores"] for path in baselines
        }


@pytest.fixture
def trial(tmp_path: Path, image_folder: Path) -> Trial:
    return Trial(tmp_path, image_folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What a method's run comes to that nothing interrupts, and how many seconds it takes."""
    home = tmp_path_factory.mktemp("whole")
    trial = Trial(home, write_images(home / "images"))
    trial.finish(forked.start(int))  # what all are forked from is there once this has ended

    @functools.cache
    def result(method: str) -> tuple[dict[str, Any], float]:
        started = time.monotonic()
        assert trial.run(method, method) == 0, trial.said()
        return trial.result(method), time.monotonic() - started

    return result


@pytest.mark.parametrize("method", COMMANDS)
def test_a_run_killed_at_random_moments_is_the_same(
    trial: Trial, whole: Whole, method: str
) -> None:
    """By whatever signal, several times in a row, while files are written too."""
    moments = random.Random(method)
    expected, seconds = whole(method)
    ways = {-9: Signals.SIGKILL, 143: Signals.SIGTERM, 129: Signals.SIGHUP, 130: Signals.SIGINT}
    codes = []
    for kill in range(4):
        process = trial.start(method, "killed", is_slow=True)
        process.join(moments.uniform(0.1, seconds))
        number = list(ways.values())[kill % 4]
        if process.is_alive():
            os.kill(process.pid, number)
        code = trial.finish(process)
        # A signal that comes before the command listens ends the process as it ends any.
        assert ways.get(code, -code) in (number, 0), trial.said()
        codes.append(code)
    assert trial.run(method, "killed", is_slow=True) == 0, trial.said()
    assert trial.result("killed") == expected
    assert "Traceback" not in trial.said()
    assert set(codes) != {0}


def test_three_processes_make_one_run(trial: Trial, whole: Whole) -> None:
    processes = [trial.start("mae", "raced") for _ in range(3)]
    codes = sorted(map(trial.finish, processes))
    assert codes[0] == 0
    assert set(codes) <= {0, 2}
    assert trial.said().count("in use by another process; wait for it") == codes.count(2)
    assert "Traceback" not in trial.said()
    assert trial.result("raced") == whole("mae")[0]


def test_who_waits_reuses_what_the_other_has_made(trial: Trial, whole: Whole) -> None:
    processes = [trial.start("mae", "raced", "--wait") for _ in range(3)]
    assert list(map(trial.finish, processes)) == [0, 0, 0], trial.said()
    assert trial.said().count("FLOPs, ") == 1, "one of the three trains"
    assert trial.said().count("reused") == 2
    assert trial.result("raced") == whole("mae")[0]


def test_runs_share_a_baseline_that_both_make_at_once(trial: Trial) -> None:
    """Two runs under two seeds of masks alone would; here, two mask ratios."""
    processes = [trial.start("mae", "raced", "--mask-ratio", ratio) for ratio in (0.5, 0.75)]
    assert list(map(trial.finish, processes)) == [0, 0], trial.said()
    [baseline] = (trial.home / "raced/baselines").iterdir()
    assert len(list(baseline.glob("evals/finetune-*/scores.json"))) == 1
