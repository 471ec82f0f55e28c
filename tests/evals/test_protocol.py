"""What makes an evaluation honest: who is chosen on, who is fitted on, and in which mode."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
import torch.nn.functional as F
from helpers import CPU
from torch import Tensor

from ssl_bench.api import optimizers, registry
from ssl_bench.data import Dataset, Split
from ssl_bench.evaluation import finetuning, linear_probe, runner
from ssl_bench.evaluation.features import Encoder
from ssl_bench.evaluation.metrics import holdout
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec

KNN = registry.find("eval", "knn")
FINETUNE = registry.find("eval", "finetune")
BOTH = pytest.mark.parametrize(
    "name,config", [("linear", {"batch_size": 32, "epochs": 20}), ("knn", {})]
)


class Given:
    """An encoder whose features are given."""

    def __init__(self, features: dict[Split, dict[str, Tensor]]) -> None:
        self._features, self.seed, self.hardware = features, 0, CPU

    def features(self, split: Split) -> dict[str, Tensor]:
        return self._features[split]


def one_hot(labels_N: Tensor) -> Tensor:
    return F.one_hot(labels_N, 3).float()


def evaluate(name: str, config: dict[str, Any], encoder: Given, data: Dataset) -> Any:
    plugin = registry.find("eval", name)
    return plugin.load_class()(plugin.config(**config)).evaluate(encoder, data)


@BOTH
def test_what_fits_only_the_images_it_was_fitted_on_is_not_chosen(
    name: str, config: dict[str, Any], tiny: Dataset
) -> None:
    """One pooling is noise, of which those can be learned by heart; the other is mostly right."""
    labels_N, (fit_N, held_out_N) = tiny.train.labels_N, holdout(tiny, 0.1)
    generator = torch.Generator().manual_seed(0)
    by_heart = torch.randn(len(labels_N), 400, generator=generator)
    partly = labels_N.clone()
    for rows_N in (fit_N, held_out_N):
        wrong_N = rows_N[::5]
        partly[wrong_N] = (partly[wrong_N] + 1) % 3
    features = {"by heart": by_heart, "partly": one_hot(partly)}
    right = torch.zeros(len(tiny.test), 400)
    test = {"by heart": right, "partly": one_hot(tiny.test.labels_N)}
    encoder = Given({tiny.train: features, tiny.test: test})
    result = evaluate(name, config, encoder, tiny)
    assert result.chosen["pooling"] == "partly"
    assert result.chosen["validation_top1"] == pytest.approx(75)
    assert result.scores["top1"] > 75, "the test images' features are of the pooling that is chosen"


def test_low_shot_chooses_on_folds_that_it_was_not_fitted_on(tiny: Dataset) -> None:
    labels_N = tiny.train.labels_N
    generator = torch.Generator().manual_seed(0)
    by_heart = torch.randn(len(labels_N), 400, generator=generator)
    partly = labels_N.clone()
    partly[torch.rand(len(labels_N), generator=generator) < 0.25] = 0
    test = {"by heart": torch.zeros(40, 400), "partly": one_hot(tiny.test.labels_N)}
    features = {"by heart": by_heart, "partly": one_hot(partly)}
    encoder = Given({tiny.train: features, tiny.test: test})
    result = evaluate("low-shot", {"shares": (0.5,), "draws": 2, "steps": 60}, encoder, tiny)
    [choices] = result.chosen.values()
    for choice in choices:
        assert choice["pooling"] == "partly"
        assert 60 < choice["validation_top1"] < 95
    assert result.scores["top1_50pct"] > 95, "of the pooling that is chosen"


@pytest.mark.parametrize("name", ["linear", "low-shot", "robustness", "segmentation"])
def test_probes_see_their_images_in_an_order_of_the_encoders_seed(
    name: str, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each learning rate is tried with each weight decay."""
    seeds: list[int] = []
    grids: list[Any] = []
    train = linear_probe.train

    def note(*how: Any) -> linear_probe.Probes:
        seeds.append(how[7])
        grids.append(how[4])
        return train(*how)

    monkeypatch.setattr(linear_probe, "train", note)
    plugin = registry.find("eval", name)
    encoder = Encoder(backbones.build(spec, 0), spec, CPU, seed=5)
    rates: dict[str, Any] = {"learning_rates": (0.1, 0.2, 0.3), "weight_decays": (0.0, 0.01)}
    config = dataclasses.replace(helpers.small(plugin), **rates)
    plugin.load_class()(config).evaluate(encoder, tiny)
    assert set(seeds) == {5}
    assert grids[0] == [*itertools.product(*rates.values())]


