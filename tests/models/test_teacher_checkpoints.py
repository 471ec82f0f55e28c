"""The official files of DINO and iBOT: the teacher comes in, and every key is accounted for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_weights import features, images, vit
from torch import Tensor

from ssl_bench import load_encoder
from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import UserError
from ssl_bench.models.checkpoints import read

State = dict[str, Tensor]
BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
HEADS = WeightSettings(num_heads=3)


def backbone(shift: float) -> State:
    """An encoder under the names in ``vision_transformer.py``."""
    model = vit()
    with torch.no_grad():
        model.cls_token[..., 0].add_(shift)
    state = model.state_dict()
    modules = ["patch_embed.proj", "norm"]
    modules += [f"blocks.{block}.{part}" for block in (0, 1) for part in BLOCK]
    names = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert state.keys() == names | {"cls_token", "pos_embed"}
    return state


def network(prefix: str, shift: float, layers: int = 1, masked: bool = False) -> State:
    """A backbone and its head, with a last layer of its own for patches if there are two."""
    state = {f"{prefix}backbone.{name}": tensor for name, tensor in backbone(shift).items()}
    if masked:
        state[f"{prefix}backbone.masked_embed"] = torch.zeros(1, 48)
    for layer in (0, 2, 4):
        state[f"{prefix}head.mlp.{layer}.weight"] = torch.ones(4, 4)
        state[f"{prefix}head.mlp.{layer}.bias"] = torch.ones(4)
    last = {"weight_g": torch.ones(6, 1), "weight_v": torch.ones(6, 4)}
    for name in ("last_layer", "last_layer2")[:layers]:  # iBOT's are one module, with two names
        state |= {f"{prefix}head.{name}.{kind}": tensor for kind, tensor in last.items()}
    return state


def of_training(loss: State, name: str) -> dict[str, Any]:
    return {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]},
        "epoch": 800,
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        name: loss,
        "fp16_scaler": {"scale": 65536.0},
    }


def dino() -> dict[str, Any]:
    """``main_dino.py``, facebookresearch/dino ``7c446df``."""
    networks = {"student": network("module.", 1), "teacher": network("", 2)}
    return {**networks, **of_training({"center": torch.ones(1, 6)}, "dino_loss")}


def ibot() -> dict[str, Any]:
    """``main_ibot.py``, bytedance/ibot ``da316d8``: the student alone has a masked embedding."""
    student, teacher = network("module.", 1, 2, masked=True), network("", 2, 2)
    loss = {"center": torch.ones(1, 6), "center2": torch.ones(1, 1, 6)}
    return {"student": student, "teacher": teacher, **of_training(loss, "ibot_loss")}


def tensors_in(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from tensors_in(value)


def of(shift: float) -> Tensor:
    """What the encoder with that shift makes of images."""
    model = vit()
    with torch.no_grad():
        model.cls_token[..., 0].add_(shift)
    return features(model, images())


@pytest.mark.parametrize(
    ("make", "branch", "kind"),
    [
        (dino, None, "DINO, teacher"),
        (dino, "student", "DINO, student"),
        (ibot, None, "iBOT, teacher"),
        (ibot, "student", "iBOT, student"),
    ],
)
def test_full_checkpoints(
    make: Callable[[], dict[str, Any]], branch: str | None, kind: str, tmp_path: Path
) -> None:
    content = make()
    torch.save(content, tmp_path / "checkpoint.pth")
    encoder = load_encoder(tmp_path / "checkpoint.pth", num_heads=3, branch=branch)
    torch.testing.assert_close(features(encoder, images()), of(1.0 if branch == "student" else 2.0))
    settings = WeightSettings(num_heads=3, branch=branch)
    told, *_, left_out = read(str(tmp_path / "checkpoint.pth"), settings).notes
    assert told.startswith(kind)
    del content["optimizer"]["state"]  # numbered, not named
    counted = sum(int(count) for count in re.findall(r"tensors: (\d+)", left_out))
    assert len(encoder.state_dict()) + counted == len(list(tensors_in(content)))


@pytest.mark.parametrize("network_of", ["student", "teacher"])
def test_extracted_backbones(network_of: str, tmp_path: Path) -> None:
    """What ``extract_backbone_weights.py`` of iBOT writes; DINO's are the same."""
    state = {
        re.sub(r"^(module\.)?backbone\.", "", name): tensor
        for name, tensor in ibot()[network_of].items()
        if "backbone." in name
    }
    assert ("masked_embed" in state) == (network_of == "student")
    torch.save(state, tmp_path / "checkpoint_x.pth")
    encoder = load_encoder(tmp_path / "checkpoint_x.pth", num_heads=3)
    torch.testing.assert_close(
        features(encoder, images()), of(1.0 if network_of == "student" else 2.0)
    )
    notes = read(str(tmp_path / "checkpoint_x.pth"), HEADS).notes
    assert ("left out: masked_embed" in " ".join(notes)) == (network_of == "student")


def test_a_key_that_matches_nothing_is_named(tmp_path: Path) -> None:
    content = ibot()
    content["teacher"]["backbone.gizmo"] = torch.ones(1)
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=r"has 'backbone\.gizmo' too"):
        load_encoder(tmp_path / "checkpoint.pth", num_heads=3)
