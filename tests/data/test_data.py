"""Data sets: what is read from real files, and what a user's mistake says."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import inspect
import io
import json
import os
import re
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from helpers import ROOT, encoded, held_out, noise_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ssl_bench import data
from ssl_bench.config.settings import Storage
from ssl_bench.data import depth, embedded, in_memory, listing
from ssl_bench.data.images import UnreadableImage, jpeg_quality, opened, square_CSS, to_rgb
from ssl_bench.data.listing import Picture
from ssl_bench.data.names import TORCHVISION
from ssl_bench.data.prepare import prepare
from ssl_bench.data.sources.folder import image_files
from ssl_bench.errors import UserError


def same(first: object, second: object) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def reread(image: Image.Image, file_format: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def write_folder(root: Path, counts: dict[str, int], **size: int) -> Path:
    """Noise images, as many as given for each ``split/class`` or ``class`` folder."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            noise_image(1000 * number + index, **size).save(root / name / f"{index}.png")
    return root


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[object],
    names: list[str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    plain: bool = False,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = images if plain else [{"bytes": image, "path": None} for image in images]
    column = pa.array(labels) if labels else pa.array([], pa.int64())
    table = pa.table({image_column: cells, label_column: column})
    if names:
        features = {label_column: {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path)
    return path


def message(source: Path | str, image_size: int | None = None, storage: Storage = "auto") -> str:
    """What loading says to the user: always one line."""
    with pytest.raises(UserError) as caught:
        data.load(str(source), image_size, storage=storage)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the embedded data set


def test_fashion_mnist_is_the_published_one() -> None:
    readme = (Path(embedded.__file__).parent / "README.md").read_text()
    for split in ("train", "test"):
        images_NCHW, labels_N = embedded.read(split)
        for kind, array in (("images", images_NCHW), ("labels", labels_N.to(torch.uint8))):
            digest = hashlib.sha256(array.numpy().tobytes()).hexdigest()
            assert f"| {split} {kind} | `{digest}` |" in readme


def test_fashion_mnist_loads() -> None:
    loaded = data.load("fashion-mnist")
    assert (loaded.name, loaded.note) == ("fashion-mnist", "")
    assert (len(loaded.train), len(loaded.test)) == (60_000, 10_000)
    assert loaded.train.images_NCHW.shape == (60_000, 1, 28, 28)
    assert loaded.train.images_NCHW.dtype == torch.uint8
    assert loaded.train.labels_N.dtype == torch.int64
    assert (loaded.channels, loaded.size, len(loaded.classes)) == (1, 28, 10)
    assert loaded.test.labels_N.bincount().tolist() == [1000] * 10
    # The figures that are commonly used to normalise Fashion-MNIST.
    assert loaded.mean == pytest.approx((0.2860,), abs=5e-5)
    assert loaded.std == pytest.approx((0.3530,), abs=5e-5)
    # They are part of every run's name, which no processor may change by rounding otherwise.
    assert (loaded.mean, loaded.std) == ((0.2860405969887955,), (0.35302424451492254,))


def test_licence_travels_with_the_images() -> None:
    text = (Path(embedded.__file__).parent / "LICENSE").read_text()
    assert "MIT License" in text and "Zalando SE" in text


# ---- names


def test_names_need_no_torch() -> None:
    code = "import sys; from ssl_bench import data; data.names(); print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert result.stdout.strip() == "False"


def test_every_name_has_one_line() -> None:
    names = data.names()
    assert "fashion-mnist" in names and "cifar10" in names
    assert all(about and "\n" not in about for about in names.values())


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_takes_our_arguments(name: str) -> None:
    from torchvision import datasets

    known = TORCHVISION[name]
    signature = inspect.signature(getattr(datasets, known.class_name))
    for arguments in (known.train, known.test):
        signature.bind(root="", download=True, **arguments)


def test_unknown_name_suggests_a_known_one() -> None:
    assert message("cifar-10") == "unknown data set 'cifar-10'; did you mean 'cifar10'?"


def test_missing_path_is_not_taken_for_a_name() -> None:
    assert message("./nowhere") == "no such folder or file: ./nowhere"
    assert message("nowhere.parquet") == "no such folder or file: nowhere.parquet"


def test_known_name_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "fashion-mnist", {"train/a": 1, "train/b": 1, "test/a": 1})
    monkeypatch.chdir(tmp_path)
    assert len(data.load("fashion-mnist").train) == 60_000
    assert len(data.load("./fashion-mnist").train) == 2


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"")
    assert "neither a folder nor a .parquet" in message(tmp_path / "images.zip")


def test_image_size_must_be_positive() -> None:
    assert "--image-size 0" in message("fashion-mnist", image_size=0)


# ---- conversion to RGB


def test_rgb_is_unchanged() -> None:
    image = noise_image(0)
    assert same(to_rgb(image), image)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_gets_three_equal_channels(mode: str) -> None:
    image = noise_image(0).convert(mode)
    expected_HW = np.asarray(image.convert("L"))
    assert same(to_rgb(reread(image, "PNG")), np.stack([expected_HW] * 3, axis=-1))


