"""Images in files: the views that are made of them, what goes wrong, and the prepared copy."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import encoded, noise_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from ssl_bench import data
from ssl_bench.data import Dataset, in_memory, listing, streaming
from ssl_bench.data.listing import Picture
from ssl_bench.data.streaming import StreamedSplit, ahead
from ssl_bench.errors import UserError
from ssl_bench.transforms import functional
from ssl_bench.transforms.augmentations import Augmentation, augment, crop_of
from ssl_bench.transforms.loader import views
from ssl_bench.utils.files import new_folder
from ssl_bench.utils.rng import SampleRng

Call = Callable[..., tuple[int, str, str]]
CROP = Augmentation(24, (0.3, 1.0), interpolation="bicubic")


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Smooth noise, which is compressed as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def split_of(images: Sequence[bytes], side: int = 32, workers: int = 2) -> StreamedSplit:
    pictures = [Picture(f"image {number}", image, 0) for number, image in enumerate(images)]
    labels_N = torch.arange(len(images))
    return StreamedSplit(labels_N, pictures.__getitem__, (3, side, side), workers)


def streamed(
    split: StreamedSplit, recipes: Sequence[Augmentation], draws: SampleRng
) -> tuple[torch.Tensor, ...]:
    [(_, found)] = views(split, recipes, [draws])
    return found


def draws_of(count: int, step: int = 0) -> SampleRng:
    return SampleRng(0, step, torch.arange(count))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of photographs of several sizes, two classes, with a test split."""
    for part, count in (("train", 30), ("test", 10)):
        for number in range(count):
            path = tmp_path / "photographs" / part / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            width, height = [(60, 45), (50, 70), (128, 90)][number % 3]
            photograph(number + 2 * count, width, height).save(path, quality=90)
    return tmp_path / "photographs"


# ---- crops


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_streamed_crop_is_the_batched_one_of_the_whole_image(interpolation: str) -> None:
    """To 2 / 255: each of the two directions is rounded to 8 bits, and clamped, on its own."""
    sizes = [(40, 30), (30, 50), (33, 33), (64, 20), (90, 70)] * 4
    images = [photograph(number, *size) for number, size in enumerate(sizes)]
    recipe = Augmentation(24, (0.1, 1.0), interpolation=interpolation)
    draws = draws_of(len(images), step=5)
    [found] = streamed(split_of([encoded(image) for image in images]), [recipe], draws)
    for row, image in enumerate(images):
        pixels_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        own = draws.rows(slice(row, row + 1)).within("view0")
        box, flip = crop_of(recipe, own, image.height, image.width)
        expected = functional.resized_crop(pixels_1CHW, box, flip, 24, interpolation)
        torch.testing.assert_close(found[row], expected[0], rtol=0, atol=2 / 255)
        torch.testing.assert_close(
            found[row], augment(pixels_1CHW, recipe, own)[0], rtol=0, atol=2 / 255
        )


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=6),
    st.booleans(),
)
def test_boxes_of_many_sizes_are_those_of_each(sizes: list[tuple[int, int]], cut: bool) -> None:
    recipe = Augmentation(8, (0.08, 1.0), cut_crop=cut)
    draws = draws_of(len(sizes))
    heights, widths = torch.tensor(sizes).unbind(1)
    boxes_B4, _ = crop_of(recipe, draws, heights, widths)
    for row, (height, width) in enumerate(sizes):
        box, _ = crop_of(recipe, draws.rows(slice(row, row + 1)), height, width)
        assert boxes_B4[row].tolist() == box[0].tolist()
        top, left, box_height, box_width = box[0].tolist()
        assert 0 <= top <= height - box_height and 0 <= left <= width - box_width
        assert box_height >= 1 and box_width >= 1


