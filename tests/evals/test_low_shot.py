"""Low-shot probes: which labels they see, and what they make of them."""

from __future__ import annotations

import dataclasses
import re
import statistics
from typing import Any

import pytest
import torch
from helpers import CPU, make_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.data import Dataset, Split
from ssl_bench.data.dataset import fingerprint
from ssl_bench.errors import UserError
from ssl_bench.evals import low_shot
from ssl_bench.evaluation import linear_probe
from ssl_bench.evaluation.features import RawPixels
from ssl_bench.evaluation.metrics import balanced_order, rank_in_class
from ssl_bench.models.backbones import EncoderSpec

LOW_SHOT = registry.find("eval", "low-shot")
SHORT: dict[str, Any] = {"shares": (0.1, 0.5), "draws": 2, "steps": 10}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 100))
def test_every_beginning_of_a_balanced_order_is_balanced(labels: list[int], seed: int) -> None:
    labels_N = torch.tensor(labels)
    order_N = balanced_order(labels_N, "test", seed)
    assert order_N.sort().values.tolist() == [*range(len(labels))]
    available_C = labels_N.bincount(minlength=6)
    for count in range(1, len(labels) + 1):
        taken_C = labels_N[order_N[:count]].bincount(minlength=6)
        is_open_C = taken_C < available_C
        if is_open_C.any():
            assert taken_C.max() <= taken_C[is_open_C].min() + 1


def test_a_balanced_order_is_a_function_of_its_coordinates() -> None:
    labels_N = torch.arange(60) % 3
    first = balanced_order(labels_N, "a", 0)
    assert torch.equal(first, balanced_order(labels_N, "a", 0))
    assert not torch.equal(first, balanced_order(labels_N, "a", 1))
    one_each = [balanced_order(labels_N, "a", seed)[0] % 3 for seed in range(40)]
    assert len({int(label) for label in one_each}) == 3, "every class comes first sometimes"


def test_rank_in_class_counts_those_before() -> None:
    labels = [2, 0, 2, 2, 1, 0]
    naive = [labels[:index].count(label) for index, label in enumerate(labels)]
    assert rank_in_class(torch.tensor(labels)).tolist() == naive


def seen_rows(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, encoder: Any, **changes: Any
) -> list[Tensor]:
    """The training images that each probe was fitted on, in the order of fitting."""
    rows, train = [], linear_probe.train

    def record(features: Tensor, labels: Tensor, which: Tensor, *rest: Any) -> linear_probe.Probes:
        rows.append(which)
        return train(features, labels, which, *rest)

    monkeypatch.setattr(linear_probe, "train", record)
    LOW_SHOT.load_class()(LOW_SHOT.config(**SHORT, **changes)).evaluate(encoder, data)
    return rows


