"""What must hold on a CUDA device too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
import torch

from ssl_bench.api.registry import Plugin
from ssl_bench.data import Dataset
from ssl_bench.distributed.device import choose
from ssl_bench.evaluation.features import Encoder
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.text_encoder import ImageText
from ssl_bench.training import pretrain, setup

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("plugin", helpers.METHODS, ids=helpers.named)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_methods_train(
    plugin: Plugin, precision: str, spec: EncoderSpec, tiny: Dataset, tmp_path: Path
) -> None:
    hardware = choose(precision)  # type: ignore[arg-type]
    spec, tiny = helpers.fitting(plugin, spec, tiny)
    method = helpers.build(plugin, spec)
    pretrain.pretrain(method, tiny, helpers.plan(plugin, spec, tiny), tmp_path, hardware)
    assert (tmp_path / "encoder.json").exists()
    setup.restore(method, tmp_path)


@pytest.mark.parametrize("plugin", helpers.EVALS, ids=helpers.named)
def test_evaluations_run(plugin: Plugin, spec: EncoderSpec, tiny: Dataset) -> None:
    [albef] = [each for each in helpers.METHODS if each.name == "albef"]
    spec = helpers.with_text(albef, spec)
    assert spec.text
    module, pair = backbones.build(spec, seed=0), ImageText(spec.text)
    encoder = Encoder(module, spec, choose(), seed=0, pair=pair)
    evaluation = plugin.load_class()(helpers.small(plugin))
    assert evaluation.supports(encoder, tiny) is None
    result = evaluation.evaluate(encoder, tiny)
    assert result.predictions_N is None or result.predictions_N.device.type == "cpu"


def command(images: Path, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A short run as its user starts it."""
    given = ["run", "--data", images, "--runs-dir", folder, "--epochs", 2]
    return subprocess.run(
        [sys.executable, "-m", "ssl_bench", *map(str, [*given, *words])],
        capture_output=True,
        text=True,
        timeout=600,
    )


def losses(folder: Path) -> list[float]:
    [metrics] = folder.glob("*/metrics.jsonl")
    return [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]


def test_more_devices_than_gpus_are_refused(image_folder: Path, tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    done = command(image_folder, tmp_path, "--devices", count + 1, "--batch-size", 24 * (count + 1))
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"at most --devices {count} would work" in line


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", ["mae", "mocov3"])
@pytest.mark.parametrize("compiled", ["on", "off"])
def test_two_devices_train_as_one_does(
    method: str, strategy: str, compiled: str, image_folder: Path, tmp_path: Path
) -> None:
    shared = (
        "--method",
        method,
        "--batch-size",
        24,
        "--precision",
        "fp32",
        "--evals",
        "knn,linear,linear-paper,finetune",
    )
    one = command(image_folder, tmp_path / "one", *shared, "--compile", "off")
    assert (one.returncode, one.stderr) == (0, "")
    two = command(
        *(image_folder, tmp_path / "two", *shared, "--compile", compiled),
        *("--devices", 2, "--strategy", strategy),
    )
    assert two.returncode == 0, two.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