def test_transparency_is_composited_over_white() -> None:
    image = Image.new("RGBA", (4, 1), (200, 100, 0, 255))
    for x, alpha in enumerate((255, 0, 127, 128)):
        image.putpixel((x, 0), (200, 100, 0, alpha))
    rgb = np.asarray(to_rgb(reread(image, "PNG"))).astype(int)[0]
    opacity = np.array([[255], [0], [127], [128]]) / 255
    expected = opacity * np.array([200, 100, 0]) + (1 - opacity) * 255
    assert np.abs(rgb - expected).max() <= 1


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (2, 1))
    image.putpixel((0, 0), (80, 255))
    image.putpixel((1, 0), (80, 0))
    assert np.asarray(to_rgb(reread(image, "PNG"))).tolist() == [[[80] * 3, [255] * 3]]


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert np.asarray(to_rgb(reread(image, "PNG"))).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    for transparency in (1, b"\xff\x00"):
        clear = reread(image, "PNG", transparency=transparency)
        assert np.asarray(to_rgb(clear)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk_jpeg_is_not_inverted() -> None:
    image = reread(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)
    assert image.mode == "CMYK" and "adobe" in image.info
    assert to_rgb(image).getpixel((8, 8)) == (0, 255, 255)


@pytest.mark.parametrize(
    ("dtype", "file_format", "mode"),
    [
        ("<u2", "PNG", "I;16"),
        ("<u2", "TIFF", "I;16"),
        (">u2", None, "I;16B"),
        ("<i4", "TIFF", "I"),
        ("<f4", "TIFF", "F"),
    ],
)
def test_16_bit_grey_keeps_its_high_byte(dtype: str, file_format: str | None, mode: str) -> None:
    grey_HW = (np.arange(256).reshape(16, 16) * 257).astype(dtype)
    if file_format:
        image = reread(Image.fromarray(grey_HW), file_format)
    else:
        image = Image.frombytes(mode, (16, 16), grey_HW.tobytes())
    assert image.mode == mode
    assert same(to_rgb(image).getchannel(0), np.arange(256).reshape(16, 16))


def test_float_grey_in_the_unit_range() -> None:
    image = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 128, 255]


def test_grey_beyond_16_bit_is_refused() -> None:
    with pytest.raises(ValueError, match="65535"):
        to_rgb(Image.fromarray(np.array([[0, 70_000]], np.int32)))
    with pytest.raises(ValueError, match="nan"):
        to_rgb(Image.fromarray(np.array([[0, np.nan]], np.float32)))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def test_16_bit_rgb_png_keeps_its_high_bytes() -> None:
    pixels_HWC = np.random.default_rng(0).integers(0, 65536, (4, 4, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels_HWC)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )
    assert same(to_rgb(Image.open(io.BytesIO(content))), pixels_HWC >> 8)


def test_exif_orientation_is_applied() -> None:
    image = noise_image(0, width=8, height=4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned = to_rgb(reread(image, "PNG", exif=exif))
    assert same(turned, image.rotate(-90, expand=True))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_orientation_is_pillows(file_format: str) -> None:
    for told in range(12):
        exif = Image.Exif()
        exif[0x0112] = told
        content = encoded(noise_image(0, width=8, height=4), file_format, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        with opened(Picture("x", content, 0)) as image:
            assert same(to_rgb(image), expected), told


def jpeg_segment(mark: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, mark, len(content) + 2) + content


TURNED = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
UNWRITABLE = TURNED + struct.pack("<HHIIIii", 0x011A, 10, 1, 38, 0, -1, 0)
OVERFLOWING = b"Photoshop 3.0\x008BIM\x04\x04\xff"


@pytest.mark.parametrize(
    ("segment", "is_turned"),
    [
        (jpeg_segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\x02\0" + UNWRITABLE), True),
        (jpeg_segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + TURNED), True),
        (jpeg_segment(0xE1, b"Exif\0\0junk"), False),
        (jpeg_segment(0xED, OVERFLOWING), False),
        (jpeg_segment(0xE2, b"MPF\0junk"), False),
        (jpeg_segment(0xE2, b"ICC_PROFILE\0"), False),
    ],
)
def test_damaged_metadata_of_a_jpeg_do_not_matter(segment: bytes, is_turned: bool) -> None:
    jpeg = encoded(noise_image(0, 16, 8), "JPEG")
    with opened(Picture("x", jpeg[:2] + segment + jpeg[2:], 0)) as image:
        pixels = np.asarray(to_rgb(image))
    plain = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert same(pixels, np.rot90(plain, -1) if is_turned else plain)


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"tEXt", b"a\0b")[:-1] + b"?",
        png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24))),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**24))),
        png_chunk(b"iCCP", b"a\0\0junk"),
        png_chunk(b"eXIf", b"junk"),
        png_chunk(b"acTL", b"junk"),
    ],
)
def test_damaged_metadata_of_a_png_do_not_matter(chunk: bytes, at_end: bool) -> None:
    png = encoded(noise_image(0))
    place = len(png) - 12 if at_end else 33
    with opened(Picture("x", png[:place] + chunk + png[place:], 0)) as image:
        assert same(to_rgb(image), noise_image(0))


@given(st.data())
def test_a_damaged_image_is_read_or_named(draw: st.DataObject) -> None:
    file_format = draw.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]))
    content = bytearray(encoded(noise_image(0, 12, 9), file_format))
    for place in draw.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = draw.draw(st.integers(0, 255))
    picture = Picture("name", bytes(content[: draw.draw(st.integers(0, len(content)))]), 0)
    with suppress(UnreadableImage), opened(picture) as image:
        assert square_CSS(image, 8, 3).shape == (3, 8, 8)


