"""The benchmark compares like with like, and reports what it measured."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import timm.layers
import torch
from PIL import Image
from torch import nn

from benchmarks import __main__ as command
from benchmarks import (
    contestants,
    evaluations,
    gate,
    gpu_check,
    machine,
    plain,
    recorded,
    report,
    results,
    rounds,
    training,
    with_lightly,
)
from benchmarks.cases import AUGMENTED, CASES, CPU_CASES, GROWTH, METHOD_CASES, Case
from benchmarks.contestants import (
    CONTESTANTS,
    ON_CPU,
    ON_CPU_FP32,
    ON_GPU,
    ON_GROWTH,
    ON_GROWTH_FP32,
    ON_METHODS,
    ON_METHODS_FP32,
    Contestant,
    step_of,
)
from benchmarks.results import Measured
from ssl_bench.cli import flags
from ssl_bench.errors import UserError
from ssl_bench.training import setup

CPU = torch.device("cpu")
SMALL = {
    "mae": Case("mae", 48, 2, 3, 16, 4, 4, decoder=(32, 1, 4)),
    "mocov3": Case("mocov3", 48, 2, 3, 16, 4, 4, projector=(64, 32)),
    **{case.method: replace(
           case, width=48, depth=2, image_size=16, batch_size=4, projector=(64, 32)
       ) for case in METHOD_CASES.values()},
}  # fmt: skip
RUNNABLE = [
    name for name, each in CONTESTANTS.items() if not each.compile and not each.obstacle(CPU)
]


@pytest.fixture(autouse=True)
def settings_of_contestants_end_here() -> Iterator[None]:
    """timm's switch for fused attention is global, and each contestant sets it."""
    yield
    timm.layers.set_fused_attn(False)


@pytest.mark.parametrize("method", SMALL)
def test_contestants_compute_the_same_loss(method: str) -> None:
    names = RUNNABLE if method in ("mae", "mocov3") else [*ON_METHODS_FP32]
    found = gate.losses(SMALL[method], names, CPU)
    assert [*found] == names and {"ours-fp32", "plain", "lightly"} <= {*found}
    assert all(loss != 0 for loss in found.values())


def test_who_computes_another_loss_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    error = plain.masked_error
    monkeypatch.setattr(plain, "masked_error", lambda *arguments: 1.01 * error(*arguments))
    with pytest.raises(gate.Differs, match="plain PyTorch, fp32 computes a loss of"):
        gate.losses(SMALL["mae"], ["ours-fp32", "plain"], CPU)


