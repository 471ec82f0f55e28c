"""Ranks, alignment, uniformity and CKA against naive formulas and known cases."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.evaluation.features import Encoder, RawPixels, prepare
from ssl_bench.evaluation.metrics import linear_cka, subset
from ssl_bench.models import backbones, spread
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.transforms.augmentations import augment, crop_and_flip
from ssl_bench.utils.rng import SampleRng

REPRESENTATION = registry.find("eval", "representation").load()
CKA = registry.find("eval", "cka").load()


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_rank(values: np.ndarray, epsilon: float) -> float:
    share = values / values.sum() + epsilon
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(40, 7), (7, 40), (12, 12)]), st.booleans())
def test_ranks_are_entropies_of_the_spectrum(
    seed: int, shape: tuple[int, int], in_parts: bool
) -> None:
    features = normal(seed, *shape) * torch.logspace(0, -2, shape[1]) + 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spread, "_NUMBERS_AT_ONCE", 30 if in_parts else 10**9)
        ours = REPRESENTATION.rankme(features), REPRESENTATION.effective_rank(features)
    exact = features.double().numpy()
    values = np.linalg.svd(exact, compute_uv=False)
    covariance = np.cov(exact, rowvar=False)
    eigenvalues = np.linalg.eigvalsh(covariance).clip(0)
    assert ours[0] == pytest.approx(naive_rank(values, 1e-7), rel=1e-6)
    assert ours[1] == pytest.approx(naive_rank(eigenvalues, 0.0), rel=1e-6)


def test_isotropic_features_have_all_ranks_and_collapsed_ones_have_one() -> None:
    isotropic = torch.linalg.qr(normal(0, 64, 8).double()).Q
    assert REPRESENTATION.rankme(isotropic) == pytest.approx(8, rel=1e-4)
    many = normal(1, 20000, 8)
    assert REPRESENTATION.effective_rank(many) == pytest.approx(8, rel=1e-2)
    line = normal(2, 50, 1) * normal(3, 1, 8)
    point = normal(4, 1, 8).expand(50, 8)
    for collapsed in (line, point, torch.zeros(50, 8)):
        assert REPRESENTATION.rankme(collapsed) == pytest.approx(1, abs=1e-4)
        assert REPRESENTATION.effective_rank(collapsed) == pytest.approx(1, abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([3, 9, 256]))
def test_uniformity_and_alignment_are_their_formulas(seed: int, at_once: int) -> None:
    first, second = normal(seed, 23, 5) + 0.5, normal(seed + 1, 23, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(REPRESENTATION, "_IMAGES_AT_ONCE", at_once)
        ours = REPRESENTATION.uniformity(first)
    x, y = (each.double() / each.double().norm(dim=1, keepdim=True) for each in (first, second))
    pairs = [math.exp(-2 * float((a - b).norm()) ** 2) for a, b in itertools.combinations(x, 2)]
    assert ours == pytest.approx(math.log(sum(pairs) / len(pairs)))
    apart = [float((a - b).norm()) ** 2 for a, b in zip(x, y, strict=True)]
    assert REPRESENTATION.alignment(first, second) == pytest.approx(sum(apart) / len(apart))


def test_uniformity_of_points_on_a_sphere_is_near_theory() -> None:
    """On the sphere in three dimensions the cosine is uniform in [-1, 1]."""
    theory = math.log((1 - math.exp(-8)) / 8)
    assert REPRESENTATION.uniformity(normal(0, 4000, 3)) == pytest.approx(theory, abs=0.01)
    assert REPRESENTATION.uniformity(torch.ones(10, 3)) == pytest.approx(0)


def test_alignment_is_of_two_views_of_the_same_image(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REPRESENTATION, "_IMAGES_AT_ONCE", 4)
    pixels = RawPixels(spec, CPU, seed=3)
    result = REPRESENTATION.Representation(REPRESENTATION.Config(pairs=10)).evaluate(pixels, tiny)
    index = subset(40, 10, tiny.fingerprint)
    recipe, rows = crop_and_flip(16, 0.2, 0.5), SampleRng(3, 0, index, "representation/")
    views = []
    for name in ("view0", "view1"):
        own = partial(augment, recipe=recipe, draws=rows.within(name))
        views.append(prepare(tiny.test.images(index), spec, CPU, own).flatten(1))
    wanted = REPRESENTATION.alignment(*views)
    assert wanted > 0.1
    assert result.scores["alignment_pixels"] == pytest.approx(wanted)


def test_headline_is_the_rankme_of_the_mean(tiny: Dataset, spec: EncoderSpec) -> None:
    encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
    result = REPRESENTATION.Representation(REPRESENTATION.Config(images=30)).evaluate(encoder, tiny)
    name, value = next(iter(result.scores.items()))
    rows = encoder.features(tiny.test)["avg"][subset(40, 30, tiny.fingerprint)]
    assert name == "rankme_avg"
    assert value == REPRESENTATION.rankme(rows)
    assert result.scores["effective_rank_avg"] == REPRESENTATION.effective_rank(rows)
    assert result.scores["uniformity_avg"] == REPRESENTATION.uniformity(rows)
    assert result.scores["alignment_avg"] != result.scores["alignment_cls"]
    assert {each.rpartition("_")[2] for each in result.scores} == {"avg", "cls"}
    assert (result.unit, result.better) == ("RankMe", "neither")


def test_subset_is_one_for_all_and_grows(tiny: Dataset) -> None:
    few, more = (subset(40, count, tiny.fingerprint).tolist() for count in (10, 25))
    assert set(few) < set(more)
    assert more == sorted(set(more))
    assert subset(40, 99, tiny.fingerprint).tolist() == list(range(40))
    assert subset(40, 10, "another").tolist() != few


def naive_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The mean over all four distinct images, which is unbiased by its very definition."""
    count = len(k)
    terms = [
        k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q]
        for i, j, q, r in itertools.permutations(range(count), 4)
    ]
    return float(np.mean(terms))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(4, 7))