def test_no_program_is_run_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("it was run"))
    root = write_folder(tmp_path / "x", {"train/a": 1, "train/b": 1, "test/a": 1})
    noise_image(0).save(root / "train" / "a" / "1.eps")
    assert data.load(str(root)).left_out == "left out: 1 .eps"
    (root / "train" / "a" / "1.eps").rename(root / "train" / "a" / "1.jpg")
    assert "1.jpg: no format" in message(root)


def test_an_absurd_size_takes_no_memory(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 1, "train/b": 1, "test/a": 1})
    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
    (root / "train" / "a" / "1.png").write_bytes(start + png_chunk(b"IEND", b""))
    assert "12,000 x 12,000 pixels" in message(root)


# ---- more than 8 bits


def write_arrays(root: Path, arrays: Sequence[np.ndarray], extension: str) -> Path:
    """The same images in every split and class."""
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (root / name).mkdir(parents=True)
        for number, array in enumerate(arrays):
            Image.fromarray(array).save(root / name / f"{number}.{extension}")
    return root


@pytest.mark.parametrize("storage", ["memory", "stream"])
@pytest.mark.parametrize(
    ("dtype", "scale", "extension"),
    [
        ("float32", 1, "tif"), ("int32", 1, "tif"), ("uint16", 1, "png"), ("uint16", 16, "png"),
        ("uint16", 4, "tif"), ("int32", 16, "tif"), ("uint16", 257, "png"), ("int32", 257, "tif"),
        ("float32", 257, "tif"), ("float32", 1 / 255, "tif"),
    ],
)  # fmt: skip
def test_depth_is_that_of_the_whole_data_set(
    tmp_path: Path, dtype: str, scale: float, extension: str, storage: Storage
) -> None:
    bright = np.arange(256).reshape(16, 16)
    dark = bright // 16
    arrays = [(pixels * scale).astype(dtype) for pixels in (dark, bright)]
    loaded = data.load(str(write_arrays(tmp_path / "x", arrays, extension)), storage=storage)
    images = loaded.train.images(torch.arange(2))
    assert same(images[0, 0], dark) and same(images[1, 0], bright)
    assert ("8 of 8 images have" in loaded.note) == (scale < 257)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_the_depth_holds_the_largest_value(bits: int) -> None:
    for high, expected in ((2**bits - 1, bits), (2**bits, bits + 2)):
        found = [depth.Extremes("dark", "I", 1.0), depth.Extremes("bright", "I", float(high))]
        assert depth.decide(found) == {"I": expected}


def test_two_ranges_of_floats_are_asked_about(tmp_path: Path) -> None:
    unit = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    said = message(write_arrays(tmp_path / "x", [unit, unit * 255], "tif"))
    assert "4 have values up to 1" in said and "0.tif" in said and "255" in said


def test_images_far_darker_than_others_are_told(tmp_path: Path) -> None:
    full = (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)
    loaded = data.load(str(write_arrays(tmp_path / "x", [full, full >> 4], "png")))
    assert "4 of 8 images have 16-bit values below 4096, others up to 65535" in loaded.note


def test_values_that_are_none_are_named(tmp_path: Path) -> None:
    good = np.linspace(0, 200, 64, dtype=np.float32).reshape(8, 8)
    for bad in (np.nan, np.inf, -1, 70_000):
        wrong = good.copy()
        wrong[3, 3] = bad
        said = message(write_arrays(tmp_path / str(bad), [good, wrong], "tif"))
        assert "4 images" in said and "must lie in [0, 65535]" in said


# ---- resizing, cropping, JPEG quality


def test_short_side_is_resized_and_the_centre_kept() -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    square = square_CSS(image, 50, 3)
    assert square.shape == (3, 50, 50) and square.dtype == np.uint8
    # Only the blue middle third is left, but for the filter's reach at the two edges.
    assert (square[:, :, 2:-2] == np.array([0, 0, 255])[:, None, None]).all()


def test_squares_are_resized_bicubically() -> None:
    image = noise_image(0, 40, 40)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (square_CSS(image, 16, 3) == expected).all()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_any_shape_becomes_the_square(width: int, height: int, side: int) -> None:
    assert square_CSS(Image.new("RGB", (width, height)), side, 3).shape == (3, side, side)


@pytest.mark.parametrize(("width", "height"), [(640, 481), (481, 640), (1024, 512)])
def test_reduced_jpeg_decoding_looks_like_full_decoding(width: int, height: int) -> None:
    smooth = noise_image(0, 8, 8).resize((width, height), Image.Resampling.BICUBIC)
    jpeg = encoded(smooth, "JPEG", quality=95)
    reduced = Image.open(io.BytesIO(jpeg))
    square = square_CSS(reduced, 64, 3)
    assert reduced.size != (width, height)  # it was in fact decoded at a reduced size
    full = square_CSS(Image.open(io.BytesIO(jpeg)).convert("RGB"), 64, 3)
    assert np.abs(square.astype(int) - full).mean() < 3


@given(st.integers(1, 100))
def test_jpeg_quality_is_found(quality: int) -> None:
    image = reread(Image.new("RGB", (8, 8)), "JPEG", quality=quality)
    assert jpeg_quality(image) == quality


def test_only_a_jpeg_has_a_jpeg_quality() -> None:
    assert jpeg_quality(reread(noise_image(0), "PNG")) is None


