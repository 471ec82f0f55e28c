"""What each step of a pre-training sees: which images, drawn how, in which mode."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers
import pytest
import torch
from teacher_method import Config, Teaching
from torch import Tensor

from ssl_bench.api import Batch, Step
from ssl_bench.data import Dataset, Split
from ssl_bench.distributed import collectives
from ssl_bench.errors import UserError
from ssl_bench.models import weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import pretrain, setup, training_state
from ssl_bench.transforms.augmentations import augment, normalize
from ssl_bench.utils import rng

EPOCHS, BATCH, SEED = 2, 40, 3


class Noting(Teaching):
    """Notes what it is given, and what the parameters are around each update."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.batches: list[Batch] = []
        self.seeds: list[int] = []
        self.modes: list[bool] = []
        self.moved: list[bool] = []
        self.begun: list[tuple[int, int]] = []
        self.held: Tensor | None = None

    def before_training(self, train: Split, seed: int) -> None:
        self.begun.append((len(train), seed))

    def loss(self, batch: Batch, step: Step) -> Any:
        if len(batch) == BATCH:  # not what counts the cost of a step
            self.batches.append(batch)
            self.seeds.append(torch.initial_seed())
            self.modes.append(self.student.training)
        return super().loss(batch, step)

    def before_optimizer_step(self, step: Step) -> None:
        super().before_optimizer_step(step)
        self.held = self.student.norm.weight.detach().clone()

    def after_optimizer_step(self, step: Step) -> None:
        super().after_optimizer_step(step)
        assert self.held is not None
        self.moved.append(not torch.equal(self.held, self.student.norm.weight))


def train(tiny: Dataset, folder: Path) -> tuple[Noting, EncoderSpec, Path]:
    spec = EncoderSpec("vit_micro", 16, 4, 3, tiny.mean, tiny.std, helpers.SHAPE)
    method: Any = setup.build_method(Noting, Config(), spec, 3, seed=0)
    what = helpers.plan(helpers.METHODS[0], spec, tiny, SEED)
    what = dataclasses.replace(what, epochs=EPOCHS, batch_size=BATCH)
    method.eval()
    pretrain.pretrain(method, tiny, what, folder, helpers.CPU)
    return method, spec, folder


@pytest.fixture(scope="module")
def trained(
    tiny: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Noting, EncoderSpec, Path]:
    return train(tiny, tmp_path_factory.mktemp("steps"))


def test_images_come_in_an_order_of_each_epochs_own(
    trained: tuple[Noting, EncoderSpec, Path],
) -> None:
    seen = [batch.rng.samples_B for batch in trained[0].batches]
    assert len(seen) == 6
    for epoch in range(EPOCHS):
        expected = rng.permutation(120, SEED, "order", epoch)
        assert torch.equal(torch.cat(seen[3 * epoch : 3 * epoch + 3]), expected)


def test_draws_are_of_seed_step_and_image(
    trained: tuple[Noting, EncoderSpec, Path], tiny: Dataset
) -> None:
    """And views are normalised by the training images' own mean and deviation."""
    method, spec, _ = trained
    for number, batch in enumerate(method.batches):
        assert (batch.rng.seed, batch.rng.step) == (SEED, number)
    last = method.batches[-1]
    images = tiny.train.images_NCHW[last.rng.samples_B]
    for view, (name, recipe) in enumerate(method.transforms().items()):
        expected = augment(images, recipe, last.rng.within(f"view{view}"))
        expected = normalize(expected, spec.mean, spec.std)
        torch.testing.assert_close(last.views[name], expected)


def test_a_method_sees_the_training_images_and_the_seed_once_before(
    trained: tuple[Noting, EncoderSpec, Path],
) -> None:
    assert trained[0].begun == [(120, SEED)]


def test_each_step_drops_other_things_in_training_mode(
    trained: tuple[Noting, EncoderSpec, Path],
) -> None:
    method = trained[0]
    assert method.seeds == [rng.key(SEED, "dropout", number) for number in range(6)]
    assert len(set(method.seeds)) == 6
    assert all(method.modes)


