"""Folders and files as people call them: what is a split, a class, without labels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import encoded, held_out, noise_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ssl_bench import data
from ssl_bench.data import Dataset, holdout, listing
from ssl_bench.data.names import Source, parse, resolved
from ssl_bench.data.sources import splits
from ssl_bench.errors import UserError

Call = Callable[..., tuple[int, str, str]]


IMAGES = [encoded(noise_image(seed, 4, 4)) for seed in range(200)]


def folders(root: Path, *names: str, each: int = 8) -> Path:
    """Images of their own in each folder."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(each):
            (root / name / f"{index}.png").write_bytes(IMAGES[number * each + index])
    return root


def parquet(
    path: Path,
    labels: Any = None,
    images: Any = None,
    metadata: Mapping[str, bytes] | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = IMAGES[:12] if images is None else images
    columns = {"image": images, "label": [n % 2 for n in range(12)] if labels is None else labels}
    schema = pa.table({k: v for k, v in columns.items() if v is not False})
    pq.write_table(schema.replace_schema_metadata(metadata), path)
    return path


def refused(source: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        data.load(str(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(loaded: Dataset) -> str:
    return " ".join(loaded.notes)


# ---- names


@pytest.mark.parametrize(
    ("name", "kind", "rest"),
    [
        *(
            (name, "train", "")
            for name in ("train", "Training", "TRAIN_SET", "trainset", "trainval")
        ),
        *(
            (name, "test", "")
            for name in ("Testing", "test-images", "eval", "TestImages", "test_2")
        ),
        *((name, "val", "") for name in ("valid", "Validation", "val2017", "dev", "valset")),
        ("train-00000-of-00002", "train", ""),
        ("train-00000-of-00001-1359597a978bc4fa", "train", ""),
        ("mnist_train", "train", "mnist"),
        ("CatsTest", "test", "cats"),
        ("my.test.v2", "test", "my v"),
        ("mnisttrain", "train", "mnist"),
        ("test_tube", "test", "tube"),
        ("train_test", "unclear", ""),
    ],
)
def test_a_name_speaks_of_a_split(name: str, kind: str, rest: str) -> None:
    assert splits.meaning(name) == splits.Meaning(kind, rest)


@pytest.mark.parametrize("name", ["invalid", "plane", "device", "0000", "data", "images", "trains"])
def test_a_name_that_speaks_of_none(name: str) -> None:
    assert splits.meaning(name) is None


def test_a_source_is_taken_apart(tmp_path: Path) -> None:
    place = str(folders(tmp_path / "x@y", "a", "b"))
    assert parse(place) == Source(place)
    assert parse(f"{place}@train+te@st") == Source(place, "train+te@st")
    assert parse(f"{place}@whole@validation") == Source(place, "whole", True)
    assert parse("cifar10@validation") == Source("cifar10", "", True)
    assert parse("nowhere@whole") == Source("nowhere@whole")
    assert resolved(f"{place}@whole") == f"{place}@whole"


# ---- folders that are splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("TRAIN", "valid"),
        ("mnist_train", "mnist_test"),
        ("Train2017", "Val2017"),
        ("data/train", "data/eval"),
    ],
)
def test_folders_that_are_splits_under_another_name(tmp_path: Path, train: str, test: str) -> None:
    usual = folders(tmp_path / "usual", "train/a", "train/b", "test/a", "test/b")
    other = folders(tmp_path / "x", *(f"{split}/{c}" for split in (train, test) for c in "ab"))
    loaded = data.load(str(other))
    assert loaded.fingerprint == data.load(str(usual)).fingerprint
    assert train in said(loaded) and test in said(loaded) and "classes a, b" in said(loaded)


def test_validation_beside_test_is_left_out_aloud(tmp_path: Path) -> None:
    names = [f"{split}/{c}" for split in ("train", "test", "dev") for c in "ab"]
    loaded = data.load(str(folders(tmp_path / "x", *names)))
    assert (len(loaded.train), len(loaded.test), loaded.note) == (16, 16, "")
    assert "dev (16 images)" in said(loaded)


@pytest.mark.parametrize(
    ("names", "readings"),
    [
        (["train/a", "train/b", "training_set/a", "test/a"], ["train+test", "training_set+test"]),
        (["train/a", "train/b", "test/a", "test/b", "Testing/a"], ["train+test", "train+Testing"]),
        (["A/x", "A/y", "B/x", "B/y"], ["A+B", "B+A"]),
        (["one/x", "one/y", "two/x", "two/y", "two/z", "three/x"], ["one+two"]),
        (["train", "plane", "bus"], ["train"]),
        (["valid", "invalid"], ["invalid+valid"]),
        (["bullet_train", "test_tube"], ["bullet_train+test_tube"]),
        (["mnist_train", "mnist_test"], ["mnist_train+mnist_test"]),
        (["bullet_train/a", "bullet_train/b", "test_tube/c"], ["bullet_train+test_tube"]),
    ],
)
def test_what_could_be_splits_or_classes_is_asked_about(
    tmp_path: Path, names: list[str], readings: list[str]
) -> None:
    root = folders(tmp_path / "x", *names)
    message = refused(root)
    for reading in [*readings, "whole"]:
        assert f"--data {root}@{reading} " in message
    whole = data.load(f"{root}@whole")
    assert whole.classes == tuple(sorted({name.split("/")[0] for name in names}))
    assert len(whole.train) + len(whole.test) == 8 * len(names)


def test_each_choice_is_what_it_says(tmp_path: Path) -> None:
    root = folders(tmp_path / "x", "A/x", "A/y", "B/x", "B/y")
    pair, alone = data.load(f"{root}@B+A"), data.load(f"{root}@A")
    assert torch.equal(pair.test.images_NCHW, data.load(f"{root}@A+B").train.images_NCHW)
    assert alone.fingerprint == data.load(str(root / "A")).fingerprint
    assert alone.note.startswith(listing.HELD_OUT_CAVEAT)
    part = data.load(f"{root}@B+A@validation")
    assert (len(part.train), len(part.test)) == (14, 2)
    assert "'C'" in refused(f"{root}@C") and "A, B" in refused(f"{root}@C")
    assert "'A+C'" in refused(f"{root}@A+C")
    assert "'whole'" in refused("fashion-mnist@whole")


@pytest.mark.parametrize(
    "names", [["test_tube", "flask"], ["train_a", "train_b"], ["cat/images", "dog/images"]]
)
def test_class_folders_that_nothing_speaks_against(tmp_path: Path, names: list[str]) -> None:
    loaded = data.load(str(folders(tmp_path / "x", *names)))
    assert loaded.classes == tuple(sorted(name.split("/")[0] for name in names))


def test_a_folder_in_a_folder_is_asked_about(tmp_path: Path) -> None:
    root = folders(tmp_path / "x", "only/cat", "only/dog")
    assert f"--data {root / 'only'} " in refused(root) and f"{root}@whole" in refused(root)


def test_a_link_that_leads_back_up_is_no_class(tmp_path: Path) -> None:
    root = folders(tmp_path / "x", "a", "b")
    before = data.load(str(root))
    (root / "loop").symlink_to(root)
    loaded = data.load(str(root))
    assert loaded.fingerprint == before.fingerprint and "1 looping link" in loaded.left_out


def test_tables_beside_image_files(tmp_path: Path) -> None:
    root = folders(tmp_path / "x", "train/a", "train/b", "test/a", "test/b")
    before = data.load(str(root))
    parquet(root / "metadata.parquet", images=False)
    parquet(root / "train" / "a" / "boxes.parquet", images=False)
    assert data.load(str(root)).fingerprint == before.fingerprint
    parquet(root / "train.parquet")
    loaded = data.load(str(root))
    assert len(loaded.train) + len(loaded.test) == 12 and "32 image files" in said(loaded)


@pytest.mark.parametrize(
    ("train", "test"),
    [("seg_train/seg_train", "seg_test/seg_test"), ("train/images", "val/images")],
)
def test_classes_may_lie_one_folder_deeper_in_each_split(
    tmp_path: Path, train: str, test: str
) -> None:
    inside = [f"{split}/{name}" for split in (train, test) for name in ("forest", "sea")]
    root = folders(tmp_path / "d", *inside)
    loaded = data.load(str(root))
    assert loaded.classes == ("forest", "sea")
    assert (len(loaded.train.labels_N), len(loaded.test.labels_N)) == (16, 16)

    folders(root, "predict/predict")
    outer = [Path(each).parts[0] for each in (train, test)]
    again = data.load(f"{root}@{'+'.join(outer)}")
    assert again.fingerprint == loaded.fingerprint
    assert "predict (8 images)" in said(again)
    assert f"{outer[0]} (" not in said(again)


# ---- files that are splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("mnist_train", "mnist_test"),
        ("Train", "Test"),
        ("mnisttrain", "mnisttest"),
        ("data/train-00000-of-00001", "data/validation-00000-of-00001"),
        ("train/0000", "test/0000"),
        ("default/train/0000", "default/test/0000"),
    ],
)
def test_files_that_are_splits(tmp_path: Path, train: str, test: str) -> None:
    parquet(tmp_path / "x" / f"{train}.parquet")
    parquet(tmp_path / "x" / f"{test}.parquet", [0, 1], IMAGES[12:14])
    loaded = data.load(str(tmp_path / "x"))
    assert (len(loaded.train), len(loaded.test), loaded.note) == (12, 2, "")