# ---- folders


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    counts = {"train/b": 3, "train/a": 2, "test/a": 1, "test/b": 2, "val/a": 4}
    root = write_folder(tmp_path / "pets", counts)
    (root / "train" / ".cache").mkdir()
    (root / "train" / "a" / "._0.png").write_bytes(b"not an image")
    (root / "train" / "a" / "notes.txt").write_text("not an image")
    loaded = data.load(str(root))
    assert (loaded.name, loaded.classes, loaded.note) == ("pets", ("a", "b"), "")
    assert loaded.left_out == "left out: 1 .txt"
    assert loaded.train.labels_N.tolist() == [0, 0, 1, 1, 1]
    assert loaded.test.labels_N.tolist() == [0, 1, 1]
    assert (loaded.channels, loaded.size) == (3, 32)
    stored = loaded.train.images_NCHW[1].permute(1, 2, 0)
    assert same(stored, Image.open(root / "train" / "a" / "1.png"))


def test_val_is_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 2, "train/b": 2, "val/a": 3})
    assert len(data.load(str(root)).test) == 3


def test_grey_folder_gets_three_channels(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 1, "train/b": 1, "test/a": 1})
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert data.load(str(root)).channels == 3


def test_folder_without_splits_holds_out_a_fifth(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"a": 60, "b": 60}, width=4, height=4)
    loaded = data.load(str(root))
    assert len(loaded.train) + len(loaded.test) == 120
    assert 12 <= len(loaded.test) <= 36
    assert loaded.note == listing.HELD_OUT_CAVEAT
    moved = root.rename(tmp_path / "elsewhere")
    assert data.load(str(moved)).fingerprint == loaded.fingerprint


@given(st.sets(st.text("abc/", min_size=1)), st.sets(st.text("abc/", min_size=1)))
def test_adding_images_moves_no_other(before: set[str], added: set[str]) -> None:
    def test_split(keys: set[str]) -> set[str]:
        return {key for key in keys if held_out(key.encode())}

    assert test_split(before | added) & before == test_split(before)


def test_the_held_out_share_is_a_fifth() -> None:
    share = np.mean([held_out(b"%d" % number) for number in range(10_000)])
    assert share == pytest.approx(0.2, abs=0.02)


def test_large_images_are_stored_with_room_for_a_crop(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 2, "train/b": 2, "test/a": 1}, width=120)
    assert data.load(str(root), image_size=28).size == 32
    assert data.load(str(root)).size == round(data.DEFAULT_IMAGE_SIZE * 8 / 7)


def test_small_images_of_several_sizes_are_resized(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 1, "train/b": 1, "test/a": 1})
    noise_image(0, 40, 40).save(root / "test" / "a" / "0.png")
    assert data.load(str(root), image_size=14).size == 16


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 3, "train/b": 2, "test/a": 1})
    seen: list[tuple[int, int]] = []
    data.load(str(root), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(5, 6), (6, 6)]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, "has no class folders"),
        ({"train/a": 1, "train/b": 1}, "neither test nor val"),
        ({"test/a": 1, "val/a": 1}, "no train folder"),
        ({"train/a": 1, "train/b": 0, "test/a": 1}, "empty class: no images in .*train/b"),
        ({"train/a": 1, "train/b": 1, "test/a": 1, "test/c": 1}, "'c', which train lacks"),
        ({"a": 1, "b": 0}, "empty class: no images in .*b "),
        ({"a": 1, "b": 1}, "test split is empty"),
    ],
)
def test_mistakes_in_folders(tmp_path: Path, counts: dict[str, int], said: str) -> None:
    root = tmp_path / "x"
    root.mkdir()
    assert re.search(said, message(write_folder(root, counts)))


def test_what_pillow_reads_is_read_and_the_rest_counted(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 1, "train/b": 1, "test/a": 1})
    for name, file_format in (
        ("1.avif", "AVIF"), ("2.jfif", "JPEG"), ("3.JPE", "JPEG"), ("4.jp2", "JPEG2000"),
        ("5.tga", "TGA"), ("6.Png", "WEBP"), ("7", "JPEG"), ("8.psd", "PNG"),
    ):  # fmt: skip
        noise_image(0).save(root / "train" / "a" / name, file_format)
    for name in ("a.TXT", "b.txt", "Thumbs.db", ".DS_Store"):
        (root / "train" / "b" / name).touch()
    (root / "test" / "a" / "labels.csv").touch()
    loaded = data.load(str(root))
    assert (len(loaded.train), len(loaded.test)) == (8, 1)
    assert same(loaded.train.images_NCHW[5].permute(1, 2, 0), noise_image(0))  # TGA
    assert loaded.left_out == (
        "left out: 2 .txt, 1 without extension, 1 .csv, 1 .db, 1 .psd"
    )  # fmt: skip


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"b": 2, "b/own": 3})
    far = write_folder(tmp_path / "far", {"cats": 4, "cats/more": 2, "dogs": 5})
    (root / "a").symlink_to(far / "cats")
    (root / "b" / "1-first").symlink_to(root / "b" / "own")
    (root / "b" / "dogs").symlink_to(far / "dogs")
    (root / "b" / "dogs-again").symlink_to(far / "dogs")
    (root / "b" / "own" / "up").symlink_to(root)
    (far / "dogs" / "up").symlink_to(far)
    (root / "b" / "file.png").symlink_to(far / "dogs" / "0.png")
    (root / "b" / "gone.png").symlink_to(tmp_path / "gone.png")
    (root / "b" / "itself").symlink_to("itself")
    os.mkfifo(root / "b" / "pipe.png")
    found, left_out = image_files(root / "b")
    names = [path.relative_to(root / "b").as_posix() for path in found]
    assert names == [
        "0.png", "1.png", *(f"dogs/{n}.png" for n in range(5)), "file.png",
        "own/0.png", "own/1.png", "own/2.png",
    ]  # fmt: skip
    assert left_out == {"broken link": 2, "looping link": 2, "special file": 1}
    assert len(image_files(root / "a")[0]) == 6


