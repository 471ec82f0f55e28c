"""The map of the test images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, make_images
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.data import Dataset, Split
from ssl_bench.errors import UserError
from ssl_bench.evals import embedding
from ssl_bench.evaluation.features import Encoder, RawPixels
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.utils import rng

EMBEDDING = registry.find("eval", "embedding")


class Clusters:
    """An encoder that puts each class somewhere of its own."""

    seed = 3
    hardware = CPU

    def features(self, split: Split) -> dict[str, Tensor]:
        noise = torch.randn(len(split), 8, generator=torch.Generator().manual_seed(0))
        centres = 20 * torch.nn.functional.one_hot(split.labels_N, 8).float()
        return {"avg": torch.zeros(len(split), 8), "cls": centres + noise}


def naive_trustworthiness(features: Tensor, points: Tensor, k: int) -> float:
    """Venna and Kaski's formula, image by image."""
    count, penalty = len(features), 0
    for index in range(count):
        order = (features - features[index]).double().norm(dim=1).argsort().tolist()
        order.remove(index)
        near = (points - points[index]).double().norm(dim=1).argsort().tolist()
        near.remove(index)
        penalty += sum(max(0, order.index(other) + 1 - k) for other in near[:k])
    return 1 - 2 * penalty / (count * k * (2 * count - 3 * k - 1))


def test_classes_that_are_apart_stay_apart(tiny: Dataset) -> None:
    """Of enough images: t-SNE's steps are too long for a few dozen."""
    test = make_images(300, 3, 4, 3, seed=2)
    data = dataclasses.replace(tiny, test=test)
    result = EMBEDDING.load_class()(EMBEDDING.config(images=300)).evaluate(Clusters(), data)
    points, labels = result.arrays["points"], result.arrays["labels"]
    distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
    assert torch.equal(labels[distances.argmin(1)], labels)
    assert result.chosen == {"pooling": "cls"}


def test_arrays_say_which_images_they_show(tiny: Dataset) -> None:
    result = EMBEDDING.load_class()(EMBEDDING.config(images=10)).evaluate(Clusters(), tiny)
    points, labels, index = (result.arrays[name] for name in ("points", "labels", "index"))
    assert points.shape == (10, 2)
    assert points.dtype == torch.float32
    assert torch.equal(labels, tiny.test.labels_N[index])
    assert sorted(labels.bincount().tolist()) == [3, 3, 4]
    assert torch.equal(index, index.unique()), "in the order of the test split"
    assert result.predictions_N is None
    assert (result.unit, result.better) == ("trustworthiness (%)", "neither")


def test_trustworthiness_is_the_formula(tiny: Dataset) -> None:
    encoder = Clusters()
    result = EMBEDDING.load_class()(EMBEDDING.config(images=30, neighbors=4)).evaluate(
        encoder, tiny
    )
    features = encoder.features(tiny.test)["cls"][result.arrays["index"]]
    expected = 100 * naive_trustworthiness(features, result.arrays["points"], 4)
    assert result.scores["trustworthiness"] == pytest.approx(expected)


def test_every_method_shows_the_same_images(tiny: Dataset, spec: EncoderSpec) -> None:
    config = EMBEDDING.config(images=12)
    encoder = Encoder(backbones.build(spec, seed=3), spec, CPU, seed=3)
    first, second = (
        EMBEDDING.load_class()(config).evaluate(each, tiny) for each in (Clusters(), encoder)
    )
    assert torch.equal(first.arrays["index"], second.arrays["index"])
    other_data = dataclasses.replace(tiny, fingerprint="another")
    other = EMBEDDING.load_class()(config).evaluate(encoder, other_data)
    assert not torch.equal(first.arrays["index"], other.arrays["index"])


@pytest.mark.parametrize(("asked", "shown"), [("cls", "cls"), ("avg", "avg")])
def test_pooling_is_what_was_asked_for(
    asked: str, shown: str, tiny: Dataset, spec: EncoderSpec
) -> None:
    config = EMBEDDING.config(images=9, pooling=asked)
    encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
    assert EMBEDDING.load_class()(config).evaluate(encoder, tiny).chosen["pooling"] == shown
    headless = backbones.build(spec, seed=0, class_token=False, global_pool="avg")
    without = Encoder(headless, spec, CPU, seed=0)
    assert EMBEDDING.load_class()(config).evaluate(without, tiny).chosen["pooling"] == "avg"
    pixels = EMBEDDING.load_class()(config).evaluate(RawPixels(spec, CPU, 0), tiny)
    assert pixels.chosen["pooling"] == "pixels"


@pytest.mark.parametrize(("given", "used"), [(5.0, 5.0), (30.0, 13.0)])
def test_perplexity_is_what_was_asked_for_or_a_third_of_the_images(
    given: float, used: float, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    class Map:
        def __init__(self, **how: Any) -> None:
            asked.append(how)

        def fit_transform(self, features: np.ndarray) -> np.ndarray:
            return features[:, :2]

    monkeypatch.setattr(embedding, "TSNE", Map)
    EMBEDDING.load_class()(EMBEDDING.config(perplexity=given)).evaluate(Clusters(), tiny)
    assert (asked[0]["perplexity"], asked[0]["init"]) == (used, "pca")
    assert asked[0]["random_state"] == rng.key(Clusters.seed, "embedding") % 2**32


@pytest.mark.parametrize(
    "wrong", [{"images": 3}, {"images": 0}, {"perplexity": 1.0}, {"neighbors": 0}]
)
def test_settings_that_cannot_be_are_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^--embedding-"):
        EMBEDDING.config(**wrong)


def test_too_few_test_images_are_one_line(tiny: Dataset) -> None:
    few = Split(tiny.test.images_NCHW[:3], tiny.test.labels_N[:3])
    evaluation = EMBEDDING.load_class()(EMBEDDING.config())
    assert "tiny has 3" in evaluation.supports(Clusters(), dataclasses.replace(tiny, test=few))
    four = dataclasses.replace(tiny, test=tiny.test.subset(range(4)))
    assert evaluation.supports(Clusters(), four) is None
    assert evaluation.evaluate(Clusters(), four).arrays["points"].shape == (4, 2)


class Broken(Clusters):
    """An encoder that gives one value for everything."""

    def __init__(self, value: float) -> None:
        self.value = value

    def features(self, split: Split) -> dict[str, Tensor]:
        return {"avg": torch.full((len(split), 8), self.value)}


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_a_collapsed_encoder_has_a_map_too(value: float, tiny: Dataset) -> None:
    result = EMBEDDING.load_class()(EMBEDDING.config(images=12)).evaluate(Broken(value), tiny)
    assert result.arrays["points"].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_no_numbers_are_one_line(value: float, tiny: Dataset) -> None:
    with pytest.raises(UserError, match="finite"):
        EMBEDDING.load_class()(EMBEDDING.config()).evaluate(Broken(value), tiny)
