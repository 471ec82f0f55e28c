"""Images with masks: every way they are stored, and what a mistake says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import encoded, make_images, with_masks
from PIL import Image

from ssl_bench import data
from ssl_bench.config.settings import Storage
from ssl_bench.errors import UserError

SIDES = (24, 16)


def picture(number: int) -> tuple[Image.Image, Image.Image]:
    """A grey image with a bright half, and its mask: 1 or 2 there, and a row that is ignored."""
    pixels = np.random.default_rng(number).integers(0, 60, SIDES[::-1], dtype=np.uint8)
    mask = np.zeros(SIDES[::-1], np.uint8)
    pixels[:, 12:], mask[:, 12:], mask[0] = 200, 1 + number % 2, 255
    return Image.fromarray(pixels).convert("RGB"), Image.fromarray(mask)


def write_pairs(root: Path, splits: dict[str, int], outside: bool = True) -> Path:
    for number, (split, count) in enumerate(splits.items()):
        for kind in ("images", "masks"):
            place = root / kind / split if outside else root / split / kind
            place.mkdir(parents=True)
            for index in range(count):
                each = picture(100 * number + index)[kind == "masks"]
                each.save(place / f"{index}.png")
    return root


def message(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        data.load(str(source), 8)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_pairs_of_folders(tmp_path: Path, outside: bool, storage: Storage) -> None:
    root = write_pairs(tmp_path / "pairs", {"train": 6, "val": 4}, outside)
    found = data.load(str(root), 14, storage=storage)
    assert (len(found.train), len(found.test)) == (6, 4)
    assert found.mask_classes == ("0", "1", "2") and found.classes == () and found.unlabelled
    index = torch.tensor([1, 4])
    images, masks = found.train.images(index), found.train.masks(index)
    assert images.shape == (2, 3, 16, 16) and masks.shape == (2, 16, 16)
    assert masks.dtype == torch.uint8 and (masks[:, 0] == 255).all()
    is_bright = images[:, 0, 1:] > 130
    assert torch.equal(is_bright, masks[:, 1:] > 0)
    assert [int(mask[1:].max()) for mask in masks] == [2, 1]


def test_pairs_without_splits_hold_a_fifth_out(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, {"": 30})
    found = data.load(str(root), 14)
    assert 0 < len(found.test) < 15 and len(found.train) + len(found.test) == 30
    (root / "classes.txt").write_text("wall\nblack\nwhite\n\n")
    named = data.load(str(root), 14)
    assert named.mask_classes == ("wall", "black", "white")
    assert named.fingerprint != found.fingerprint
    validation = data.load(f"{root}@validation", 14)
    assert validation.train.masks(torch.arange(2)).shape == (2, 16, 16)
    assert data.load(f"{root}@whole", 14).classes == ("images", "masks")


def test_a_part_of_a_split_keeps_each_images_mask() -> None:
    split = with_masks(make_images(9, 3, 16, 3, seed=1))
    part = split.subset([4, 2])
    assert torch.equal(part.masks(torch.arange(2)), split.masks(torch.tensor([4, 2])))
    assert torch.equal(part.images(torch.arange(2)), split.images(torch.tensor([4, 2])))


def test_another_pixel_of_a_mask_is_another_data_set(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, {"train": 3, "test": 2})
    before = [data.load(str(root), 14, storage=each).fingerprint for each in ("memory", "stream")]
    mask = Image.open(root / "masks/train/0.png")
    mask.load()
    mask.putpixel((8, 8), 2)
    mask.save(root / "masks/train/0.png")
    after = [data.load(str(root), 14, storage=each).fingerprint for each in ("memory", "stream")]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_palettes_are_indices(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, {"train": 3, "test": 2})
    plain = data.load(str(root), 14)
    for path in root.glob("masks/*/*.png"):
        mask = Image.open(path)
        mask.load()
        mask.putpalette([7, 7, 7] * 200 + [9, 0, 1] * 56)
        mask.save(path)
        assert Image.open(path).mode == "P"
    assert data.load(str(root), 14).fingerprint == plain.fingerprint


def lose(root: Path) -> None:
    (root / "masks/train/1.png").unlink()


def shrink(root: Path) -> None:
    Image.new("L", (20, 16)).save(root / "masks/train/1.png")


def colour(root: Path) -> None:
    picture(0)[0].save(root / "masks/train/1.png")


def deep(root: Path) -> None:
    Image.fromarray(np.full(SIDES[::-1], 999, np.uint16)).save(root / "masks/train/1.png")


def spoil(root: Path) -> None:
    (root / "masks/train/1.png").write_bytes(b"\x89PNG no image")


def many(root: Path) -> None:
    (root / "classes.txt").write_text("a\nb\n")


def gaps(root: Path) -> None:
    Image.new("L", SIDES, 200).save(root / "masks/train/1.png")


def blank(root: Path) -> None:
    for path in root.glob("masks/*/*.png"):
        Image.new("L", SIDES, 255).save(path)


def no_folder(root: Path) -> None:
    (root / "masks/test").rename(root / "masks/other")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lose, ("images/train/1.png", "no mask", "masks/train/1.png")),
        (shrink, ("masks/train/1.png", "20 x 16", "24 x 16")),
        (colour, ("masks/train/1.png", "RGB", "palette")),
        (deep, ("masks/train/1.png", "999", "too many")),
        (spoil, ("cannot read mask", "masks/train/1.png")),
        (many, ("class 2", "too many", "classes.txt", "2")),
        (gaps, ("200", "gaps", "classes.txt")),
        (blank, ("255", "ignored", "two classes")),
        (no_folder, ("masks/test",)),
    ],
)
def test_broken_pairs_are_one_line(
    tmp_path: Path, break_it: Callable[[Path], None], said: tuple[str, ...]
) -> None:
    root = write_pairs(tmp_path, {"train": 3, "test": 2})
    break_it(root)
    found = message(root)
    assert all(each in found for each in said), found


@pytest.mark.parametrize("storage", ["memory", "stream"])
@pytest.mark.parametrize("column", ["mask", "annotation"])
def test_parquet_with_a_mask_column(tmp_path: Path, storage: Storage, column: str) -> None:
    for split, count in (("train", 5), ("test", 3)):
        cells = [[{"bytes": encoded(each), "path": None} for each in picture(n)]
                 for n in range(count)]  # fmt: skip
        table = pa.table({"image": [a for a, _ in cells], column: [b for _, b in cells]})
        pq.write_table(
            table, tmp_path / f"{split}.parquet", compression="none", use_dictionary=False
        )
    found = data.load(str(tmp_path), 14, storage=storage)
    assert found.mask_classes == ("0", "1", "2")
    index = torch.arange(5)
    is_bright = found.train.images(index)[:, 0, 1:] > 130
    masks = found.train.masks(index)
    assert torch.equal(is_bright, masks[:, 1:] > 0)
    assert masks[:, 1:].flatten(1).max(dim=1).values.tolist() == [1, 2, 1, 2, 1]


def test_voc_and_pets_in_torchvisions_layout(tmp_path: Path) -> None:
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    for split, names in (("train", ["a", "b"]), ("val", ["c"])):
        (voc / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for number, name in enumerate(names):
            image, mask = picture(number)
            image.save(voc / "JPEGImages" / f"{name}.jpg")
            mask.putpalette([1, 2, 3] * 256)
            mask.save(voc / "SegmentationClass" / f"{name}.png")
    found = data.load("voc-masks", 14, data_dir=tmp_path)
    assert (len(found.train), len(found.test), len(found.mask_classes)) == (2, 1, 21)
    assert found.train.masks(torch.arange(2)).unique().tolist() == [0, 1, 2, 255]

    pets = tmp_path / "oxford-iiit-pet"
    for name in ("images", "annotations/trimaps"):
        (pets / name).mkdir(parents=True)
    for number, split in enumerate(("trainval", "test")):
        image, mask = picture(0)
        name = f"Some_cat_{number}"
        (pets / "annotations" / f"{split}.txt").write_text(f"{name} 1 1 1\n")
        image.save(pets / "images" / f"{name}.jpg")
        trimap = np.select([np.asarray(mask) == 1, np.asarray(mask) == 0], [1, 2], 3)
        Image.fromarray(trimap.astype(np.uint8)).save(pets / "annotations/trimaps" / f"{name}.png")
    found = data.load("oxford-iiit-pet-masks", 14, data_dir=tmp_path)
    assert found.mask_classes == ("background", "pet")
    masks = found.test.masks(torch.arange(1))
    assert masks.unique().tolist() == [0, 1, 255] and (masks[0, 1:, 10:] == 1).all()


def test_canvases_are_the_same_everywhere() -> None:
    found = data.load("fashion-canvases")
    assert found.fingerprint == "ffbf43b982e2c220"
    assert (len(found.train), len(found.test), found.view_size) == (2000, 1000, 56)
    assert len(found.mask_classes) == 11 and found.unlabelled
    masks = found.test.masks(torch.arange(1000))
    assert masks.unique().tolist() == list(range(11))
    images = found.test.images(torch.arange(1000))[:, 0]
    assert (images[masks == 0] == 0).all()
    assert (images[masks > 0] > 0).double().mean() > 0.9