def test_an_untrained_baseline_starts_as_the_run_did(
    tiny: Dataset, spec: EncoderSpec, tmp_path: Path
) -> None:
    encoder, _ = runner._Encoders(spec, tiny, 5, CPU, tmp_path, False).baseline("random")
    expected = backbones.build(spec, 5).state_dict()
    found = encoder.trainable_copy().state_dict()
    assert found.keys() == expected.keys() and encoder.seed == 5
    assert all(torch.equal(found[name], each) for name, each in expected.items())


@BOTH
def test_held_out_images_count_in_the_end(name: str, config: dict[str, Any], tiny: Dataset) -> None:
    """They alone are of the third class."""
    _, held_out_N = holdout(tiny, 0.1)
    labels_N = tiny.train.labels_N % 2
    labels_N[held_out_N] = 2
    data = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, labels_N=labels_N))
    features = {
        data.train: {"avg": one_hot(labels_N)},
        data.test: {"avg": one_hot(data.test.labels_N)},
    }
    assert evaluate(name, config, Given(features), data).scores["top1"] == 100


def test_a_probe_is_blind_to_all_that_it_is_not_fitted_on(tiny: Dataset) -> None:
    """Their mean and deviation included."""
    features = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
    fit_N, held_out_N = holdout(tiny, 0.1)
    changed = features.index_fill(0, held_out_N, 1e3)
    how = tiny.train.labels_N, fit_N, 3, [(0.1, 0.0)], 2, 32, 0
    first, second = linear_probe.train(features, *how), linear_probe.train(changed, *how)
    for ours, theirs in zip(
        dataclasses.astuple(first)[1:], dataclasses.astuple(second)[1:], strict=True
    ):
        assert torch.equal(ours, theirs)
    assert torch.equal(first.predict(features), second.predict(features))


def test_as_many_neighbours_vote_in_the_end_as_were_chosen(tiny: Dataset) -> None:
    """Where all votes are equal, many are those of the largest class."""
    labels_N = (torch.arange(120) % 10 == 0).long() + (torch.arange(120) % 10 == 1).long() * 2
    data = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, labels_N=labels_N))
    features = {
        data.train: {"avg": one_hot(labels_N)},
        data.test: {"avg": one_hot(data.test.labels_N)},
    }
    config = {"neighbors": (1, 100), "temperature": 1e3}
    result = evaluate("knn", config, Given(features), data)
    assert (result.chosen["neighbors"], result.scores["top1"]) == (1, 100)


def test_what_is_run_unasked_and_what_scores_are_compared_with() -> None:
    """Pixels are no encoder that could be trained or looked into."""
    evals = registry.discover("eval").values()
    compared = {
        p.name: {n for n, _ in p.load_class()(p.config()).baselines().values()} for p in evals
    }
    untrained = {"attention", "cka", "finetune", "masked-words", "partial-finetune", "robustness"}
    both = {"embedding", "knn", "linear", "low-shot", "representation"}
    both |= {"segmentation", "segmentation-knn"}
    assert {name for name, found in compared.items() if found == {"random"}} >= untrained
    assert {name for name, found in compared.items() if found == {"pixels", "random"}} == both
    unasked = {plugin.name for plugin in evals if plugin.declared.is_default}
    assert unasked == {"finetune", "knn", "linear"}


