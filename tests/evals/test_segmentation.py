"""Segmentation: its arithmetic against naive versions, and what it finds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from ssl_bench.api import registry
from ssl_bench.data import Dataset, Split
from ssl_bench.data.masks import IGNORED
from ssl_bench.errors import UserError
from ssl_bench.evaluation import dense, linear_probe, neighbors
from ssl_bench.evaluation.features import Encoder, RawPixels, prepare
from ssl_bench.evaluation.metrics import held_out, subset
from ssl_bench.models import backbones, encoders
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.transforms.augmentations import evaluation_view, mask_view
from ssl_bench.utils import rng

NAMES = ("segmentation", "segmentation-knn")
OTHERS = ("test_resnet", "test_convnext", "swin_nano", "beit_base_patch16_224")


def naive_miou(found: torch.Tensor, true: torch.Tensor, classes: int) -> float:
    scores = []
    pairs = [
        (a, b)
        for a, b in zip(found.flatten().tolist(), true.flatten().tolist(), strict=True)
        if b != IGNORED
    ]
    for each in range(classes):
        both = sum(a == b == each for a, b in pairs)
        either = sum(each in pair for pair in pairs)
        scores += [both / either] if either else []
    return 100 * sum(scores) / len(scores)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_mean_iou_is_the_naive_one_and_scikit_learns(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(classes, (3, 20), generator=generator)
    true = torch.randint(classes, (3, 20), generator=generator)
    true[torch.rand(3, 20, generator=generator) < 0.2] = IGNORED
    counts = dense.overlaps(found, true, classes + 1)  # one class occurs nowhere
    ours = dense.mean_iou(counts.sum(dim=0)).item()
    assert ours == pytest.approx(naive_miou(found, true, classes + 1))
    known = true != IGNORED
    theirs = jaccard_score(true[known], found[known], average="macro")
    assert ours == pytest.approx(100 * theirs)
    low, high = dense.interval(counts, seed)
    assert low <= high and low >= 0 and high <= 100
    assert (low, high) == dense.interval(counts, seed)


def test_an_interval_narrows_with_more_images() -> None:
    generator = torch.Generator().manual_seed(0)
    found, true = torch.randint(2, (2, 400, 50), generator=generator)
    few, many = (dense.interval(dense.overlaps(found[:n], true[:n], 2), "test") for n in (25, 400))
    middle = dense.mean_iou(dense.overlaps(found, true, 2).sum(dim=0)).item()
    assert many[0] < middle < many[1]
    ratio = (few[1] - few[0]) / (many[1] - many[0])
    assert 2 < ratio < 8, "a sixteenth of the images is four times as wide"


def test_an_interval_is_that_of_the_percentiles() -> None:
    """95 % of what as many images, drawn again and again, would give."""
    generator = torch.Generator().manual_seed(0)
    found, true = torch.randint(2, (2, 60, 30), generator=generator)
    counts = dense.overlaps(found, true, 2)
    draws = np.random.default_rng(0).integers(0, 60, (4000, 60))
    means = [dense.mean_iou(counts[drawn].sum(dim=0)).item() for drawn in torch.from_numpy(draws)]
    expected, deviation = np.quantile(means, [0.025, 0.975]), np.std(means)
    ours = dense.interval(counts, "test")
    assert ours == pytest.approx(expected, abs=0.2 * float(deviation))
    generator = rng.generator("bootstrap", "test")
    own = torch.cat([torch.randint(60, (50, 60), generator=generator) for _ in range(20)])
    of_own = torch.stack([dense.mean_iou(counts[drawn].sum(dim=0)) for drawn in own])
    ends = np.quantile(of_own.numpy(), [0.025, 0.975]).tolist()
    assert [*ours] == pytest.approx(ends, rel=1e-6), "of a thousand draws"
    assert dense.interval(counts, "test") != dense.interval(counts, "another")


def test_scores_are_interpolated_between_the_middles_of_patches() -> None:
    """Half of a class's lead is gone where it is halfway to the next patch's middle."""
    scores = torch.zeros(1, 2, 2, 2)
    scores[..., 0, 0], scores[..., 1, 1] = 1.0, 3.0
    expected = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    assert torch.equal(dense.pixel_classes(scores, 8)[0], expected.expand(8, 8))


def test_patches_to_choose_on_are_of_other_images(tiny: Dataset, spec: EncoderSpec) -> None:
    pixels: Any = RawPixels(spec, CPU, 0)
    patches = dense.training_patches(pixels, tiny, 40, 0.25)
    fit, held_out = patches.fit_P // 16, patches.held_out_P // 16
    assert not set(fit.tolist()) & set(held_out.tolist())
    assert len(held_out.unique()) == 10 and len(fit.unique()) == 30
    assert (patches.labels_P[patches.known_P] != IGNORED).all()
    assert torch.equal(patches.known_P, (patches.labels_P != IGNORED).nonzero()[:, 0])
    # Splits are often ordered by class.
    drawn = prepare(tiny.train.images(subset(120, 40, tiny.fingerprint)), spec, CPU)
    assert torch.equal(patches.features_PD, pixels.patches(drawn).flatten(0, 2))
    assert len(dense.training_patches(pixels, tiny, 0, 0.25).labels_P) == 120 * 16


def test_a_setting_is_chosen_on_held_out_patches_and_refitted_on_all(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels: Any = RawPixels(spec, CPU, 0)
    patches = dense.training_patches(pixels, tiny, 40, 0.25)
    fitted: list[torch.Tensor] = []
    chosen_on: list[torch.Tensor] = []
    train, predict = linear_probe.train, linear_probe.Probes.predict

    def note(features: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, *rest: Any) -> Any:
        fitted.append(rows)
        return train(features, labels, rows, *rest)

    def note_rows(probes: Any, features: torch.Tensor, rows: torch.Tensor | None = None) -> Any:
        if rows is not None:
            chosen_on.append(rows)
        return predict(probes, features, rows)

    monkeypatch.setattr(linear_probe, "train", note)
    monkeypatch.setattr(linear_probe.Probes, "predict", note_rows)
    plugin = registry.find("eval", "segmentation")
    config = plugin.config(epochs=1, validation=0.25, train_images=40)
    plugin.load_class()(config).evaluate(pixels, tiny)
    assert [rows.tolist() for rows in fitted] == [patches.fit_P.tolist(), patches.known_P.tolist()]
    assert chosen_on and all(torch.equal(rows, patches.held_out_P) for rows in chosen_on)


def test_a_probe_that_diverged_is_not_chosen(tiny: Dataset, spec: EncoderSpec) -> None:
    plugin = registry.find("eval", "segmentation")
    how = {"epochs": 2, "batch_size": 64, "train_images": 40, "weight_decays": (1.0,)}
    config = plugin.config(**how, learning_rates=(1e5, 0.1))
    found = plugin.load_class()(config).evaluate(RawPixels(spec, CPU, 0), tiny)
    assert found.chosen["learning_rate"] == 0.1


def test_a_probe_that_diverges_on_all_patches_is_refused(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it did not on those that it was chosen by."""
    predict, asked = linear_probe.Probes.predict, []

    def diverges(probes: Any, *how: Any) -> torch.Tensor:
        asked.append(probes)
        return predict(probes, *how) - 9 * (len(asked) > 1)

    monkeypatch.setattr(linear_probe.Probes, "predict", diverges)
    plugin = registry.find("eval", "segmentation")
    config = plugin.config(epochs=1, learning_rates=(0.1,), weight_decays=(0.0,), train_images=40)
    with pytest.raises(UserError, match="every linear probe diverged"):
        plugin.load_class()(config).evaluate(RawPixels(spec, CPU, 0), tiny)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_patches_to_fit_on_and_to_choose_on_are_needed(
    share: float, tiny: Dataset, spec: EncoderSpec
) -> None:
    """Where all masks of one side are ignored, or all there are."""
    masks = tiny.train.masks(torch.arange(120)).clone()
    sides = held_out(120, share or 0.25, tiny.fingerprint)
    masks[torch.arange(120) if share == 1 else sides[share > 0]] = IGNORED
    data = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, masks_NSS=masks))
    with pytest.raises(UserError, match="none are left to fit on, or none to choose on"):
        dense.training_patches(RawPixels(spec, CPU, 0), data, 0, 0.25)  # type: ignore[arg-type]