def test_no_label_beyond_the_share_is_read(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fitted and what is chosen on is the share: stratified folds, then all of it."""
    rows = seen_rows(tiny, monkeypatch, RawPixels(spec, CPU, 0), folds=4)
    per_share = 4 + 1
    for draw in range(2):
        for share, size in enumerate((12, 60)):
            at = (2 * draw + share) * per_share
            *folds, whole = rows[at : at + per_share]
            assert len(whole) == size
            assert tiny.train.labels_N[whole].bincount().tolist() == [size // 3] * 3
            held_out = [set(whole.tolist()) - set(fold.tolist()) for fold in folds]
            assert set().union(*held_out) == set(whole.tolist())
            assert sum(map(len, held_out)) == size
            assert all(set(fold.tolist()) < set(whole.tolist()) for fold in folds)
    small, large = rows[per_share - 1], rows[2 * per_share - 1]
    assert set(small.tolist()) < set(large.tolist())
    assert not torch.equal(small, rows[3 * per_share - 1]), "draws differ"


def test_every_method_sees_the_same_labels(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(RawPixels):
        def features(self, split: Split) -> dict[str, Tensor]:
            return {"other": torch.randn(len(split), 5)}

    with monkeypatch.context() as patch:
        ours = seen_rows(tiny, patch, RawPixels(spec, CPU, 0))
    with monkeypatch.context() as patch:
        theirs = seen_rows(tiny, patch, Other(spec, CPU, 0))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    with monkeypatch.context() as patch:
        another_seed = seen_rows(tiny, patch, RawPixels(spec, CPU, 1))
    assert not torch.equal(ours[0], another_seed[0])
    other_data = dataclasses.replace(tiny, fingerprint="another")
    assert not torch.equal(ours[0], seen_rows(other_data, monkeypatch, RawPixels(spec, CPU, 0))[0])


def test_scores_are_means_and_spreads_of_the_draws(tiny: Dataset, spec: EncoderSpec) -> None:
    class Noisy(RawPixels):
        def features(self, split: Split) -> dict[str, Tensor]:
            noise = torch.randn(len(split), 3, generator=torch.Generator().manual_seed(len(split)))
            return {"pixels": torch.eye(3)[split.labels_N] + noise}

    config = LOW_SHOT.config(**SHORT | {"draws": 3, "steps": 20})
    result = LOW_SHOT.load_class()(config).evaluate(Noisy(spec, CPU, 0), tiny)
    assert len({*result.arrays["accuracy"][0].tolist()}) > 1, "draws differ"
    assert list(result.scores) == ["top1_10pct", "top1_50pct", "spread_10pct", "spread_50pct"]
    for name, tops in zip(("10pct", "50pct"), result.arrays["accuracy"].tolist(), strict=True):
        assert result.scores[f"top1_{name}"] == pytest.approx(statistics.fmean(tops))
        assert result.scores[f"spread_{name}"] == pytest.approx(statistics.stdev(tops))
        assert len(result.chosen[name]) == 3
    one = LOW_SHOT.load_class()(dataclasses.replace(config, draws=1)).evaluate(
        RawPixels(spec, CPU, 0), tiny
    )
    assert list(one.scores) == ["top1_10pct", "top1_50pct"], "one draw has no spread"


def test_a_share_is_rounded_down_and_trained_for_so_many_steps(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[int, ...]] = []
    train = linear_probe.train

    def record(features: Tensor, labels: Tensor, rows: Tensor, *rest: Any) -> linear_probe.Probes:
        fitted.append((len(rows), *rest[2:5]))
        return train(features, labels, rows, *rest)

    monkeypatch.setattr(linear_probe, "train", record)
    config = LOW_SHOT.config(shares=(0.21,), draws=1, steps=20, batch_size=9)
    LOW_SHOT.load_class()(config).evaluate(RawPixels(spec, CPU, 5), tiny)
    assert fitted[-1] == (25, 10, 9, 5), (
        "25.2 of 120 labels; 2 steps of 9 in an epoch, 20 or more in all; under the seed 5"
    )


@pytest.mark.parametrize(("share", "size"), [(0.29, 29), (0.57, 57), (0.299, 29)])
def test_a_share_that_is_a_whole_number_is_not_rounded_off(
    share: float, size: int, tiny: Dataset
) -> None:
    """0.29 of 100 is a little less than 29 in floating point."""
    data = dataclasses.replace(tiny, train=tiny.train.subset(range(100)))
    assert low_shot._size(share, data) == size


def test_the_smallest_share_is_the_headline_in_whatever_order_they_are_given(
    tiny: Dataset, spec: EncoderSpec
) -> None:
    config = LOW_SHOT.config(**SHORT | {"shares": (0.5, 0.125, 0.5), "draws": 1, "steps": 2})
    result = LOW_SHOT.load_class()(config).evaluate(RawPixels(spec, CPU, 0), tiny)
    assert list(result.scores) == ["top1_12.5pct", "top1_50pct"]


def test_two_draws_have_a_spread(tiny: Dataset, spec: EncoderSpec) -> None:
    config = LOW_SHOT.config(**SHORT | {"shares": (0.1,), "draws": 2, "steps": 2})
    result = LOW_SHOT.load_class()(config).evaluate(RawPixels(spec, CPU, 0), tiny)
    assert list(result.scores) == ["top1_10pct", "spread_10pct"]


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (119, "a share of 0.0505"),
        (6, "a share of 1"),
        (5, "two of each class, which are not there"),
    ],
)
def test_the_least_share_is_rounded_up_if_there_is_one(
    count: int, told: str, tiny: Dataset, spec: EncoderSpec
) -> None:
    data = dataclasses.replace(tiny, train=tiny.train.subset(range(count)))
    evaluation = LOW_SHOT.load_class()(LOW_SHOT.config(shares=(0.01,)))
    assert evaluation.supports(RawPixels(spec, CPU, 0), data).endswith(told)


def test_no_more_folds_than_labels_of_a_class(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of each here, where five folds are asked for; 6 labels are two of each."""
    rows = seen_rows(tiny, monkeypatch, RawPixels(spec, CPU, 0))
    assert len(rows) == 2 * (4 + 1 + 5 + 1)
    least = LOW_SHOT.load_class()(LOW_SHOT.config(shares=(0.05,)))
    assert least.supports(RawPixels(spec, CPU, 0), tiny) is None


def test_what_diverges_on_one_fold_is_not_chosen(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = iter([[-1.0, 50.0], [100.0, 70.0], *[[100.0, 60.0]] * 3])
    monkeypatch.setattr(linear_probe, "score", lambda *of: next(tops))
    rates = {"learning_rates": (0.1, 0.01), "weight_decays": (0.0,)}
    config = LOW_SHOT.config(shares=(0.5,), draws=1, steps=5, **rates)
    result = LOW_SHOT.load_class()(config).evaluate(RawPixels(spec, CPU, 0), tiny)
    [[choice]] = result.chosen.values()
    assert (choice["learning_rate"], choice["validation_top1"]) == (0.01, 60)


def test_few_labels_separate_what_is_separable(tiny: Dataset, spec: EncoderSpec) -> None:
    config = LOW_SHOT.config(**SHORT | {"steps": 50})
    result = LOW_SHOT.load_class()(config).evaluate(RawPixels(spec, CPU, 0), tiny)
    assert result.scores["top1_10pct"] == 100


def test_two_labels_of_a_class_are_enough(spec: EncoderSpec) -> None:
    """Classes of very unequal sizes: the smallest one is there, in every draw."""
    plain = make_images(90, 3, 16, 3, seed=4)
    kept = torch.cat([(plain.labels_N != 2).nonzero()[:, 0], torch.tensor([2, 5])])
    train = Split(plain.images_NCHW[kept], plain.labels_N[kept])
    classes = ("a", "b", "c")
    data = Dataset("rare", train, plain, classes, fingerprint(train, plain, classes), "", 16)
    config = LOW_SHOT.config(**SHORT | {"shares": (0.1, 1.0)})
    result = LOW_SHOT.load_class()(config).evaluate(RawPixels(spec, CPU, 0), data)
    assert result.scores["top1_10pct"] > 80


@pytest.mark.parametrize("share", [0.01, 0.04])
def test_a_share_with_too_few_labels_is_one_line(
    share: float, tiny: Dataset, spec: EncoderSpec
) -> None:
    config = LOW_SHOT.config(shares=(0.5, share))
    evaluation = LOW_SHOT.load_class()(config)
    reason = evaluation.supports(RawPixels(spec, CPU, 0), tiny)
    assert re.search(r"of 120 training images .* a share of 0\.05$", reason)
    with pytest.raises(UserError, match=re.escape(reason)):
        evaluation.evaluate(RawPixels(spec, CPU, 0), tiny)


@pytest.mark.parametrize(
    "wrong",
    [{"shares": ()}, {"shares": (0.0,)}, {"shares": (10,)}, {"draws": 0}, {"folds": 1},
     {"steps": 0}, {"batch_size": 0}, {"learning_rates": ()}, {"weight_decays": (2.0,)}],
)  # fmt: skip
def test_settings_that_cannot_be_are_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^--low-shot-"):
        LOW_SHOT.config(**wrong)
