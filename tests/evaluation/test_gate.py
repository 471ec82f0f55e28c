"""Scores that are none are refused before they are stored, and found when they are read again."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU
from hypothesis import example, given
from hypothesis import strategies as st

from ssl_bench.api import registry
from ssl_bench.api.evaluation import Result
from ssl_bench.api.registry import Plugin
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.evaluation import gate, runner
from ssl_bench.evaluation.features import Encoder, RawPixels
from ssl_bench.models import backbones, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.utils import arrays
from ssl_bench.utils.files import load_json, sha256_of, write_json

Call = Callable[..., tuple[int, str, str]]
KIND = "an evaluation for tests"
PLUGIN = '''"""Finds what a test says."""
from dataclasses import dataclass
import numpy as np
import torch
from ssl_bench.api import Evaluation, Result

@dataclass(frozen=True)
class Config:
    """No flags."""

class Mine(Evaluation):
    def evaluate(self, encoder, data):
        labels_N = data.test.labels_N
        return {}
'''


def right(data: Dataset) -> torch.Tensor:
    return data.test.labels_N.clone()


def wrong_at(data: Dataset, index: int, value: int) -> torch.Tensor:
    found = right(data)
    found[index] = value
    return found


BAD: dict[str, tuple[Callable[[Dataset], Any], str]] = {
    "nothing": (lambda data: None, "None"),
    "a dict": (lambda data: {"top1": 1.0}, "Result"),
    "no scores": (lambda data: Result({}), "headline"),
    "scores in a list": (lambda data: Result([50.0]), "[50.0]"),  # type: ignore[arg-type]
    "NaN": (lambda data: Result({"top1": math.nan}), "nan"),
    "infinite": (lambda data: Result({"top1": 5.0, "loss": math.inf}), "loss = inf"),
    "too large": (lambda data: Result({"top1": 500.0}), "500.0"),
    "too large for a float": (lambda data: Result({"x": 10**400}, unit="nats"), "10"),
    "below 0": (lambda data: Result({"top1": -1.0}), "-1.0"),
    "a second share": (lambda data: Result({"top1": 5.0, "top5": 101.0}), "top5 = 101.0"),
    "a second share of more": (
        lambda data: Result({"entropy": 5.0, "top1_fog": 101.0}),
        "top1_fog = 101.0",
    ),
    "text": (lambda data: Result({"top1": "50"}), "'50'"),  # type: ignore[dict-item]
    "None": (lambda data: Result({"top1": None}), "None"),  # type: ignore[dict-item]
    "a bool": (lambda data: Result({"top1": True}), "True"),
    "complex": (lambda data: Result({"top1": 1j}), "1j"),  # type: ignore[dict-item]
    "a vector": (lambda data: Result({"top1": torch.ones(1)}), "(1,)"),  # type: ignore[dict-item]
    "no name": (lambda data: Result({"": 5.0}), "''"),
    "a name of spaces": (lambda data: Result({"   ": 5.0}), "a score named"),
    "a name of two lines": (lambda data: Result({"a\nb": 5.0}), "a score named"),
    "a number for a name": (lambda data: Result({1: 5.0}), "1"),  # type: ignore[dict-item]
    "no unit": (lambda data: Result({"top1": 5.0}, unit=None), "unit"),  # type: ignore[arg-type]
    "best": (lambda data: Result({"top1": 5.0}, better="best"), "best"),  # type: ignore[arg-type]
    "too few": (lambda data: Result({"top1": 100.0}, right(data)[:-1]), "(39,)"),
    "too many": (lambda data: Result({"top1": 100.0}, right(data).repeat(2)), "(80,)"),
    "a column": (lambda data: Result({"top1": 100.0}, right(data)[:, None]), "(40, 1)"),
    "a list": (lambda data: Result({"top1": 1.0}, right(data).tolist()), "list"),  # type: ignore[arg-type]
    "shares": (lambda data: Result({"top1": 100.0}, right(data).float()), "float32"),
    "whether": (lambda data: Result({"top1": 100.0}, right(data) > 0), "bool"),
    "class 3": (lambda data: Result({"top1": 97.5}, wrong_at(data, 7, 3)), "predictions_N[7] = 3"),
    "class -1": (lambda data: Result({"top1": 97.5}, wrong_at(data, 0, -1)), "predictions_N[0]"),
    "a tenth off": (lambda data: Result({"top1": 97.6}, wrong_at(data, 7, 2)), "97.5"),
    "a tenth too large": (lambda data: Result({"top1": 100.1}), "100.1"),
    "another share": (lambda data: Result({"top1": 50.0}, right(data)), "100"),
    "chosen": (lambda data: Result({"top1": 5.0}, chosen={"k": object()}), "chosen k"),
    "chosen NaN": (lambda data: Result({"top1": 5.0}, chosen={"k": [math.nan]}), "nan"),
    "an array": (lambda data: Result({"top1": 5.0}, arrays={"a": [1.0]}), "list"),  # type: ignore[dict-item]
    "array NaN": (
        lambda data: Result({"top1": 5.0}, arrays={"a": torch.tensor([1.0, math.nan])}),
        "1 of 2",
    ),
    "array of objects": (
        lambda data: Result({"top1": 5.0}, arrays={"a": np.array([None])}),  # type: ignore[dict-item]
        "object",
    ),
    "array file": (lambda data: Result({"top1": 5.0}, arrays={"file": torch.ones(1)}), "file"),
    "array allow_pickle": (
        lambda data: Result({"top1": 5.0}, arrays={"allow_pickle": torch.ones(1)}),
        "allow_pickle",
    ),
    "array ../x": (lambda data: Result({"top1": 5.0}, arrays={"../x": torch.ones(1)}), "../x"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_score_is_refused(name: str, tiny: Dataset) -> None:
    make, named = BAD[name]
    with pytest.raises(UserError) as refused:
        gate.admit(make(tiny), "mine", tiny)
    assert named in str(refused.value)
    assert "'mine'" in str(refused.value)
    assert "expected" in str(refused.value)


@pytest.mark.parametrize(
    "number", [62.5, np.float32(62.5), np.float64(62.5), torch.tensor(62.5), np.array(62.5), 62]
)
def test_numbers_are_stored_as_such(number: Any, tiny: Dataset) -> None:
    scores = {"top1": number, "count": np.int64(3)}
    found = gate.admit(Result(scores, chosen={"k": torch.tensor(5)}), "mine", tiny)
    assert json.loads(json.dumps(found.scores)) == {"top1": float(number), "count": 3}
    assert json.loads(json.dumps(found.chosen)) == {"k": 5}


def test_what_has_no_better_direction_may_have_a_sign(tiny: Dataset) -> None:
    unit = "linear CKA with pixels (%)"
    gate.admit(Result({"cka": -0.5}, unit=unit, better="neither"), "mine", tiny)
    gate.admit(Result({"bits": 500.0}, unit="bits"), "mine", tiny)
    with pytest.raises(UserError):
        gate.admit(Result({"cka": -101.0}, unit=unit, better="neither"), "mine", tiny)


def test_scores_may_be_rounded_to_two_digits(tiny: Dataset) -> None:
    """One right one of 32 is 3.125 %."""
    data = dataclasses.replace(tiny, test=tiny.test.subset(range(32)))
    found = (right(data) + 1) % 3
    found[7] = right(data)[7]
    for rounded in (3.12, 3.13):
        gate.admit(Result({"top1": rounded}, found), "mine", data)
    for wrong in (3.11, 3.14):
        with pytest.raises(UserError, match=r"3\.125 % of its predictions"):
            gate.admit(Result({"top1": wrong}, found), "mine", data)
    for edge in (-0.005, 100.005):
        gate.admit(Result({"top1": edge}), "mine", data)


def test_scores_beside_the_headline_need_not_be_in_percent(tiny: Dataset) -> None:
    assert gate.admit(Result({"top1": 5.0, "count": 500.0}), "mine", tiny).scores["count"] == 500


def test_arrays_of_any_real_numbers_are_stored(tiny: Dataset) -> None:
    given = {
        "coarse": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "whether": torch.tensor([True, False]),
        "none": torch.zeros(0, 3, dtype=torch.int64),
    }
    found = gate.admit(Result({"top1": 5.0}, arrays=given), "mine", tiny).arrays
    assert found["coarse"].tolist() == [1.5, -2.0]
    assert found["whether"].tolist() == [True, False]
    assert (found["none"].shape, found["none"].dtype) == ((0, 3), np.int32)


RECORD = {
    **{"eval": "knn", "protocol": "abc", "data": "tiny", "note": "", "test_images": 40},
    **{"scores": {"top1": 50.0}, "baselines": {"random init": {"top1": 40.0}}},
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, None) for key in ("eval", "protocol", "data", "note", "test_images", "scores")),
        *(("test_images", value) for value in (0, True, 40.0)),
        *(("better", "best"), ("unit", ""), ("scores", {"top1": 101.0})),
        ("baselines", {"random init": {"share": 101.0}}),
    ],
)
def test_a_record_of_something_else_is_refused(key: str, value: Any) -> None:
    assert gate.check_record(RECORD, eval="knn") == RECORD
    with pytest.raises(UserError, match="expected"):
        gate.check_record({**RECORD, key: value})


@given(values=st.lists(st.integers(-(2**62), 2**62), min_size=1))
@example(values=[2**31 - 1, -(2**31)])
def test_whole_numbers_keep_their_values(values: list[int]) -> None:
    found = gate._array("a", torch.tensor(values), "mine")
    assert found.tolist() == values
    small = all(-(2**31) <= value < 2**31 for value in values)
    assert found.dtype == (np.int32 if small else np.int64)


class Stored:
    """An encoder on disk, and an evaluation of it that says what it is told."""

    def __init__(self, home: Path, spec: EncoderSpec, data: Dataset) -> None:
        self.home, self.data = home, data
        self.folder = home / "run"
        self.folder.mkdir()
        weights.save(backbones.build(spec, 0), spec, self.folder)
        source = home / "mine.py"
        source.write_text(PLUGIN)
        self.plugin: Plugin = registry.find("eval", str(source))
        self.code = self.plugin.load()
        self.calls = 0

    def says(self, make: Callable[[], Any]) -> None:
        def evaluate(evaluation: Any, encoder: Any, data: Dataset) -> Any:
            self.calls += 1
            return make()

        self.code.Mine.evaluate = evaluate

    def evaluate(self) -> dict[str, Any]:
        evals = {self.plugin: self.code.Config()}
        [record] = runner.evaluate_run(
            self.folder, evals, self.data, 0, CPU, self.home, keep_features=False
        )
        return record

    @property
    def result(self) -> Path:
        [path] = self.folder.glob("evals/*")
        return path


@pytest.fixture
def stored(tmp_path: Path, spec: EncoderSpec, tiny: Dataset) -> Stored:
    return Stored(tmp_path, spec, tiny)


def test_nothing_of_a_refused_result_is_stored(stored: Stored) -> None:
    stored.says(lambda: Result({"top1": 500.0}, right(stored.data)))
    with pytest.raises(UserError):
        stored.evaluate()
    assert not list(stored.folder.glob("evals/*"))


def good(data: Dataset) -> Result:
    return Result({"top1": 100.0}, right(data), arrays={"points": torch.arange(6.0).view(3, 2)})


def spoil(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        record = load_json(folder / "scores.json")
        if value is KIND:
            del record[key]
        else:
            record[key] = value
        (folder / "scores.json").write_text(json.dumps(record))

    return change


def flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 4
        (folder / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "scores.json").write_text("{"),
        lambda folder: (folder / "scores.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "scores.json").write_text("[" * 100_000),
        lambda folder: (folder / "scores.json").write_text("[]"),
        spoil("scores", {"top1": 500.0}),
        spoil("scores", {"top1": math.nan}),
        spoil("scores", {"top1": "high"}),
        spoil("scores", {}),
        spoil("scores", KIND),
        spoil("protocol", "another"),
        spoil("test_images", 39),
        spoil("note", None),
        spoil("baselines", {"raw pixels": {}}),
        spoil("baselines", [1]),
        flip("predictions.npz"),
        flip("arrays.npz"),
        lambda folder: (folder / "arrays.npz").unlink(),
    ],
)
def test_a_bad_record_is_told_and_made_anew(
    stored: Stored, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stored.says(lambda: good(stored.data))
    first = stored.evaluate()
    assert stored.evaluate() == first
    assert stored.calls == 1
    before = {path.name: path.read_bytes() for path in stored.result.glob("*.npz")}
    damage(stored.result)
    capsys.readouterr()
    again = stored.evaluate()
    assert stored.calls == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert str(stored.result) in told
    assert again["scores"] == first["scores"]
    assert again["digests"] == first["digests"] != {}
    assert {path.name: path.read_bytes() for path in stored.result.glob("*.npz")} == before
    assert stored.evaluate() == again


def test_arrays_are_read_as_they_were_stored_or_not_at_all(stored: Stored) -> None:
    stored.says(lambda: good(stored.data))
    digests = stored.evaluate()["digests"]
    for name in ("predictions.npz", "arrays.npz"):
        assert digests[name] == sha256_of(stored.result / name)
        assert arrays.read(stored.result / name, [])
    # Another archive that can be read, such as one of another run.
    other = {"predictions": np.zeros(40, np.int32), "labels": np.zeros(40, np.int32)}
    np.savez_compressed(stored.result / "predictions.npz", **other)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="digest"):
        arrays.read(stored.result / "predictions.npz", ["predictions"])
    record = load_json(stored.result / "scores.json")
    del record["digests"]  # as older versions wrote it
    write_json(stored.result / "scores.json", record)
    found = arrays.read(stored.result / "predictions.npz", ["predictions"])
    assert found["predictions"].tolist() == 40 * [0]


def test_what_a_result_has_no_more_does_not_stay(stored: Stored) -> None:
    stored.says(lambda: good(stored.data))
    stored.evaluate()
    spoil("scores", {})(stored.result)
    stored.says(lambda: Result({"top1": 5.0}))
    assert stored.evaluate()["digests"] == {}
    assert not list(stored.result.glob("*.npz"))


def test_features_that_are_no_numbers_are_counted(spec: EncoderSpec, tiny: Dataset) -> None:
    module = backbones.build(spec, 0)
    with torch.no_grad():
        module.norm.bias[0] = math.nan
    with pytest.raises(UserError) as refused:
        Encoder(module, spec, CPU, 0).features(tiny.test)
    assert "40 of 40 images" in str(refused.value)
    one = torch.zeros(3, 2)
    one[1, 0], one[2, 1] = math.inf, -math.inf
    from ssl_bench.evaluation import features

    with pytest.raises(UserError, match=r"2 of 3 images.*'cls', first image 1"):
        features._check_finite({"avg": torch.zeros(3, 2), "cls": one})
    features._check_finite({"avg": torch.full((3, 2), 3e38)})
    flat = dataclasses.replace(spec, std=(1e-300, 1e-300, 1e-300))
    with pytest.raises(UserError):
        RawPixels(flat, CPU, 0).features(tiny.test)


def test_a_bad_evaluation_costs_one_line_and_no_pretraining(
    ssl_bench: Call, image_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "mine.py"
    source.write_text(PLUGIN.replace("return {}", "return Result({'top1': 500.0})"))
    words = ("run", "--data", image_folder, "--runs-dir", tmp_path / "runs", "--epochs", 1,
             "--batch-size", 16, "--backbone", "vit_nano", "--precision", "fp32")  # fmt: skip
    code, _, err = ssl_bench(*words, "--evals", source)
    assert (code, err.count("\n")) == (2, 1)
    assert "'mine'" in err
    assert "500.0" in err
    [encoder] = (tmp_path / "runs").glob("mae-*/encoder.json")
    assert not list(encoder.parent.glob("evals/*"))
