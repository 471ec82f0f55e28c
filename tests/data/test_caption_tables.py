"""Captions of a user's own: in Parquet, and in tables beside a folder of images."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import make_images
from PIL import Image

from ssl_bench import data
from ssl_bench.errors import UserError

COUNT = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = make_images(COUNT, 3, 16, 3, seed=1).images_NCHW.permute(0, 2, 3, 1).numpy()
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{number:02}.png")
    return tmp_path


def rows(count: int = COUNT) -> list[dict[str, Any]]:
    return [
        {"image": f"images/{number:02}.png", "caption": f"picture, {number}"}
        for number in range(count)
    ]


def write_csv(path: Path, content: list[dict[str, Any]]) -> Path:
    lines = [",".join(content[0])]
    lines += [",".join(json.dumps(value) for value in row.values()) for row in content]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_lines(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def write_parquet(path: Path, folder: Path, captions: list[Any]) -> Path:
    encoded = [(folder / row["image"]).read_bytes() for row in rows()]
    table = pa.table({"image": [{"bytes": each, "path": None} for each in encoded]})
    kind = pa.list_(pa.string()) if any(isinstance(c, list) for c in captions) else pa.string()
    table = table.append_column("caption", pa.array(captions, kind))
    pq.write_table(table, path, compression="none", use_dictionary=False)
    return path


def told(found: data.Dataset) -> dict[bytes, tuple[str, ...]]:
    """The captions of each image."""
    assert found.train.captions is not None and found.test.captions is not None
    return {
        split.images_NCHW[index].numpy().tobytes(): own
        for split in (found.train, found.test)
        for index, own in enumerate(split.captions or ())
    }


def expected(folder: Path, captions: Sequence[tuple[str, ...]]) -> dict[bytes, tuple[str, ...]]:
    split = make_images(COUNT, 3, 16, 3, seed=1)
    return {
        image.numpy().tobytes(): own for image, own in zip(split.images_NCHW, captions, strict=True)
    }


@pytest.mark.parametrize("write", [write_csv, write_lines])
def test_a_table_beside_images(folder: Path, write: Callable[..., Path]) -> None:
    ending = ".csv" if write is write_csv else ".jsonl"
    path = write(folder / f"table{ending}", rows())
    singles = [(f"picture, {number}",) for number in range(COUNT)]
    found = data.load(str(path))
    assert told(found) == expected(folder, singles)
    assert len(found.test) and found.unlabelled
    path.rename(folder / f"captions{ending}")
    assert told(data.load(str(folder))) == told(found)


def test_rows_of_an_image_are_its_captions(folder: Path) -> None:
    again = [{**row, "caption": row["caption"].upper()} for row in rows()]
    found = data.load(str(write_csv(folder / "captions.csv", [*rows(), *again])))
    pairs = [(f"picture, {number}", f"PICTURE, {number}") for number in range(COUNT)]
    assert told(found) == expected(folder, pairs)
    lists = [{**row, "caption": list(pair)} for row, pair in zip(rows(), pairs, strict=True)]
    path = write_lines(folder / "lists.jsonl", lists)
    assert told(data.load(str(path))) == told(found)


def test_rows_say_their_splits(folder: Path) -> None:
    content = [{**row, "split": "test" if n < 4 else "train"} for n, row in enumerate(rows())]
    path = write_csv(folder / "captions.csv", content)
    found = data.load(str(path))
    assert (len(found.train), len(found.test)) == (COUNT - 4, 4)
    assert found.test.captions == tuple((f"picture, {number}",) for number in range(4))
    assert len(data.load(f"{path}@train").test) < 10
    three = [{**row, "split": "abc"[n % 3]} for n, row in enumerate(rows())]
    path = write_csv(folder / "captions.csv", three)
    with pytest.raises(UserError, match="@whole"):
        data.load(str(path))
    assert len(data.load(f"{path}@a+b").train) == 10
    whole = data.load(f"{path}@whole")
    assert len(whole.train) + len(whole.test) == COUNT


def coco(path: Path, count: int = COUNT) -> Path:
    images = [{"id": 7 * n, "file_name": f"{n:02}.png"} for n in range(count)]
    texts = [(7 * n, text) for n in range(count) for text in (f"picture {n}", f"again {n}")]
    notes = [{"id": 99, "image_id": number, "caption": text} for number, text in texts]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    return path


def karpathy(path: Path, count: int = COUNT) -> Path:
    names = ("train", "restval", "val", "test")
    images = [
        {
            "filepath": "images",
            "filename": f"{n:02}.png",
            "split": names[n % 4],
            "sentences": [{"raw": f"picture {n}", "tokens": []}, {"raw": f"again {n}"}],
        }
        for n in range(count)
    ]
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


PAIRS = [(f"picture {n}", f"again {n}") for n in range(COUNT)]


@pytest.mark.parametrize("place", ["captions_val.json", "annotations/captions_val.json"])
def test_json_of_coco(folder: Path, place: str) -> None:
    path = coco(folder / place)
    found = data.load(str(path))
    assert told(found) == expected(folder, PAIRS)
    assert len(found.test) and not found.left_out
    assert told(data.load(str(folder))) == told(found)


def test_several_files_of_coco_are_splits(folder: Path) -> None:
    both = coco(folder / "captions_train2014.json"), coco(folder / "captions_val2014.json")
    for path, ways in zip(both, (slice(4, None), slice(0, 4)), strict=True):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "images": content["images"][ways]}))
    found = data.load(str(folder))
    assert (len(found.train), len(found.test)) == (COUNT - 4, 4)
    assert found.test.captions == tuple(PAIRS[:4])
    assert f"{2 * COUNT} captions of images that are not listed" in found.left_out


def test_json_of_karpathy(folder: Path) -> None:
    found = data.load(str(karpathy(folder / "dataset_coco.json")))
    assert found.train.captions == tuple(each for n, each in enumerate(PAIRS) if n % 4 < 2)
    assert found.test.captions == tuple(PAIRS[3::4])
    assert any("val" in note for note in found.notes)


def test_json_as_albef_has_it(folder: Path) -> None:
    path = folder / "pairs.json"
    path.write_text(json.dumps([{**row, "image_id": 3} for row in rows()]))
    singles = [(f"picture, {number}",) for number in range(COUNT)]
    assert told(data.load(str(path))) == expected(folder, singles)


def test_what_json_names_and_is_not_there_is_counted(folder: Path) -> None:
    path = karpathy(folder / "dataset_coco.json", COUNT + 5)
    content = json.loads(path.read_text())
    content["images"][0]["sentences"][0]["raw"] = "  "
    content["images"][1]["sentences"] = [{"raw": ""}]
    path.write_text(json.dumps(content))
    (folder / "more.png").write_bytes((folder / "images/00.png").read_bytes())
    found = data.load(str(path))
    assert found.train.captions and found.train.captions[0] == ("again 0",)
    for part in ("5 images that are not there", "1 images without a caption", "1 empty captions"):
        assert part in found.left_out
    assert any("1 image that" in note for note in found.notes)
    assert len(found.train) == COUNT // 2 + 1 - 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read"),
        ('{"categories": []}', "sentences"),
        ('{"images": [{"filename": "a.png"}]}', "sentences"),
        ('{"images": [{"id": 1}], "annotations": []}', "sentences"),
        ('{"images": [3], "annotations": []}', "sentences"),
        ('{"images": [], "annotations": []}', "no rows"),
        ('{"images": [{"id": 1, "file_name": "no.png"}], "annotations": []}', "none of the 1"),
        ('[{"image": "images/00.png"}]', "row 1"),
        ('[{"image": "images/00.png", "caption": " "}]', "none of the 1 image "),
    ],
)
def test_json_that_is_none(folder: Path, content: str, told: str) -> None:
    path = folder / "captions_x.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        data.load(str(path))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_two_images_of_a_name_are_not_guessed_between(folder: Path) -> None:
    path = coco(folder / "captions_val.json")
    (folder / "other").mkdir()
    (folder / "other" / "03.png").write_bytes((folder / "images/00.png").read_bytes())
    with pytest.raises(UserError, match=r"2 images called 03\.png"):
        data.load(str(path))


@pytest.mark.parametrize("storage", ["memory", "stream"])
@pytest.mark.parametrize("several", [False, True])
def test_parquet_with_captions(folder: Path, several: bool, storage: Any, tmp_path: Path) -> None:
    captions: list[Any] = [f"picture, {number}" for number in range(COUNT)]
    if several:
        captions = [[each, f" {each}!", ""] for each in captions]
    path = write_parquet(folder / "pairs.parquet", folder, captions)
    found = data.load(str(path), storage=storage, data_dir=tmp_path / "kept")
    assert found.train.captions is not None and found.test.captions is not None
    every = sorted([*found.train.captions, *found.test.captions])
    own = [(each[0], each[0] + "!") if several else (each,) for each in captions]
    assert every == sorted(own)
    if storage == "memory":
        assert told(found) == expected(folder, own)
    other = write_parquet(folder / "other.parquet", folder, captions[::-1])
    changed = data.load(str(other), storage=storage, data_dir=tmp_path / "kept")
    assert changed.fingerprint != found.fingerprint


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_caption_leaves_data_without_captions(folder: Path, empty: str | None) -> None:
    captions = [f"picture {number}" for number in range(COUNT)]
    captions[7:8] = [empty]  # type: ignore[list-item]
    found = data.load(str(write_parquet(folder / "pairs.parquet", folder, captions)))
    assert found.train.captions is None and found.test.captions is None
    assert "row 7" in found.uncaptioned


def test_an_image_without_text_is_named(
    folder: Path, ssl_bench: Callable[..., tuple[int, str, str]]
) -> None:
    content = rows()
    content[5]["caption"] = " "
    path = write_csv(folder / "captions.csv", content)
    code, _, err = ssl_bench("run", "--method", "bert", "--data", path, "--epochs", 1)
    assert code == 2
    assert "05.png" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("image,caption\nimages/00.png,a\nnowhere.png,b\n", "nowhere.png"),
        ("picture,words\nimages/00.png,a\n", "row 1"),
        ("image,caption\n", "no rows"),
        ("image,caption\n\x00\xff", "table.csv"),
    ],
)
def test_a_table_that_is_none(folder: Path, content: str, expected: str) -> None:
    path = folder / "table.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        data.load(str(path))
    assert expected in str(caught.value)


def test_images_that_no_row_names_are_counted(folder: Path) -> None:
    found = data.load(str(write_csv(folder / "captions.csv", rows(20))))
    assert len(found.train) + len(found.test) == 20
    assert any("10 images" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "head", "row"),
    [
        ("captions.txt", "image,caption", '{}.png,"picture, {}"'),  # Flickr8k
        ("results.csv", "image_name| comment_number| comment", "{}.png| 0| picture, {}"),  # 30k
        ("captions.csv", "filename;sentence", "{}.png;picture, {}"),
    ],
)
def test_tables_of_others(folder: Path, name: str, head: str, row: str) -> None:
    lines = [head, *(row.format(f"{number:02}", number) for number in range(COUNT))]
    (folder / name).write_text("\n".join(lines) + "\n")
    singles = [(f"picture, {number}",) for number in range(COUNT)]
    assert told(data.load(str(folder / name))) == expected(folder, singles)
    if name.startswith("captions"):
        assert told(data.load(str(folder))) == expected(folder, singles)


@pytest.mark.parametrize("name", ["Flickr8k.token.txt", "results_20130124.token"])
def test_captions_that_are_numbered(folder: Path, name: str) -> None:
    """Without a line of names, and with images that are not there, as Flickr8k's has one."""
    lines = [f'{n:02}.png#{k}\t"{PAIRS[n][k]}" , so' for n in range(COUNT) for k in (0, 1)]
    (folder / name).write_text("\n".join([*lines, "30.png.1#0\tnot there"]))
    found = data.load(str(folder / name))
    assert told(found) == expected(folder, [(f'"{a}" , so', f'"{b}" , so') for a, b in PAIRS])
    assert "1 images that are not there" in found.left_out


