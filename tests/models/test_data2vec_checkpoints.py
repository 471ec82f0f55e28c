"""The official files of data2vec 2.0, which no model of timm computes: a line says so."""

from __future__ import annotations

from pathlib import Path

import foreign_weights
import pytest
import torch
from torch import Tensor

from ssl_bench import load_encoder
from ssl_bench.errors import UserError

State = dict[str, Tensor]


def network(decoder: bool) -> State:
    """Names of ``data2vec2.py`` and ``modalities/``, facebookresearch/fairseq ``26323eb``.

    The first block is the context encoder's, after a norm; there is none at the end.
    """
    image, state = "modality_encoders.IMAGE", foreign_weights.vit().state_dict()
    names = {
        "cls_token": f"{image}.extra_tokens",
        "patch_embed.proj.": f"{image}.local_encoder.proj.",
        "blocks.0.": f"{image}.context_encoder.blocks.0.",
        "blocks.1.": "blocks.0.",
        "norm.": f"{image}.context_encoder.norm.",
    }
    found = {f"{image}.fixed_positional_encoder.positions": state.pop("pos_embed")[:, 1:]}
    for name, tensor in state.items():
        [(ours, theirs)] = [pair for pair in names.items() if name.startswith(pair[0])]
        found[name.replace(ours, theirs, 1)] = tensor
    if decoder:
        found |= {
            f"{image}.decoder.blocks.0.0.weight": torch.ones(48, 3, 3, 3),
            f"{image}.decoder.blocks.0.0.bias": torch.ones(48),
            f"{image}.decoder.proj.weight": torch.ones(48, 48),
            f"{image}.decoder.proj.bias": torch.ones(48),
        }
    return found


@pytest.mark.parametrize("of", ["pre-training", "student alone", "fine-tuning"])
def test_why_they_cannot_be_loaded_is_said(of: str, tmp_path: Path) -> None:
    path = tmp_path / "base_imagenet.pt"
    if of == "pre-training":
        model = {**network(decoder=True), "_ema": network(decoder=False)}
        torch.save({"args": None, "cfg": {"model": {"depth": 1}}, "model": model}, path)
    elif of == "fine-tuning":
        state = {f"model.{name}": tensor for name, tensor in network(decoder=False).items()}
        head = {"fc_norm.weight": torch.ones(48), "head.weight": torch.ones(10, 48)}
        torch.save({"model": state | head}, path)
    else:
        torch.save(network(decoder=False), path)
    with pytest.raises(UserError, match=r"data2vec 2.0.*norms after each sum") as caught:
        load_encoder(path, num_heads=3)
    assert "\n" not in str(caught.value)