def test_cka_is_the_ratio_of_unbiased_estimates(seed: int, count: int) -> None:
    x, y = normal(seed, count, 3) + 1, normal(seed + 1, count, 5)
    k, m = ((each.double() @ each.double().T).numpy() for each in (x, y))
    wanted = naive_hsic(k, m) / math.sqrt(naive_hsic(k, k) * naive_hsic(m, m))
    assert linear_cka(x, y) == pytest.approx(wanted, abs=1e-9)


def test_cka_of_many_images_is_that_of_double_centred_grams() -> None:
    """The biased estimate of Kornblith et al. differs by what falls with the images alone."""
    x = normal(0, 2000, 4)
    y = x @ normal(1, 4, 6) + 2 * normal(2, 2000, 6)
    center = torch.eye(2000) - 1 / 2000
    k, m = (center @ (each @ each.T) @ center for each in (x, y))
    biased = (k * m).sum() / (k.norm() * m.norm())
    assert 0.2 < biased < 0.9
    assert linear_cka(x, y) == pytest.approx(float(biased), abs=0.01)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 1e4]), st.sampled_from([0.0, -5.0, 100.0]))
def test_cka_is_blind_to_rotation_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    x, y = normal(seed, 30, 6).double(), normal(seed + 1, 30, 4).double()
    y[:, :2] += x[:, :2]
    rotation = torch.linalg.qr(normal(seed + 2, 6, 6).double()).Q
    moved = scale * (x @ rotation) + shift
    assert linear_cka(moved, y) == pytest.approx(linear_cka(x, y), abs=1e-8)
    assert linear_cka(x, moved) == pytest.approx(1)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))