def test_without_a_crop_the_view_is_that_of_the_stored_square(photographs: Path) -> None:
    recipe = Augmentation(28, None, flip=0.5)
    whole = data.load(str(photographs), 28, storage="memory").train
    apart = data.load(str(photographs), 28, storage="stream").train
    assert isinstance(apart, StreamedSplit)
    index = torch.tensor([3, 0, 29, 3])
    expected = augment(whole.images(index), recipe, SampleRng(0, 1, index).within("view0"))
    [found] = streamed(apart, [recipe], SampleRng(0, 1, index))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("workers", [1, 3])
def test_views_do_not_depend_on_workers_or_batches(workers: int) -> None:
    images = [encoded(photograph(n, 50 + n, 40), "JPEG") for n in range(40)]
    colours = Augmentation(16, (0.2, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur=0.5, solarize=0.2)
    recipes = [CROP, colours, Augmentation(16, None)]
    reference = streamed(split_of(images, workers=2), recipes, draws_of(40, step=3))
    again = streamed(split_of(images, workers=workers), recipes, draws_of(40, step=3))
    assert all(map(torch.equal, again, reference))
    rows = SampleRng(0, 3, torch.arange(17, 22))
    for alone, all_together in zip(streamed(split_of(images), recipes, rows), again, strict=True):
        torch.testing.assert_close(alone, all_together[17:22], rtol=0, atol=1e-6)


def test_steps_come_in_order() -> None:
    split = split_of([encoded(photograph(n, 30, 30)) for n in range(6)])
    steps = [SampleRng(0, step, torch.tensor([step % 6, (5 * step) % 6])) for step in range(12)]
    found = list(views(split, [CROP], steps))
    for draws, (given_back, own) in zip(steps, found, strict=True):
        assert given_back.step == draws.step
        assert torch.equal(own[0], streamed(split, [CROP], draws)[0])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_crops_are_of_the_upright_photograph(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photograph(0, 80, 50)
    turned = Image.open(io.BytesIO(encoded(image, "PNG", exif=exif)))
    upright = encoded(data.images.to_rgb(turned))
    for file_format in ("PNG", "TIFF"):
        stored = encoded(image, file_format, exif=exif)
        [found] = streamed(split_of([stored]), [CROP], draws_of(1))
        [expected] = streamed(split_of([upright]), [CROP], draws_of(1))
        assert torch.equal(found, expected), file_format
    lossy = [encoded(image, "JPEG", quality=95, exif=exif)]
    [found] = streamed(split_of(lossy), [CROP], draws_of(1))
    assert (found - expected).abs().mean() < 3 / 255


def test_a_turn_that_is_told_after_the_pixels_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(photograph(0, 80, 50), "PNG", exif=exif)
    start = content.index(b"eXIf") - 4
    length = int.from_bytes(content[start : start + 4], "big") + 12
    chunk, rest = content[start : start + length], content[:start] + content[start + length :]
    end = rest.index(b"IEND") - 4
    late = rest[:end] + chunk + rest[end:]
    [found] = streamed(split_of([late]), [CROP], draws_of(1))
    [expected] = streamed(split_of([content]), [CROP], draws_of(1))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [(640, 480), (481, 641), (1600, 1200)])
def test_reduced_decoding_looks_like_full_decoding(size: tuple[int, int]) -> None:
    """A JPEG is decoded at a fraction of its size only as long as no pixel must be invented."""
    image = photograph(1, *size)
    jpeg = encoded(image, "JPEG", quality=95)
    count, recipe = 12, Augmentation(48, (0.08, 1.0))
    decoded: list[tuple[int, int]] = []
    original = Image.Image.crop

    def crop(self: Image.Image, *arguments: Any) -> Image.Image:
        decoded.append(self.size)
        part = original(self, *arguments)
        assert self.size == size or min(part.size) >= 48 - 1
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "crop", crop)
        [reduced] = streamed(split_of([jpeg] * count), [recipe], draws_of(count))
    assert min(decoded) < size
    whole = encoded(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    [full] = streamed(split_of([whole] * count), [recipe], draws_of(count))
    assert (reduced - full).abs().mean() < 3 / 255


def test_a_jpeg_is_decoded_large_enough_for_the_largest_of_its_views(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jpeg = encoded(photograph(1, 640, 480), "JPEG", quality=95)
    recipes = [Augmentation(size, (0.9, 1.0)) for size in (8, 96, 8)]
    decoded: list[tuple[int, int]] = []
    original = Image.Image.crop

    def crop(self: Image.Image, *arguments: Any) -> Image.Image:
        decoded.append(self.size)
        return original(self, *arguments)

    monkeypatch.setattr(Image.Image, "crop", crop)
    streamed(split_of([jpeg] * 4), recipes, draws_of(4))
    assert {*decoded} == {(160, 120)}, "a quarter, though small views would do with less"


def test_a_smaller_last_batch_has_its_own_images() -> None:
    """Though memory of steps before it is used again."""
    split = split_of([encoded(photograph(n, 30, 30)) for n in range(12)])
    steps = [SampleRng(0, step, torch.arange(12)[: 8 if step < 6 else 3]) for step in range(9)]
    found = [(draws.samples_B, own[0].clone()) for draws, own in views(split, [CROP], steps)]
    for draws, (samples_B, own) in zip(steps, found, strict=True):
        assert torch.equal(samples_B, draws.samples_B)
        assert torch.equal(own, streamed(split, [CROP], draws)[0])


def test_grey_images_keep_their_one_channel() -> None:
    pictures = [Picture("grey", photograph(0, 28, 28).convert("L"), 0)]
    split = StreamedSplit(torch.zeros(1, dtype=torch.long), pictures.__getitem__, (1, 28, 28))
    [crop], square = streamed(split, [CROP], draws_of(1)), split.images(torch.tensor([0]))
    assert crop.shape == (1, 1, 24, 24) and square.shape == (1, 1, 28, 28)
    assert torch.equal(square[0, 0], torch.from_numpy(np.array(pictures[0].encoded)))


# ---- threads


def test_whatever_ends_the_reading_ends_the_threads() -> None:
    before = set(threading.enumerate())
    good, bad = encoded(photograph(0, 30, 30)), b"junk"
    split = split_of([good] * 100 + [bad])
    reading = split.read(torch.arange(101).split(10))
    next(reading)
    assert set(threading.enumerate()) > before
    reading.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(UserError, match="cannot read image image 100: no format"):
        list(split.read(torch.arange(101).split(10)))
    assert set(threading.enumerate()) == before
    with pytest.raises(UserError, match="cannot read image image 100: no format"):
        list(views(split, [CROP], [SampleRng(0, 0, torch.arange(90, 101))]))
    assert set(threading.enumerate()) == before


def test_only_so_much_is_read_ahead() -> None:
    begun = 0

    def jobs() -> Iterator[tuple[int, list[Callable[[], None]]]]:
        nonlocal begun
        for number in range(50):
            begun += 1
            yield number, [lambda: None] * 3

    reading = ahead(jobs(), workers=2)
    for number in range(10):
        assert next(reading) == number
        assert begun <= number + 3
    reading.close()


def test_streamed_split_says_what_it_has_not() -> None:
    with pytest.raises(AttributeError, match="images_NCHW"):
        split_of([encoded(photograph(0, 30, 30))]).images_NCHW  # noqa: B018


# ---- whole data sets


def test_what_does_not_fit_is_streamed(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data.load(str(photographs), 28)
    assert whole.storage == "in memory"
    monkeypatch.setattr(in_memory, "total_memory", lambda: 2 * 40 * 3 * 32**2 - 2)
    apart = data.load(str(photographs), 28)
    assert apart.storage.startswith("streamed from their files, as 40 images of 32 x 32 pixels")
    assert "more than half of the" in apart.storage
    assert (apart.size, apart.channels, apart.classes) == (32, 3, whole.classes)
    for part in ("train", "test"):
        memory, stream = getattr(whole, part), getattr(apart, part)
        assert stream.labels_N.tolist() == memory.labels_N.tolist()
        assert torch.equal(torch.cat(list(stream.chunks(7))), memory.images_NCHW)
    assert apart.mean == pytest.approx(whole.mean) and apart.std == pytest.approx(whole.std)
    monkeypatch.setattr(in_memory, "_available_memory", lambda: 2 * 40 * 3 * 32**2 - 2)
    with pytest.raises(UserError, match="--storage stream would work"):
        data.load(str(photographs), 28, storage="memory")


def test_what_is_free_now_decides_nothing(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_memory, "_available_memory", lambda: 1000)
    with pytest.raises(UserError, match="free memory; --storage stream would work"):
        data.load(str(photographs), 28)


def test_embedded_data_cannot_be_streamed() -> None:
    with pytest.raises(UserError, match="'fashion-mnist' cannot be streamed"):
        data.load("fashion-mnist", storage="stream")


def test_fingerprint_of_a_streamed_set(photographs: Path) -> None:
    def fingerprint(size: int = 28) -> str:
        return data.load(str(photographs), size, storage="stream").fingerprint

    base = fingerprint()
    assert fingerprint() == base != data.load(str(photographs), 28).fingerprint
    assert fingerprint(56) != base
    moved = photographs.rename(photographs.with_name("moved"))
    assert data.load(str(moved), 28, storage="stream").fingerprint == base
    moved.rename(photographs)
    path = photographs / "train" / "a" / "0.jpg"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    changed = fingerprint()
    assert changed != base
    path.write_bytes(bytes(content) + bytes(200_000))
    longer = fingerprint()
    path.write_bytes(bytes(content) + bytes(200_001))
    assert len({base, changed, longer, fingerprint()}) == 4


def test_fingerprint_of_a_streamed_set_knows_labels_and_splits(tmp_path: Path) -> None:
    """Of the same images in the same order."""
    places = [
        ("train/a", "train/a", "train/b", "train/b", "test/b", "test/b"),
        ("train/a", "train/b", "train/b", "train/b", "test/b", "test/b"),
        ("train/a", "train/a", "train/b", "test/b", "test/b", "test/b"),
    ]
    found = []
    for number, folders in enumerate(places):
        root = tmp_path / str(number)
        for seed, folder in enumerate(folders):
            (root / folder).mkdir(parents=True, exist_ok=True)
            noise_image(seed).save(root / folder / f"{seed}.png")
        found.append(data.load(str(root), 28, storage="stream").fingerprint)
    assert len({*found}) == 3


def test_moments_are_of_images_drawn_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits are often ordered by class."""
    monkeypatch.setattr(streaming, "_SAMPLE", 12)
    images = [encoded(Image.new("RGB", (8, 8), (number,) * 3)) for number in range(100)]
    split = split_of(images, side=8)
    first, again = (torch.cat([*split.sample()])[:, 0, 0, 0].tolist() for _ in range(2))
    assert first == again and len({*first}) == 12
    assert max(first) - min(first) > 50


def test_file_that_goes_away(photographs: Path) -> None:
    loaded = data.load(str(photographs), 28, storage="stream")
    assert isinstance(loaded.train, StreamedSplit)
    path = photographs / "train" / "a" / "0.jpg"
    path.unlink()
    with pytest.raises(UserError, match=rf"cannot read image {path}"):
        loaded.train.images(torch.tensor([0]))
    with pytest.raises(UserError, match=rf"cannot read image {path}"):
        streamed(loaded.train, [CROP], draws_of(1))


# ---- runs


@pytest.fixture
def run(ssl_bench: Call, photographs: Path, tmp_path: Path) -> Call:
    """A short ``ssl-bench run`` on the streamed photographs."""

    def call(*words: object) -> tuple[int, str, str]:
        return ssl_bench(
            "run", "--data", photographs, "--storage", "stream", "--image-size", 16,
            "--batch-size", 10, "--precision", "fp32", "--crop-scale", 0.2, "--epochs", 4,
            *(() if "--runs-dir" in words else ("--runs-dir", tmp_path / "runs")), *words,
        )  # fmt: skip

    return call


def test_run_on_a_streamed_set(run: Call, tmp_path: Path) -> None:
    code, out, err = run(
        "--evals", "knn,linear,finetune,linear-paper", "--finetune-epochs", 1,
        "--finetune-batch-size", 10, "--linear-epochs", 1, "--linear-paper-epochs", 2,
        "--loss-target", "pca", "--pca-components", 3,
    )  # fmt: skip
    assert code == 0, err
    assert "images streamed from their files, as asked" in out
    [metrics] = (tmp_path / "runs").glob("*/metrics.jsonl")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert all(0 < record["waiting"] <= 1 for record in records)
    assert len(list(metrics.parent.glob("evals/*/scores.json"))) == 4


def test_broken_file_stops_a_run_that_then_goes_on(
    run: Call, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit to the weights of the run that nothing has stopped."""
    from ssl_bench.training import pretrain, training_state

    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    common = ("--evals", "none")
    assert run(*common)[0] == 0
    [whole] = (tmp_path / "runs").glob("*/encoder.safetensors")

    path = photographs / "train" / "a" / "0.jpg"
    content, checkpoint, count = path.read_bytes(), training_state.save, 0

    def spoil(*arguments: Any) -> None:
        nonlocal count
        checkpoint(*arguments)
        count += 1
        if count == 4:
            path.write_bytes(content[:300])

    monkeypatch.setattr(training_state, "save", spoil)
    code, _, err = run(*common, "--runs-dir", tmp_path / "spoiled")
    assert code == 2
    said = [line for line in err.splitlines() if line.startswith("ssl-bench: ")]
    assert len(said) == 1 and f"cannot read image {path}" in said[0]
    assert "Traceback" not in err
    [left] = (tmp_path / "spoiled").glob("*/checkpoint.pt")
    path.write_bytes(content)
    code, _, err = run(*common, "--runs-dir", tmp_path / "spoiled")
    assert code == 0, err
    assert left.parent.name == whole.parent.name
    resumed, expected = load_file(left.parent / "encoder.safetensors"), load_file(whole)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_broken_image_is_told_before_the_training(
    run: Call, photographs: Path, tmp_path: Path
) -> None:
    path = photographs / "test" / "b" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    code, _, err = run()
    assert code == 2 and f"cannot read image {path}" in err and "--skip-broken" in err
    assert not (tmp_path / "runs").exists()


def test_runs_without_broken_images_carry_that(
    ssl_bench: Call, photographs: Path, tmp_path: Path
) -> None:
    broken = [photographs / "test" / "b" / "1.jpg", photographs / "train" / "a" / "0.jpg"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-300])
    code, out, err = ssl_bench(
        "run", "--data", photographs, "--image-size", 16, "--batch-size", 10, "--epochs", 1,
        "--evals", "knn", "--skip-broken", "--runs-dir", tmp_path / "runs",
    )  # fmt: skip
    assert code == 0, err
    assert "29 training and 9 test images" in out and "2 broken images left out" in out
    [config] = (tmp_path / "runs").glob("*/config.json")
    noted = json.loads(config.read_text())
    assert noted["skip_broken"] is True
    assert sorted(text.partition(": ")[0] for text in noted["broken"]) == sorted(map(str, broken))
    where = "--runs-dir", tmp_path / "runs"
    assert ssl_bench("eval", config.parent.name, "--evals", "knn", "--seed", 1, *where)[0] == 0
    code, out, err = ssl_bench("rerun", config.parent.name, *where)
    assert code == 0 and "came out the same" in out, err
    output = tmp_path / "copy"
    assert ssl_bench("data", "prepare", photographs, "-o", output, "--skip-broken")[0] == 0
    copy = data.load(str(output), 16)
    assert copy.note == "2 broken images left out"
    assert copy.fingerprint == noted["data_fingerprint"]


def test_images_are_looked_at_once(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_bench.data import survey

    path = photographs / "train" / "a" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    monkeypatch.setattr(survey, "_WORTH_KEEPING", 0.0)
    first = data.load(str(photographs), 28, tmp_path / "d", storage="stream", skip_broken=True)
    monkeypatch.setattr(survey, "_checked", lambda _: pytest.fail("looked at again"))
    again = data.load(str(photographs), 28, tmp_path / "d", storage="stream", skip_broken=True)
    assert (first.fingerprint, first.broken) == (again.fingerprint, again.broken)
    with pytest.raises(UserError, match=str(path)):
        data.load(str(photographs), 56, tmp_path / "d", storage="stream")
    [noted] = (tmp_path / "d").glob("checked/*")
    noted.write_text("{")
    monkeypatch.undo()
    assert data.load(
        str(photographs), 28, tmp_path / "d", storage="stream", skip_broken=True
    ).broken


def test_share_of_waiting_is_recorded_in_memory_too(
    ssl_bench: Call, image_folder: Path, tmp_path: Path
) -> None:
    code, _, err = ssl_bench(
        "run", "--data", image_folder, "--epochs", 2, "--batch-size", 16, "--evals", "none",
        "--runs-dir", tmp_path / "runs",
    )  # fmt: skip
    assert code == 0, err
    [metrics] = (tmp_path / "runs").glob("*/metrics.jsonl")
    shares = [json.loads(line)["waiting"] for line in metrics.read_text().splitlines()]
    assert len(shares) == 6 and all(0 < share < 1 for share in shares)


# ---- the prepared copy


def test_prepared_copy_has_the_same_images(
    ssl_bench: Call, photographs: Path, tmp_path: Path
) -> None:
    code, out, err = ssl_bench("data", "prepare", photographs, "-o", tmp_path / "copy")
    assert code == 0, err
    assert "40 images copied as they are, 0 made smaller" in out
    before = data.load(str(photographs), 28)
    for storage in ("memory", "stream"):
        after = data.load(str(tmp_path / "copy"), 28, storage=storage)
        assert (after.classes, after.note) == (("a", "b"), "")
        for part in ("train", "test"):
            split, original = getattr(after, part), getattr(before, part)
            assert split.labels_N.tolist() == original.labels_N.tolist()
            assert torch.equal(torch.cat(list(split.chunks(9))), original.images_NCHW)
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "test-00000.parquet",
        "train-00000.parquet",
    ]
    streams = [
        data.load(str(folder), 28, storage="stream") for folder in (photographs, tmp_path / "copy")
    ]
    assert streams[0].fingerprint == streams[1].fingerprint, "the files are the same, bit for bit"


def test_larger_photographs_are_made_smaller_and_it_is_said(
    ssl_bench: Call, photographs: Path, tmp_path: Path
) -> None:
    code, out, err = ssl_bench(
        "data", "prepare", photographs, "-o", tmp_path / "a" / "copy", "--short-side", 48,
        "--quality", 80,
    )  # fmt: skip
    assert code == 0, err
    assert "14 images copied as they are, 26 made smaller" in out
    table = pq.read_table(tmp_path / "a" / "copy" / "train-00000.parquet")
    sizes = {
        Image.open(io.BytesIO(cell["bytes"])).size for cell in table.column("image").to_pylist()
    }
    assert sizes == {(60, 45), (48, 67), (68, 48)}
    loaded = data.load(str(tmp_path / "a" / "copy"), 28)
    assert loaded.note == "larger images reduced to a short side of 48 px, JPEG quality 80"
    original = data.load(str(photographs), 28)
    difference = loaded.train.images_NCHW.int() - original.train.images_NCHW.int()
    assert difference.abs().float().mean() < 4


def test_prepared_copy_of_a_set_without_test_split(tmp_path: Path, ssl_bench: Call) -> None:
    for number in range(60):
        path = tmp_path / "few" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(number, 20, 20).save(path)
    before = data.load(str(tmp_path / "few"))
    assert ssl_bench("data", "prepare", tmp_path / "few", "-o", tmp_path / "copy")[0] == 0
    after = data.load(str(tmp_path / "copy"))
    assert after.note == listing.HELD_OUT_CAVEAT
    assert after.fingerprint == before.fingerprint


def test_images_that_were_never_files_are_prepared_as_they_are(tmp_path: Path) -> None:
    from ssl_bench.data.prepare import prepare

    pictures = [
        Picture(str(number), photograph(number, 28, 28).convert("L"), number % 2)
        for number in range(8)
    ]
    part = listing.Part(8, lambda: iter(pictures), lambda: pictures.__getitem__)
    prepare(listing.Listing("x", part, part, ("a", "b"), channels=1), tmp_path / "copy", 256, 95)
    for storage in ("memory", "stream"):
        loaded: Dataset = data.load(str(tmp_path / "copy"), storage=storage)
        assert (loaded.channels, loaded.size, loaded.classes) == (1, 28, ("a", "b"))
        expected = torch.stack([torch.from_numpy(np.array(p.encoded)) for p in pictures])
        assert torch.equal(loaded.train.images(torch.arange(8))[:, 0], expected)


def test_large_sets_become_several_files(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssl_bench: Call
) -> None:
    from ssl_bench.data import prepare

    monkeypatch.setattr(prepare, "_ROWS_AT_ONCE", 4)
    monkeypatch.setattr(prepare, "_BYTES_IN_FILE", 10_000)
    assert ssl_bench("data", "prepare", photographs, "-o", tmp_path / "copy")[0] == 0
    assert len(list((tmp_path / "copy").glob("train-*.parquet"))) > 2
    after = data.load(str(tmp_path / "copy"), 28, storage="stream")
    before = data.load(str(photographs), 28, storage="stream")
    assert after.fingerprint == before.fingerprint


def test_compressed_parquet_cannot_be_streamed(photographs: Path, tmp_path: Path) -> None:
    from ssl_bench.data.prepare import prepare

    prepare(data.list_images(str(photographs)), tmp_path / "copy", 256, 95)
    for path in (tmp_path / "copy").iterdir():
        pq.write_table(pq.read_table(path), path, compression="zstd")
    assert len(data.load(str(tmp_path / "copy"), 28).train) == 30
    with pytest.raises(UserError, match=r"it is compressed .*`ssl-bench data prepare`"):
        data.load(str(tmp_path / "copy"), 28, storage="stream")


def test_mistakes_in_preparing(ssl_bench: Call, photographs: Path, tmp_path: Path) -> None:
    def said(*words: object) -> str:
        code, _, err = ssl_bench("data", *words)
        assert code == 2
        [line] = [line for line in err.splitlines() if line.startswith("ssl-bench: ")]
        assert "Traceback" not in err
        return line

    output = tmp_path / "copy"
    assert "ssl-bench data prepare SOURCE -o FOLDER" in said()
    assert "ssl-bench data prepare SOURCE -o FOLDER" in said("shrink", photographs)
    assert "-o FOLDER" in said("prepare", photographs)
    assert "which data set" in said("prepare", "-o", output)
    assert "no such folder" in said("prepare", tmp_path / "nowhere", "-o", output)
    assert "unknown data set" in said("prepare", "imagenett", "-o", output)
    assert "inside the package" in said("prepare", "fashion-mnist", "-o", output)
    assert "--short-side 0" in said("prepare", photographs, "-o", output, "--short-side", 0)
    assert "quality 101" in said("prepare", photographs, "-o", output, "--quality", 101)
    assert "exists already" in said("prepare", photographs, "-o", photographs)
    assert "lies in" in said("prepare", photographs, "-o", photographs / "copy")
    (tmp_path / "file").touch()
    assert "cannot write" in said("prepare", photographs, "-o", tmp_path / "file" / "copy")
    broken = photographs / "test" / "b" / "1.jpg"
    whole = broken.read_bytes()
    for content in (b"junk", whole[: len(whole) // 2]):
        broken.write_bytes(content)
        assert f"cannot read image {broken}" in said("prepare", photographs, "-o", output)
    assert not output.exists()
    assert not list(tmp_path.glob(".copy*")), "nothing half-written is left"


def test_what_a_killed_preparation_left_is_removed(
    ssl_bench: Call, photographs: Path, tmp_path: Path
) -> None:
    code = """
import os, signal, sys
from ssl_bench import data
from ssl_bench.data import prepare
prepare._ROWS_AT_ONCE = 4
def killed(done, total):
    if done == 4 and list(prepare.Path(sys.argv[2]).parent.glob(".copy.*.tmp/*")):
        os.kill(os.getpid(), signal.SIGKILL)
prepare.prepare(data.list_images(sys.argv[1]), prepare.Path(sys.argv[2]), 256, 95, killed)
"""
    output = tmp_path / "copy"
    words = [sys.executable, "-c", code, str(photographs), str(output)]
    root = Path(data.__file__).parents[2]
    assert subprocess.run(words, cwd=root, check=False).returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".copy*"))
    assert ssl_bench("data", "prepare", photographs, "-o", output)[0] == 0
    assert len(data.load(str(output), 28).train) == 30
    assert not list(tmp_path.glob(".copy*"))


def test_two_preparations_do_not_disturb_each_other(
    ssl_bench: Call, photographs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "copy"
    with suppress(KeyboardInterrupt), new_folder(output) as temporary:
        (temporary / "half").touch()
        code, _, err = ssl_bench("data", "prepare", photographs, "-o", output)
        assert code == 2 and "another process" in err
        assert (temporary / "half").exists() and not output.exists()
        raise KeyboardInterrupt
    assert ssl_bench("data", "prepare", photographs, "-o", output)[0] == 0


def test_deep_images_are_prepared_as_they_are_read(tmp_path: Path) -> None:
    from ssl_bench.data.prepare import prepare

    grey_HW = (np.arange(1024).reshape(32, 32) * 4).astype(np.uint16)
    for number, name in enumerate(("train/a", "train/b", "test/a")):
        (tmp_path / "x" / name).mkdir(parents=True)
        Image.fromarray(grey_HW >> 4 * number).save(tmp_path / "x" / name / "0.png")
    prepare(data.list_images(str(tmp_path / "x")), tmp_path / "copy", 256, 95)
    before, after = data.load(str(tmp_path / "x")), data.load(str(tmp_path / "copy"))
    assert after.fingerprint == before.fingerprint
    assert "read as 12 bits" in before.note and "read as 12 bits" in after.note


def test_a_changed_pixel_of_a_large_bitmap_is_another_data_set(tmp_path: Path) -> None:
    pixels = np.zeros((200, 200, 3), np.uint8)
    prints = set()
    for value in (0, 1):
        pixels[60, 60] = value
        for name in ("train/a", "train/b", "test/a"):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / "x.bmp")
        prints.add(data.load(str(tmp_path), 28, storage="stream").fingerprint)
    assert len(prints) == 2


def test_a_damaged_parquet_file_is_named(photographs: Path, tmp_path: Path) -> None:
    from ssl_bench.data.prepare import prepare

    prepare(data.list_images(str(photographs)), tmp_path / "copy", 256, 95)
    [path] = (tmp_path / "copy").glob("train-*")
    content = bytearray(path.read_bytes())
    content[4:40] = b"x" * 36
    path.write_bytes(content)
    for storage in ("memory", "stream"):
        with pytest.raises(UserError, match=f"{path.name}' cannot be read"):
            data.load(str(tmp_path / "copy"), 28, storage=storage)


def test_a_part_of_a_streamed_split_has_its_images_and_labels() -> None:
    whole = split_of([encoded(photograph(seed, 48, 40)) for seed in range(6)])
    whole = dataclasses.replace(whole, captions=tuple((f"{n}",) for n in range(6)))
    part = whole.subset([4, 1])
    assert part.captions == (("4",), ("1",))
    assert len(part) == 2
    assert torch.equal(part.labels_N, whole.labels_N[[4, 1]])
    assert torch.equal(part.images(torch.tensor([0, 1])), whole.images(torch.tensor([4, 1])))
