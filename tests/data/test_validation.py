"""``NAME@validation``: training images held out to choose settings on."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import make_images
from PIL import Image
from torch import Tensor

from ssl_bench import data
from ssl_bench.config.settings import Storage
from ssl_bench.data import Dataset, Split, embedded, holdout
from ssl_bench.data.names import VALIDATION, resolved

Call = Callable[..., tuple[int, str, str]]


def pixels(split: Split) -> list[bytes]:
    """Each image of a split, as bytes."""
    images_NCSS = torch.cat(list(split.chunks(64)))
    assert len(images_NCSS) == len(split)
    return [image_CSS.numpy().tobytes() for image_CSS in images_NCSS]


def pairs(split: Split) -> list[tuple[bytes, int]]:
    return list(zip(pixels(split), split.labels_N.tolist(), strict=True))


def prepared(image_folder: Path, ssl_bench: Call, tmp_path: Path) -> Path:
    code, _, err = ssl_bench("data", "prepare", image_folder, "-o", tmp_path / "images-p")
    assert code == 0, err
    return tmp_path / "images-p"


@pytest.fixture(params=["memory", "stream", "parquet", "parquet stream"])
def both(
    request: pytest.FixtureRequest, image_folder: Path, ssl_bench: Call, tmp_path: Path
) -> tuple[Dataset, Dataset]:
    """A data set, and what is held out of it, from a folder or Parquet files."""
    kind, place = request.param, image_folder
    if "parquet" in kind:
        place = prepared(image_folder, ssl_bench, tmp_path)
    storage: Storage = "stream" if "stream" in kind else "memory"
    whole = data.load(str(place), storage=storage)
    return whole, data.load(f"{place}{VALIDATION}", storage=storage)


def test_the_parts_are_the_training_images_and_no_test_image(
    both: tuple[Dataset, Dataset],
) -> None:
    whole, part = both
    rest, held_out, everything = pairs(part.train), pairs(part.test), pairs(whole.train)
    assert not set(rest) & set(held_out)
    assert sorted(rest + held_out) == sorted(everything)
    assert not set(pixels(whole.test)) & {image for image, _ in rest + held_out}
    assert len(held_out) == round(holdout.SHARE * len(everything)) > 1
    # In their own order, which the draws of a training are functions of.
    assert rest == [each for each in everything if each in set(rest)]
    assert held_out == [each for each in everything if each in set(held_out)]


def test_it_is_another_data_set_of_the_same_kind(both: tuple[Dataset, Dataset]) -> None:
    whole, part = both
    assert part.name == f"{whole.name}-validation"
    assert part.fingerprint != whole.fingerprint
    assert part.classes == whole.classes
    assert (part.view_size, part.channels, part.size) == (16, 3, 16)
    assert holdout.NOTE in part.note
    assert part.storage.split()[0] == whole.storage.split()[0]


def test_every_way_of_asking_for_images_agrees(both: tuple[Dataset, Dataset]) -> None:
    split: Split
    for split in (both[1].train, both[1].test):
        images_NCSS = torch.cat(list(split.chunks(7)))
        index_B = torch.tensor([len(split) - 1, 0, 1])
        assert torch.equal(split.images(index_B), images_NCSS[index_B])
        read: list[Tensor] = list(split.read([index_B, index_B.flip(0)]))
        assert torch.equal(read[1], images_NCSS[index_B.flip(0)])
    sampled = torch.cat(list(both[1].train.sample()))
    assert {image.numpy().tobytes() for image in sampled} == set(pixels(both[1].train))


def test_it_is_the_same_each_time_wherever_it_lies(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = data.load(f"{image_folder}@validation")
    shutil.copytree(image_folder, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    again = data.load("elsewhere@validation")
    assert again.fingerprint == first.fingerprint
    assert pairs(again.test) == pairs(first.test)
    assert resolved("elsewhere@validation") == str(tmp_path / "elsewhere@validation")
    assert resolved("cifar10@validation") == "cifar10@validation"


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_test_images_are_never_read(image_folder: Path, storage: Storage) -> None:
    for path in (image_folder / "test").rglob("*.png"):
        path.write_bytes(b"not an image")
    part = data.load(f"{image_folder}@validation", storage=storage)
    assert len(pixels(part.train)) + len(pixels(part.test)) == 48


def test_embedded_test_images_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = embedded.read
    asked: list[str] = []

    def noted(split: str) -> tuple[Tensor, Tensor]:
        asked.append(split)
        images_NCHW, labels_N = read(split)
        return images_NCHW[:500], labels_N[:500]

    monkeypatch.setattr(embedded, "read", noted)
    part = data.load("fashion-mnist@validation")
    assert asked == ["train"]
    assert part.name == "fashion-mnist-validation" and part.note
    whole = Split(*read("train"))
    expected = list(zip(pixels(whole)[:500], whole.labels_N[:500].tolist(), strict=True))
    assert sorted(pairs(part.train) + pairs(part.test)) == sorted(expected)
    assert len(part.test) == 50


@pytest.mark.parametrize("count", [3, 10, 101])
def test_neither_part_is_empty(count: int) -> None:
    rest, held_out = holdout.of_split(make_images(count, 2, 4, 1, 0))
    assert len(rest) + len(held_out) == count
    assert len(held_out) == max(1, round(count / 10))


def places(held_out: Split) -> list[int]:
    """Where each image was in the split that `numbered` made."""
    return held_out.images(torch.arange(len(held_out)))[:, 0, 0, 0].tolist()


def numbered(labels: list[int]) -> Split:
    """Images of which each pixel is the image's number."""
    numbers_N = torch.arange(len(labels), dtype=torch.uint8)
    return Split(numbers_N.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone(), torch.tensor(labels))