DEFAULTS: dict[str, dict[str, Any]] = {
    "attention": {"images": 8, "sample": 500},
    "cka": {"images": 1000},
    "embedding": {"images": 2000, "pooling": "cls", "perplexity": 30.0, "neighbors": 5},
    "finetune": {"scratch_lr": 5e-4, "trials": 0},
    "knn": {"neighbors": (1, 5, 10, 20, 50, 100, 200)},
    "low-shot": {
        **{"shares": (0.01, 0.1), "draws": 3, "folds": 5, "steps": 300, "batch_size": 256},
        "learning_rates": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        "weight_decays": (1e-3, 1e-2, 1e-1),
    },
    "masked-words": {"images": 1000},
    "representation": {"images": 10_000, "pairs": 2000},
    "retrieval": {"rerank": 16, "resamples": 1000},
    "robustness": {"images": 1000, "corrupted": ""},
    "segmentation": {"epochs": 10, "batch_size": 4096, "train_images": 2000},
    "segmentation-knn": {"neighbors": (5, 10, 20, 50), "train_images": 2000, "bank": 20_000},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_scores_are_of_these_settings_unless_others_are_given(name: str) -> None:
    """The protocol's hash leaves defaults out, so that another one would pass for the same."""
    config = registry.find("eval", name).config()
    assert {each: getattr(config, each) for each in DEFAULTS[name]} == DEFAULTS[name]


def test_all_choose_on_a_tenth_of_the_training_images() -> None:
    evals = registry.discover("eval").values()
    shares = {p.name: p.config().validation for p in evals if hasattr(p.config(), "validation")}
    assert {*shares} >= {"knn", "linear", "robustness", "segmentation", "segmentation-knn"}
    assert {*shares.values()} == {0.1}


@pytest.mark.parametrize("name", ["finetune", "linear-paper"])
def test_the_learning_rate_is_that_of_the_batch_there_is(
    name: str, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is no larger than the training split."""
    rates: list[float] = []
    monkeypatch.setattr(optimizers, "set_learning_rate", lambda optimizer, rate: rates.append(rate))
    plugin = registry.find("eval", name)
    config = plugin.config(epochs=4, batch_size=1000, base_lr=0.1, warmup=0.25)
    encoder = Encoder(backbones.build(spec, 0), spec, CPU, seed=0)
    plugin.load_class()(config).evaluate(encoder, tiny)
    assert len(rates) == 4
    assert max(rates) == pytest.approx(0.1 * 120 / 256)


def test_knn_is_the_published_one_by_default() -> None:
    """Wu et al., arXiv:1805.01978, section 3.4, and DINO's ``eval_knn.py``."""
    config = KNN.config()
    assert config.temperature == 0.07
    assert {10, 20, 100, 200} <= {*config.neighbors}


def test_finetuning_trains_in_training_mode_and_predicts_in_evaluation_mode(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[tuple[bool, bool]] = []
    forward = finetuning.Classifier.forward

    def record(model: finetuning.Classifier, images_BCHW: Tensor) -> Tensor:
        modes.append((model.training, model.encoder.training))
        return forward(model, images_BCHW)

    monkeypatch.setattr(finetuning.Classifier, "forward", record)
    encoder = Encoder(backbones.build(spec, 0), spec, CPU, seed=0)
    config = FINETUNE.config(epochs=1, batch_size=40, auto_augment="")
    FINETUNE.load_class()(config).evaluate(encoder, tiny)
    assert modes == 3 * [(True, True)] + [(False, False)]


def test_mixup_and_cutmix_have_alphas_of_their_own() -> None:
    """A large one halves, a small one leaves shares near 0 or 1."""
    config = FINETUNE.config(mixup=1e3, cutmix=0.05)
    images = torch.stack([torch.zeros(1, 16, 16), torch.ones(1, 16, 16)])
    pasted = []
    for step in range(40):
        mixed, soft = finetuning.mix(images, torch.eye(2), *finetuning.mixing(config, 16, 0, step))
        share = soft[0, 0].item()
        if ((mixed == 0) | (mixed == 1)).all():
            pasted.append(share)
        else:
            assert 0.4 < share < 0.6
    assert 10 < len(pasted) < 30
    assert sum(not 0.1 < share < 0.9 for share in pasted) > 4