def test_an_image_is_the_same_by_any_path(folder: Path) -> None:
    """Named absolutely, through links, or from the table's folder, with the same held-out fifth."""
    (folder / "link").symlink_to(folder)
    places = folder / "images", folder / "link" / "images", "images/../images"
    lines = [f"{places[n % 3]}/{n:02}.png,one {n}" for n in range(COUNT)]
    lines += [f"images/{n:02}.png,two {n}" for n in range(COUNT)]
    (folder / "captions.csv").write_text("\n".join(["filepath,title", *lines]))
    found = data.load(str(folder))
    assert told(found) == expected(folder, [(f"one {n}", f"two {n}") for n in range(COUNT)])
    assert not any("does not name" in note for note in found.notes)
    (folder / "captions.csv").write_text("\n".join(["filepath,title", *lines[COUNT:]]))
    assert torch.equal(data.load(str(folder)).test.images_NCHW, found.test.images_NCHW)


def test_class_folders_beside_json_of_other_things(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / "images").rename(folder / name) if name == "a" else (folder / name).mkdir()
    for number in range(0, COUNT, 2):
        (folder / "a" / f"{number:02}.png").rename(folder / "b" / f"{number:02}.png")
    for name in ("infos", "info", "description"):
        (folder / f"dataset_{name}.json").write_text('{"default": {"features": {}}}')
    (folder / "metadata.csv").write_text("file_name,width\na/01.png,16\n")
    assert data.load(str(folder)).classes == ("a", "b")
    karpathy(folder / "dataset_rsicd.json")
    assert data.load(str(folder)).test.captions == tuple(PAIRS[3::4])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.csv",
            "image,caption\n00.png,a dog, a cat,  3 birds\n01.png,b,\n",
            "a dog, a cat,  3 birds",
        ),
        ("a.tsv", 'image\tcaption\n00.png\t"a" dog\n01.png\t"b\n', '"a" dog'),
        ("a.tsv", 'image\tcaption\n00.png\t"a ""dog"""\n01.png\tb\n', 'a "dog"'),
        ("a.csv", 'image,caption\n00.png,"a\ndog"\n01.png,b\n', "a\ndog"),
    ],
)
def test_texts_with_separators_and_marks(
    folder: Path, name: str, content: str, expected: str
) -> None:
    (folder / name).write_text(
        content
        + "".join(f"{n:02}.png,c\n" for n in range(2, 9)).replace(
            ",", "\t" if name == "a.tsv" else ","
        )
    )
    found = data.load(str(folder / name))
    assert expected in {
        own[0] for split in (found.train, found.test) for own in split.captions or ()
    }
    assert len(found.train) + len(found.test) == 9


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("caption,image\na dog, a cat,00.png\n", "line 2 .* 3 columns"),
        ('image,caption\n00.png,a\n01.png,"b\n02.png,c\n', "line 4"),
        ('image,caption\n00.png,"a "dog" b"\n', "line 2"),
        ('image\tcaption\n00.png\t"a ""dog"""\n01.png\t"a" dog\n', "line 3"),
    ],
)
def test_rows_that_do_not_match_their_columns(folder: Path, content: str, told: str) -> None:
    (folder / "captions.csv").write_text(content)
    with pytest.raises(UserError, match=told) as caught:
        data.load(str(folder))
    assert "\n" not in str(caught.value) and "would work" in str(caught.value)