@pytest.mark.parametrize("layout", ["{}", "train/{}"])
def test_names_that_are_no_utf_8(tmp_path: Path, layout: str) -> None:
    counts = {layout.format(name): 9 for name in "ab"}
    if "train" in layout:
        counts["test/a"] = 1
    root = write_folder(tmp_path / "x", counts)
    before = data.load(str(root))
    place = os.fsencode(root / layout.format("a"))
    os.rename(place + b"/0.png", place + b"/caf\xe9.png")
    os.rename(place, place + b"\xe9")
    if "train" in layout:
        os.rename(os.fsencode(root / "test" / "a"), os.fsencode(root / "test") + b"/a\xe9")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.rename(root, odd)
    loaded = data.load(odd)
    assert len(loaded.train) + len(loaded.test) == len(before.train) + len(before.test)
    assert (loaded.name, loaded.classes) == (r"\xff", (r"a\xe9", "b"))
    json.dumps(loaded.classes, ensure_ascii=False).encode()
    copy = Path(odd).with_name(os.fsdecode(b"copy\xe9"))
    prepare(data.list_images(odd), copy, 256, 95)
    assert data.load(str(copy)).fingerprint == loaded.fingerprint
    assert data.load(str(copy), storage="stream").name == r"copy\xe9"
    broken = os.fsencode(odd) + os.fsencode("/" + layout.format("a")) + b"\xe9/caf\xe9.png"
    Path(os.fsdecode(broken)).write_bytes(b"junk")
    assert r"caf\xe9.png" in message(odd)
    message(odd).encode()


# ---- broken images


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize("storage", ["memory", "stream"])
@pytest.mark.parametrize("width", [32, 120])
def test_broken_images_are_told_at_once_and_left_out_if_asked(
    tmp_path: Path, storage: Storage, width: int
) -> None:
    """Without them, it is the data set that it would be if they were not there."""
    counts = {"train/a": 4, "train/b": 4, "test/a": 3, "test/b": 1}
    root = write_folder(tmp_path / "x", counts, width=width)
    odd = root / "train" / "b" / "odd.png"  # its size is another one than that of all others
    noise_image(0, 40, 40).save(odd)
    broken = [root / "train" / "a" / "1.png", odd, root / "test" / "a" / "2.png"]
    for path in broken:
        spoil(path)
    said = message(root, storage=storage)
    assert "cannot read 3 images" in said and "--skip-broken" in said
    assert all(str(path) in said for path in broken)
    left = data.load(str(root), storage=storage, skip_broken=True)
    assert (len(left.train), len(left.test)) == (7, 3)
    assert left.note == "3 broken images left out"
    assert [text.partition(": ")[0] for text in left.broken] == [str(path) for path in broken]
    for path in broken:
        path.unlink()
    without = data.load(str(root), storage=storage)
    assert (without.fingerprint, without.size) == (left.fingerprint, left.size)
    assert without.train.labels_N.tolist() == left.train.labels_N.tolist()
    index = torch.arange(7)
    assert torch.equal(without.train.images(index), left.train.images(index))


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_what_is_left_must_be_a_data_set(tmp_path: Path, storage: Storage) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 2, "train/b": 1, "test/a": 1})
    spoil(root / "train" / "b" / "0.png")
    with pytest.raises(UserError, match="1 broken image: the train split has one class left"):
        data.load(str(root), storage=storage, skip_broken=True)


def test_many_broken_images_are_one_line(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 40, "train/b": 1, "test/a": 1})
    for path in (root / "train" / "a").iterdir():
        path.write_bytes(b"junk")
    said = message(root)
    assert "cannot read 40 images" in said and "and 30 more" in said and said.count(".png") == 10


def test_a_file_that_the_system_refuses_is_never_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 2, "train/b": 1, "test/a": 1})
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"1\.png: .*Permission denied"):
        data.load(str(root), skip_broken=True)


@pytest.mark.parametrize("content", [b"", b"not an image", encoded(noise_image(0))[:500]])
@pytest.mark.parametrize("width", [32, 120])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes, width: int) -> None:
    counts = {"train/a": 1, "train/b": 1, "test/a": 1}
    root = write_folder(tmp_path / "x", counts, width=width)
    (root / "train" / "b" / "0.png").write_bytes(content)
    said = message(root)
    assert f"cannot read image {root / 'train' / 'b' / '0.png'}: " in said


def test_truncated_image_says_so(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 1, "train/b": 1, "test/a": 1})
    (root / "test" / "a" / "0.png").write_bytes(encoded(noise_image(0))[:500])
    assert "truncated" in message(root)


# ---- memory


def test_too_many_images_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 2, "train/b": 1, "test/a": 1}, width=120)
    room = 2 * 4 * 3 * 64**2  # half of it holds four images of 64 pixels
    monkeypatch.setattr(in_memory, "_available_memory", lambda: room)
    said = message(root, image_size=224, storage="memory")
    assert "4 images of 256 x 256 pixels" in said and "GiB" in said
    assert said.endswith("--storage stream would work, and so would an image size of 56 or less")
    assert data.load(str(root), image_size=56).size == 64


