"""Data sets by ``hf:NAME``."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from ssl_bench import data
from ssl_bench.errors import UserError


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 9, 255 - number * 9, 40)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = pa.table(
    {"image": [{"bytes": png(n), "path": "a"} for n in range(8)], "label": [0, 1] * 4}
)
TEXTS = pa.table({"text": [f"sentence {n}" for n in range(8)], "label": ["no", "yes"] * 4})


@dataclass
class FakeSplit:
    """What of a split is used."""

    table: pa.Table
    _fingerprint: str = "1"

    @property
    def features(self) -> SimpleNamespace:
        return SimpleNamespace(arrow_schema=self.table.schema)

    def with_format(self, kind: str) -> FakeSplit:
        assert kind == "arrow"
        return self

    def iter(self, rows: int) -> Iterator[pa.Table]:
        yield from (self.table.slice(start, 5) for start in (0, 5))


def on_the_hub(monkeypatch: pytest.MonkeyPatch, table: pa.Table) -> list[Any]:
    """A stand-in for `datasets`, and what is asked of it."""
    asked: list[Any] = []

    def load_dataset(*args: Any) -> dict[str, FakeSplit]:
        asked.append(args)
        return {"train": FakeSplit(table), "test": FakeSplit(table)}

    whole = SimpleNamespace(embed_table_storage=lambda table: table)
    fake = SimpleNamespace(__version__="4.0.0", load_dataset=load_dataset, table=whole)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return asked


def test_a_name_is_read_as_parquet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = on_the_hub(monkeypatch, IMAGES)
    for storage in ("memory", "stream"):
        found = data.load("hf:some/tiny:small", None, tmp_path, storage=storage)
        assert (len(found.train), len(found.test), len(found.classes)) == (8, 8, 2)
        assert found.name == "some-tiny-small" and found.source == "hf:some/tiny:small"
    assert asked == [("some/tiny", "small")] * 2
    assert data.load("hf:some/tiny@train", None, tmp_path).note


def test_texts_alone_are_read_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_the_hub(monkeypatch, TEXTS)
    found = data.load("hf:some/texts", None, tmp_path)
    assert found.classes == ("no", "yes") and found.imageless
    assert (len(found.train), len(found.test)) == (8, 8)
    assert found.train.first_captions[1] == "sentence 1"
    assert found.name == "some-texts" and found.source == "hf:some/texts"
    with pytest.raises(UserError, match="texts alone"):
        data.list_images("hf:some/texts", tmp_path)


def test_what_does_not_work_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any) -> None:
        raise ConnectionError("no network\nat all")

    for module, told in (
        (None, "pip install 'ssl-bench\\[hf\\]'"),
        (SimpleNamespace(__version__="3.6.0"), "3.6.0"),
        (SimpleNamespace(__version__="5.1.0", load_dataset=fail), "no network"),
    ):
        monkeypatch.setitem(sys.modules, "datasets", module)
        with pytest.raises(UserError, match=told) as error:
            data.load("hf:some/tiny", None, tmp_path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="hf:NAME"):
        data.load("hf:../tiny", None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_real_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    (tmp_path / "a.png").write_bytes(png(7))
    pictures = [{"bytes": png(n), "path": None} for n in range(7)]
    on_disk = {"bytes": None, "path": str(tmp_path / "a.png")}
    rows = {"img": [*pictures, on_disk], "label": [0, 1] * 4}
    split = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    both = datasets.DatasetDict({"train": split, "test": split})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: both)
    found = data.load("hf:some/tiny", None, tmp_path, storage="stream")
    assert found.classes == ("cat", "dog") and len(found.train) == len(found.test) == 8
