"""Swin Transformers as SimMIM's and Swin's authors store them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import foreign_weights
import pytest
import timm
import torch
from torch import Tensor

from ssl_bench import load_encoder
from ssl_bench.config.presets import BACKBONES
from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import UserError
from ssl_bench.models import architecture, checkpoints
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.formats import Weights

State = dict[str, Tensor]
TABLE = "blocks.0.attn.relative_position_bias_table"
COMPUTED = (".relative_position_index", ".attn_mask")


def swin(**changes: Any) -> Any:
    """swin_nano for 32 x 32 images, with weights of realistic scale."""
    sizes = {**BACKBONES["swin_nano"], "img_size": 32, "num_classes": 0, **changes}
    model = timm.create_model(**sizes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def official(model: Any) -> State:
    """Weights under the authors' names: merging ends a stage, and tables of indices are stored."""

    def earlier(match: re.Match[str]) -> str:
        return f"layers.{int(match[1]) - 1}.downsample"

    state = {
        re.sub(r"^layers\.(\d+)\.downsample", earlier, name): value
        for name, value in model.state_dict().items()
    }
    for name, buffer in model.named_buffers():
        assert name.endswith(COMPUTED)
        state[name] = buffer
    return state


def simmim(model: Any) -> dict[str, Any]:
    """The file of a pre-training, as ``utils.py`` writes it, microsoft/SimMIM ``d3e29bc``."""
    state = {f"encoder.{name}": value for name, value in official(model).items()}
    state["encoder.mask_token"] = torch.ones(1, 1, 32)
    state["decoder.0.weight"] = torch.ones(8 * 8 * 3, 128, 1, 1)
    state["decoder.0.bias"] = torch.ones(8 * 8 * 3)
    return {"model": state, "optimizer": {"state": {}}, "max_accuracy": 0.0, "epoch": 99}


def test_simmims_file_becomes_timms_model_and_the_rest_is_counted(tmp_path: Path) -> None:
    torch.save(simmim(swin()), tmp_path / "simmim.pth")
    found = checkpoints.read(str(tmp_path / "simmim.pth"), WeightSettings())
    assert found.kind == "SimMIM, encoder"
    assert (found.spec.backbone, found.spec.image_size) == ("swin_nano", 32)
    for part in ("decoder (tensors: 2)", "mask_token (tensors: 1)",
                 "relative_position_index (tensors: 6)", "attn_mask (tensors: 2)"):  # fmt: skip
        assert part in found.left_out
    encoder = load_encoder(tmp_path / "simmim.pth")
    images = foreign_weights.images()
    expected = foreign_weights.features(swin(), images)
    assert torch.equal(foreign_weights.features(encoder, images), expected)


@pytest.mark.parametrize("depths", [(2, 2, 2), (1, 3)])
def test_a_supervised_swin_of_any_size_loads(depths: tuple[int, ...], tmp_path: Path) -> None:
    """With its classifier, by the authors' names and by timm's; two stages make 32 pixels of 8."""
    model = swin(depths=depths, num_heads=(2, 4, 8)[: len(depths)], window_size=8, img_size=32)
    head = {"head.weight": torch.ones(9, 4), "head.bias": torch.ones(9)}
    torch.save({"model": official(model) | head}, tmp_path / "official.pth")
    head = {f"head.fc.{name}": torch.ones(9) for name in ("weight", "bias")}
    torch.save(model.state_dict() | head, tmp_path / "timm.pth")
    images = foreign_weights.images()
    expected = foreign_weights.features(model, images)
    for name in ("official.pth", "timm.pth"):
        encoder = load_encoder(tmp_path / name)
        assert encoder.spec.image_size == 32
        assert torch.equal(foreign_weights.features(encoder, images), expected)


@pytest.mark.parametrize(
    ("backbone", "image_size", "changes", "expected"),
    [
        ("swin_base_patch4_window7_224", 192, {"window_size": 6}, "swin_base_simmim"),
        ("swin_tiny_patch4_window7_224", 224, {}, "swin_tiny_patch4_window7_224"),
        ("swin_large_patch4_window12_384", 384, {}, "swin_large_patch4_window12_384"),
        ("swin_large_patch4_window12_384", 192, {}, "swin_large_patch4_window12_384"),
    ],
)
def test_published_sizes_are_known(
    backbone: str, image_size: int, changes: dict[str, Any], expected: str
) -> None:
    with torch.device("meta"):
        model = timm.create_model(backbone, img_size=image_size, num_classes=0, **changes)
    found = Weights("", model.state_dict(), {}, {})
    spec, grid = architecture.work_out(found, "it", WeightSettings(), EncoderSpec.norm_eps)
    assert (spec.backbone, spec.image_size, spec.architecture) == (expected, image_size, {})
    assert grid is None


@pytest.mark.parametrize(
    ("change", "hints", "message"),
    [
        ({"encoder.norm.bias": None}, {}, "lacks 'norm.bias'"),
        ({"encoder.layers.1.blocks.0.gizmo": torch.ones(1)}, {}, "has .*gizmo' too"),
        ({"encoder.layers.0.downsample.gizmo": torch.ones(1)}, {}, "'encoder.layers.0.*gizmo' too"),
        (
            {"encoder.layers.1.blocks.0.attn.relative_position_bias_table": None},
            {},
            "lacks a stage",
        ),
        ({}, {"num_heads": 3}, "--num-heads means nothing"),
        ({}, {"backbone": "swin_tiny_patch4_window7_224"}, "patch_embed.* of shape|lacks|has"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(
    change: dict[str, Tensor | None], hints: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = simmim(swin())
    state = {**content["model"], **change}
    content["model"] = {name: value for name, value in state.items() if value is not None}
    torch.save(content, tmp_path / "simmim.pth")
    with pytest.raises(UserError, match=message) as raised:
        load_encoder(tmp_path / "simmim.pth", **hints)
    assert "\n" not in str(raised.value)