@pytest.mark.parametrize(
    ("names", "choice"),
    [
        (["train", "training", "test"], "training+test"),
        (["a/train", "b/train", "a/test"], "b/train+a/test"),
        (["older", "mnist_test"], "older+mnist_test"),
        (["x_test", "y_test"], "x_test+y_test"),
    ],
)
def test_files_that_could_be_several_splits_are_asked_about(
    tmp_path: Path, names: list[str], choice: str
) -> None:
    for name in names:
        parquet(tmp_path / "x" / f"{name}.parquet")
    message = refused(tmp_path / "x")
    assert f"@{choice} " in message and "@whole " in message
    loaded = data.load(f"{tmp_path / 'x'}@{choice}")
    assert (len(loaded.train), len(loaded.test)) == (12, 12)
    assert len(data.load(f"{tmp_path / 'x'}@whole").train) % len(names) == 0


def test_splits_without_a_training_one_are_offered(tmp_path: Path) -> None:
    for name in ("val", "test"):
        parquet(tmp_path / "x" / "data" / f"{name}-00000-of-00001.parquet")
    message = refused(tmp_path / "x")
    for choice in ("@data/val", "@data/test", "@whole"):
        assert f"{tmp_path / 'x'}{choice}" in message
    chosen = data.load(f"{tmp_path / 'x'}@data/val")
    assert len(chosen.train) + len(chosen.test) == 12
    assert data.load(f"{tmp_path / 'x'}@val").fingerprint == chosen.fingerprint
    assert len(data.load(f"{tmp_path / 'x'}@val+test").test) == 12
    parquet(tmp_path / "x" / "more" / "val.parquet")
    assert "'val'" in refused(f"{tmp_path / 'x'}@val")