def test_free_memory_is_known() -> None:
    assert in_memory._available_memory() > 2**20


# ---- Parquet


IMAGES = [encoded(noise_image(seed)) for seed in range(40)]


def test_parquet_folder_with_class_names(tmp_path: Path) -> None:
    names = ["cat", "dog", "owl"]
    write_parquet(tmp_path / "x" / "train.parquet", IMAGES[:4], [0, 1, 1, 2], names)
    write_parquet(tmp_path / "x" / "test.parquet", IMAGES[4:6], [2, 0], names)
    loaded = data.load(str(tmp_path / "x"))
    assert (loaded.name, loaded.classes, loaded.note) == ("x", ("cat", "dog", "owl"), "")
    assert loaded.train.labels_N.tolist() == [0, 1, 1, 2]
    assert loaded.test.labels_N.tolist() == [2, 0]
    assert same(loaded.test.images_NCHW[0].permute(1, 2, 0), noise_image(4))


def test_parquet_shards_below_data(tmp_path: Path) -> None:
    for shard in range(2):
        chosen = slice(2 * shard, 2 * shard + 2)
        path = tmp_path / "x" / "data" / f"train-0000{shard}-of-00002.parquet"
        write_parquet(path, IMAGES[chosen], [0, 1])
    write_parquet(
        tmp_path / "x" / "data" / "validation-00000-of-00001.parquet", IMAGES[4:6], [0, 1]
    )
    loaded = data.load(str(tmp_path / "x"))
    assert (len(loaded.train), len(loaded.test), loaded.classes) == (4, 2, ("0", "1"))
    write_parquet(tmp_path / "x" / "data" / "test-00000-of-00001.parquet", IMAGES[6:9], [0, 1, 1])
    assert len(data.load(str(tmp_path / "x")).test) == 3


@pytest.mark.parametrize(("image", "label"), [("img", "fine_label"), ("image", "labels")])
@pytest.mark.parametrize("plain", [True, False])
def test_parquet_columns(tmp_path: Path, image: str, label: str, plain: bool) -> None:
    labels = [number % 2 for number in range(40)]
    path = write_parquet(
        tmp_path / "birds.parquet",
        IMAGES,
        labels,
        image_column=image,
        label_column=label,
        plain=plain,
    )
    loaded = data.load(str(path))
    assert loaded.name == "birds" and loaded.note == listing.HELD_OUT_CAVEAT
    are_out = [held_out(content) for content in IMAGES]
    assert loaded.test.labels_N.tolist() == [
        label for label, test in zip(labels, are_out, strict=True) if test
    ]
    first = are_out.index(True)
    assert same(loaded.test.images_NCHW[0].permute(1, 2, 0), noise_image(first))


def test_parquet_with_more_rows_than_one_batch(tmp_path: Path) -> None:
    images = [encoded(noise_image(seed, 2, 2)) for seed in range(600)]
    write_parquet(tmp_path / "x" / "train.parquet", images, [n % 3 for n in range(600)])
    write_parquet(tmp_path / "x" / "test.parquet", images[:3], [0, 1, 2])
    train = data.load(str(tmp_path / "x")).train
    assert train.labels_N.tolist() == [number % 3 for number in range(600)]
    assert same(train.images_NCHW[599].permute(1, 2, 0), noise_image(599, 2, 2))


def test_small_jpegs_carry_a_caveat(tmp_path: Path) -> None:
    def jpegs(*qualities: int) -> list[bytes]:
        return [encoded(noise_image(0), "JPEG", quality=quality) for quality in qualities]

    write_parquet(tmp_path / "x" / "test.parquet", jpegs(75, 75), [0, 1])
    train = tmp_path / "x" / "train.parquet"
    write_parquet(train, jpegs(75, 75), [0, 1])
    assert data.load(str(tmp_path / "x")).note == "images stored as JPEG, quality about 75"
    write_parquet(train, jpegs(75, 90), [0, 1])
    assert data.load(str(tmp_path / "x")).note.endswith("quality about 75 to 90")
    write_parquet(train, IMAGES[:2], [0, 1])
    assert data.load(str(tmp_path / "x")).note.startswith("some images stored as JPEG")


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        ([0, -1, 1], None, "label -1 in row 1"),
        ([0, 1, None], None, "label None in row 2"),
        (["cat", "dog", "cat"], None, "labels must be integers"),
        ([0.0, 1.0, 1.0], None, "holds double; labels must be integers"),
        ([0, 1, 2], ["cat", "dog"], "label 2, but only 2 class names"),
    ],
)
def test_mistakes_in_labels(
    tmp_path: Path, labels: list[object], names: list[str] | None, said: str
) -> None:
    write_parquet(tmp_path / "x" / "train.parquet", IMAGES[:3], labels, names)
    write_parquet(tmp_path / "x" / "test.parquet", IMAGES[3:4], [0], names)
    assert said in message(tmp_path / "x")