def test_who_leaves_out_part_of_the_backward_pass_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss is right, but only one of the two ways has a gradient."""
    contrast = plain.contrast
    calls: list[int] = []

    def half(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return contrast(query.detach() if len(calls) % 2 else query, key)

    monkeypatch.setattr(plain, "contrast", half)
    with pytest.raises(gate.Differs, match="gradient that is off"):
        gate.losses(SMALL["mocov3"], ["plain"], CPU)


def test_the_gate_stands_before_every_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def differs(*arguments: Any) -> None:
        raise gate.Differs("plain PyTorch, fp32 computes something else")

    def never(*arguments: Any, **named: Any) -> dict[str, float]:
        raise AssertionError("it was timed")

    monkeypatch.setattr(gate, "losses", differs)
    monkeypatch.setattr(rounds, "in_process", never)
    for part in ("training", "growth"):
        assert command.main([part, "--output", str(tmp_path)]) == 2
        assert "computes something else; no time counts" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["ours-fp32", "plain-bf16-no-data"])
@pytest.mark.parametrize("method", SMALL)
def test_a_step_trains(method: str, name: str) -> None:
    step = step_of(CONTESTANTS[name], SMALL[method], CPU)
    losses = [step().item() for _ in range(3)]
    assert len(set(losses)) == 3 and all(map(math.isfinite, losses))


@pytest.mark.parametrize("name", ["plain", "lightly"])
@pytest.mark.parametrize("method", SMALL)
def test_others_views_have_the_cases_sizes(method: str, name: str) -> None:
    case = SMALL[method]
    picture = Image.new("RGB", (16, 16))
    transform = (plain.transforms if name == "plain" else with_lightly.transform)(case)(picture)
    views = list(transform) if isinstance(transform, list | tuple) else [transform]
    sizes = case.view_sizes[: 1 if case.takes_one_view else None]
    assert [tuple(view.shape) for view in views] == [(3, size, size) for size in sizes]


def test_an_epoch_of_pictures_keeps_all_workers_busy() -> None:
    case = CASES["gpu-mae-b16-224"]
    pictures = contestants._Pictures(case, lambda picture: picture.size)
    assert len(pictures) // case.batch_size >= 32
    assert pictures[len(pictures) - 1] == (224, 224)


def test_ours_is_measured_as_it_is_used_and_counted_unrecorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captured: list[Any] = []

    def take(self: setup.Trainer, *given: Any) -> Any:
        captured.append(self.captured)
        return {"loss": torch.zeros(())}, 0.0

    prepare = setup.prepare
    recording: Any = "a recording"

    def with_recording(*given: Any) -> setup.Trainer:
        return replace(prepare(*given), captured=recording)

    monkeypatch.setattr(setup, "prepare", with_recording)
    monkeypatch.setattr(setup.Trainer, "take", take)
    monkeypatch.setattr(setup.Trainer, "batches", lambda self, steps: iter([()]))
    for is_recorded in (True, False):
        step_of(CONTESTANTS["ours-fp32"], SMALL["mae"], CPU, is_recorded)()
    assert captured == [recording, None]


def test_a_training_is_measured() -> None:
    found = training.measure(asdict(SMALL["mae"]), "plain-bf16-no-data", 0.05, started=0.0)
    assert found["images_per_second"] > 0 and found["steps"] >= 3
    assert found["peak_mib"] > 50 and found["seconds_to_first_step"] > 0


def test_a_steps_products_are_all_of_its_operations() -> None:
    """Against the sum written out for two linear layers, forward and backward."""
    layers = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    inputs = torch.randn(5, 8)
    flop, products = machine.count(lambda: layers(inputs).sum().backward())
    forward = 2 * 5 * (8 * 16 + 16 * 4)
    assert flop == forward + 2 * 5 * (8 * 16 + 2 * 16 * 4), "the input needs no gradient"
    assert flop == sum(
        times * 2 * math.prod(first[0]) * second[0][-1]
        for (first, second), times in products.items()
    )
    assert machine.product_rate(products, CPU, sweeps=1) > 0
    assert machine.product_rate({}, CPU) == 0


def rounds_of(*speeds: float, key: str = "images_per_second") -> list[dict[str, float]]:
    rest = {"seconds_to_first_step": 2.0, "peak_mib": 1500.0, "steps": 9}
    return [{key: speed, **rest} for speed in speeds]


def measured(work: Mapping[str, Mapping[str, float]] | None = None) -> Measured:
    about = {"date": "2000-01-01", "commit": "abc"}
    found = {"ours": rounds_of(200, 400, 300), "plain": rounds_of(100, 100, 300)}
    return Measured(about, found, work or {})


def test_report_has_medians_and_ratios_round_by_round(tmp_path: Path) -> None:
    path = results.path_of(tmp_path / "speed", "Some CPU, 2 threads")
    work = {"gflop_per_image": 2.0, "product_gflops_per_second": 800.0}
    results.save(path, "Some CPU, 2 threads", {
        "training": {"mae-ti4-32": measured({"plain": work})},
        "growth": {
            each.name: Measured({}, {"ours": rounds_of(50), "plain-bf16-unfused": rounds_of(25)})
            for series in GROWTH.values() for each in series.values()
        },
        "augment": {"mae-32": Measured({}, {"ours": rounds_of(500), "torchvision": rounds_of(99)})},
    })  # fmt: skip
    page = report.write(path)
    text = page.read_text()
    assert page.name == "some-cpu-2-threads.md"
    row = "| plain PyTorch, fp32 | 100.0 (100.0-300.0) | 2.00 (1.00-4.00) | 1,500 | 2.0 | 200 | 25%"
    assert row in text
    assert "date 2000-01-01; commit abc" in text
    assert "| 0.9 | 20.00 | 1,500 | 40.00 | 1,500 | 2.00 (2.00-2.00) |" in text
    assert "| 5.05 (5.05-5.05) |" in text
    pictures = sorted(path.parent.glob("*.png"))
    assert [each.stem.rpartition("-")[2] for each in pictures] == ["augment", "growth", "training"]
    assert all(f"({each.name})" in text and each.stat().st_size > 5000 for each in pictures)


def test_a_share_above_all_there_is_is_not_shown(tmp_path: Path) -> None:
    path = results.path_of(tmp_path, "cpu")
    work = {"gflop_per_image": 2.0, "product_gflops_per_second": 150.0}
    results.save(path, "cpu", {"training": {"mae-ti4-32": measured({"plain": work})}})
    text = report.write(path).read_text()
    assert "133%" not in text and "not measured: the machine was disturbed" in text


def run_on_some_cpu(monkeypatch: pytest.MonkeyPatch, has_bf16: bool = True) -> None:
    """Whatever the tests run on."""
    monkeypatch.setattr("ssl_bench.distributed.device._cpu_name", lambda: "Some CPU")
    monkeypatch.setattr("ssl_bench.distributed.device._cpu_info", lambda: "amx_bf16" * has_bf16)


def test_parts_accumulate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pretend(function: str, **arguments: Any) -> dict[str, float]:
        return {"images_per_second": 1000.0 if arguments["name"] == "ours" else 100.0}

    monkeypatch.setattr(rounds, "in_process", pretend)
    monkeypatch.setattr(machine, "matrix_rate", lambda device: {"float32": 1.0})
    run_on_some_cpu(monkeypatch)
    path = results.path_of(tmp_path, "Some CPU")
    results.save(path, "Some CPU", {"training": {"mae-ti4-32": measured()}})
    assert command.main(["augment", "--rounds", "2", "--output", str(tmp_path)]) == 0
    found = results.load(path)
    assert found["training"]["mae-ti4-32"] == measured()
    assert found["augment"].keys() == AUGMENTED.keys()
    about = found["augment"]["mae-32"].about
    assert about["rounds"] == 2 and about["date"] and about["commit"] and about["torch"]
    text = path.with_suffix(".md").read_text()
    assert "## Training" in text and "10.00 (10.00-10.00)" in text


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize(
    ("part", "cases", "in_bf16", "in_fp32"),
    [
        ("training", ["mae-ti4-32", "mocov3-ti4-32"], ON_CPU, ON_CPU_FP32),
        ("methods", [*METHOD_CASES], ON_METHODS, ON_METHODS_FP32),
        (
            "growth",
            [*{case.name for series in GROWTH.values() for case in series.values()}],
            ON_GROWTH,
            ON_GROWTH_FP32,
        ),
    ],
)
def test_everybody_trains_in_a_precision_that_the_machine_has(
    part: str, cases: Collection[str], in_bf16: Sequence[str], in_fp32: Sequence[str],
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    run_on_some_cpu(monkeypatch, has_bf16)
    speeds = {"ours": 30.0, "ours-fp32": 20.0}

    def pretend(function: str, contestant: str, **arguments: Any) -> dict[str, float]:
        if function.endswith("work"):
            return {"gflop_per_image": 1.0, "product_gflops_per_second": 100.0}
        return rounds_of(speeds.get(contestant, 5.0))[0]

    monkeypatch.setattr(rounds, "in_process", pretend)
    monkeypatch.setattr(machine, "matrix_rate", lambda device: {"float32": 1.0})
    monkeypatch.setattr(gate, "losses", lambda *arguments: {"ours": 1.0})
    monkeypatch.setattr(Contestant, "obstacle", lambda *arguments: None)
    assert command.main([part, "--rounds", "1", "--output", str(tmp_path)]) == 0
    path = results.path_of(tmp_path, "Some CPU" if has_bf16 else "Some CPU, in fp32")
    found = results.load(path)[part]
    assert found.keys() == {*cases}
    names = in_bf16 if has_bf16 else in_fp32
    assert all((*measured.rounds,) == (*names,) for measured in found.values())
    assert has_bf16 or {CONTESTANTS[name].precision for name in names} == {"fp32"}
    text = path.with_suffix(".md").read_text()
    ratio = "6.00 (6.00-6.00)" if has_bf16 else "4.00 (4.00-4.00)"
    if part == "growth":  # a row for each value of each series
        assert text.count(ratio) == sum(map(len, GROWTH.values()))
    else:
        assert text.count(f"| lightly, fp32 | 5.0 (5.0-5.0) | {ratio} |") == len(cases)
    if part == "methods":
        assert "share" not in text.partition("## Training of other methods")[2]


@pytest.mark.parametrize("has_bf16", [True, False])
def test_only_what_the_machine_has_is_multiplied(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on_some_cpu(monkeypatch, has_bf16)
    monkeypatch.setattr(machine, "_seconds", lambda *arguments: 2.0)
    assert [*machine.matrix_rate(CPU)] == ["float32", "bfloat16"][: 1 + has_bf16]


def test_stable_pretraining_says_which_methods_are_put_together() -> None:
    with pytest.raises(UserError, match="not 'byol'"):
        CONTESTANTS["stable-pretraining"].build(SMALL["byol"])


def test_lightlys_own_factor_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss of SimCLR is half of the paper's."""
    from benchmarks import with_lightly

    compare = with_lightly.Views.compare
    monkeypatch.setattr(with_lightly.Views, "compare", lambda *given: compare(*given) / 2)
    with pytest.raises(gate.Differs, match="lightly, fp32 computes a loss of"):
        gate.losses(SMALL["simclr"], ["lightly"], CPU)