def test_a_choice_is_carried_by_run_sweep_rerun_and_prepare(
    ssl_bench: Call, tmp_path: Path
) -> None:
    root = folders(tmp_path / "x", "A/x", "A/y", "B/x", "B/y")
    runs = ("--runs-dir", tmp_path / "runs")
    words = (
        *("--method", "random-init", "--backbone", "vit_nano", "--precision", "fp32"),
        *("--evals", "knn", *runs),
    )
    code, out, err = ssl_bench("run", *words, "--data", f"{root}@A+B")
    assert code == 0, err
    assert "training split: folder A, test split: folder B" in " ".join(out.split())
    [folder] = (tmp_path / "runs").glob("random-init-*")
    assert json.loads((folder / "config.json").read_text())["data_source"] == f"{root}@A+B"
    code, out, err = ssl_bench("rerun", folder.name, *runs)
    assert (code, err) == (0, ""), out
    code, out, err = ssl_bench("sweep", "--dry-run", *words, "--data", f"{root}@A+B,{root}@whole")
    assert code == 0 and "1 done, 1 new" in out, err
    code, out, err = ssl_bench("data", "prepare", f"{root}@B+A", "-o", tmp_path / "copy")
    assert code == 0, err
    copy = data.load(str(tmp_path / "copy"))
    assert copy.fingerprint == data.load(f"{root}@B+A").fingerprint


