"""Tar files of images and labels, as `webdataset` writes them."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import encoded, held_out, noise_image
from PIL import Image

from ssl_bench import data
from ssl_bench.data import Dataset
from ssl_bench.data.names import expanded, parse, resolved
from ssl_bench.errors import UserError

Call = Callable[..., tuple[int, str, str]]
Members = Mapping[str, bytes | str]


IMAGES = [encoded(noise_image(seed, 8, 8)) for seed in range(120)]


def write(path: Path, members: Members, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            raw = content.encode() if isinstance(content, str) else content
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def samples(first: int, count: int, labels: int = 2) -> dict[str, bytes | str]:
    """So many images with their numbers as names, in classes 0, 1, ..."""
    found: dict[str, bytes | str] = {}
    for number in range(first, first + count):
        found |= {f"{number:06}.png": IMAGES[number], f"{number:06}.cls": f"{number % labels}\n"}
    return found


def shards(folder: Path, count: int = 4, each: int = 20, name: str = "shard") -> Path:
    for number in range(count):
        write(folder / f"{name}-{number:03}.tar", samples(number * each, each))
    return folder


def pixels(index: int) -> torch.Tensor:
    with Image.open(io.BytesIO(IMAGES[index])) as image:
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def load(source: Path | str, **options: object) -> Dataset:
    return data.load(str(source), **options)  # type: ignore[arg-type]


def refused(source: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load(source)
    return str(caught.value)


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_a_folder_of_shards_is_read_in_order(tmp_path: Path, storage: str) -> None:
    found = load(shards(tmp_path / "shards"), storage=storage, data_dir=tmp_path)
    chosen = [number for number in range(80) if not held_out(IMAGES[number])]
    assert len(found.train) == len(chosen) and len(found.test) == 80 - len(chosen)
    assert found.train.labels_N.tolist() == [number % 2 for number in chosen]
    images = found.train.images(torch.arange(len(chosen)))
    assert torch.equal(images, torch.stack([pixels(number) for number in chosen]))
    assert (found.name, found.classes) == ("shards", ("0", "1"))


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_shards_of_other_sizes_are_the_same_data(tmp_path: Path, storage: str) -> None:
    few = load(shards(tmp_path / "a"), storage=storage, data_dir=tmp_path)
    many = load(shards(tmp_path / "b", 8, 10), storage=storage, data_dir=tmp_path)
    assert few.fingerprint == many.fingerprint


def test_names_tell_the_splits(tmp_path: Path) -> None:
    write(tmp_path / "imagenet-train-000.tar", samples(0, 10))
    write(tmp_path / "imagenet-train-001.tar", samples(10, 10))
    write(tmp_path / "imagenet-val-000.tar", samples(20, 6))
    found = load(tmp_path)
    assert (len(found.train), len(found.test)) == (20, 6)
    assert torch.equal(found.test.images(torch.tensor([0]))[0], pixels(20))
    for name in ("train", "test"):
        (tmp_path / "b" / name).mkdir(parents=True)
    shards(tmp_path / "b/train", 2)
    shards(tmp_path / "b/test", 1, name="x")
    assert len(load(tmp_path / "b").test) == 20


def test_a_pattern_names_some_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path / "shards")
    pattern = f"{tmp_path}/shards/shard-{{000..002}}.tar"
    found = load(pattern)
    assert (len(found.train) + len(found.test), found.name) == (60, "shard")
    assert load(f"{pattern}@validation").name == "shard-validation"
    monkeypatch.chdir(tmp_path)
    assert resolved("shards/shard-{000..002}.tar") == pattern == found.source
    line = refused(pattern.replace("002", "005"))
    assert "6 files" in line and "2 are not there" in line and "shard-004.tar" in line


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{0..1}/{2..2}.tar", ["0/2.tar", "1/2.tar"]),
        ("a-{1..x}.tar", ["a-{1..x}.tar"]),
        ("a.tar", ["a.tar"]),
    ],
)
def test_a_range_is_expanded(pattern: str, paths: list[str]) -> None:
    assert expanded(pattern) == paths


@pytest.mark.parametrize("pattern", ["a-{3..1}.tar", "a-{0..99999999}.tar"])
def test_an_impossible_range_is_refused(pattern: str) -> None:
    assert pattern[2:-4] in refused(pattern)


def test_a_file_whose_name_has_braces_is_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "a{0..3}.tar", samples(0, 20))
    assert expanded(str(path)) == [str(path)]
    assert len(load(path).train) + len(load(path).test) == 20
    assert parse(f"{path}@whole").choice == "whole"


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (lambda n: {"cls": ["dog", "cat"][n % 2]}, ("cat", "dog")),
        (lambda n: {"json": json.dumps({"label": n % 3, "caption": "x"})}, ("0", "1", "2")),
        (lambda n: {"json": json.dumps({"cls": ["dog", "cat"][n % 2]})}, ("cat", "dog")),
        (lambda n: {"cls": f"{n % 2}", "json": json.dumps({"label": 7})}, ("0", "1")),
    ],
)
def test_labels_are_numbers_or_names(
    tmp_path: Path, label: Callable[[int], Mapping[str, str]], classes: tuple[str, ...]
) -> None:
    members: dict[str, bytes | str] = {}
    for number in range(30):
        members[f"{number}.png"] = IMAGES[number]
        members |= {f"{number}.{ending}": text for ending, text in label(number).items()}
    found = load(write(tmp_path / "a.tar", members))
    assert found.classes == classes
    numbers = [number for number in range(30) if not held_out(IMAGES[number])]
    if classes == ("cat", "dog"):
        assert found.train.labels_N.tolist() == [1 - number % 2 for number in numbers]


def test_a_file_beside_them_names_the_classes(tmp_path: Path) -> None:
    shards(tmp_path / "shards")
    (tmp_path / "shards/classes.txt").write_text("zebra\nant\n")
    assert load(tmp_path / "shards").classes == ("zebra", "ant")
    (tmp_path / "shards/classes.txt").write_text("zebra\n")
    assert "only 1 class names" in refused(tmp_path / "shards")
    named: dict[str, bytes | str] = {
        "a.png": IMAGES[0],
        "a.cls": "ant",
        "b.png": IMAGES[1],
        "b.cls": "bee",
    }
    write(tmp_path / "n/n.tar", named)
    (tmp_path / "n/classes.txt").write_text("ant\nzebra\n")
    line = refused(tmp_path / "n/n.tar")
    assert "'bee'" in line and "b.png" in line and "classes.txt" in line


def test_without_labels_it_can_be_pre_trained_on(tmp_path: Path) -> None:
    images = {f"{number}.png": IMAGES[number] for number in range(20)}
    found = load(write(tmp_path / "a.tar", images))
    assert ".cls" in found.unlabelled and not found.classes
    assert (
        "only class 5"
        in load(
            write(tmp_path / "b.tar", {**images, **{f"{n}.cls": "5" for n in range(20)}})
        ).unlabelled
    )


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    members = samples(0, 20) | {
        "000000.txt": "a caption",
        "lonely.cls": "1",
        "a/bare.png": IMAGES[30],
        "a/odd.png": IMAGES[31],
        "a/odd.json": "{not json",
        "minus.png": IMAGES[32],
        "minus.cls": "-1",
        ".hidden.png": IMAGES[33],
    }
    found = load(write(tmp_path / "a.tar", members))
    assert len(found.train) + len(found.test) == 20
    for part in ("3 samples without a label", "1 samples without an image", "1 .txt"):
        assert part in found.left_out


def captioned(count: int = 30) -> dict[str, bytes | str]:
    """Samples as img2dataset writes them: a text, and a JSON that has it, too."""
    found: dict[str, bytes | str] = {}
    for number in range(count):
        name = f"{number:06}"
        found |= {f"{name}.jpg": IMAGES[number], f"{name}.txt": f"picture {number}\n"}
        found[f"{name}.json"] = json.dumps({"caption": "another", "url": "x", "width": 8})
    return found


def told(found: Dataset) -> dict[bytes, tuple[str, ...]]:
    assert found.train.captions and found.test.captions
    return {
        split.images(torch.tensor([place])).numpy().tobytes(): own
        for split in (found.train, found.test)
        for place, own in enumerate(split.captions or ())
    }


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_captions_are_read_beside_images(tmp_path: Path, storage: str) -> None:
    path = write(tmp_path / "pairs.tar", captioned())
    found = load(path, storage=storage, data_dir=tmp_path)
    assert told(found) == {pixels(n).numpy().tobytes(): (f"picture {n}",) for n in range(30)}
    assert found.unlabelled and ".txt" not in found.left_out
    in_json = {name: each for name, each in captioned().items() if not name.endswith(".txt")}
    in_json["000003.json"] = json.dumps({"caption": ["one", " ", "two"]})
    found = load(write(tmp_path / "json.tar", in_json), storage=storage, data_dir=tmp_path)
    texts = told(found)
    assert texts[pixels(3).numpy().tobytes()] == ("one", "two")
    assert texts[pixels(4).numpy().tobytes()] == ("another",)


def test_samples_without_a_caption_are_left_out_and_counted(tmp_path: Path) -> None:
    members = captioned() | {
        "000001.txt": " ",
        "000001.json": "{}",
        "000002.txt": b"\xff",
        "000002.json": "[]",
        "000003.txt": "",
    }
    del members["000004.txt"]
    members["000004.json"] = json.dumps({"caption": 3})
    found = load(write(tmp_path / "pairs.tar", members))
    texts = told(found)
    assert len(texts) == 27
    assert texts[pixels(3).numpy().tobytes()] == ("another",)
    assert "3 samples without a caption" in found.left_out


def test_labelled_samples_have_captions_if_each_has_one(tmp_path: Path) -> None:
    labels = {name: each for name, each in samples(0, 30).items() if name.endswith(".cls")}
    found = load(write(tmp_path / "a.tar", captioned() | labels))
    assert len(told(found)) == 30 and found.classes == ("0", "1")
    some = captioned() | labels
    for ending in ("txt", "json"):
        del some[f"000007.{ending}"]
    found = load(write(tmp_path / "b.tar", some))
    assert found.train.captions is None and "1 of 30 samples" in found.uncaptioned
    assert len(found.train) + len(found.test) == 30 and "29 .txt" in found.left_out


def test_replaced_members_and_empty_captions_are_counted(tmp_path: Path) -> None:
    members = captioned() | {"000003.txt": '["one", " "]', "000004.TXT": "later"}
    found = load(write(tmp_path / "pairs.tar", members))
    texts = told(found)
    assert texts[pixels(3).numpy().tobytes()] == ("one",)
    assert texts[pixels(4).numpy().tobytes()] == ("later",)
    assert "1 replaced member" in found.left_out and "1 empty captions" in found.left_out


def test_samples_of_equal_images_are_one_image(tmp_path: Path) -> None:
    twice = captioned(30) | {
        f"more/{n}.{ending}": IMAGES[n] if ending == "jpg" else f"again {n}"
        for n in range(30)
        for ending in ("jpg", "txt")
    }
    found = load(write(tmp_path / "pairs.tar", twice))
    assert told(found) == {
        pixels(n).numpy().tobytes(): (f"picture {n}", f"again {n}") for n in range(30)
    }
    assert len(found.train) + len(found.test) == 30
    assert any("60 rows of 30 images" in note for note in found.notes)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "harm",)

    harm = pickle.dumps(Harm())
    extra = {f"000000.{ending}": harm for ending in ("pyd", "pth", "pkl", "pickle", "npy")}
    found = load(write(tmp_path / "a.tar", samples(0, 20) | extra))
    assert ".pyd" in found.left_out and not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": IMAGES[0], "a.seg.png": IMAGES[1], "a.cls": "0"}, "a has 2 images"),
        (samples(0, 4) | {"x.png": IMAGES[9], "x.cls": "cat"}, "numbers and names"),
        ({"a.cls": "0"}, "no images"),
        ({"a.png": IMAGES[0], "a.cls": "99999", "b.png": IMAGES[1], "b.cls": "1"}, "large gaps"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(
    tmp_path: Path, members: Members, message: str
) -> None:
    assert message in refused(write(tmp_path / "a.tar", members))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[: raw.rindex(b"000019.cls")],
        lambda raw: raw.replace(b"000011.cls", b"000011.clx", 1),
        lambda raw: b"",
        lambda raw: b"x" * 2000,
    ],
    ids=["cut", "cut between members", "wrong checksum", "empty", "no tar"],
)
def test_a_damaged_file_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path / "a.tar", samples(0, 20))
    path.write_bytes(spoil(path.read_bytes()))
    assert "a.tar" in refused(path)


def test_a_compressed_file_says_what_would_work(tmp_path: Path) -> None:
    assert "gunzip" in refused(write(tmp_path / "a.tar", samples(0, 20), "w:gz"))


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_broken_images_are_told_or_skipped(tmp_path: Path, storage: str) -> None:
    path = write(tmp_path / "a.tar", samples(0, 20) | {"bad.png": b"no image", "bad.cls": "0"})
    with pytest.raises(UserError, match=r"a\.tar bad\.png"):
        load(path, storage=storage, data_dir=tmp_path)
    found = load(path, storage=storage, data_dir=tmp_path, skip_broken=True)
    assert len(found.broken) == 1 and len(found.train) + len(found.test) == 20


def test_images_beside_tar_files_come_first(tmp_path: Path) -> None:
    write(tmp_path / "backup.tar", samples(0, 20))
    for number in range(20):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[number % 2] / f"{number}.png").write_bytes(IMAGES[number])
    assert load(tmp_path).classes == ("a", "b")


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_a_run_trains_on_shards_and_is_evaluated(
    ssl_bench: Call, tmp_path: Path, storage: str
) -> None:
    shards(tmp_path / "shards")
    pattern = f"{tmp_path}/shards/shard-{{000..003}}.tar"
    code, out, err = ssl_bench(
        *("run", "--data", pattern, "--storage", storage, "--data-dir", tmp_path),
        *("--runs-dir", tmp_path / "runs", "--backbone", "vit_nano", "--patch-size", 4),
        *("--epochs", 1, "--evals", "knn", "--batch-size", 8),
    )
    assert code == 0, err
    assert "shard: 6" in out and "2 classes" in out and "knn" in out