def test_what_is_held_out_is_pinned() -> None:
    """Scores of trials that were made by another version are of the same images."""
    _, held_out = holdout.of_split(numbered([0, 1] * 40))
    assert places(held_out) == [11, 27, 30, 37, 44, 46, 51, 54]


def test_every_class_keeps_an_image_to_train_on() -> None:
    labels = [*range(20), *[20] * 20]
    rest, held_out = holdout.of_split(numbered(labels))
    assert {*rest.labels_N.tolist()} == {*labels}
    assert min(places(held_out)) >= 20, "the only image of a class is not held out"


def test_a_folder_of_that_very_name_is_itself(tmp_path: Path, image_folder: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "images@validation")
    found = data.load(str(tmp_path / "images@validation"))
    assert (found.name, len(found.train), len(found.test)) == ("images@validation", 48, 12)


def write_parquet(folder: Path, images_NCSS: Tensor, labels: list[int]) -> Path:
    """Compressed files, which nothing can be read at any place of; the test images are black."""
    folder.mkdir()
    for name, images in (("train", images_NCSS), ("test", torch.zeros_like(images_NCSS))):
        rows = []
        for image_CSS, label in zip(images, labels, strict=True):
            file = io.BytesIO()
            Image.fromarray(image_CSS.permute(1, 2, 0).numpy()).save(file, "PNG")
            rows.append({"image": {"bytes": file.getvalue()}, "label": label})
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
    return folder


def test_supervised_training_never_sees_what_is_held_out(ssl_bench: Call, tmp_path: Path) -> None:
    """Other pixels and other labels there: the same weights; elsewhere: others."""
    split = make_images(48, 2, 16, 3, 1)
    images_NCSS, labels = split.images_NCHW, split.labels_N.tolist()
    before = write_parquet(tmp_path / "before", images_NCSS, labels)
    held_out = set(pixels(data.load(f"{before}@validation").test))

    def changed(name: str, are_held_out: bool) -> Path:
        """The data set with other images and labels among those held out, or the others."""
        images = images_NCSS.clone()
        others = list(labels)
        for place, encoded in enumerate(pixels(split)):
            if (encoded in held_out) == are_held_out:
                images[place] = 255 - images[place]
                others[place] = 1 - others[place]
        return write_parquet(tmp_path / name, images, others)

    def weights(place: Path) -> bytes:
        runs = tmp_path / f"runs-{place.name}"
        code, _, err = ssl_bench(
            *("run", "--method", "supervised", "--evals", "none", "--epochs", 1),
            *("--batch-size", 16, "--precision", "fp32", "--backbone", "vit_nano"),
            *("--data", f"{place}@validation", "--runs-dir", runs),
        )
        assert code == 0, err
        [folder] = runs.glob("*-validation-seed0-*")
        return (folder / "encoder.safetensors").read_bytes()

    expected = weights(before)
    assert weights(changed("there", True)) == expected
    assert weights(changed("elsewhere", False)) != expected


def test_a_run_on_it_is_evaluated_shown_compared_and_repeated(
    image_folder: Path, ssl_bench: Call, tmp_path: Path
) -> None:
    relative = os.path.relpath(image_folder)
    words = (
        *("--method", "supervised", "--epochs", 1, "--batch-size", 16, "--precision", "fp32"),
        *("--backbone", "vit_nano", "--runs-dir", tmp_path / "runs"),
    )
    for place in (f"{relative}@validation", relative):
        code, _, err = ssl_bench("run", *words, "--evals", "knn", "--data", place)
        assert code == 0, err
    [folder] = (tmp_path / "runs").glob("supervised-images-validation-seed0-*")
    config = json.loads((folder / "config.json").read_text())
    assert config["data"] == "images-validation"
    assert config["data_source"] == f"{image_folder}@validation"
    runs = ("--runs-dir", tmp_path / "runs")
    code, out, err = ssl_bench("eval", folder, "--evals", "linear", "--linear-epochs", 1)
    assert code == 0, err
    record = json.loads(next(folder.glob("evals/linear-*/scores.json")).read_text())
    assert record["data"] == "images-validation"
    code, out, err = ssl_bench("show", folder)
    assert code == 0 and "images-validation" in out
    code, out, err = ssl_bench("compare", *runs)
    assert code == 0 and "images-validation, 5 test images" in " ".join(out.split())
    assert "images, 12 test images" in " ".join(out.split())
    code, out, err = ssl_bench("rerun", folder.name, *runs)
    assert (code, err) == (0, ""), out