def test_test_masks_without_a_class_are_refused(tiny: Dataset, spec: EncoderSpec) -> None:
    masks = torch.full((40, 16, 16), IGNORED, dtype=torch.uint8)
    data = dataclasses.replace(tiny, test=dataclasses.replace(tiny.test, masks_NSS=masks))
    with pytest.raises(UserError, match="no pixel of the test masks of tiny is of a class"):
        dense.segment(RawPixels(spec, CPU, 0), data, lambda rows_PD: rows_PD[:, :4], {})  # type: ignore[arg-type]


def test_a_map_of_pixels_has_the_encoders_patches_or_large_squares(spec: EncoderSpec) -> None:
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    for changes, side in (
        ({"image_size": 48, "patch_size": 8}, 8),
        ({"image_size": 48, "backbone": "test_resnet", "patch_size": None}, 16),
        ({"image_size": 48, "backbone": "test_resnet", "patch_size": 4}, 16),
    ):
        own = dataclasses.replace(spec, **changes)
        found = RawPixels(own, CPU, 0).patches(images)
        assert found.shape == (2, 48 // side, 48 // side, 3 * side**2), changes


def asked_of_neighbours(
    data: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch, **config: Any
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], dict[str, Any], torch.Tensor]:
    """The bank and the queries of each vote, what is chosen, and the scores of seven patches."""
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []
    votes = neighbors.votes

    def note(
        features: Any, labels: Any, rows: torch.Tensor, queries: torch.Tensor, *rest: Any
    ) -> Any:
        assert rest[1] == 0.07, "the published temperature"
        asked.append((rows, queries))
        return votes(features, labels, rows, queries, *rest)

    def segment(encoder: Any, data: Dataset, score: Any, chosen: Any) -> Any:
        return chosen, score(torch.randn(7, 48, generator=torch.Generator().manual_seed(0)))

    monkeypatch.setattr(neighbors, "votes", note)
    monkeypatch.setattr(dense, "segment", segment)
    plugin = registry.find("eval", "segmentation-knn")
    evaluation: Any = plugin.load_class()(plugin.config(validation=0.25, **config))
    return asked, *evaluation.evaluate(RawPixels(spec, CPU, 0), data)