# ---- splits without labels


@pytest.mark.parametrize("unlabelled", ["flat", "unknown", "parquet -1", "parquet null", "parquet"])
def test_a_test_split_without_labels_gives_way_to_validation(
    tmp_path: Path, unlabelled: str
) -> None:
    root, kind = tmp_path / "x", unlabelled.split()
    if kind[0] == "parquet":
        labels = {"-1": [-1] * 12, "null": pa.nulls(12, pa.int64())}.get(kind[-1], False)
        for split, content in (("train", None), ("test", labels), ("validation", None)):
            parquet(root / "data" / f"{split}-00000-of-00001.parquet", content)
        expected = 12
    else:
        test = "test" if unlabelled == "flat" else f"test/{unlabelled}"
        folders(root, "train/a", "train/b", test, "val/a", "val/b")
        expected = 16
    loaded = data.load(str(root))
    assert (len(loaded.train), len(loaded.test)) == (expected, expected)
    assert "no labels" in loaded.note and "val" in loaded.note and "test" in said(loaded)
    for path in [*root.glob("val"), *root.glob("data/val*")]:
        path.rename(tmp_path / "away")
    message = refused(root)
    assert "nothing to test on" in message
    choice = "@data/train" if kind[0] == "parquet" else "@train"
    assert f"{root}{choice}" in message
    assert data.load(f"{root}{choice}").note.startswith(listing.HELD_OUT_CAVEAT)


@pytest.mark.parametrize(
    ("labels", "told"),
    [([0, 1, -1, 1], "label -1 in row 2"), ([None, None, 1, 0], "label None in row 0; .* 2 of 4")],
)
def test_labels_of_some_rows_alone(tmp_path: Path, labels: list[int], told: str) -> None:
    message = refused(parquet(tmp_path / "x.parquet", labels, IMAGES[:4]))
    assert re.search(told, message)


def unlabelled_sources(tmp_path: Path) -> list[Path]:
    return [
        _flat(tmp_path / "flat"),
        folders(tmp_path / "one", "all", each=40),
        folders(tmp_path / "apart", "train", "test", each=20),
        parquet(tmp_path / "column.parquet", False, IMAGES[:40]),
        parquet(tmp_path / "missing.parquet", [-1] * 40, IMAGES[:40]),
        parquet(tmp_path / "same.parquet", [3] * 40, IMAGES[:40]),
    ]


def _flat(root: Path) -> Path:
    root.mkdir()
    for number in range(40):
        (root / f"{number}.png").write_bytes(IMAGES[number])
    return root


def test_images_without_labels(tmp_path: Path) -> None:
    for source in unlabelled_sources(tmp_path):
        loaded = data.load(str(source))
        assert loaded.unlabelled and loaded.classes == ()
        assert len(loaded.train) + len(loaded.test) == 40 and len(loaded.test) > 0
        assert set(loaded.train.labels_N.tolist()) == {0}
        assert data.load(f"{source}@validation").unlabelled


def test_training_without_and_testing_with_labels_is_asked_about(tmp_path: Path) -> None:
    root = folders(tmp_path / "x", "train", "test/a", "test/b")
    assert f"{root}@train" in refused(root)
    assert len(data.load(f"{root}@train").train) < 8
    parquet(tmp_path / "y" / "train.parquet", False)
    parquet(tmp_path / "y" / "test.parquet")
    assert f"{tmp_path / 'y'}@train" in refused(tmp_path / "y")