def test_unrelated_features_have_no_cka_however_wide() -> None:
    """The biased estimate would be near 1 here: as many features as images."""
    found = [linear_cka(normal(seed, 100, 300), normal(seed + 50, 100, 300)) for seed in range(20)]
    assert abs(sum(found) / len(found)) < 0.01


def test_cka_of_what_never_changes_is_zero_and_of_too_few_one_line() -> None:
    assert linear_cka(torch.full((9, 3), 0.1), normal(0, 9, 3)) == 0
    for x, y in ((normal(0, 3, 2), normal(1, 3, 2)), (normal(0, 5, 2), normal(1, 6, 2))):
        with pytest.raises(UserError, match="the same 4 or more would work"):
            linear_cka(x, y)


class TestCka:
    """The evaluation."""

    def test_blocks_are_means_of_patches(
        self, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(CKA, "_IMAGES_AT_ONCE", 8)
        module = backbones.build(spec, seed=0)
        encoder = Encoder(module, spec, CPU, seed=0)
        result = CKA.CKA(CKA.Config(images=20)).evaluate(encoder, tiny)
        index = result.arrays["index"]
        assert torch.equal(index, subset(40, 20, tiny.fingerprint))
        images = prepare(tiny.test.images(index), spec, CPU)
        with torch.no_grad():
            entering = module._pos_embed(module.patch_embed(images))
            inside = [entering[:, 1:], *module.get_intermediate_layers(images, n=6)]
        assert set(result.arrays) == {"index", *(f"block_{number}" for number in range(7))}
        means = [each.mean(dim=1) for each in inside]
        for number, mean in enumerate(means):
            stored = result.arrays[f"block_{number}"]
            assert stored.dtype == torch.float16
            torch.testing.assert_close(stored.float(), mean, rtol=1e-3, atol=1e-3)
        wanted = {"pixels_last": linear_cka(images.flatten(1), means[-1])}
        wanted |= {f"block_{n}_last": linear_cka(means[n], means[-1]) for n in range(6)}
        assert list(result.scores) == list(wanted)
        for name, value in wanted.items():
            assert result.scores[name] == pytest.approx(100 * value, abs=1e-3)

    def test_seeds_share_the_images(self, tiny: Dataset, spec: EncoderSpec) -> None:
        module, config = backbones.build(spec, seed=0), CKA.Config(images=10)
        first, second = (
            CKA.CKA(config).evaluate(Encoder(module, spec, CPU, seed), tiny) for seed in (0, 1)
        )
        assert torch.equal(first.arrays["index"], second.arrays["index"])
        assert first.scores == second.scores

    def test_large_numbers_are_kept(self) -> None:
        assert CKA._small(torch.tensor([1e5])).item() == 1e5
        assert CKA._small(torch.tensor([1e4])).dtype == torch.float16

    def test_too_few_images_are_one_line(self, tiny: Dataset, spec: EncoderSpec) -> None:
        with pytest.raises(UserError, match="--cka-images 3"):
            CKA.Config(images=3)
        few = dataclasses.replace(
            tiny.test, images_NCHW=tiny.test.images_NCHW[:3], labels_N=tiny.test.labels_N[:3]
        )
        encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
        cka = CKA.CKA(CKA.Config())
        assert "tiny has 3" in cka.supports(encoder, dataclasses.replace(tiny, test=few))
        four = dataclasses.replace(tiny, test=tiny.test.subset(range(4)))
        assert cka.supports(encoder, four) is None
        assert cka.supports(RawPixels(spec, CPU, 0), tiny)


def test_two_test_images_can_be_compared(tiny: Dataset, spec: EncoderSpec) -> None:
    evaluation = REPRESENTATION.Representation(REPRESENTATION.Config())
    for count, is_enough in ((1, False), (2, True)):
        data = dataclasses.replace(tiny, test=tiny.test.subset(range(count)))
        assert (evaluation.supports(RawPixels(spec, CPU, 0), data) is None) == is_enough