def test_other_mistakes_in_parquet(tmp_path: Path) -> None:
    root = tmp_path / "x"
    path = write_parquet(root / "test.parquet", IMAGES[:2], [0, 1])
    assert "has no train*.parquet (it has test.parquet)" in message(root)
    assert "test split is empty" in message(write_parquet(tmp_path / "one.parquet", [], []))
    train = write_parquet(root / "train.parquet", IMAGES[:2], [0, 1], label_column="target")
    assert f"{train} has no label column" in message(root)
    assert "found image, target" in message(root)
    write_parquet(train, IMAGES[:2], [0, 1], image_column="pixels")
    said = message(root)
    assert "no image column; expected image or img" in said and "found pixels, label" in said
    write_parquet(train, [IMAGES[0], None], [0, 1])
    assert f"{train}: no image bytes in row 1" in message(root)
    write_parquet(train, [IMAGES[0], b"junk"], [0, 1])
    assert f"cannot read image {train} row 1" in message(root)
    train.write_bytes(b"junk")
    assert f"{str(train)!r} cannot be read" in message(root)
    write_parquet(train, IMAGES[:2], [0, 1], ["cat", "dog"])
    write_parquet(path, IMAGES[:2], [0, 1], ["dog", "cat"])
    assert "name different classes" in message(root)
    write_parquet(path, [], [], ["cat", "dog"])
    assert "the test split is empty" in message(root)
    write_parquet(train, IMAGES[:2], [0, 1])
    write_parquet(path, IMAGES[:1], [2])
    assert "class '2', of which the train split has none" in message(root)


# ---- what a data set knows about itself


def test_mean_and_std_are_those_of_the_train_pixels(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", {"train/a": 3, "train/b": 2, "test/a": 1})
    loaded = data.load(str(root))
    pixels_NCHW = loaded.train.images_NCHW.double() / 255
    assert loaded.mean == pytest.approx(pixels_NCHW.mean(dim=(0, 2, 3)).tolist())
    assert loaded.std == pytest.approx(pixels_NCHW.std(dim=(0, 2, 3), correction=0).tolist())


def test_fingerprint_changes_with_a_pixel_a_label_or_a_class_name(tmp_path: Path) -> None:
    def fingerprint(last: bytes, label: int, name: str) -> str:
        names = ["cat", name]
        write_parquet(tmp_path / "x" / "train.parquet", IMAGES[:2], [0, 1], names)
        write_parquet(tmp_path / "x" / "test.parquet", [IMAGES[2], last], [0, label], names)
        return data.load(str(tmp_path / "x")).fingerprint

    image = noise_image(0)
    base = fingerprint(encoded(image), 1, "dog")
    assert re.fullmatch("[0-9a-f]{16}", base)
    assert fingerprint(encoded(image, "BMP"), 1, "dog") == base  # same pixels, other encoding
    image.putpixel((31, 31), (0, 1, 2))
    others = [
        fingerprint(encoded(image), 1, "dog"),
        fingerprint(encoded(noise_image(0)), 0, "dog"),
        fingerprint(encoded(noise_image(0)), 1, "owl"),
    ]
    assert len({base, *others}) == 4


# ---- torchvision, from files laid out as it downloads them


def test_usps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("usps.bz2", 30), ("usps.t.bz2", 20)):
        rows = [
            f"{number % 10 + 1} " + " ".join(f"{i}:{v:.3f}" for i, v in enumerate(values, 1))
            for number, values in enumerate(rng.uniform(-1, 1, (count, 256)))
        ]
        (tmp_path / name).write_bytes(bz2.compress("\n".join(rows).encode()))
    loaded = data.load("usps", data_dir=tmp_path)
    assert (len(loaded.train), len(loaded.test), loaded.channels, loaded.size) == (30, 20, 1, 16)
    assert loaded.classes == tuple("0123456789")
    assert loaded.train.labels_N[:3].tolist() == [0, 1, 2]


def test_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels_NHW = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for split, count in (("train", 20), ("t10k", 10)):
        images = struct.pack(">IIII", 0x803, count, 28, 28) + pixels_NHW[:count].tobytes()
        labels = struct.pack(">II", 0x801, count) + bytes(range(10)) * (count // 10)
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            (raw / f"{split}-{kind}-ubyte").write_bytes(content)
            (raw / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    loaded = data.load("mnist", data_dir=tmp_path)
    assert same(loaded.train.images_NCHW[:, 0], pixels_NHW)
    assert loaded.classes[7].startswith("7")


def test_imagenette(tmp_path: Path) -> None:
    counts = {"train/n01440764": 2, "train/n03888257": 1, "val/n03888257": 1}
    root = write_folder(tmp_path / "imagenette2-320", counts, width=120)
    for path in root.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".JPEG"))
    (root / "val" / "n01440764").mkdir()
    noise_image(0).save(root / "val" / "n01440764" / "0.JPEG")
    loaded = data.load("imagenette", image_size=28, data_dir=tmp_path)
    assert (len(loaded.train), len(loaded.test), loaded.size) == (3, 2, 32)
    assert loaded.classes == ("tench", "parachute")


def test_stl10_with_and_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    home = tmp_path / "stl10_binary"
    home.mkdir()
    (home / "class_names.txt").write_text("airplane\nbird\n")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2), ("unlabeled", 6)):
        pixels = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (home / f"{split}_X.bin").write_bytes(pixels.tobytes())
        (home / f"{split}_y.bin").write_bytes(bytes(1 + n % 2 for n in range(count)))
    labelled = data.load("stl10", data_dir=tmp_path)
    assert labelled.train.labels_N.tolist() == [0, 1, 0, 1] and not labelled.unlabelled
    plain = data.load("stl10-unlabelled", data_dir=tmp_path)
    assert (len(plain.train), len(plain.test), plain.classes) == (6, 2, ())
    assert "stl10" in plain.unlabelled and plain.train.labels_N.tolist() == [0] * 6
    assert same(plain.test.images_NCHW, labelled.test.images_NCHW)