def test_pre_training_without_labels(ssl_bench: Call, tmp_path: Path, image_folder: Path) -> None:
    flat, runs = _flat(tmp_path / "flat"), ("--runs-dir", tmp_path / "runs")
    words = (
        *("--data", flat, "--epochs", 1, "--batch-size", 8, "--backbone", "vit_nano"),
        *("--image-size", 8, "--precision", "fp32", *runs),
    )
    for more in (("--evals", "knn"), ("--evals", "none", "--eval-every", "0.5")):
        code, _, err = ssl_bench("run", *words, *more)
        assert code == 2 and "knn" in err and "--eval-data LABELLED" in err
    code, _, err = ssl_bench("run", *words, "--method", "supervised")
    assert code == 2 and "supervised" in err and "labels" in err
    assert not (tmp_path / "runs").exists()
    code, out, err = ssl_bench("run", *words)
    assert code == 0 and "no labels" in out, err
    [told] = [line for line in out.splitlines() if "left out" in line]
    assert all(name in told for name in ("finetune", "knn", "linear", "--eval-data"))
    [folder] = (tmp_path / "runs").glob("mae-flat-*")
    picture = Image.open(folder / "figures" / "pictures.png")
    assert picture.width > picture.height  # of several images, not of one for the only label
    code, _, err = ssl_bench("eval", folder, "--evals", "knn", *runs)
    assert code == 2 and "--data LABELLED" in err
    code, _, err = ssl_bench("eval", folder, "--evals", "knn", "--data", image_folder, *runs)
    assert code == 0, err
    code, out, err = ssl_bench("compare", *runs)
    assert code == 0 and "images, 12 test images" in " ".join(out.split()), err
    code, out, err = ssl_bench("data", "prepare", flat, "-o", tmp_path / "copy")
    assert code == 0 and data.load(str(tmp_path / "copy")).unlabelled, err


# ---- the program's own split


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.binary(max_size=2), st.integers(0, 5))))
def test_every_class_keeps_a_training_image(rows: list[tuple[bytes, int]]) -> None:
    keys, labels = [key for key, _ in rows], [label for _, label in rows]
    out = listing.hold_out([listing.rank(key) for key in keys], labels)
    trained = {label for label, is_out in zip(labels, out, strict=True) if not is_out}
    assert trained == set(labels)
    assert all(held_out(key) for key, is_out in zip(keys, out, strict=True) if is_out)
    for label in trained:  # nothing is kept back where there was another one
        mine = [n for n, other in enumerate(labels) if other == label]
        if any(not held_out(keys[n]) for n in mine):
            back = {keys[n] for n in mine if held_out(keys[n]) and not out[n]}
            others = {keys[n] for n, other in enumerate(labels) if other != label}
            assert back <= others  # a copy of it may be another class's last one


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60))
def test_validation_keeps_a_training_image_of_every_class(labels: list[int]) -> None:
    rest, held_out = holdout._places(labels)
    assert sorted(rest + held_out) == list(range(len(labels)))
    assert {labels[place] for place in rest} == set(labels)
    spare = len(labels) - len(set(labels))
    assert len(held_out) == min(max(1, round(len(labels) / 10)), spare)


def held_out_name() -> str:
    return next(n for n in map(str, range(99)) if held_out(f"rare/{n}.png".encode()))


def test_a_class_of_one_image_is_trained_on(tmp_path: Path) -> None:
    root = folders(tmp_path / "x", "a", "b", each=30)
    (root / "rare").mkdir()
    (root / "rare" / f"{held_out_name()}.png").write_bytes(IMAGES[100])
    loaded = data.load(str(root))
    assert 2 in loaded.train.labels_N and 2 not in loaded.test.labels_N
    assert "1 of 3 classes: rare" in loaded.note
    labels = [0, 1] * 20 + [2]
    many = parquet(tmp_path / "y.parquet", labels, IMAGES[:41])
    assert set(data.load(str(many)).train.labels_N.tolist()) == {0, 1, 2}
    part = data.load(f"{many}@validation")
    assert set(part.train.labels_N.tolist()) == {0, 1, 2}


def test_a_test_split_of_one_class_is_told(tmp_path: Path) -> None:
    root = folders(tmp_path / "x", "a", each=60)
    (root / "rare").mkdir()
    (root / "rare" / f"{held_out_name()}.png").write_bytes(IMAGES[100])
    assert "one class, a" in data.load(str(root)).note
    own = folders(tmp_path / "y", "train/a", "train/b", "test/b")
    assert "one class, b" in data.load(str(own)).note


