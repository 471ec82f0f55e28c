"""Data sets by ``hf:NAME``."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_bench import data
from ssl_bench.errors import UserError


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 9, 255 - number * 9, 40)).save(buffer, "PNG")
    return buffer.getvalue()


class FakeSplit:
    """What of a split is used."""

    _fingerprint = "1"

    def to_parquet(self, path: Path, **how: Any) -> None:
        images = [{"bytes": png(number), "path": None} for number in range(8)]
        pq.write_table(pa.table({"image": images, "label": [0, 1] * 4}), path, **how)


def test_a_name_is_read_as_parquet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any) -> dict[str, FakeSplit]:
        asked.append(args)
        return {"train": FakeSplit(), "test": FakeSplit()}

    fake = SimpleNamespace(__version__="4.0.0", load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    for storage in ("memory", "stream"):
        found = data.load("hf:some/tiny:small", None, tmp_path, storage=storage)  # type: ignore[arg-type]
        assert (len(found.train), len(found.test), len(found.classes)) == (8, 8, 2)
        assert found.name == "some-tiny-small" and found.source == "hf:some/tiny:small"
    assert asked == [("some/tiny", "small")] * 2
    assert data.load("hf:some/tiny@train", None, tmp_path).note


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
    rows = {"img": [{"bytes": png(n), "path": None} for n in range(8)], "label": [0, 1] * 4}
    split = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    both = datasets.DatasetDict({"train": split, "test": split})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: both)
    found = data.load("hf:some/tiny", None, tmp_path, storage="stream")
    assert found.classes == ("cat", "dog") and len(found.train) == len(found.test) == 8