@pytest.mark.parametrize("name", ["plain-bf16-no-data", "lightly"])
def test_a_queue_takes_the_newest_keys(name: str) -> None:
    model = CONTESTANTS[name].build(SMALL["moco"])
    views = tuple(torch.randn(4, 3, 16, 16) for _ in range(2))
    for _ in range(2):
        model.loss(views, torch.empty(4, 0))
    method = model.method
    queue = method.loss.memory_bank.bank if name == "lightly" else method.queue
    [keys] = method.project(views[1:], method.momentum_encoder, method.momentum_projector)
    keys = nn.functional.normalize(keys, dim=1)
    torch.testing.assert_close(queue[:8], torch.cat([keys, keys]))
    assert not torch.allclose(queue[8:12], keys)


def test_who_fails_is_left_out_and_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(name: str) -> dict[str, float]:
        if name == "bad":
            raise rounds.Failed("no memory")
        return {"images_per_second": 1.0}

    found = rounds.in_turn(["good", "bad"], 2, measure)
    assert {name: len(each) for name, each in found.items()} == {"good": 2}
    assert capsys.readouterr().out.count("bad is left out: no memory") == 1


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(rounds.Failed, match="KeyError"):
        rounds.in_process("benchmarks.augmenting:measure", name="ours", seconds=1.0, case="nope")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["speed"], "unknown part 'speed'"),
        (["--cases", "mae-xxl"], "unknown case 'mae-xxl'"),
        (["--contestants", "theirs"], "unknown contestant 'theirs'"),
        (["tables", "--contestants", "theirs"], "unknown contestant 'theirs'"),
        (["--rounds", "0"], "rounds must be above 0, not 0"),
        (["--seconds", "-1"], "seconds must be above 0, not -1.0"),
    ],
)
def test_mistakes_end_with_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_broken_results_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_on_some_cpu(monkeypatch)
    path = results.path_of(tmp_path, "Some CPU")
    path.write_text('{"about": {}}')
    with pytest.raises(UserError, match="holds no results"):
        results.load(path)
    assert command.main(["augment", "--output", str(tmp_path)]) == 2
    assert path.read_text() == '{"about": {}}'
    assert capsys.readouterr().err.count("\n") == 1