def test_neighbours_are_chosen_on_held_out_patches_and_the_bank_is_all(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels: Any = RawPixels(spec, CPU, 0)
    patches = dense.training_patches(pixels, tiny, 40, 0.25)
    of_patches, tried = dense.patch_iou, []

    def note_score(*of: Any) -> float:
        tried.append(of_patches(*of))
        return tried[-1]

    monkeypatch.setattr(dense, "patch_iou", note_score)
    counts = (3, 9, 300)
    asked, chosen, scores = asked_of_neighbours(
        tiny, spec, monkeypatch, train_images=40, neighbors=counts
    )
    banks = [{*rows.tolist()} for rows, _ in asked]
    assert banks == [{*patches.fit_P.tolist()}, {*patches.known_P.tolist()}]
    assert len(asked[0][1]) == len(patches.held_out_P)
    assert len({*tried}) > 1 and chosen["validation_miou"] == max(tried)
    assert chosen["neighbors"] == counts[tried.index(max(tried))]
    # A patch with near neighbours counts no more at the pixels between two patches.
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(7))


def test_a_bank_is_as_large_as_asked_for(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half as many patches ask for their neighbours; all are draws of the data's own."""
    pixels: Any = RawPixels(spec, CPU, 0)
    patches = dense.training_patches(pixels, tiny, 40, 0.25)
    asked, _, _ = asked_of_neighbours(tiny, spec, monkeypatch, train_images=40, bank=20)

    def drawn(rows_P: torch.Tensor, count: int, purpose: str) -> torch.Tensor:
        return rows_P[rng.permutation(len(rows_P), purpose, tiny.fingerprint)[:count]]

    (first, queries), (second, _) = asked
    assert torch.equal(first, drawn(patches.fit_P, 20, "bank"))
    assert torch.equal(queries, patches.features_PD[drawn(patches.held_out_P, 10, "queries")])
    assert torch.equal(second, drawn(patches.known_P, 20, "bank"))


def test_a_patch_has_the_most_frequent_class_of_its_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(4, (5, 12, 20), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.3] = IGNORED
    masks[:2, :4, :5] = IGNORED
    masks[1, 2, 3] = 3  # one pixel says what the patch is
    ours = dense.patch_labels(masks, (3, 4), 4)
    assert ours[0, 0, 0] == IGNORED
    for image, row, column in np.ndindex(5, 3, 4):
        cell = masks[image, 4 * row : 4 * row + 4, 5 * column : 5 * column + 5]
        counts = [int((cell == each).sum()) for each in range(4)]
        if max(counts):
            assert ours[image, row, column] == counts.index(max(counts))


@pytest.mark.parametrize("sides", [(16, 16), (20, 20), (32, 32), (9, 9)])
def test_a_mask_is_seen_where_its_image_is(sides: tuple[int, int]) -> None:
    masks = torch.zeros(1, *sides, dtype=torch.uint8)
    masks[:, sides[0] // 3 :, sides[1] // 2 :] = 1
    seen = mask_view(masks, 16)
    image = evaluation_view(255 * masks[:, None], 16)[:, 0]
    assert seen.shape == (1, 16, 16)
    assert ((image > 0.5) == seen.bool()).double().mean() > 0.93


@pytest.mark.parametrize("backbone", ["vit_micro", *OTHERS])
def test_every_kind_of_backbone_has_a_map(backbone: str, spec: EncoderSpec) -> None:
    """What is at a place of the map depends on the image there, and not on its mirror image's."""
    is_small = backbone == "vit_micro"
    size, patch = (16, 4) if is_small else (64, 16 if "beit" in backbone else None)
    small = {"depth": 2, "embed_dim": 32, "num_heads": 2} if "beit" in backbone else {}
    spec = dataclasses.replace(
        spec, backbone=backbone, image_size=size, patch_size=patch, architecture={}
    )
    encoder = Encoder(backbones.build(spec, 0, **small), spec, CPU, seed=0)
    images = torch.zeros(2, 3, size, size)
    images[1, :, : size // 4, -size // 4 :] = 3  # above, on the right
    blank, seen = encoder.patches(images)
    assert blank.shape[:2] == (seen.shape[0], seen.shape[0]) and len(blank) > 1
    change = (seen - blank).norm(dim=-1)
    if not encoders.is_vit(encoder._module):
        change = change[:, 0].sum() < change[:, -1].sum(), change[0].sum() > change[-1].sum()
        assert all(change)
    pixels = RawPixels(spec, CPU, 0).patches(images)
    assert pixels.shape[:3] == (2, pixels.shape[1], pixels.shape[1])
    assert pixels[1, 0, -1].min() == 3 and pixels[1, -1, 0].max() == 0


def separable(count: int, seed: int) -> Split:
    """Squares of three colours on black; their class is their colour."""
    generator = np.random.default_rng(seed)
    images = np.zeros((count, 3, 16, 16), np.uint8)
    masks = np.zeros((count, 16, 16), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        for kind in generator.permutation(3)[:2]:
            row, column = 4 * generator.integers(0, 3, 2)
            image[:, row : row + 8, column : column + 8] = 0
            image[kind, row : row + 8, column : column + 8] = 250
            mask[row : row + 8, column : column + 8] = 1 + kind
    return Split(
        torch.from_numpy(images), torch.zeros(count, dtype=torch.int64), torch.from_numpy(masks)
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_separable_is_segmented(name: str, spec: EncoderSpec) -> None:
    classes = ("nothing", "red", "green", "blue")
    data = Dataset("squares", separable(100, 0), separable(40, 1), (), "f", "", 16)
    data = dataclasses.replace(data, mask_classes=(*classes, "yellow"), unlabelled="masks")
    plugin = registry.find("eval", name)
    evaluation = plugin.load_class()(plugin.config(validation=0.2))
    pixels = evaluation.evaluate(RawPixels(spec, CPU, 0), data)
    assert pixels.scores["pixel_accuracy"] > 90
    assert pixels.scores["miou"] > 75, "corners are lost to the interpolation alone"
    low, high = pixels.scores["miou_low"], pixels.scores["miou_high"]
    assert low < pixels.scores["miou"] < high < low + 15
    assert (low, high) == dense.interval(pixels.arrays["overlaps"], data.fingerprint)
    assert [f"iou {each}" for each in classes] == [each for each in pixels.scores if "iou " in each]
    arrays = pixels.arrays
    assert arrays["masks"].shape == arrays["predictions"].shape == (8, 16, 16)
    assert torch.equal(arrays["images"], data.test.images_NCHW[:8])
    right, _, true = arrays["overlaps"].sum(dim=(0, 2)).tolist()
    assert pixels.scores["pixel_accuracy"] == pytest.approx(100 * right / true)
    again = dense.mean_iou(arrays["overlaps"].sum(dim=0)).item()
    assert again == pytest.approx(pixels.scores["miou"])
    blind = dataclasses.replace(data, train=dataclasses.replace(
        data.train, masks_NSS=data.train.masks(torch.arange(100)).flip(0)))  # fmt: skip
    assert evaluation.evaluate(RawPixels(spec, CPU, 0), blind).scores["miou"] < 50


@pytest.mark.parametrize("name", NAMES)
def test_one_row_and_column_are_refused(name: str, spec: EncoderSpec, tiny: Dataset) -> None:
    spec = dataclasses.replace(spec, backbone="test_resnet", patch_size=None)
    encoder = Encoder(backbones.build(spec, 0), spec, CPU, seed=0)
    plugin = registry.find("eval", name)
    reason = plugin.load_class()(plugin.config()).supports(encoder, tiny)
    assert reason and "16 px" in reason


def test_a_run_is_segmented_and_drawn(ssl_bench, tmp_path: Path, image_folder: Path) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    folder = tmp_path / "pairs"
    for path in image_folder.rglob("*.png"):
        split = path.parents[1].name
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        image = Image.open(path)
        image.save(folder / split / "images" / f"{path.parent.name}{path.name}")
        mask = np.zeros((16, 16), np.uint8)
        mask[:, 8:] = 1 + (path.parent.name == "b")
        Image.fromarray(mask).save(folder / split / "masks" / f"{path.parent.name}{path.name}")
    runs = ("--runs-dir", tmp_path / "runs")
    how = ("--epochs", 1, "--batch-size", 16, "--backbone", "vit_nano", "--precision", "fp32")
    code, _, err = ssl_bench("run", "--data", image_folder, "--evals", "segmentation", *how, *runs)
    assert code == 2 and "no masks" in err and "fashion-canvases" in err
    assert len(err.splitlines()) == 1
    evals = ("--evals", "segmentation,segmentation-knn")
    code, out, err = ssl_bench("run", "--data", folder, *evals, *how, *runs)
    assert code == 0, err
    assert "mIoU" in out and "[" in out and "random init" in out
    assert "coarse" in out and "points of accuracy" not in out
    code, _, err = ssl_bench("report", *runs, "-o", tmp_path / "report")
    assert code == 0, err
    drawn = {path.stem for path in (tmp_path / "report").rglob("segmentation-*.png")}
    assert len(drawn) == 2, drawn
