"""The evaluations' arithmetic against naive versions of it."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from helpers import CPU
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_bench.api import optimizers, registry
from ssl_bench.api.ranges import LogUniform, Uniform, draw
from ssl_bench.data import Dataset, Split
from ssl_bench.distributed import collectives
from ssl_bench.distributed.device import Hardware
from ssl_bench.errors import UserError
from ssl_bench.evals import finetune
from ssl_bench.evaluation import finetuning, linear_probe, neighbors, runner
from ssl_bench.evaluation.features import Encoder, FeatureCache, RawPixels, match_channels, prepare
from ssl_bench.evaluation.metrics import accuracy, held_out, holdout
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.transforms.timm_augment import rand_augment
from ssl_bench.utils import rng
from ssl_bench.utils.rng import SampleRng

KNN = registry.find("eval", "knn")
LINEAR = registry.find("eval", "linear")
FINETUNE = registry.find("eval", "finetune")
PAPER = registry.find("eval", "linear-paper")


class Given:
    """An encoder whose features are given."""

    def __init__(self, features: dict[Split, dict[str, Tensor]]) -> None:
        self._features, self.seed, self.hardware = features, 0, CPU

    def features(self, split: Split) -> dict[str, Tensor]:
        return self._features[split]


def naive_knn(bank: Tensor, labels: Tensor, query: Tensor, k: int, temperature: float) -> int:
    bank, query = bank.double(), query.double()
    similarity = [(float(query @ row / query.norm() / row.norm().clamp_min(1e-12)), int(label))
                  for row, label in zip(bank, labels, strict=True)]  # fmt: skip
    votes: dict[int, float] = {}
    nearest, _ = max(similarity)
    for cosine, label in sorted(similarity, reverse=True)[:k]:
        votes[label] = votes.get(label, 0.0) + math.exp((cosine - nearest) / temperature)
    return max(votes, key=votes.__getitem__)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 3, 7]), st.sampled_from([1e-6, 1e-4, 0.07, 0.5]))
def test_knn_equals_the_naive_vote(seed: int, k: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(40, 5, generator=generator)
    labels = torch.randint(3, (40,), generator=generator)
    queries = torch.randn(11, 5, generator=generator)
    config = KNN.config(neighbors=(30, k, 1), temperature=temperature)
    rows = torch.randperm(40, generator=generator)[:32]
    bank[rows[seed % 32]] = 0  # of no direction, and so at right angles to all
    knn = KNN.load()
    expected = {
        count: [naive_knn(bank[rows], labels[rows], query, count, temperature) for query in queries]
        for count in (1, k, 30)
    }
    for chunk in (64, 5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(neighbors, "_QUERIES_AT_ONCE", chunk)
            patch.setattr(neighbors, "_BANK_AT_ONCE", chunk)
            ours = knn._predict(bank, labels, rows, queries, config, 3)
        assert {count: found.tolist() for count, found in ours.items()} == expected


def test_knn_chooses_pooling_and_neighbours_on_held_out_images(tiny: Dataset) -> None:
    """One pooling is useless on train but perfect on test: an honest choice must not take it."""
    useful = torch.nn.functional.one_hot(tiny.train.labels_N, 3).float()
    noise = torch.randn(len(tiny.train), 3, generator=torch.Generator().manual_seed(0))
    test = torch.nn.functional.one_hot(tiny.test.labels_N, 3).float()
    encoder = Given({
        tiny.train: {"useful": useful + 0.01 * noise, "useless": noise},
        tiny.test: {"useful": test, "useless": test},
    })  # fmt: skip
    result = KNN.load_class()(KNN.config()).evaluate(encoder, tiny)
    assert result.chosen["pooling"] == "useful"
    assert result.scores["top1"] == 100


def test_holdout_is_a_partition_that_depends_on_the_data_alone(tiny: Dataset) -> None:
    fit, held_out = holdout(tiny, 0.25)
    assert len(held_out) == 30
    assert torch.equal(torch.cat([fit, held_out]).sort().values, torch.arange(120))
    assert torch.equal(holdout(tiny, 0.25)[1], held_out)
    assert all(torch.equal(each, each.sort().values) for each in (fit, held_out))
    other = dataclasses.replace(tiny, fingerprint="another")
    assert not torch.equal(holdout(other, 0.25)[1], held_out)


@pytest.mark.parametrize(
    "count,share,expected", [(29, 0.1, 3), (24, 0.1, 2), (3, 0.1, 1), (2, 0.9, 1)]
)
def test_the_share_to_choose_on_is_the_nearest_whole_number(
    count: int, share: float, expected: int
) -> None:
    fit, chosen_on = held_out(count, share, "data")
    assert (len(fit), len(chosen_on)) == (count - expected, expected)


def test_raw_pixels_are_the_evaluation_view(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_bench.evaluation.features._PIXELS_AT_ONCE", 16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    expected = ((tiny.test.images_NCHW / 255 - mean) / std).flatten(1)
    torch.testing.assert_close(RawPixels(spec, CPU, 0).features(tiny.test)["pixels"], expected)


def test_accuracy_is_in_percent() -> None:
    assert accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])) == 75.0
    third = accuracy(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 1]))
    assert third == pytest.approx(100 / 3, rel=1e-12), "more digits than float32 has"


def test_linear_step_is_sgd_on_the_cross_entropy() -> None:
    """The written-out gradient, momentum and decay against autograd and torch's SGD."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 6, generator=generator)
    labels = torch.randint(4, (64,), generator=generator)
    grid = [(0.1, 0.0), (0.5, 0.01)]
    rows = torch.randperm(80, generator=generator)[:64]
    features = torch.zeros(80, 6).index_copy(0, rows, inputs)
    targets = torch.zeros(80, dtype=torch.int64).index_copy(0, rows, labels)
    as_is = linear_probe.Scaler(torch.zeros(6), torch.ones(6))
    trained = linear_probe.train(features, targets, rows, 4, grid, 3, 16, seed=5, scaler=as_is)

    for index, (rate, decay) in enumerate(grid):
        head = torch.nn.Linear(6, 4)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        groups: list[dict[str, Any]] = [
            {"params": [head.weight], "weight_decay": decay},
            {"params": [head.bias]},
        ]
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
        for step in range(12):
            order = rng.permutation(64, 5, "linear", step // 4)
            chosen = order[step % 4 * 16 : (step % 4 + 1) * 16]
            for group in optimizer.param_groups:
                group["lr"] = (
                    rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 12)).item())
                )
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()
        weights, biases = trained.weights_GCD[index], trained.biases_GC1[index, :, 0]
        torch.testing.assert_close(weights, head.weight.data, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(biases, head.bias.data, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 40]), st.sampled_from([0.1, -50.0, 1e3]))