def test_a_table_in_each_splits_folder(folder: Path) -> None:
    """As Hugging Face's image folders have them; images of both are called the same."""
    for name, first in (("train", 0), ("test", 24)):
        (folder / name).mkdir()
        numbers = range(first, 24 if name == "train" else COUNT)
        for number in numbers:
            (folder / f"images/{number:02}.png").rename(folder / f"{name}/{number - first}.png")
        lines = [f"{number - first}.png,picture {number}" for number in numbers]
        (folder / name / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    (folder / "images").rmdir()
    found = data.load(str(folder))
    assert (len(found.train), len(found.test)) == (24, 6) and not found.left_out
    assert told(found) == expected(folder, [(f"picture {n}",) for n in range(COUNT)])
    assert len(data.load(f"{folder}@train").train) < 24
    whole = data.load(f"{folder}@whole")
    assert len(whole.train) + len(whole.test) == COUNT


def test_a_table_without_captions_hides_none(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,width\n00.png,16\n")
    write_csv(folder / "captions.txt", rows())
    assert data.load(str(folder)).train.captions


def test_a_name_of_several_images_is_asked_about(folder: Path) -> None:
    (folder / "others").mkdir()
    (folder / "images" / "00.png").rename(folder / "others" / "01.png")
    path = folder / "captions.txt"
    path.write_text("image,caption\n01.png,one\n02.png,two\n")
    with pytest.raises(UserError, match=r"01\.png"):
        data.load(str(path))


def stored(folder: Path) -> list[dict[str, Any]]:
    return [{"bytes": (folder / row["image"]).read_bytes(), "path": None} for row in rows()]


@pytest.mark.parametrize(
    ("image", "columns"),
    [
        ("image", {f"caption_{n}": [pair[n] for pair in PAIRS] for n in (0, 1)}),
        ("image", {"sentences": [[{"raw": each, "sentid": 0} for each in own] for own in PAIRS]}),
        ("image", {"sentences": [{"raw": [*own], "sentid": [0, 1]} for own in PAIRS]}),
        ("image", {"captions": [[{"caption": each} for each in own] for own in PAIRS]}),
        ("Image", {"Caption": [[[own[0]], [own[1]]] for own in PAIRS]}),
        ("img", {"raw": [json.dumps(own) for own in PAIRS]}),
        ("jpg", {"json": [{"text": [*own], "width": 16} for own in PAIRS]}),
        ("image", {"answer": [[*own] for own in PAIRS], "question_id": [0] * COUNT}),
    ],
)
def test_captions_as_others_store_them(
    folder: Path, image: str, columns: dict[str, list[Any]]
) -> None:
    path = folder / "pairs.parquet"
    pq.write_table(pa.table({image: stored(folder), **columns}), path)
    found = data.load(str(path))
    assert told(found) == expected(folder, PAIRS)
    assert not found.left_out and "left out" not in str(found.notes)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_lists_in_texts_and_what_else_is_there(folder: Path, ending: str) -> None:
    """JSON of a list is several captions, empty ones are counted, a second column is told."""
    path = folder / f"pairs.{ending}"
    cells = [json.dumps([*own, " "]) for own in PAIRS]
    if ending == "parquet":
        pq.write_table(pa.table({"image": stored(folder), "raw": cells, "Title": cells}), path)
    elif ending == "jsonl":
        write_lines(
            path, [{**rows()[n], "caption": [*PAIRS[n], ""], "title": "x"} for n in range(COUNT)]
        )
    else:
        with path.open("w", newline="") as file:
            lines = zip((row["image"] for row in rows()), cells, "x" * COUNT, strict=True)
            csv.writer(file).writerows([("Filename", "Raw", "TITLE"), *lines])
    found = data.load(str(path))
    assert told(found) == expected(folder, PAIRS)
    assert "30 empty captions" in found.left_out
    assert "column title" in str(found.notes).lower()


def test_lists_as_python_writes_them_are_told(folder: Path) -> None:
    path = write_parquet(folder / "pairs.parquet", folder, [str([*own]) for own in PAIRS])
    found = data.load(str(path))
    assert found.train.captions is None and "row 0 and 29 more" in found.uncaptioned
    assert "JSON" in found.uncaptioned


def test_a_column_without_texts_says_what_it_holds(folder: Path) -> None:
    path = folder / "pairs.parquet"
    pq.write_table(pa.table({"image": stored(folder), "caption": [3] * COUNT}), path)
    assert "int64" in data.load(str(path)).uncaptioned


def test_half_a_surrogate_pair_is_a_question_mark(folder: Path) -> None:
    path = write_lines(folder / "pairs.jsonl", [{**row, "caption": "a \ud83d b"} for row in rows()])
    found = data.load(str(path))
    assert found.train.captions and found.train.captions[0] == ("a ? b",)


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_rows_of_equal_images_are_one_image(folder: Path, tmp_path: Path, storage: Any) -> None:
    one = {"image": stored(folder), "caption": [[*pair] for pair in PAIRS]}
    two = {"image": stored(folder) * 2, "caption": [pair[n] for n in (0, 1) for pair in PAIRS]}
    split = {"split": ["train" if number % 5 else "test" for number in range(2 * COUNT)]}
    label = {"label": [number % 3 for number in range(2 * COUNT)]}

    def loaded(columns: Mapping[str, Any]) -> data.Dataset:
        path = tmp_path / "pairs.parquet"
        pq.write_table(pa.table(columns), path, compression="none", use_dictionary=["split"])
        return data.load(str(path), storage=storage, data_dir=tmp_path / "kept")

    found, as_lists = loaded(two), loaded(one)
    assert found.fingerprint == as_lists.fingerprint
    assert found.train.captions == as_lists.train.captions
    assert any("60 rows of 30 images" in note for note in found.notes)
    assert not any("rows" in note for note in as_lists.notes)
    found = loaded(two | split)
    assert found.test.captions == tuple(PAIRS[::5])
    found = loaded(two | label)  # of a class each
    assert len(found.train) + len(found.test) == 2 * COUNT


def write_splits(path: Path, folder: Path, names: Any, **more: Any) -> Path:
    """Rows with a text and a split each, the latter of any type."""
    texts = [f"picture {number}" for number in range(COUNT)]
    names = names if isinstance(names, pa.Array) else pa.array(names, pa.string())
    table = pa.table({"image": stored(folder), "caption": texts, "split": names, **more})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="none", use_dictionary=["split"])
    return path


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary", "named"])
def test_splits_of_any_type(folder: Path, kind: str) -> None:
    names, numbers = ["train", "test"], [int(n % 5 == 0) for n in range(COUNT)]
    column = pa.array([names[n] for n in numbers])
    column = {
        "dictionary": column.dictionary_encode(),
        "named": pa.array(numbers),
    }.get(kind) or column.cast(getattr(pa, kind)())
    path = write_splits(folder / "pairs.parquet", folder, column)
    if kind == "named":
        noted = {"info": {"features": {"split": {"names": names}}}}
        table = pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(noted)})
        pq.write_table(table, path)
    assert len(data.load(str(path)).test) == 6