def test_each_rank_drops_other_things(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = SimpleNamespace(**{**vars(collectives), "rank": lambda: 2})
    monkeypatch.setattr(setup, "collectives", second)
    method, _, _ = train(tiny, tmp_path)
    assert method.seeds == [rng.key(SEED, "dropout", number, 2) for number in range(6)]


def test_parameters_move_between_the_hooks(trained: tuple[Noting, EncoderSpec, Path]) -> None:
    assert trained[0].moved == [True] * 6


def test_costs_are_those_of_all_steps(trained: tuple[Noting, EncoderSpec, Path]) -> None:
    cost = pretrain.schema.load_object(trained[2] / "cost.json")
    assert (cost["steps"], cost["images_seen"]) == (6, 240)
    assert cost["flops"] == 6 * cost["flops_per_step"] > 0


def test_pictures_are_of_the_first_test_image_of_each_class_in_evaluation_mode(
    tiny: Dataset, trained: tuple[Noting, EncoderSpec, Path]
) -> None:
    class Drawing(Noting):
        def pictures(self, batch: Batch) -> dict[str, Tensor]:
            self.modes.append(self.training)
            return {"seen": batch.views["global"]}

    method: Any = setup.build_method(Drawing, Config(), trained[1], 3, seed=0)
    labels_N = torch.tensor([2, 2, 0] + [1] * 37)
    data = dataclasses.replace(tiny, test=dataclasses.replace(tiny.test, labels_N=labels_N))
    seen = setup.pictures(method.train(), data, trained[1], seed=0, count=8)["seen"]
    expected = normalize(tiny.test.images_NCHW[[2, 3, 0]] / 255, tiny.mean, tiny.std)
    torch.testing.assert_close(seen, expected)
    assert method.modes == [False]


def records(
    data: Dataset, spec: EncoderSpec, folder: Path, stops_at: int | None = None
) -> list[dict[str, Any]]:
    """The losses that a training notes, or goes on to note."""
    folder.mkdir(exist_ok=True)
    method: Any = setup.build_method(Teaching, Config(), spec, 3, seed=0)
    after = method.after_optimizer_step

    def dies(step: Step) -> None:
        after(step)
        if step.number == stops_at:
            raise KeyboardInterrupt

    method.after_optimizer_step = dies
    what = helpers.plan(helpers.METHODS[0], spec, data)
    what = dataclasses.replace(what, epochs=EPOCHS, batch_size=BATCH)
    with contextlib.suppress(KeyboardInterrupt):
        pretrain.pretrain(method, data, what, folder, helpers.CPU)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{"step": each["step"], "loss": each["loss"], **each["losses"]} for each in lines]


def test_records_are_means_since_the_last_one_whatever_came_between(
    tiny: Dataset,
    trained: tuple[Noting, EncoderSpec, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = trained[1]
    each = records(tiny, spec, tmp_path / "each")
    assert [record["step"] for record in each] == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr(pretrain, "_RECORDS_PER_RUN", 2)
    some = records(tiny, spec, tmp_path / "some")
    assert [record["step"] for record in some] == [3, 6]
    for record, of in zip(some, (each[:3], each[3:]), strict=True):
        for name in record.keys() - {"step"}:
            mean = sum(step[name] for step in of) / 3
            assert record[name] == pytest.approx(mean, rel=1e-5), name
    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    records(tiny, spec, tmp_path / "two", stops_at=4)
    assert (tmp_path / "two" / "checkpoint.pt").exists()
    assert records(tiny, spec, tmp_path / "two") == some
    assert not (tmp_path / "two" / "checkpoint.pt").exists(), "it is not needed any more"


@pytest.mark.parametrize(
    ("total", "recorded"),
    [(100_000, [50, 100]), (1000, [*range(4, 121, 4)]), (505, [*range(2, 121, 2)])],
)
def test_a_line_is_written_every_few_steps(
    total: int, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """250 times in all, or every 50 steps. Of a step's ten seconds, data are waited for in two."""
    clock, file = [0.0], io.StringIO()
    monkeypatch.setattr(pretrain, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def batches() -> Iterator[None]:
        while True:
            clock[0] += 2
            yield None

    bar: Any = SimpleNamespace(update=lambda done, note: None)
    metrics, source = pretrain._Metrics(file, bar, {}, "fp32"), batches()
    for number in range(120):
        metrics.next(source)
        clock[0] += 8
        losses = {"loss": torch.tensor(float(number))}
        metrics.add(Step(number, total, 40, 24), losses, 0.1 * number, None)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["step"] for line in lines] == recorded
    every = recorded[1] - recorded[0]
    for line in lines:
        assert (line["waiting"], line["images_per_second"]) == (0.2, 2.4)
        assert line["loss"] == pytest.approx(line["step"] - 1 - (every - 1) / 2)
        assert line["learning_rate"] == pytest.approx(0.1 * (line["step"] - 1))
        assert line["epoch"] == pytest.approx(line["step"] / 40)


def test_the_last_step_is_recorded_though_it_is_out_of_turn() -> None:
    file, bar = io.StringIO(), SimpleNamespace(update=lambda done, note: None)
    metrics = pretrain._Metrics(file, bar, {}, "fp32")  # type: ignore[arg-type]
    for number in range(501):
        metrics.add(Step(number, 501, 501, 24), {"loss": torch.tensor(1.0)}, 0.1, None)
    assert [json.loads(line)["step"] for line in file.getvalue().splitlines()][-2:] == [500, 501]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_training(loss: float) -> None:
    metrics = pretrain._Metrics(io.StringIO(), None, {}, "bf16")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step 4.* --precision fp32 may"):
        metrics.add(Step(3, 9, 9, 24), {"loss": torch.tensor(loss)}, 0.1, None)


def test_records_that_no_checkpoint_counts_on_are_removed(tmp_path: Path) -> None:
    """All of them without a checkpoint; else those of later steps, and one that was cut off."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    assert training_state.read(tmp_path) == {} and not path.exists()
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters())
    training_state.save(layer, optimizer, 3, 7.5, {"loss": [torch.tensor(2.0)]}, tmp_path)
    for rest in ('{"step": 3}', '{"st\n', '{"step": 4}\n'):
        path.write_text('{"step": 1}\n{"step": 2}\n' + rest)
        state = training_state.read(tmp_path)
        assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert (state["step"], state["seconds"], state["losses"]["loss"].item()) == (3, 7.5, 2.0)


def test_what_is_written_is_the_encoder(trained: tuple[Noting, EncoderSpec, Path]) -> None:
    method, _, folder = trained
    written, _ = weights.load(folder)
    expected = method.encoder.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in written.state_dict().items())