def test_too_few_images_to_hold_any_out(tmp_path: Path) -> None:
    root = folders(tmp_path / "x", "train/a", "train/b", "test/a", "test/b", each=1)
    assert "test split is empty" in refused(f"{root}@validation")


# ---- metadata and labels of other writers


def features(content: object) -> bytes:
    return json.dumps({"info": {"features": content}}).encode()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["info", "features", "label", "names", "x"]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)
@given(
    st.one_of(
        st.binary(max_size=8),
        _JSON.map(lambda content: json.dumps(content).encode()),
        _JSON.map(features),
        _JSON.map(lambda content: features({"label": content})),
        _JSON.map(lambda content: features({"label": {"names": content}})),
    ),
    _JSON.map(lambda content: json.dumps(content).encode()) | st.binary(max_size=4),
)
def test_metadata_of_any_shape(tmp_path: Path, names: bytes, noted: bytes) -> None:
    path = parquet(tmp_path / "x.parquet", metadata={"huggingface": names, "ssl_bench": noted})
    try:
        assert len(data.load(str(path)).classes) >= 2
    except UserError as error:
        assert "class names" in str(error)


def test_class_names_that_metadata_give_in_one_file_alone(tmp_path: Path) -> None:
    names = features({"label": {"names": ["cat", "dog"]}})
    parquet(tmp_path / "x" / "train.parquet", metadata={"huggingface": names})
    parquet(tmp_path / "x" / "test.parquet", metadata={"huggingface": b'{"info": null}'})
    assert data.load(str(tmp_path / "x")).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([2**40] + [0] * 11, "1,099,511,627,776"),
        ([1000] + [0] * 11, "1,000 among 12 images"),
        (pa.array([2**63] + [0] * 11, pa.uint64()), str(2**63)),
        (pa.array(["a", "b"] * 6).dictionary_encode(), "holds string"),
        ([[0]] * 12, "holds list"),
        ([{"a": 1}] * 12, "holds struct"),
        ([-5] * 12, "label -5 in row 0"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: object, told: str) -> None:
    assert told in refused(parquet(tmp_path / "x.parquet", labels))


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([0, 1] * 6, pa.uint8()),
        pa.array([False, True] * 6),
        pa.array([0, 1] * 6).dictionary_encode(),
    ],
)
def test_labels_of_other_types(tmp_path: Path, labels: pa.Array) -> None:
    loaded, plain = (
        data.load(str(parquet(tmp_path / name / "x.parquet", column)))
        for name, column in (("other", labels), ("plain", [0, 1] * 6))
    )
    assert loaded.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    "images",
    [
        pa.nulls(12),
        [[1]] * 12,
        [[b"x"]] * 12,
        ["x"] * 12,
        [{"path": "x"}] * 12,
        [{"bytes": {"a": 1}}] * 12,
        pa.array([[("bytes", b"x")]] * 12, pa.map_(pa.string(), pa.binary())),
    ],
)
def test_image_columns_without_bytes(tmp_path: Path, images: Sequence[object]) -> None:
    assert "no image bytes in row 0" in refused(parquet(tmp_path / "x.parquet", images=images))


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)
@given(st.data())
def test_damaged_files_get_one_line(tmp_path: Path, draw: st.DataObject) -> None:
    content = bytearray(parquet(tmp_path / "whole.parquet").read_bytes())
    end = draw.draw(st.integers(0, len(content)))
    for place in draw.draw(st.lists(st.integers(len(content) - 600, len(content) - 1), max_size=3)):
        content[place] ^= 1 << draw.draw(st.integers(0, 7))
    (tmp_path / "x.parquet").write_bytes(content[:end] if draw.draw(st.booleans()) else content)
    try:
        data.load(str(tmp_path / "x.parquet"))
    except UserError as error:
        assert "\n" not in str(error)


def test_names_from_outside_are_shown_in_one_line(tmp_path: Path) -> None:
    names = features({"label": {"names": ["c\x1b[31mat\n", "\ud800"]}})
    loaded = data.load(str(parquet(tmp_path / "x.parquet", metadata={"huggingface": names})))
    assert said(loaded).isprintable() and said(loaded).isascii()