def test_numbers_of_splits_without_names_are_not_read(folder: Path) -> None:
    path = write_splits(folder / "pairs.parquet", folder, pa.array([0, 1] * (COUNT // 2)))
    assert "column split, which holds int64" in str(data.load(str(path)).notes)


def test_what_rows_of_other_splits_lack_does_not_count(folder: Path) -> None:
    """A split that is left out may be without captions, and one without labels gives way."""
    names = [("train", "train", "val", "test")[n % 4] for n in range(COUNT)]
    labels = [-1 if name == "test" else n // 4 % 2 for n, name in enumerate(names)]
    path = write_splits(folder / "pairs.parquet", folder, names, label=labels)
    found = data.load(str(path))
    assert (len(found.test), found.classes) == (7, ("0", "1")) and "'test' has no" in found.note
    assert found.test.captions and found.test.captions[0] == ("picture 2",)
    texts = [None if name == "val" else "a" for name in names]
    path = write_splits(folder / "pairs.parquet", folder, names, caption=texts)
    assert not data.load(str(path)).uncaptioned
    assert "row 2 and" in data.load(f"{path}@train+val").uncaptioned


def test_images_elsewhere_are_named(folder: Path) -> None:
    path = folder / "pairs.parquet"
    pq.write_table(pa.table({"image": ["http://x/1.jpg"] * COUNT, "caption": ["a"] * COUNT}), path)
    with pytest.raises(UserError, match=r"no image bytes in row 0 .* 'http://x/1\.jpg'"):
        data.load(str(path))


@pytest.mark.parametrize("storage", ["memory", "stream"])
@pytest.mark.parametrize("name", ["pairs.parquet", "TEST/test-00000-of-00001.parquet"])
def test_rows_of_parquet_say_their_splits(
    folder: Path, tmp_path: Path, name: str, storage: Any
) -> None:
    path = write_splits(
        folder / "of" / name, folder, ["train", "restval", "val", "test"] * 7 + ["train"] * 2
    )
    root = path if path.parent.name == "of" else path.parent.parent
    how = {"storage": storage, "data_dir": tmp_path / "kept"}
    found = data.load(str(root), **how)
    own = [n for n in range(COUNT) if n >= 28 or n % 4 in (0, 1)]
    assert found.train.captions == tuple((f"picture {n}",) for n in own)
    assert found.test.captions == tuple((f"picture {n}",) for n in range(3, 28, 4))
    assert any("split val" in each for each in found.notes)
    assert data.load(f"{root}@train+val", **how).test.captions == tuple(
        (f"picture {n}",) for n in range(2, 28, 4)
    )
    whole = data.load(f"{root}@whole", **how)
    assert len(whole.train) + len(whole.test) == COUNT
    if storage == "memory":
        images = make_images(COUNT, 3, 16, 3, seed=1).images_NCHW
        assert torch.equal(found.test.images_NCHW, images[3:28:4])


@pytest.mark.parametrize("names", [["a", "b"], ["train", None], ["train", "test", "other"]])
def test_unclear_rows_of_parquet_are_asked_about(folder: Path, names: list[str | None]) -> None:
    path = write_splits(folder / "pairs.parquet", folder, (names * COUNT)[:COUNT])
    with pytest.raises(UserError, match="@whole"):
        data.load(str(path))


def test_names_of_files_come_before_what_their_rows_say(folder: Path) -> None:
    home = folder / "of"
    for name in ("train", "test"):
        write_splits(home / f"{name}.parquet", folder, ["train", "test"] * (COUNT // 2))
    found = data.load(str(home))
    assert (len(found.train), len(found.test)) == (COUNT, COUNT)