def jpeg(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise_image(seed, 40, 30).save(path)


def dtd(root: Path) -> Path:
    home = root / "dtd" / "dtd"
    (home / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{kind}/{kind}_{number}{index}.jpg" for kind in KINDS for index in range(2)]
        (home / "labels" / f"{split}1.txt").write_text("".join(f"{name}\n" for name in names))
        for seed, name in enumerate(names):
            jpeg(home / "images" / name, 10 * number + seed)
    return home / "labels/train1.txt"


def flowers102(root: Path) -> Path:
    home = root / "flowers-102"
    for number in range(1, 9):
        jpeg(home / "jpg" / f"image_{number:05}.jpg", number)
    labels = {"labels": np.array([1, 2, 1, 2, 1, 2, 1, 2])}
    scipy.io.savemat(home / "imagelabels.mat", labels)
    splits = {"trnid": [1, 2, 3, 4], "valid": [5], "tstid": [6, 7, 8]}
    scipy.io.savemat(home / "setid.mat", {name: np.array(ids) for name, ids in splits.items()})
    return home / "imagelabels.mat"


def food101(root: Path) -> Path:
    home = root / "food-101"
    (home / "meta").mkdir(parents=True)
    for number, split in enumerate(("train", "test")):
        names = {kind: [f"{kind}/{number}{index}" for index in range(2)] for kind in KINDS}
        (home / "meta" / f"{split}.json").write_text(json.dumps(names))
        for seed, name in enumerate(each for every in names.values() for each in every):
            jpeg(home / "images" / f"{name}.jpg", 10 * number + seed)
    return home / "meta/train.json"


def oxford_iiit_pet(root: Path) -> Path:
    home = root / "oxford-iiit-pet"
    (home / "annotations").mkdir(parents=True)
    for number, split in enumerate(("trainval", "test")):
        names = [(f"Some_{kind}_{number}{index}", label)
                 for label, kind in enumerate(KINDS, 1) for index in range(2)]  # fmt: skip
        lines = "".join(f"{name} {label} 1 1\n" for name, label in names)
        (home / "annotations" / f"{split}.txt").write_text(lines)
        for seed, (name, _) in enumerate(names):
            jpeg(home / "images" / f"{name}.jpg", 10 * number + seed)
    return home / "annotations/trainval.txt"


KINDS = ("banded", "dotted")
LAYOUTS = {
    "dtd": (dtd, (4, 4), KINDS),
    "flowers102": (flowers102, (4, 3), ("pink primrose", "hard-leaved pocket orchid")),
    "food101": (food101, (4, 4), KINDS),
    "oxford-iiit-pet": (oxford_iiit_pet, (4, 4), ("Some Banded", "Some Dotted")),
}
FIRST = {
    "dtd": ("banded_00", "banded_20"),
    "flowers102": ("image_00001", "image_00006"),
    "food101": ("00", "10"),
    "oxford-iiit-pet": ("Some_banded_00", "Some_banded_10"),
}
"""The first image of each split, whose number is the split's."""


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flowers102 without the check sums of its real files."""
    from torchvision import datasets

    names = {name: (file, None) for name, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", names)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("storage", ["memory", "stream"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_photographs_in_torchvisions_layout(tmp_path: Path, name: str, storage: Storage) -> None:
    lay_out, counts, classes = LAYOUTS[name]
    lay_out(tmp_path)
    found = data.load(name, 14, data_dir=tmp_path, storage=storage)
    assert (len(found.train), len(found.test)) == counts
    assert found.classes[:2] == classes and found.channels == 3
    expected = [0, 1, 0, 1] if name == "flowers102" else [0, 0, 1, 1]
    assert found.train.labels_N.tolist() == expected
    assert found.train.images(torch.arange(4)).shape == (4, 3, 16, 16)
    for split, first in zip((found.train, found.test), FIRST[name], strict=True):
        path, *_ = sorted(tmp_path.rglob(f"{first}.jpg"))
        square = square_CSS(Image.open(path), 16, 3)
        assert same(split.images(torch.arange(1))[0], square)


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("svhn", "train", "test"),
        ("fgvc-aircraft", "trainval", "test"),
        ("gtsrb", "train", "test"),
        ("country211", "train", "test"),
    ],
)
def test_splits_are_those_of_the_counts_that_are_told(name: str, train: str, test: str) -> None:
    """Of FGVC-Aircraft 6,667 + 3,333, of Country211 31,650 + 21,100: its validation is apart."""
    known = TORCHVISION[name]
    assert (known.train, known.test) == ({"split": train}, {"split": test})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["dtd", "food101", "oxford-iiit-pet"])
def test_damaged_files_of_torchvisions_get_one_line(tmp_path: Path, name: str) -> None:
    LAYOUTS[name][0](tmp_path).write_text("no such thing\n")
    with pytest.raises(UserError, match=f"'{name}' in .* is damaged"):
        data.load(name, data_dir=tmp_path)


def test_splits_of_other_classes_are_refused(tmp_path: Path) -> None:
    dtd(tmp_path).write_text("dotted/dotted_00.jpg\n")
    with pytest.raises(UserError, match="name 1 and 2 classes"):
        data.load("dtd", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "stl10-unlabelled", *LAYOUTS])
def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError) as caught:
        data.load(name, data_dir=tmp_path)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600
    assert repr(name) in said and str(tmp_path) in said and "fashion-mnist" in said