def test_names_hold_together() -> None:
    assert {*ON_CPU, *ON_CPU_FP32, *ON_GPU, *ON_METHODS, *ON_METHODS_FP32} <= CONTESTANTS.keys()
    assert ON_CPU[0] == ON_GPU[0] == "ours"
    cases = [case for series in GROWTH.values() for case in series.values()]
    assert len({case.name for case in cases}) == len({*cases}), "one name for each case"
    assert CPU_CASES.keys() < CASES.keys()


def test_obstacles_are_told() -> None:
    missing = replace(CONTESTANTS["plain"], needs=("no_such_package",))
    assert missing.obstacle(CPU) == "no_such_package is not installed"
    assert CONTESTANTS["plain-fp16"].obstacle(CPU) == "fp16 is for GPUs"
    assert CONTESTANTS["ours"].obstacle(CPU) is None


def test_lightly_and_we_find_the_same_neighbours() -> None:
    inputs = evaluations.knn_inputs(1000, 300)
    ours, theirs = evaluations.our_knn(*inputs), evaluations.lightly_knn(*inputs)
    assert (ours == theirs).float().mean() > 0.99


def test_every_evaluation_has_one_of_ours_beside_it() -> None:
    assert {evaluations.beside(name) for name in evaluations.NAMES} == {
        "linear",
        "knn-50000",
        "knn-60000",
    }