def test_features_are_standardised_by_those_to_fit_on(seed: int, count: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(50, 4, generator=generator) + shift
    features[:, 3] = shift
    rows = torch.randperm(50, generator=generator)[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_probe, "_IMAGES_AT_ONCE", 7)
        scaler = linear_probe.Scaler.of(features, rows)
    chosen = features[rows].double()
    # Of 1,000, float32 holds the mean to 3e-5, which a small deviation would make large.
    assume(chosen[:, :3].std(0, correction=0).min() > 0.1)
    wanted = (features.double() - chosen.mean(0)) / (chosen.std(0, correction=0) + 1e-6)
    ours = scaler(features, torch.arange(50)).double()
    torch.testing.assert_close(ours[:, :3], wanted[:, :3], rtol=1e-3, atol=1e-3)
    assert (ours[:, 3] == 0).all(), "what never varies says nothing"


def test_what_is_the_same_for_thousands_of_images_has_no_deviation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though its squares, added up, come out below the square of the mean."""
    monkeypatch.setattr(linear_probe, "_IMAGES_AT_ONCE", 7)
    scaler = linear_probe.Scaler.of(torch.full((3001, 1), 0.7), torch.arange(3001))
    assert scaler.mean_D.item() == pytest.approx(0.7)
    assert scaler.std_D.item() == pytest.approx(1e-6)


def test_a_linear_probe_that_diverged_is_not_chosen(tiny: Dataset, spec: EncoderSpec) -> None:
    """A rate times a weight decay above 2 makes weights grow without end."""
    pixels = RawPixels(spec, CPU, 0)
    config = LINEAR.config(
        batch_size=32, epochs=40, learning_rates=(0.1, 1e5), weight_decays=(1.0,)
    )
    result = LINEAR.load_class()(config).evaluate(pixels, tiny)
    assert result.chosen["learning_rate"] == 0.1
    assert (result.predictions_N >= 0).all()
    with pytest.raises(UserError, match="learning rates below 100000"):
        LINEAR.load_class()(dataclasses.replace(config, learning_rates=(1e5,))).evaluate(
            pixels, tiny
        )


def test_a_probe_without_a_number_for_one_class_of_one_image_has_diverged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_probe, "_IMAGES_AT_ONCE", 2)
    as_is = linear_probe.Scaler(torch.zeros(1), torch.ones(1))
    weights = torch.tensor([[[1.0], [2.0], [0.0]], [[1.0], [3e38], [0.0]]])
    probes = linear_probe.Probes(as_is, weights, torch.zeros(2, 3, 1))
    rows, labels = torch.tensor([[10.0], [0.0], [1.0]]), torch.tensor([1, 0, 1])
    assert probes.predict(rows).tolist() == [[1, 0, 1], [-1, 0, 1]]
    assert linear_probe.score(probes, rows, labels, torch.arange(3)) == [100.0, -1.0]


def test_the_best_probe_is_the_first_of_the_highest_score() -> None:
    settings = [("a", 0.3, 0.0), ("a", 0.1, 0.0), ("b", 0.2, 0.0)]
    trials = dict(zip(settings, (0.0, 50.0, 50.0), strict=True))
    assert linear_probe.best(trials) == settings[1]
    assert linear_probe.best({settings[0]: 0.0}) == settings[0], "all wrong is a score, too"
    with pytest.raises(UserError, match=r"learning rates below 0\.1 may help"):
        linear_probe.best(dict.fromkeys(settings, -1.0))


def test_a_probe_that_diverges_on_all_images_is_refused(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it did not on those that it was chosen by."""
    tops = iter([[50.0], [-1.0]])
    monkeypatch.setattr(linear_probe, "score", lambda *of: next(tops))
    config = LINEAR.config(epochs=1, learning_rates=(0.1,), weight_decays=(0.0,))
    with pytest.raises(UserError, match="every linear probe diverged"):
        LINEAR.load_class()(config).evaluate(RawPixels(spec, CPU, 0), tiny)


def test_linear_separates_what_is_separable(tiny: Dataset, spec: EncoderSpec) -> None:
    result = LINEAR.load_class()(LINEAR.config(batch_size=32)).evaluate(
        RawPixels(spec, CPU, 0), tiny
    )
    assert result.scores["top1"] == 100


def test_linear_is_blind_to_the_scale_of_the_features(tiny: Dataset, spec: EncoderSpec) -> None:
    pixels = RawPixels(spec, CPU, 0)
    plain = {split: dict(pixels.features(split)) for split in (tiny.train, tiny.test)}
    scaled = {s: {"pixels": 1000 * f["pixels"] + 7} for s, f in plain.items()}
    config = LINEAR.config(batch_size=32, epochs=2)
    first = LINEAR.load_class()(config).evaluate(Given(plain), tiny)
    second = LINEAR.load_class()(config).evaluate(Given(scaled), tiny)
    assert first.chosen["pooling"] == second.chosen["pooling"]
    assert (first.predictions_N == second.predictions_N).float().mean() > 0.95


def test_features_are_the_tokens_after_the_norm(tiny: Dataset, spec: EncoderSpec) -> None:
    module = backbones.build(spec, seed=0, drop_path_rate=0.5).train()
    encoder = Encoder(module, spec, CPU, seed=0)
    images = tiny.test.images_NCHW.float() / 255
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    with torch.no_grad():
        tokens = module.forward_features((images - mean) / std)
    features = encoder.features(tiny.test)
    torch.testing.assert_close(features["cls"], tokens[:, 0])
    torch.testing.assert_close(features["avg"], tokens[:, 1:].mean(dim=1))
    assert encoder.features(tiny.test) is features


@pytest.mark.parametrize("at_once", [1, 7, 40])
def test_features_do_not_depend_on_how_many_are_made_at_once(
    at_once: int, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = backbones.build(spec, seed=0)
    whole = Encoder(module, spec, CPU, seed=0).features(tiny.test)
    monkeypatch.setattr(Encoder, "_images_at_once", at_once)
    parts = Encoder(module, spec, CPU, seed=0)
    images = prepare(tiny.test.images_NCHW, spec, CPU)
    for features in (parts.features(tiny.test), parts.encode(images)):
        assert set(features) == {"avg", "cls"}
        for name, rows in features.items():
            torch.testing.assert_close(rows, whole[name])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_the_same_images_are_encoded_together_on_any_number_of_ranks(
    world: int, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the features that are kept would depend on it in their rounding."""
    monkeypatch.setattr(Encoder, "_images_at_once", 16)
    monkeypatch.setattr(collectives, "gather_shards", lambda rows, count: rows)
    monkeypatch.setattr(collectives, "world_size", lambda: world)
    encoder = Encoder(backbones.build(spec, 0), spec, CPU, 0)
    encode, seen = encoder._encode, []

    def record(images: Tensor) -> Any:
        seen.append(images)
        return encode(images)

    monkeypatch.setattr(encoder, "_encode", record)
    for rank in range(world):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        encoder._extract(tiny.test)
    together = {tuple(images.flatten(1).sum(1).tolist()) for images in seen}
    whole = prepare(tiny.test.images_NCHW, spec, CPU).flatten(1).sum(1)
    assert together == {tuple(part.tolist()) for part in whole.split(16)}


class TestKept:
    """Features on disk."""

    made_from: ClassVar = {"weights": "abc", "mean": [0.5, 0.25]}

    def kept(self, folder: Path, data: Dataset, **changes: Any) -> FeatureCache:
        splits = {data.train: "train", data.test: "test"}
        return FeatureCache(folder / "features", {**self.made_from, **changes}, splits)

    def features(self, count: int = 40) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(count)
        return {name: torch.randn(count, 5, generator=generator) for name in ("cls", "avg")}

    def test_come_back_bit_by_bit(self, tiny: Dataset, tmp_path: Path) -> None:
        kept = self.kept(tmp_path, tiny)
        assert kept.read(tiny.test) is None
        kept.write(tiny.test, self.features())
        back = self.kept(tmp_path, tiny).read(tiny.test)
        assert back is not None
        assert all(torch.equal(back[name], each) for name, each in self.features().items())
        assert kept.read(tiny.train) is None

    @pytest.mark.parametrize("change", [{"weights": "abd"}, {"mean": [0.5]}, {"more": 1}])
    def test_of_something_else_are_not_used(
        self, change: dict[str, Any], tiny: Dataset, tmp_path: Path
    ) -> None:
        self.kept(tmp_path, tiny).write(tiny.test, self.features())
        other = self.kept(tmp_path, tiny, **change)
        assert other.read(tiny.test) is None
        [path] = (tmp_path / "features").iterdir()
        path.rename(other._path(tiny.test))
        assert other.read(tiny.test) is None, "a name alone proves nothing"

    @pytest.mark.parametrize("damage", ["empty", "cut", "folder", "text"])
    def test_that_are_damaged_are_not_used(
        self, damage: str, tiny: Dataset, tmp_path: Path
    ) -> None:
        kept = self.kept(tmp_path, tiny)
        kept.write(tiny.test, self.features())
        [path] = (tmp_path / "features").iterdir()
        content = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        else:
            whole = {"empty": b"", "cut": content[:-3], "text": b"no features at all"}
            path.write_bytes(whole[damage])
        assert kept.read(tiny.test) is None

    def test_with_any_bit_flipped_are_not_used(self, tiny: Dataset, tmp_path: Path) -> None:
        kept = self.kept(tmp_path, tiny)
        kept.write(tiny.test, self.features())
        [path] = (tmp_path / "features").iterdir()
        content = path.read_bytes()
        generator = torch.Generator().manual_seed(0)
        for place in torch.randint(8 * len(content), (300,), generator=generator).tolist():
            broken = bytearray(content)
            broken[place // 8] ^= 1 << place % 8
            path.write_bytes(broken)
            back = kept.read(tiny.test)
            # Spaces behind the header may be anything that JSON ignores.
            assert back is None or all(
                torch.equal(back[name], each) for name, each in self.features().items()
            )

    def test_cannot_be_written_is_no_mistake(
        self, tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "features").write_text("in the way")
        kept = self.kept(tmp_path, tiny)
        assert not kept.write(tiny.test, self.features())
        assert kept.read(tiny.test) is None
        assert "features are not kept" in capsys.readouterr().err

    def test_spare_the_encoder(
        self, tiny: Dataset, spec: EncoderSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept, module = self.kept(tmp_path, tiny), backbones.build(spec, seed=0)
        first = Encoder(module, spec, CPU, 0, kept).features(tiny.test)
        monkeypatch.setattr(Encoder, "_extract", None)
        second = Encoder(module, spec, CPU, 0, kept).features(tiny.test)
        assert all(torch.equal(first[name], second[name]) for name in ("avg", "cls"))

    def test_made_in_another_way_are_made_anew(
        self, tiny: Dataset, spec: EncoderSpec, tmp_path: Path
    ) -> None:
        """In another precision or on another machine, of images normalised otherwise, of other
        data or weights; and where none are to be kept, none are."""

        def frozen(
            spec: EncoderSpec, data: Dataset, hardware: Hardware, seed: int = 0, keeps: bool = True
        ) -> Any:
            home = runner._Encoders(spec, data, 0, hardware, tmp_path, keeps)
            return home.frozen(backbones.build(spec, seed), tmp_path)

        frozen(spec, tiny, CPU, keeps=False).features(tiny.test)
        assert frozen(spec, tiny, CPU)._cache.read(tiny.test) is None

        frozen(spec, tiny, CPU).features(tiny.test)
        assert frozen(spec, tiny, CPU)._cache.read(tiny.test)
        for other in (
            (spec, tiny, dataclasses.replace(CPU, precision="bf16")),
            (spec, tiny, dataclasses.replace(CPU, name="another")),
            (spec, tiny, dataclasses.replace(CPU, device=torch.device("meta"))),
            (spec, tiny, CPU, 1),
            (dataclasses.replace(spec, mean=(0.1, 0.2, 0.3)), tiny, CPU),
            (spec, dataclasses.replace(tiny, fingerprint="another"), CPU),
        ):
            assert frozen(*other)._cache.read(tiny.test) is None


def test_features_are_made_in_the_precision_of_the_hardware(
    tiny: Dataset, spec: EncoderSpec
) -> None:
    """And are float32 whatever that is."""
    whole, rounded = (
        Encoder(backbones.build(spec, 0), spec, dataclasses.replace(CPU, precision=each), 0)
        for each in ("fp32", "bf16")
    )
    images = prepare(tiny.test.images_NCHW[:4], spec, CPU)
    for name in ("tokens", "patches"):
        exact, coarse = getattr(whole, name)(images), getattr(rounded, name)(images)
        assert coarse.dtype == torch.float32 and not torch.equal(exact, coarse)
        torch.testing.assert_close(coarse, exact, rtol=0.1, atol=0.1)
    exact, coarse = whole.encode(images)["avg"], rounded.encode(images)["avg"]
    assert coarse.dtype == torch.float32 and not torch.equal(exact, coarse)


def test_an_encoder_without_a_class_token_has_the_mean_alone(
    tiny: Dataset, spec: EncoderSpec
) -> None:
    module = backbones.build(spec, seed=0, class_token=False, global_pool="avg")
    assert set(Encoder(module, spec, CPU, seed=0).features(tiny.test)) == {"avg"}


def test_channels_are_repeated_or_reduced() -> None:
    grey = torch.rand(2, 1, 4, 4)
    assert torch.equal(match_channels(grey, 3), grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(match_channels(grey.repeat(1, 3, 1, 1), 1), grey)
    red = torch.zeros(1, 3, 1, 1)
    red[:, 0] = 1
    assert match_channels(red, 1).item() == pytest.approx(0.299)
    # An image of one frame's channels becomes a clip that stands still, as does a grey one.
    colours = torch.rand(2, 3, 4, 4)
    assert torch.equal(match_channels(colours, 3, frames=4), colours.repeat(1, 4, 1, 1))
    assert torch.equal(match_channels(grey, 3, frames=2), grey.repeat(1, 6, 1, 1))
    clip = torch.rand(2, 12, 4, 4)
    assert match_channels(clip, 3, frames=4) is clip
    assert match_channels(clip, 1, frames=4).shape == (2, 4, 4, 4)


class TestFinetune:
    """Fine-tuning's parts."""

    def config(self, **changes: Any) -> Any:
        values: dict[str, Any] = {"epochs": 6, "batch_size": 24, "base_lr": 1e-2, "crop_scale": 1.0}
        values |= {"auto_augment": "", "random_erasing": 0.0} | changes
        return FINETUNE.config(**values)

    def test_learns(self, tiny: Dataset, spec: EncoderSpec) -> None:
        encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
        config = self.config(mixup=0.0, cutmix=0.0, drop_path=0.0, layer_decay=1.0)
        assert FINETUNE.load_class()(config).evaluate(encoder, tiny).scores["top1"] > 90

    def test_training_takes_the_recipes_rates(
        self, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each layer's rate at each step, decayed from layer to layer, down to the floor."""
        seen = []
        set_learning_rate = optimizers.set_learning_rate

        def record(optimizer: torch.optim.Optimizer, rate: float) -> None:
            set_learning_rate(optimizer, rate)
            seen.append({group["lr"] for group in optimizer.param_groups})

        monkeypatch.setattr(optimizers, "set_learning_rate", record)
        encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
        config = self.config(epochs=2, batch_size=40, layer_decay=0.5, min_lr=1e-4, warmup=1 / 3)
        FINETUNE.load_class()(config).evaluate(encoder, tiny)
        peak, depth = 1e-2 * 40 / 256, 6
        for step, rates in enumerate(seen):
            cosine = (1 + math.cos(math.pi * (step - 2) / 4)) / 2
            rate = peak * step / 2 if step < 2 else 1e-4 + (peak - 1e-4) * cosine
            expected = [rate * 0.5 ** (depth + 1 - layer) for layer in range(depth + 2)]
            assert sorted(rates) == pytest.approx(sorted(set(expected)))
        assert len(seen) == 6

    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
    def test_labels_are_smoothed(
        self, smoothing: float, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its first gradient tells: a head near zero predicts every class alike."""
        gradients: list[Tensor] = []
        step = torch.optim.AdamW.step

        def record(optimizer: torch.optim.AdamW, *arguments: Any) -> Any:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            gradients.extend(p.grad.clone() for p in parameters if p.shape == (3,))
            return step(optimizer, *arguments)

        monkeypatch.setattr(torch.optim.AdamW, "step", record)
        train = dataclasses.replace(tiny.train, labels_N=tiny.train.labels_N.clamp(max=1))
        data = dataclasses.replace(tiny, train=train)
        encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
        config = self.config(epochs=1, batch_size=120, mixup=0.0, cutmix=0.0)
        FINETUNE.load_class()(dataclasses.replace(config, label_smoothing=smoothing)).evaluate(
            encoder, data
        )
        frequency = torch.tensor([1 / 3, 2 / 3, 0])
        target = (1 - smoothing) * frequency + smoothing / 3
        torch.testing.assert_close(gradients[0], 1 / 3 - target, atol=1e-3, rtol=0)

    def test_starts_from_the_encoder(self, tiny: Dataset, spec: EncoderSpec) -> None:
        module = backbones.build(spec, seed=0)
        with torch.no_grad():
            module.cls_token.fill_(3.0)
        copy = Encoder(module, spec, CPU, seed=0).trainable_copy(drop_path_rate=0.1)
        assert (copy.cls_token == 3.0).all()
        assert all(parameter.requires_grad for parameter in copy.parameters())
        assert copy.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
        assert copy is not module

    def test_head_sees_the_mean_before_the_norm(self, spec: EncoderSpec) -> None:
        encoder = backbones.build(spec, seed=0).eval()
        images = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            tokens = encoder.blocks(encoder._pos_embed(encoder.patch_embed(images)))
            model = finetuning.Classifier(encoder, 3).eval()
            assert model.head.weight.std() < 1e-4
            model.head.weight.normal_()
            expected = model.head(model.fc_norm(tokens[:, 1:].mean(1)))
            torch.testing.assert_close(model(images), expected)

    def test_scratch_baseline_has_its_own_rate_and_no_layer_decay(self) -> None:
        config = self.config(base_lr=1e-3, scratch_lr=3e-3, layer_decay=0.5)
        [(kind, scratch)] = FINETUNE.load_class()(config).baselines().values()
        assert kind == "random"
        assert (scratch.base_lr, scratch.layer_decay) == (3e-3, 1.0)
        assert dataclasses.replace(scratch, base_lr=1e-3, layer_decay=0.5) == config

    @pytest.mark.parametrize("mixup,cutmix", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
    def test_targets_follow_the_pixels(self, mixup: float, cutmix: float) -> None:
        """Each image is one colour; a mixed one's mean colour must equal its target."""
        config = self.config(mixup=mixup, cutmix=cutmix)
        images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
        targets = torch.eye(2)
        shares = []
        for step in range(50):
            mixed, soft = finetuning.mix(images, targets, *finetuning.mixing(config, 8, 0, step))
            torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), soft[:, 1])
            torch.testing.assert_close(soft.sum(dim=1), torch.ones(2))
            shares.append(soft[0, 0].item())
        assert max(shares) > 0.9
        assert min(shares) < 0.5

    def test_no_mixing_when_switched_off(self) -> None:
        images, targets = torch.rand(2, 1, 8, 8), torch.eye(2)
        config = self.config(mixup=0.0, cutmix=0.0)
        mixed, soft = finetuning.mix(images, targets, *finetuning.mixing(config, 8, 0, 0))
        assert mixed is images
        assert soft is targets

    def test_class_token_is_taken_after_the_norm(self, spec: EncoderSpec) -> None:
        encoder = backbones.build(spec, seed=0).eval()
        images = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            token = encoder.forward_features(images)[:, 0]
            model = finetuning.Classifier(encoder, 3, "cls", 0.02).eval()
            torch.testing.assert_close(model(images), model.head(token))
        assert 0.01 < model.head.weight.std() < 0.03

    def test_class_token_must_be_there(self, spec: EncoderSpec) -> None:
        encoder = backbones.build(spec, seed=0, class_token=False, global_pool="avg")
        with pytest.raises(UserError, match="pooling avg would work"):
            finetuning.Classifier(encoder, 3, "cls")

    def test_recipes_views_are_cropped_randaugmented_normalised_and_erased(
        self, tiny: Dataset, spec: EncoderSpec
    ) -> None:
        encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
        index = torch.arange(60)
        images = tiny.train.images_NCHW[index]

        def views(**changes: Any) -> Tensor:
            config, rows = self.config(**changes), SampleRng(0, 0, index)
            return finetuning.training_views(images, encoder, config, rows)

        plain, mean = views(), torch.tensor(spec.mean).view(3, 1, 1)
        restored = plain * torch.tensor(spec.std).view(3, 1, 1) + mean
        straight = images / 255
        mirrored = ((restored - straight).abs().flatten(1).amax(1) > 1e-5).float().mean()
        assert 0.3 < mirrored < 0.7
        augmented = (views(auto_augment="rand-m9-mstd0.5-inc1") != plain).flatten(1).any(1)
        assert augmented.float().mean() > 0.5
        erased = (views(random_erasing=0.25) != plain).flatten(1).any(1)
        assert 0.1 < erased.float().mean() < 0.5

    def test_what_randaugment_uncovers_has_the_mean_colour(
        self, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        colours: list[Any] = []

        def note(images: Tensor, policy: str, colour: Any, draws: SampleRng) -> Tensor:
            colours.append(colour)
            return rand_augment(images, policy, colour, draws)

        monkeypatch.setattr(finetuning, "rand_augment", note)
        spec = dataclasses.replace(spec, mean=(0.1, 0.2, 0.3))
        encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
        rows = SampleRng(0, 0, torch.arange(4))
        config = self.config(auto_augment="rand-m9-mstd0.5-inc1")
        finetuning.training_views(tiny.train.images_NCHW[:4], encoder, config, rows)
        assert colours == [spec.mean]

    @pytest.mark.parametrize("policy", ["rand-x9", "v0", "rand-m", "m9", "rand-m9-", "rand-n0"])
    def test_a_bad_policy_is_one_line(self, policy: str) -> None:
        with pytest.raises(UserError, match=r"rand-m9-mstd0\.5-inc1 would work"):
            self.config(auto_augment=policy)

    @pytest.mark.parametrize(
        "policy", ["", "rand", "rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.3-mmax12"]
    )
    def test_a_policy_that_is_let_through_is_one_of_timms(self, policy: str) -> None:
        self.config(auto_augment=policy)
        if policy:
            rand_augment(
                torch.rand(4, 3, 16, 16), policy, (0.5,) * 3, SampleRng(0, 0, torch.arange(4))
            )


class Pixels:
    """An encoder whose features are the pixels of what it is given."""

    SEED = 3

    def __init__(self, spec: EncoderSpec) -> None:
        self.spec, self.hardware, self.seed, self.checkpoint = spec, CPU, self.SEED, None
        self.seen: list[Tensor] = []

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        self.seen.append(images)
        return {"cls": images.mean(dim=(2, 3)), "avg": images.flatten(1)}

    def features(self, split: Split) -> dict[str, Tensor]:
        return self.encode(prepare(split.images_NCHW, self.spec, CPU))


class TestLinearPaper:
    """The papers' probe against a naive float64 version of it."""

    def train(
        self, config: Any, data: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[torch.nn.Linear, torch.nn.Linear, Pixels]:
        """The head at the start and at the end, and what the encoder saw."""
        code, heads = PAPER.load(), []
        build = code._probe

        def keep(*arguments: Any) -> torch.nn.Sequential:
            probe = build(*arguments)
            heads.extend([copy.deepcopy(probe[1]), probe[1]])
            return probe

        monkeypatch.setattr(code, "_probe", keep)
        encoder = Pixels(spec)
        PAPER.load_class()(config).evaluate(encoder, data)
        return heads[0], heads[1], encoder

    @pytest.mark.parametrize(
        "changes",
        [
            {"optimizer": "lars", "base_lr": 3.0, "warmup": 1 / 3},
            {"optimizer": "lars", "base_lr": 3.0, "weight_decay": 0.1, "pooling": "avg"},
            {"optimizer": "lars", "base_lr": 30.0, "weight_decay": 1.0, "head_std": 0.5},
            {"optimizer": "sgd", "weight_decay": 0.5, "momentum": 0.6},
            {"optimizer": "sgd", "batch_norm": False, "per_epoch": True, "warmup": 0.0},
            {"optimizer": "sgd", "batch_norm": False, "head_std": 0.0},
        ],
    )
    def test_training_is_the_formula(
        self,
        tiny: Dataset,
        spec: EncoderSpec,
        changes: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        config = PAPER.config(**({"epochs": 3, "batch_size": 40} | changes))
        start, end, encoder = self.train(config, tiny, spec, monkeypatch)
        weight, bias = start.weight.double(), start.bias.double()
        speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
        steps, per_epoch = 9, 3
        warmup = round(config.warmup * steps)
        views = encoder.seen[1:-1]  # after the width was asked for, before the test images
        assert len(views) == steps
        for step in range(steps):
            order = rng.permutation(120, Pixels.SEED, "linear-paper", step // per_epoch)
            chosen = order[step % per_epoch * 40 : (step % per_epoch + 1) * 40]
            inputs = encoder.encode(views[step].double())[config.pooling]
            if config.batch_norm:
                deviation = (inputs.var(dim=0, unbiased=False) + 1e-6).sqrt()
                inputs = (inputs - inputs.mean(dim=0)) / deviation
            logits = inputs @ weight.T + bias
            error = logits.softmax(dim=1) - torch.nn.functional.one_hot(
                tiny.train.labels_N[chosen], 3
            )
            gradients = [error.T @ inputs / 40 + config.weight_decay * weight, error.mean(dim=0)]
            if config.optimizer == "lars":
                gradients[0] *= 0.001 * weight.norm() / gradients[0].norm()
            else:  # which decays the bias, too
                gradients[1] += config.weight_decay * bias
            time = step // per_epoch * per_epoch if config.per_epoch else step
            peak = config.base_lr * 40 / 256
            rate = (
                peak * time / warmup
                if time < warmup
                else peak * (1 + math.cos(math.pi * (time - warmup) / (steps - warmup))) / 2
            )
            speeds = [config.momentum * s + g for s, g in zip(speeds, gradients, strict=True)]
            weight, bias = weight - rate * speeds[0], bias - rate * speeds[1]
        assert (end.weight - start.weight).norm() > 1e-4 * start.weight.norm()
        torch.testing.assert_close(end.weight.double(), weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(end.bias.double(), bias, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        "changes", [{}, {"cut_crop": False, "interpolation": "bilinear", "crop_scale": 0.3}]
    )
    def test_views_and_head_are_the_recipes(
        self,
        changes: dict[str, Any],
        tiny: Dataset,
        spec: EncoderSpec,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        code, recipes, seeds = PAPER.load(), [], []
        augment = code.augment

        def record(images: Tensor, recipe: Any, draws: SampleRng) -> Tensor:
            recipes.append(recipe)
            seeds.append(draws.seed)
            return augment(images, recipe, draws)

        monkeypatch.setattr(code, "augment", record)
        config = PAPER.config(epochs=1, head_std=0.3, pooling="avg", **changes)
        start, _, _ = self.train(config, tiny, spec, monkeypatch)
        wanted = {"cut_crop": True, "interpolation": "bicubic", "crop_scale": 0.08} | changes
        [recipe] = recipes
        assert (recipe.flip, recipe.size) == (0.5, 16)
        assert recipe.crop_scale == (wanted["crop_scale"], 1.0)
        assert (recipe.cut_crop, recipe.interpolation) == (
            wanted["cut_crop"],
            wanted["interpolation"],
        )
        assert not any(recipe.jitter) and not recipe.blur
        assert start.weight.std().item() == pytest.approx(0.3, rel=0.1)
        assert not start.bias.any()
        assert seeds == [Pixels.SEED]
        others = (code._probe(5, 3, config, seed)[1].weight for seed in (0, 1))
        assert not torch.equal(*others)

    def test_images_are_classified_by_the_statistics_of_the_training(
        self, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not by those of the test images; MAE's norm adds 1e-6 and learns nothing."""
        code, probes = PAPER.load(), []
        build = code._probe

        def note(*how: Any) -> Any:
            probes.append(build(*how))
            return probes[0]

        monkeypatch.setattr(code, "_probe", note)
        config = PAPER.config(epochs=5, batch_size=40, base_lr=3.0, pooling="avg", crop_scale=1.0)
        split = dataclasses.replace(tiny.test, images_NCHW=tiny.test.images_NCHW // 2)
        data, pixels = dataclasses.replace(tiny, test=split), Pixels(spec)
        result = PAPER.load_class()(config).evaluate(pixels, data)
        [(norm, head)] = probes
        assert norm.weight is None and norm.eps == 1e-6
        inputs = pixels.features(split)["avg"] - norm.running_mean
        logits = inputs / (norm.running_var + 1e-6).sqrt() @ head.weight.T + head.bias
        assert torch.equal(result.predictions_N, logits.argmax(dim=1))
        own = (inputs - inputs.mean(0)) / (inputs.std(0, correction=0) + 1e-6)
        other = (own @ head.weight.T + head.bias).argmax(dim=1)
        assert not torch.equal(result.predictions_N, other)

    def test_each_epoch_sees_other_views_and_the_batch_shrinks_to_the_data(
        self, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = PAPER.config(epochs=2, crop_scale=0.3)
        _, _, encoder = self.train(config, tiny, spec, monkeypatch)
        first, second = encoder.seen[1:-1]
        assert first.shape == second.shape == (120, 3, 16, 16)
        orders = [
            rng.permutation(120, Pixels.SEED, "linear-paper", epoch).argsort() for epoch in (0, 1)
        ]
        differ = (first[orders[0]] != second[orders[1]]).flatten(1).any(1)
        assert differ.float().mean() > 0.9, "a small image has few crops, so that some coincide"

    def test_separates_what_is_separable(self, tiny: Dataset, spec: EncoderSpec) -> None:
        config = PAPER.config(
            epochs=20, batch_size=40, optimizer="sgd", base_lr=1.0, crop_scale=1.0, pooling="avg"
        )
        assert PAPER.load_class()(config).evaluate(Pixels(spec), tiny).scores["top1"] == 100

    def test_encoder_is_frozen_in_evaluation_mode(self, tiny: Dataset, spec: EncoderSpec) -> None:
        module = backbones.build(spec, seed=0, drop_path_rate=0.5)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        config = PAPER.config(epochs=1, batch_size=60)
        scores = [
            PAPER.load_class()(config)
            .evaluate(Encoder(module, spec, CPU, seed=0), tiny)
            .predictions_N
            for _ in range(2)
        ]
        assert torch.equal(*scores)
        assert all(torch.equal(before[n], value) for n, value in module.state_dict().items())

    def test_without_a_class_token_the_mean_must_be_asked_for(
        self, tiny: Dataset, spec: EncoderSpec
    ) -> None:
        module = backbones.build(spec, seed=0, class_token=False, global_pool="avg")
        encoder = Encoder(module, spec, CPU, seed=0)
        probe = PAPER.load_class()(PAPER.config(epochs=1))
        for call in (probe.audit, lambda encoder: probe.evaluate(encoder, tiny)):
            with pytest.raises(UserError, match="linear paper pooling avg would work"):
                call(encoder)
        result = PAPER.load_class()(PAPER.config(epochs=1, pooling="avg")).evaluate(encoder, tiny)
        assert result.predictions_N.shape == (40,)


@pytest.fixture(scope="module")
def micro(tiny: Dataset) -> Encoder:
    shape = {"depth": 1, "embed_dim": 16, "num_heads": 2}
    spec = EncoderSpec("vit_micro", 16, 8, 3, tiny.mean, tiny.std, shape)
    return Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)


SHORT_TUNING = {"epochs": 1, "batch_size": 24, "auto_augment": "", "warmup": 0.0, "mixup": 0.0}


def test_trials_of_fine_tuning_are_judged_on_held_out_training_images(
    micro: Encoder, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The given rate learns nothing; whichever is drawn is better, whatever the test labels are."""
    config = FINETUNE.config(**SHORT_TUNING, base_lr=1e-9, trials=3)
    evaluation = FINETUNE.load_class()(config)
    trained: list[int] = []
    train = finetuning.train

    def counted(model: Any, encoder: Any, split: Split, config: Any) -> None:
        trained.append(len(split))
        train(model, encoder, split, config)

    monkeypatch.setattr(finetuning, "train", counted)
    found = evaluation.evaluate(micro, tiny)
    whole = len(tiny.train)
    assert trained == [whole - whole // 10] * 3 + [whole]
    space = FINETUNE.search()
    for name in ("base_lr", "crop_scale"):
        range_ = space[name]
        assert isinstance(range_, LogUniform | Uniform)
        assert range_.low <= found.chosen[name] <= range_.high
    assert found.chosen["base_lr"] > 1e-4
    other = dataclasses.replace(
        tiny, test=dataclasses.replace(tiny.test, labels_N=tiny.test.labels_N.flip(0))
    )
    assert evaluation.evaluate(micro, other).chosen == found.chosen


def test_trials_of_fine_tuning_are_the_same_for_every_seed(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And drawn from a range of learning rates as wide as those of methods."""
    tried: list[tuple[float, float]] = []

    def trained(encoder: Any, data: Dataset, train: Split, test: Split, config: Any) -> Tensor:
        tried.append((config.base_lr, config.crop_scale))
        return torch.zeros(len(test), dtype=torch.int64)

    monkeypatch.setattr(finetune, "_trained", trained)
    evaluation = FINETUNE.load_class()(FINETUNE.config(trials=4))
    found = []
    for seed in (0, 1):
        tried.clear()
        evaluation.evaluate(SimpleNamespace(seed=seed, spec=spec, hardware=CPU), tiny)
        found.append(tried[:4])
    assert found[0] == found[1] and len({*found[0]}) == 4
    rate = FINETUNE.search()["base_lr"]
    assert isinstance(rate, LogUniform) and rate.high / rate.low >= 50


@pytest.mark.parametrize("preset", FINETUNE.presets())
def test_what_is_published_of_fine_tuning_is_among_what_its_trials_draw(preset: str) -> None:
    config = FINETUNE.checked_config(FINETUNE.presets()[preset])
    for name, range_ in FINETUNE.search().items():
        assert isinstance(range_, LogUniform | Uniform)
        assert range_.low <= getattr(config, name) <= range_.high, name


@pytest.mark.parametrize(("best", "taken"), [((), 0), ((2,), 2), ((1, 3), 1)])
def test_the_first_of_the_best_trials_is_taken(
    best: tuple[int, ...],
    taken: int,
    tiny: Dataset,
    spec: EncoderSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is given comes first, and then points of a Sobol sequence."""
    config = FINETUNE.config(trials=4)
    drawn = draw("sobol", FINETUNE.load_class().search_space, 3, "finetune")
    settings = [{"base_lr": config.base_lr, "crop_scale": config.crop_scale}, *drawn]
    tried: list[dict[str, float]] = []

    def trained(encoder: Any, data: Dataset, train: Split, test: Split, config: Any) -> Tensor:
        tried.append({"base_lr": config.base_lr, "crop_scale": config.crop_scale})
        return test.labels_N.clone() if len(tried) - 1 in best else torch.zeros(len(test)).long()

    monkeypatch.setattr(finetune, "_trained", trained)
    encoder = SimpleNamespace(seed=0, spec=spec, hardware=CPU)
    found = FINETUNE.load_class()(config).evaluate(encoder, tiny)
    assert tried == [*settings, settings[taken]]
    top = found.chosen.pop("validation_top1")
    assert found.chosen == settings[taken] and (top == 100) == bool(best)


def test_a_trial_that_diverges_is_not_taken(micro: Encoder, tiny: Dataset) -> None:
    mad = FINETUNE.config(**SHORT_TUNING, base_lr=1e30)
    with pytest.raises(finetuning.Diverged):
        FINETUNE.load_class()(mad).evaluate(micro, tiny)
    found = FINETUNE.load_class()(dataclasses.replace(mad, trials=2)).evaluate(micro, tiny)
    assert found.chosen["base_lr"] < 1
    with pytest.raises(finetuning.Diverged, match="all 1 trials"):
        FINETUNE.load_class()(dataclasses.replace(mad, trials=1)).evaluate(micro, tiny)
