"""BEiT's encoders as its authors store them, and SimMIM's, which are of the same kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import foreign_weights
import pytest
import timm
import torch
from torch import Tensor

from ssl_bench import load_encoder
from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import UserError
from ssl_bench.models import architecture, checkpoints
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.formats import Weights

State = dict[str, Tensor]
TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def beit(**changes: Any) -> Any:
    """A small BEiT for 32 x 32 images, with weights of realistic scale."""
    model = timm.create_model("beit_base_patch16_224", num_classes=0, **SIZES, **changes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def pretraining() -> Any:
    """Its blocks share a table, and a norm comes after them."""
    return beit(use_rel_pos_bias=False, use_shared_rel_pos_bias=True, global_pool="token")


def pretrained() -> State:
    """The weights of a pre-training (``modeling_pretrain.py``, microsoft/unilm ``768a3c8``)."""
    return {
        **pretraining().state_dict(),
        f"rel_pos_bias.{INDEX}": torch.zeros(17, 17, dtype=torch.int64),
        "mask_token": torch.ones(1, 1, 48),
        "lm_head.weight": torch.ones(20, 48),
        "lm_head.bias": torch.ones(20),
    }


def test_a_pretrained_beit_becomes_timms_and_the_rest_is_counted(tmp_path: Path) -> None:
    names = pretrained().keys()
    for name in (f"rel_pos_bias.{TABLE}", "cls_token", "blocks.1.gamma_2", "blocks.0.attn.v_bias",
                 "blocks.0.attn.qkv.weight", "norm.weight"):  # fmt: skip
        assert name in names
    torch.save({"model": pretrained()}, tmp_path / "beit.pth")
    found = checkpoints.read(str(tmp_path / "beit.pth"), WeightSettings())
    assert found.kind == "BEiT"
    assert (found.spec.image_size, found.spec.patch_size) == (32, 8)
    assert found.spec.mean == found.spec.std == (0.5, 0.5, 0.5)
    for part in ("lm_head (tensors: 2)", "mask_token (tensors: 1)", f"{INDEX} (tensors: 1)"):
        assert part in found.left_out
    assert sorted(found.left_out.split(": ", 1)[1].split("), ")) and "block" not in found.left_out
    images = foreign_weights.images()
    expected = foreign_weights.features(pretraining(), images)
    found_features = foreign_weights.features(load_encoder(tmp_path / "beit.pth"), images)
    torch.testing.assert_close(found_features, expected, rtol=1e-5, atol=1e-6)


def test_a_finetuned_beit_becomes_timms(tmp_path: Path) -> None:
    """Each block has a table then, the norm comes after the mean, and a classifier after that."""
    indices = {f"blocks.{block}.attn.{INDEX}": torch.zeros(17, 17) for block in range(2)}
    head = {"head.weight": torch.ones(9, 48), "head.bias": torch.ones(9)}
    torch.save({"model": beit().state_dict() | indices | head}, tmp_path / "beit.pth")
    images = foreign_weights.images()
    encoder = load_encoder(tmp_path / "beit.pth")
    expected = foreign_weights.features(beit(), images)
    assert torch.equal(foreign_weights.features(encoder, images), expected)
    assert torch.equal(encoder.fc_norm.weight, beit().fc_norm.weight)


def test_simmims_vit_is_a_beit(tmp_path: Path) -> None:
    state = {f"encoder.{name}": value for name, value in pretrained().items()}
    state = {name: value for name, value in state.items() if "lm_head" not in name}
    state |= {"decoder.0.weight": torch.ones(192, 48, 1, 1), "decoder.0.bias": torch.ones(192)}
    torch.save({"model": state}, tmp_path / "simmim.pth")
    found = checkpoints.read(str(tmp_path / "simmim.pth"), WeightSettings())
    assert found.kind == "SimMIM, encoder"
    assert found.spec.mean == (0.485, 0.456, 0.406)
    images = foreign_weights.images()
    torch.testing.assert_close(
        foreign_weights.features(found.encoder.eval(), images),
        foreign_weights.features(pretraining(), images),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("size", ["base", "large"])
def test_published_sizes_are_known(size: str) -> None:
    name = f"beit_{size}_patch16_224"
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    found = Weights("", model.state_dict(), {}, {})
    spec, grid = architecture.work_out(found, "it", WeightSettings(), EncoderSpec.norm_eps)
    assert (spec.backbone, spec.image_size, spec.architecture) == (name, 224, {})
    assert grid is None


@pytest.mark.parametrize(
    ("change", "hints", "message"),
    [
        ({"norm.bias": None}, {}, "lacks 'norm.bias'"),
        ({"blocks.1.gamma_1": None}, {}, "lacks 'blocks.1.gamma_1'"),
        ({"blocks.1.attn.gizmo": torch.ones(1)}, {}, "gizmo' too"),
        ({"cls_pt_layers.0.norm1.weight": torch.ones(48)}, {}, "cls_pt_layers"),
        ({f"rel_pos_bias.{TABLE}": torch.ones(7 * 9 + 3, 3)}, {}, "no square images"),
        ({f"rel_pos_bias.{TABLE}": None}, {}, "pos_embed"),
        ({}, {"num_heads": 3}, "--num-heads means nothing"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(
    change: dict[str, Tensor | None], hints: dict[str, Any], message: str, tmp_path: Path
) -> None:
    state = {**pretrained(), **change}
    content = {name: value for name, value in state.items() if value is not None}
    torch.save({"model": content}, tmp_path / "beit.pth")
    with pytest.raises(UserError, match=message) as raised:
        load_encoder(tmp_path / "beit.pth", **hints)
    assert "\n" not in str(raised.value)


def test_a_beit_without_layer_scales_is_read(tmp_path: Path) -> None:
    model = beit(init_values=0.0)
    assert not any("gamma" in name for name in model.state_dict())
    torch.save({"model": model.state_dict()}, tmp_path / "beit.pth")
    found = checkpoints.read(str(tmp_path / "beit.pth"), WeightSettings())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.forward_features(images)
        torch.testing.assert_close(found.encoder.eval().forward_features(images), expected)