def test_what_threads_compute_is_counted_too() -> None:
    """A step of ours is at least three forward passes through the encoder's matrices."""
    case = Case("mae", 32, 2, 2, 16, 2, 256, decoder=(16, 1, 2))
    torch.set_num_threads(2)
    try:
        found = training.work(asdict(case), "ours-fp32")["gflop_per_image"]
    finally:
        torch.set_num_threads(1)
    kept = 16
    assert found > 3e-9 * 2 * kept * case.depth * 12 * case.width**2


@pytest.mark.parametrize("name", ["simclr", "simclr+", "finetune", "finetune+"])
def test_recorded_steps_are_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "_BATCH", 2)
    monkeypatch.setattr(recorded, "_IMAGES", 4)
    monkeypatch.setattr(recorded, "_FIRST", 1)
    monkeypatch.setattr(recorded, "_PROFILED", 1)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = recorded.measure(name, seconds=0.1)
    assert found["images_per_second"] > 0
    assert recorded.beside(name) == name.removesuffix("+")
    assert {recorded.beside(each) for each in recorded.NAMES} < recorded.NAMES.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpus_check_without_one_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert gpu_check.main(["--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_piece_of_a_gpus_check_ends_in_time_and_leaves_what_it_said(tmp_path: Path) -> None:
    slow = """import time
try: print("begun", flush=True); time.sleep(60)
finally: print("so far", flush=True)"""
    begun = time.monotonic()
    assert not gpu_check._done("slow", ["-c", slow], 9.0, tmp_path)
    assert time.monotonic() - begun < 30
    assert (tmp_path / "slow.txt").read_text().startswith("begun\nso far\n")
    assert gpu_check._done("quick", ["-c", "print('done')"], 60.0, tmp_path)
    assert not gpu_check._done("broken", ["-c", "raise SystemExit(3)"], 60.0, tmp_path)


def test_no_process_of_a_piece_outlives_it(tmp_path: Path) -> None:
    worker = """import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("alive", flush=True); time.sleep(300)"""
    piece = f"""import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", {worker!r}], stdout=subprocess.PIPE)
worker.stdout.readline()
print(worker.pid, flush=True)"""
    assert gpu_check._done("piece", ["-c", piece], 60.0, tmp_path)
    pid = (tmp_path / "piece.txt").read_text().strip()
    stat = Path("/proc", pid, "stat")
    for _ in range(100):  # an orphan is there until its new parent has reaped it
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


def test_what_a_piece_leaves_of_its_time_is_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "_GRACE", 0.1)
    orders = {
        "quick": (0.95, ("-c", "pass")),
        "longer": (0.05, ("-c", "import time; time.sleep(1)")),
    }
    assert gpu_check.run(orders, 10.0, tmp_path)


def test_the_pieces_of_a_gpus_check_can_end_in_their_time(tmp_path: Path) -> None:
    pieces = gpu_check.pieces("cifar10", tmp_path, seconds=480)
    assert sum(share for share, _ in pieces.values()) == pytest.approx(1.0)
    assert {*gpu_check.pieces("", tmp_path, 480)} == {"tests", "steps", "speed"}
    names = " ".join(pieces["tests"][1])
    for file in ("test_gpu.py", "test_captured.py", "test_augment.py"):
        assert file in names
    for name in ("steps", "speed"):
        asked = command._parser().parse_args(pieces[name][1][2:])
        known = recorded.NAMES if asked.parts == ["recorded"] else CONTESTANTS
        assert {*asked.contestants} <= {*known} and asked.output == tmp_path
    for name in ("mae", "mocov3"):
        share, words = pieces[name]
        budget = flags.parse_run(words[3:]).to_json()["settings"]["budget_time"]
        assert 5 <= float(budget.removesuffix("s")) < share * 480 / 4


def test_speeds_are_kept_before_the_machines_own_rate_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(function: str, **arguments: Any) -> dict[str, float]:
        if function == "benchmarks.training:work":
            raise KeyboardInterrupt
        return rounds_of(10.0)[0]

    monkeypatch.setattr(rounds, "in_process", pretend)
    monkeypatch.setattr(machine, "matrix_rate", lambda device: {"float32": 1.0})
    monkeypatch.setattr(gate, "losses", lambda *arguments: {"ours": 1.0})
    run_on_some_cpu(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        command.main(["training", "--cases", "mae-ti4-32", "--output", str(tmp_path)])
    [measured] = results.load(results.path_of(tmp_path, "Some CPU"))["training"].values()
    assert measured.rounds["ours"] and not measured.work
