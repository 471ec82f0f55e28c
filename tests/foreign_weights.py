"""Encoders as other people store them."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

State = dict[str, Tensor]


def vit(width: int = 48, depth: int = 2, heads: int = 3, **more: Any) -> VisionTransformer:
    """A small timm ViT of 32 x 32 images in 8 x 8 patches, with weights of realistic scale."""
    sizes = {"img_size": 32, "patch_size": 8, "num_classes": 0, **more}
    model = timm.create_model(
        "vit_base_patch16_224", embed_dim=width, depth=depth, num_heads=heads, **sizes
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def images(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def features(model: Any, images_BCHW: Tensor) -> Tensor:
    with torch.no_grad():
        return model.forward_features(images_BCHW)


def decoder(width: int = 32, depth: int = 1, encoder_width: int = 48, tokens: int = 17) -> State:
    """An MAE's decoder as the official code names it: 8 x 8 patches of three channels."""
    shapes: dict[str, tuple[int, ...]] = {
        "mask_token": (1, 1, width),
        "decoder_pos_embed": (1, tokens, width),
        "decoder_embed.weight": (width, encoder_width),
        "decoder_embed.bias": (width,),
        "decoder_pred.weight": (8 * 8 * 3, width),
        "decoder_pred.bias": (8 * 8 * 3,),
        "decoder_norm.weight": (width,),
        "decoder_norm.bias": (width,),
    }
    for block in range(depth):
        for part, out, into in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"decoder_blocks.{block}.{part}.weight"] = (out, into)
            shapes[f"decoder_blocks.{block}.{part}.bias"] = (out,)
        for norm in ("norm1", "norm2"):
            shapes[f"decoder_blocks.{block}.{norm}.weight"] = (width,)
            shapes[f"decoder_blocks.{block}.{norm}.bias"] = (width,)
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def moco_state(base: VisionTransformer, momentum: VisionTransformer) -> State:
    state: State = {}
    for network, model in (("base_encoder", base), ("momentum_encoder", momentum)):
        state |= {f"module.{network}.{name}": value for name, value in model.state_dict().items()}
        for layer in (0, 3, 6):
            state[f"module.{network}.head.{layer}.weight"] = torch.ones(4, 4)
        for layer in (1, 4, 7):
            state[f"module.{network}.head.{layer}.running_mean"] = torch.ones(4)
            state[f"module.{network}.head.{layer}.num_batches_tracked"] = torch.tensor(3)
    for layer in (0, 3):
        state[f"module.predictor.{layer}.weight"] = torch.ones(4, 4)
    return state
