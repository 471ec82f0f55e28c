"""What a training costs, and trainings as long as a budget."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers
import pytest
import torch
from helpers import CPU, EXAMPLE_METHOD, METHODS, build, named, plan, train, weights
from torch.utils.flop_counter import FlopCounterMode

from ssl_bench.api import registry
from ssl_bench.api.method import Method, total
from ssl_bench.api.registry import Plugin
from ssl_bench.api.step import Step
from ssl_bench.cli import flags
from ssl_bench.data import Dataset
from ssl_bench.distributed import collectives
from ssl_bench.errors import UserError
from ssl_bench.experiment import preparation
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import budget, flops, pretrain, setup, training_state
from ssl_bench.utils.files import load_json

Call = Callable[..., tuple[int, str, str]]
EXAMPLE = registry.find("method", str(EXAMPLE_METHOD))


@pytest.mark.parametrize("plugin", METHODS, ids=named)
@pytest.mark.parametrize("batch_size", [3, 40])
def test_flops_are_those_of_the_step_itself(
    plugin: Plugin, spec: EncoderSpec, tiny: Dataset, batch_size: int
) -> None:
    spec = dataclasses.replace(spec, architecture=helpers.SHAPE)
    spec, tiny = helpers.fitting(plugin, spec, tiny)
    method = build(plugin, spec).train()
    if not method.trains:
        assert flops.of_step(method, spec, batch_size) == 0
        return
    before = {name: value.clone() for name, value in method.state_dict().items()}
    counted = flops.of_step(method, spec, batch_size)
    after = method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in method.parameters())
    method.before_training(tiny.train, 0)
    method.fixed_shapes = True  # as a GPU computes
    batch = setup.make_batch(method, tiny.train, spec, 0, 0, torch.arange(batch_size))
    with FlopCounterMode(display=False) as counter:
        total(method.loss(batch, helpers.FIRST_STEP)).backward()
    assert counted == counter.get_total_flops()


def test_flops_of_a_vision_transformer(spec: EncoderSpec) -> None:
    """Products of each layer, by hand: the backward pass takes twice the forward one, but for the
    images themselves, which need no gradient."""
    method = build(EXAMPLE, spec)
    width, depth, patches, pixels, batch = 128, 6, 16, 48, 7
    tokens = patches + 1
    linear = 2 * tokens * (3 * width**2 + width**2 + 2 * 4 * width**2)
    attention = 2 * 2 * tokens**2 * width
    embed, head = 2 * patches * pixels * width, 2 * patches * width * pixels
    expected = batch * (3 * (depth * (linear + attention) + head) + 2 * embed)
    assert flops.of_step(method, spec, batch) == expected
    assert flops.of_step(method, spec, 100 * batch) == 100 * expected


def test_flops_are_those_of_the_settings(spec: EncoderSpec) -> None:
    """Of two whose weights are alike, the one that hides fewer patches takes more."""
    mae = registry.find("method", "mae")
    configs = [dataclasses.replace(helpers.small(mae), mask_ratio=each) for each in (0.75, 0.5)]
    methods = [setup.build_method(mae.load_class(), each, spec, 3, 0) for each in configs]
    fewer, more = (flops.of_step(method, spec, 4) for method in methods)
    assert fewer < more


@pytest.mark.parametrize("name", ["mae", "mocov3"])
def test_snapshots_are_what_the_training_passed_through(
    name: str, spec: EncoderSpec, tiny: Dataset, tmp_path: Path
) -> None:
    """Writing them changes nothing, and each is the encoder of that step with its cost."""
    plugin = registry.find("method", name)
    plain = train(plugin, spec, tiny, tmp_path / "plain")
    method, what = build(plugin, spec), plan(plugin, spec, tiny)
    folder = tmp_path / "watched"
    folder.mkdir()
    states = {}
    after_step = method.after_optimizer_step

    def watch(step: Step) -> None:
        after_step(step)
        states[step.number + 1] = method.encoder.state_dict()["norm.weight"].clone()

    method.after_optimizer_step = watch  # type: ignore[method-assign]
    pretrain.pretrain(method, tiny, what, folder, CPU, snapshot_steps=[3, 6])
    assert weights(folder) == weights(plain)
    per_step = load_json(folder / "cost.json")["flops_per_step"]
    assert load_json(folder / "cost.json")["flops"] == 10 * per_step
    from safetensors.torch import load_file

    for step in (3, 6):
        home = pretrain.snapshot_folder(folder, step)
        assert torch.equal(load_file(home / "encoder.safetensors")["norm.weight"], states[step]), (
            step
        )
        cost = load_json(home / "cost.json")
        assert (cost["steps"], cost["images_seen"]) == (step, step * what.batch_size)
        assert cost["flops"] == step * per_step
        assert cost["seconds"] >= 0


def test_seconds_are_those_of_the_training_alone(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three devices; a step takes 2.25 seconds here, and writing an encoder a thousand."""
    plugin = registry.find("method", "mocov3")
    method, clock = build(plugin, spec), [0.0]
    after_step, snapshot = method.after_optimizer_step, pretrain._snapshot

    def take_time(step: Step) -> None:
        after_step(step)
        clock[0] += 2.25

    def take_long(*how: Any) -> None:
        snapshot(*how)
        clock[0] += 1000

    method.after_optimizer_step = take_time  # type: ignore[method-assign]
    monkeypatch.setattr(pretrain, "_snapshot", take_long)
    monkeypatch.setattr(pretrain, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    several = SimpleNamespace(**{**vars(collectives), "world_size": lambda: 3})
    monkeypatch.setattr(pretrain, "collectives", several)
    what = plan(plugin, spec, tiny)
    cost = pretrain.pretrain(method, tiny, what, tmp_path, CPU, snapshot_steps=[3, 6])
    assert (cost["seconds"], cost["devices"]) == (67.5, 3)
    for step in (3, 6):
        assert load_json(pretrain.snapshot_folder(tmp_path, step) / "cost.json")["seconds"] == (
            6.75 * step
        )
    *_, last = map(json.loads, (tmp_path / "metrics.jsonl").open())
    assert (last["step"], last["epoch"]) == (10, 2)
    assert last["images_per_second"] == round(helpers.BATCH / 2.25, 1)
    other = build(plugin, spec)
    encoder = sum(each.numel() for each in other.encoder.parameters())
    frozen = sum(each.numel() for each in other.parameters() if not each.requires_grad)
    assert cost["encoder_parameters"] == encoder <= frozen
    assert cost["trained_parameters"] == sum(p.numel() for p in other.parameters()) - frozen


def test_states_that_take_long_to_write_are_written_less_often(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 50 seconds here, and writing a state 30, of which 3 are quick."""
    plugin, clock, saved = registry.find("method", "mae"), [0.0], list[int]()
    method = build(plugin, spec)
    after_step = method.after_optimizer_step

    def take_time(step: Step) -> None:
        after_step(step)
        clock[0] += 50

    def slow(method: Method, own: Any, step: int, *rest: Any) -> None:
        saved.append(step)
        clock[0] += 30

    method.after_optimizer_step = take_time  # type: ignore[method-assign]
    monkeypatch.setattr(training_state, "save", slow)
    monkeypatch.setattr(pretrain, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    pretrain.pretrain(method, tiny, plan(plugin, spec, tiny), tmp_path, CPU)
    assert saved == [2], "the next one would be due after ten minutes"


def interrupted(method: Method) -> Method:
    """The method, which stops its training after two thirds."""
    after_step = method.after_optimizer_step

    def stop(step: Step) -> None:
        after_step(step)
        if (step.number + 1) / step.total > 0.65:
            raise KeyboardInterrupt

    method.after_optimizer_step = stop  # type: ignore[method-assign]
    return method


def test_an_interrupted_training_has_the_same_snapshots(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And has cost what it had cost before, at its end."""
    plugin = registry.find("method", "mae")
    what = plan(plugin, spec, tiny)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    save = training_state.save

    def save_as_long(method: Any, own: Any, step: int, seconds: float, *rest: Any) -> None:
        save(method, own, step, 1000.0, *rest)

    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    pretrain.pretrain(build(plugin, spec), tiny, what, whole, CPU, snapshot_steps=range(2, 10, 2))
    method = interrupted(build(plugin, spec))
    monkeypatch.setattr(training_state, "save", save_as_long)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(method, tiny, what, cut, CPU, snapshot_steps=range(2, 10, 2))
    method = build(plugin, spec)
    cost = pretrain.pretrain(method, tiny, what, cut, CPU, snapshot_steps=range(2, 10, 2))
    assert 1000 < cost["seconds"] < 1100
    later = load_json(pretrain.snapshot_folder(cut, 8) / "cost.json")
    assert 1000 <= later["seconds"] <= cost["seconds"]
    for step in range(2, 10, 2):
        files = [pretrain.snapshot_folder(f, step) / "encoder.safetensors" for f in (whole, cut)]
        assert files[0].read_bytes() == files[1].read_bytes()


def only(tmp_path: Path, pattern: str) -> Path:
    [folder] = (tmp_path / "runs").glob(pattern)
    return folder


def test_runs_matched_by_flops(run: Call, tmp_path: Path) -> None:
    """Another method trains as long as the first one's FLOPs pay for, to less than a step."""
    assert run("--method", "mae", "--epochs", 2)[0] == 0
    code, _, err = run("--method", "mocov3", "--match", "mae-images")
    assert code == 0, err
    ours = load_json(only(tmp_path, "mocov3-*") / "cost.json")
    theirs = load_json(only(tmp_path, "mae-*") / "cost.json")
    assert 0 <= theirs["flops"] - ours["flops"] < ours["flops_per_step"]
    assert ours["images_seen"] == 8 * ours["steps"]
    config = load_json(only(tmp_path, "mocov3-*") / "config.json")
    assert config["budget"] == {
        "match": only(tmp_path, "mae-*").name,
        "flops": theirs["flops"],
    }
    steps = [
        json.loads(line)["step"] for line in (only(tmp_path, "mocov3-*") / "metrics.jsonl").open()
    ]
    assert steps[-1] == ours["steps"]

    code, out, _ = run("--method", "mocov3", "--budget-flops", theirs["flops"])
    assert code == 0
    assert "reused" in out, "the same length under another name is the same run"


def test_a_budget_of_time_keeps_the_length_it_bought(
    run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the next measurement says, and for every seed: seeds of one thing are a group."""
    monkeypatch.setattr(budget, "seconds_per_step", lambda *_: 0.05)
    words = ("--method", "mae", "--budget-time", "0.32s")
    code, _, err = run(*words)
    assert code == 0, err
    first = only(tmp_path, "mae-*")
    assert load_json(first / "cost.json")["steps"] == 6
    assert load_json(first / "config.json")["budget"]["seconds"] == 0.32
    monkeypatch.setattr(budget, "seconds_per_step", lambda *_: 0.08)
    assert "reused" in run(*words)[1]
    assert only(tmp_path, "mae-*") == first
    assert run(*words, "--seed", 1)[0] == 0
    assert load_json(only(tmp_path, "mae-images-seed1-*") / "cost.json")["steps"] == 6
    assert run(*words, "--mask-ratio", 0.5)[0] == 0
    assert run(*words[:-1], "0.08s")[0] == 0, "another budget buys another length"
    steps = [load_json(path)["steps"] for path in (tmp_path / "runs").glob("mae-*/cost.json")]
    assert sorted(steps) == [1, 4, 6, 6]


def test_batches_of_another_size_buy_a_length_of_their_own(
    ssl_bench: Call, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data", image_folder, "--runs-dir", tmp_path / "runs", "--evals", "none"]
    words += ["--backbone", "vit_nano", "--budget-time", "0.32s", "--batch-size"]
    for batch_size, took in ((8, 0.05), (16, 0.08)):
        monkeypatch.setattr(budget, "seconds_per_step", lambda *_, took=took: took)
        code, _, err = ssl_bench("run", *words, batch_size)
        assert code == 0, err
    runs = [path.parent for path in (tmp_path / "runs").glob("mae-*/cost.json")]
    steps = {
        load_json(run / "config.json")["batch_size"]: load_json(run / "cost.json")["steps"]
        for run in runs
    }
    assert steps == {8: 6, 16: 4}


def test_the_time_of_a_step_is_the_median_of_those_after_the_first_two(
    spec: EncoderSpec, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = [5.0, 5.0, *[0.1] * 5, *[0.3] * 5]
    ticks = iter([0.0, *accumulate(each for second in took for each in (second, 0.0))])
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    plugin = registry.find("method", "mae")
    method = build(plugin, spec)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    found = budget.seconds_per_step(method, tiny, plan(plugin, spec, tiny), CPU)
    assert found == pytest.approx(0.2)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


def test_seconds_are_of_so_many_devices() -> None:
    settings: Any = SimpleNamespace(
        match="", budget_flops=None, budget_time="90s", budget_seconds=90.0, devices=2, nodes=3
    )
    assert budget._of(settings, "card") == {"seconds": 90.0, "device": "6 x card"}
    settings.devices = settings.nodes = 1
    assert budget._of(settings, "card") == {"seconds": 90.0, "device": "card"}


def test_evaluations_on_the_way(run: Call, tmp_path: Path) -> None:
    words = ("--epochs", 1, "--eval-every", 0.34, "--knn-neighbors", 3)
    code, out, err = run(*words)
    assert code == 0, err
    homes = sorted(only(tmp_path, "mae-*").glob("snapshots/*"))
    assert [home.name for home in homes] == ["step-00000002", "step-00000004"]
    for home in homes:
        [scores] = home.glob("evals/knn-*/scores.json")
        assert f"knn {load_json(scores)['scores']['top1']:.2f}" in out
    assert "reused" in run(*words[:2], "--eval-every", "34%", "--knn-neighbors", 3)[1]
    code, _, err = run(*words[:2], "--eval-every", 0.17)
    assert code == 2
    assert "trained without --eval-every 0.17" in err


def test_encoders_are_wanted_at_the_nearest_steps() -> None:
    settings = flags.parse_run(["--eval-every", "45%"]).settings
    short: Any = SimpleNamespace(batch_size=8, epochs=1)
    method: Any = SimpleNamespace(trains=True)
    data: Any = SimpleNamespace(train=range(48))
    steps = preparation.snapshot_steps(settings, short, method, data)
    assert steps == [3, 5], "2.7 and 5.4 of 6"


def test_an_encoder_that_the_training_has_passed_is_not_promised(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = registry.find("method", "mae")
    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    method = interrupted(build(plugin, spec))
    what = plan(plugin, spec, tiny)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(method, tiny, what, tmp_path, CPU)
    for passed in (2, 6):  # the last one that is saved included
        with pytest.raises(UserError, match=f"step {passed} is wanted on the way.* at step 6 "):
            steps = [passed, 9]
            pretrain.pretrain(build(plugin, spec), tiny, what, tmp_path, CPU, snapshot_steps=steps)
    pretrain.pretrain(build(plugin, spec), tiny, what, tmp_path, CPU, snapshot_steps=[9])
    assert (pretrain.snapshot_folder(tmp_path, 9) / "encoder.json").exists()


def test_peak_memory_is_the_training_s_own() -> None:
    """What was held and given back before is not counted. In a process whose memory is fresh."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system cannot forget a peak")
    done = subprocess.run(
        [sys.executable, "-c", _PEAKS], capture_output=True, text=True, check=True, timeout=120
    )
    before, large, forgotten, small = map(float, done.stdout.split())
    assert large > before + 280
    assert forgotten < before + 50
    assert forgotten + 90 < small < forgotten + 150


_PEAKS = """
import torch
from ssl_bench.distributed.device import Hardware, peak_memory_mib

cpu = Hardware(torch.device("cpu"), "fp32", "test")
print(peak_memory_mib(cpu.device))
held = torch.ones(300 * 2**18)
print(peak_memory_mib(cpu.device))
del held
cpu.reset_peak_memory()
print(peak_memory_mib(cpu.device))
held = torch.ones(100 * 2**18)
print(peak_memory_mib(cpu.device))
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget-flops", "1"], "less than the"),
        (["--budget-flops", "0"], "--budget-flops 0"),
        (["--budget-flops", "inf"], "--budget-flops inf"),
        (["--budget-time", "soon"], "'soon' is no time such as 90s"),
        (["--budget-time", "1:30"], "1m30s or 1h30m would work"),
        (["--budget-time", "0s"], "--budget-time 0"),
        (["--budget-flops", "1e9", "--match", "x"], "one will do"),
        (["--epochs", "3", "--match", "x"], "--epochs and --match"),
        (["--match", "nothing"], "no run in"),
        (["--epochs", "nan"], "epochs nan"),
        (["--eval-every", "0.01"], "less than a step"),
        (["--eval-every", "-1"], "--eval-every -1"),
        (["--eval-every", "often"], "--eval-every 'often'"),
        (["--epochs", "1", "--eval-every", "1%"], "less than a step"),
        (["--eval-every-with", "k-nn"], "did you mean 'knn'?"),
    ],
)
def test_impossible_budgets_are_refused(
    run: Call, tmp_path: Path, words: list[str], message: str
) -> None:
    code, _, err = run(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not list((tmp_path / "runs").glob("mae-*/encoder.json"))


def test_a_run_without_flops_cannot_be_matched(run: Call, tmp_path: Path) -> None:
    run("--epochs", 1)
    run("--method", "random-init")
    path = only(tmp_path, "mae-*") / "cost.json"
    path.write_text(json.dumps({k: v for k, v in load_json(path).items() if k != "flops"}))
    assert "not counted when" in run("--method", "mocov3", "--match", "mae-images")[2]
    assert "trains nothing" in run("--method", "mocov3", "--match", "random-init")[2]


def test_a_failed_run_says_why_until_it_starts_again(run: Call, tmp_path: Path) -> None:
    words = ("--base-lr", 1e30, "--warmup", 0, "--epochs", 3)
    code, _, err = run(*words)
    assert code == 2
    folder = only(tmp_path, "mae-*")
    assert load_json(folder / "failed.json")["error"] in err
