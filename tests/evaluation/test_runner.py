"""What is stored of an evaluation, and what tells it from another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers
import pytest
from helpers import CPU

from ssl_bench.api import registry
from ssl_bench.data import Dataset
from ssl_bench.distributed import collectives
from ssl_bench.evaluation import runner
from ssl_bench.evaluation.features import RawPixels
from ssl_bench.models import backbones, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs import schema
from ssl_bench.training.resume import EvalCheckpoint

KNN = registry.find("eval", "knn")
ALBEF = registry.find("method", "albef")


def test_a_protocol_is_all_but_the_encoder_the_seed_and_the_precision(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code's versions, what it is told, the data, and whether images or captions are read."""
    newer: Any = SimpleNamespace(name=KNN.name, version="another")
    other = dataclasses.replace(tiny, fingerprint="another")
    found = [
        runner.protocol(KNN, KNN.config(), tiny),
        runner.protocol(KNN, KNN.config(neighbors=(3,)), tiny),
        runner.protocol(KNN, KNN.config(), other),
        runner.protocol(KNN, KNN.config(), tiny, of_text=True),
        runner.protocol(newer, KNN.config(), tiny),
        runner.protocol(registry.find("eval", "linear"), KNN.config(), tiny),
    ]
    monkeypatch.setattr(runner, "CORE_VERSION", runner.CORE_VERSION + 1)
    found.append(runner.protocol(KNN, KNN.config(), tiny))
    assert len({*found}) == len(found)
    names = {
        runner.folder_name(KNN, KNN.config(), tiny, seed, precision)
        for seed in (0, 1)
        for precision in ("fp32", "bf16")
    }
    assert len(names) == 4


def run(folder: Path, spec: EncoderSpec, data: Dataset, name: str, seed: int = 5) -> Any:
    """The record of an evaluation of an untrained encoder."""
    home = folder / "run"
    home.mkdir(parents=True)
    weights.save(backbones.build(spec, 0), spec, home)
    plugin = registry.find("eval", name)
    evals = {plugin: helpers.small(plugin)}
    [record] = runner.evaluate_run(home, evals, data, seed, CPU, folder, keep_features=False)
    return record


@pytest.mark.parametrize(
    ("name", "devices", "classes"),
    [
        ("knn", 3, ["a", "b", "c"]),
        ("cka", 1, ["a", "b", "c"]),
        ("segmentation", 1, ["background", "a", "b", "c"]),
    ],
)
def test_a_record_says_what_it_cost_and_of_what_it_is(
    name: str,
    devices: int,
    classes: list[str],
    tiny: Dataset,
    spec: EncoderSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All devices of three are busy where an evaluation divides its work, else one."""
    several = SimpleNamespace(**{**vars(collectives), "world_size": lambda: 3})
    monkeypatch.setattr(runner, "collectives", several)
    monkeypatch.setattr(EvalCheckpoint, "seconds", 10.0)
    record = run(tmp_path, spec, tiny, name)
    assert (record["seconds"], record["environment"]["devices"]) == (10 * devices, devices)
    assert (record["seed"], record["test_images"], record["classes"]) == (5, 40, classes)
    units = {"knn": "top-1 accuracy (%)", "cka": "linear CKA with pixels (%)"}
    assert record["unit"] == units.get(name, "mIoU (%)")
    assert record["better"] == ("neither" if name == "cka" else "higher")
    compared = {"random init"} if name == "cka" else {"raw pixels", "random init"}
    assert record["baselines"].keys() == compared
    assert not list(tmp_path.rglob("features"))


def test_pixels_have_the_seed_of_the_run(tiny: Dataset, spec: EncoderSpec, tmp_path: Path) -> None:
    encoders = runner._Encoders(spec, tiny, 5, CPU, tmp_path, False)
    pixels, home = encoders.baseline("pixels")
    assert isinstance(pixels, RawPixels) and pixels.seed == 5
    assert home.name.startswith("pixels-tiny-seed5-")


def test_runs_with_captions_and_without_share_an_untrained_encoder(
    tiny: Dataset, spec: EncoderSpec, tmp_path: Path
) -> None:
    homes = [
        runner._Encoders(each, tiny, 5, CPU, tmp_path, False).baseline("random")[1]
        for each in (spec, helpers.with_text(ALBEF, spec))
    ]
    assert homes[0] == homes[1]


@pytest.mark.parametrize(
    ("method", "name", "compared"),
    [("bert", "knn", ["random init"]), ("albef", "masked-words", []), ("albef", "retrieval", [])],
)
def test_what_cannot_be_evaluated_is_no_baseline(
    method: str, name: str, compared: list[str], tiny: Dataset, tmp_path: Path
) -> None:
    """No pixels beside an encoder of texts, no untrained encoder of images for hidden words."""
    plugin, evaluation = registry.find("method", method), registry.find("eval", name)
    plain = EncoderSpec("vit_micro", 16, 4, 3, tiny.mean, tiny.std, helpers.SHAPE)
    built, home = helpers.build(plugin, plain), tmp_path / "run"
    home.mkdir()
    weights.save(built.encoder, helpers.with_text(plugin, plain), home)
    if built.text_side is not None:
        own = built.text_side.state_dict(prefix=f"{weights.TEXT_SIDE}.")
        weights.write(home / schema.METHOD_WEIGHTS, own)
    evals = {evaluation: helpers.small(evaluation)}
    [record] = runner.evaluate_run(home, evals, tiny, 5, CPU, tmp_path, keep_features=False)
    assert [*record["baselines"]] == compared


def test_features_that_are_looked_at_are_not_kept(
    tiny: Dataset, spec: EncoderSpec, tmp_path: Path
) -> None:
    weights.save(backbones.build(spec, 0), spec, tmp_path)
    before = {*tmp_path.iterdir()}
    runner.frozen_encoder(tmp_path, tiny, 0, CPU).features(tiny.test)
    assert {*tmp_path.iterdir()} == before


def test_the_headline_is_told_whatever_the_other_scores_are() -> None:
    record = {"eval": "knn", "scores": {"top1": 12.346, "other": 99.0}, "unit": "%"}
    assert runner.in_words(record) == "knn 12.35 %"
