"""Encoders: what they compute, how they start, what is on disk."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import naive
import pytest
import timm
import torch
from helpers import random_images
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import Block
from torch import nn

from ssl_bench.errors import UserError
from ssl_bench.models import backbones, encoders, weights
from ssl_bench.models.backbones import EncoderSpec


@pytest.mark.parametrize(
    "backbone",
    [
        "vit_micro",
        "vit_tiny_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "deit3_small_patch16_224",
    ],
)
def test_encoding_all_patches_is_the_models_own_forward(backbone: str, spec: EncoderSpec) -> None:
    spec = dataclasses.replace(spec, backbone=backbone)
    encoder = backbones.build(spec, seed=0).eval()
    images = random_images(spec)
    patches = encoders.patchify(images, 4)
    everything = torch.arange(16).expand(3, -1)
    with torch.no_grad():
        encoder.pos_embed.normal_()  # learned ones have a position for the class token, too
        ours = encoders.encode_visible(encoder, patches, everything)
        torch.testing.assert_close(ours, encoder.forward_features(images), rtol=1e-4, atol=1e-5)


def test_order_of_the_kept_patches_does_not_matter(spec: EncoderSpec) -> None:
    encoder = backbones.build(spec, seed=0).eval()
    patches = encoders.patchify(random_images(spec), 4)
    keep = torch.tensor([[3, 0, 9]]).expand(3, -1)
    with torch.no_grad():
        ours = encoders.encode_visible(encoder, patches, keep)
        flipped = encoders.encode_visible(encoder, patches, keep.flip(1))
    torch.testing.assert_close(ours[:, 1:], flipped[:, 1:].flip(1), rtol=1e-4, atol=1e-5)


@given(
    st.integers(1, 3),
    st.sampled_from([1, 3]),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_patchify_cuts_row_by_row_with_channels_fastest(
    batch: int, channels: int, size: int, rows: int, columns: int
) -> None:
    images = torch.randn(batch, channels, rows * size, columns * size)
    patches = encoders.patchify(images, size)
    assert patches.shape == (batch, rows * columns, size * size * channels)
    row, column = rows - 1, columns // 2
    corner = images[0, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
    expected = [corner[c, y, x] for y in range(size) for x in range(size) for c in range(channels)]
    assert torch.equal(patches[0, row * columns + column], torch.stack(expected))
    assert torch.equal(encoders.unpatchify(patches, size, columns), images)


@given(st.integers(1, 8).map(lambda n: 4 * n), st.integers(1, 6), st.integers(1, 6))
def test_sincos_follows_the_formula(width: int, rows: int, columns: int) -> None:
    for first in ("column", "row"):
        table = encoders.sincos_2d(width, rows, columns, prefix_tokens=1, first=first)
        assert table.shape == (1 + rows * columns, width)
        assert not table[0].any()
        quarter = width // 4
        for row in range(rows):
            for column in range(columns):
                ends = (column, row) if first == "column" else (row, column)
                expected = [
                    wave(position / 10000 ** (k / quarter))
                    for position in ends
                    for wave in (math.sin, math.cos)
                    for k in range(quarter)
                ]
                torch.testing.assert_close(
                    table[1 + row * columns + column], torch.tensor(expected), rtol=0, atol=1e-6
                )


def test_encoder_is_a_function_of_the_seed_alone(spec: EncoderSpec) -> None:
    torch.manual_seed(1)
    first = backbones.build(spec, seed=3).state_dict()
    torch.manual_seed(2)
    again = backbones.build(spec, seed=3).state_dict()
    other = backbones.build(spec, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["cls_token"], other["cls_token"])


def test_initial_weights_are_xavier_uniform(spec: EncoderSpec) -> None:
    encoder = backbones.build(spec, seed=0)
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
            assert not module.bias.any()
    kernel = encoder.patch_embed.proj.weight
    bound = math.sqrt(6 / (kernel[0].numel() + len(kernel)))
    assert 0.95 * bound < kernel.abs().max() <= bound
    assert not encoder.pos_embed.requires_grad
    naive.assert_normal(encoder.cls_token.detach(), 0.02)
    norms = {module.eps for module in encoder.modules() if isinstance(module, nn.LayerNorm)}
    assert norms == {spec.norm_eps} == {1e-6}


def test_saved_weights_load_with_timm(spec: EncoderSpec, tmp_path: Path) -> None:
    encoder = backbones.build(spec, seed=0).eval()
    weights.save(encoder, spec, tmp_path)
    arguments = json.loads((tmp_path / "encoder.json").read_text())["timm"]
    path = str(tmp_path / "encoder.safetensors")
    loaded = timm.create_model(**arguments, checkpoint_path=path).eval()
    images = random_images(spec)
    with torch.no_grad():
        assert torch.equal(loaded.forward_features(images), encoder.forward_features(images))
    ours, read = weights.load(tmp_path)
    assert read == spec
    assert torch.equal(ours.state_dict()["cls_token"], encoder.state_dict()["cls_token"])


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"backbone": "vit_tinny_patch16_224"}, "did you mean 'vit_tiny_patch16_224'"),
        ({"backbone": "resnet50x"}, "did you mean 'resnet50"),
        ({"backbone": "resnet50"}, "--patch-size 4.*--patch-size"),
        ({"backbone": "inception_v3", "patch_size": None}, "16 px.*--image-size 96, "),
        ({"backbone": "cait_xxs24_224", "channels": 5, "image_size": 0}, "cannot be built"),
        ({"patch_size": 5}, "--image-size 16 is not divisible by patch size 5.*4"),
        ({"patch_size": 32}, "--image-size 16 is not divisible by patch size 32"),
        ({"image_size": 100_000}, "--image-size 100000 .* patches; --image-size 1024 or less"),
        ({"image_size": 100_000, "patch_size": None, "backbone": "resnet18"}, "4096 or less"),
    ],
)
def test_what_cannot_be_built_is_said(
    spec: EncoderSpec, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        backbones.build(dataclasses.replace(spec, **changes), seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "vit_micro",
        "vit_tiny_patch16_224",
        "deit3_small_patch16_224",
        "vit_little_patch16_reg4_gap_256",
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_block_at_some_tokens_is_the_block_there(name: str, fused: bool) -> None:
    spec = EncoderSpec(name, 16, 4, 3, (0.5,) * 3, (0.25,) * 3, {"depth": 2})
    timm.layers.set_fused_attn(fused)
    try:
        encoder = backbones.build(spec, seed=0)
    finally:
        timm.layers.set_fused_attn(False)
    images = torch.randn(3, 3, 16, 16)
    trained = [p for p in encoder.parameters() if p.requires_grad]
    some = torch.arange(17).expand(3, 1, 1, 17) < 12
    for wanted, attended in itertools.product((slice(0, 1), slice(5, None)), (None, some)):
        tokens = torch.randn(3, 17, encoder.embed_dim)
        block = encoder.blocks[-1]
        torch.testing.assert_close(
            encoders.block_at(block, tokens, wanted, attended),
            block(tokens, attn_mask=attended)[:, wanted],
        )
    if encoder.cls_token is None:
        return
    gradients = []
    for token in (encoders.class_token(encoder, images), encoder.forward_features(images)[:, 0]):
        loss = token.square().mean()
        gradients.append((loss, *torch.autograd.grad(loss, trained, allow_unused=True)))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_a_block_at_some_tokens_norms_and_drops_as_the_block(fused: bool) -> None:
    """Queries, keys and what is attended to have norms of their own in some backbones."""
    timm.layers.set_fused_attn(fused)
    try:
        block = Block(
            32, 4, qkv_bias=True, qk_norm=True, scale_attn_norm=True, init_values=0.5,
            attn_drop=0.3, drop_path=0.5,
        )  # fmt: skip
    finally:
        timm.layers.set_fused_attn(False)
    tokens, wanted = torch.randn(9, 7, 32), slice(2, 5)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
        block.eval()
        torch.testing.assert_close(
            encoders.block_at(block, tokens, wanted), block(tokens)[:, wanted]
        )
        block.train()
        block.attn.attn_drop.p = 0.0  # which draws for all tokens
        torch.manual_seed(0)
        ours = encoders.block_at(block, tokens, wanted)
        torch.manual_seed(0)
        torch.testing.assert_close(ours, block(tokens)[:, wanted])


def test_feature_maps_are_by_rows_and_columns_with_features_last() -> None:
    features = torch.randn(2, 5, 3, 4)
    encoder: Any = nn.Identity()
    found = encoders.feature_map(encoder, features)
    assert found.shape == (2, 3, 4, 5)
    assert torch.equal(found[1, 2, 3], features[1, :, 2, 3])
    encoder.output_fmt = "NHWC"  # as of Swin Transformers
    assert torch.equal(encoders.feature_map(encoder, features), features)


def test_a_clip_has_as_many_tubelets_as_its_pairs_have_patches(spec: EncoderSpec) -> None:
    assert spec.patches == 16
    assert [dataclasses.replace(spec, frames=frames).patches for frames in (2, 8)] == [16, 64]


@pytest.mark.parametrize("wrong", [{"std": [0.5, 0.0, 0.5]}, {"norm_eps": 0.0}], ids=str)
def test_nothing_is_divided_by_zero(spec: EncoderSpec, wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="no encoder takes"):
        EncoderSpec.of({**spec.to_json(), **wrong})


def test_both_branches_of_a_block_are_skipped_more_often_with_depth() -> None:
    spec = EncoderSpec("vit_micro", 16, 4, 3, (0.5,) * 3, (0.25,) * 3, {"depth": 5})
    encoder = backbones.build(spec, seed=0)
    encoders.drop_paths(encoder, 0.4)
    for place, block in enumerate(encoder.blocks):
        for path in (block.drop_path1, block.drop_path2):
            assert getattr(path, "drop_prob", 0.0) == pytest.approx(0.1 * place)
