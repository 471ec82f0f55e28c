"""VideoMAE against a naive reference, and the parts it is made of."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import helpers
import naive
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.experiment import initial_values
from ssl_bench.models import backbones, encoders, masking, video, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import setup

VIDEOMAE = registry.find("method", "videomae")
SMALL = {"decoder_embed_dim": 32, "decoder_depth": 2, "decoder_heads": 4, "mask_ratio": 0.75}
FRAMES, SIZE = 4, 4


@pytest.fixture(scope="module")
def clip_spec() -> EncoderSpec:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    return EncoderSpec("vit_micro", 16, SIZE, 3, mean, std, helpers.SHAPE, frames=FRAMES)


def build(spec: EncoderSpec, **changes: Any) -> Any:
    config = VIDEOMAE.config(**(SMALL | changes))
    return setup.build_method(VIDEOMAE.load_class(), config, spec, 3, seed=0)


def sinusoid(position: int, width: int) -> Tensor:
    """The table's row: sine and cosine of the same angle beside each other."""
    angles = [position / 10000 ** (2 * (column // 2) / width) for column in range(width)]
    waves = [math.cos(a) if column % 2 else math.sin(a) for column, a in enumerate(angles)]
    return torch.tensor(waves, dtype=torch.float64)


def cubes(clip: Tensor) -> list[Tensor]:
    """Each tubelet of a clip ``(F, C, H, W)``: ``(2, C, size, size)``, by time, row and column."""
    return [
        clip[first : first + 2, :, top : top + SIZE, left : left + SIZE]
        for first in range(0, clip.shape[0], 2)
        for top in range(0, clip.shape[2], SIZE)
        for left in range(0, clip.shape[3], SIZE)
    ]


def reference(
    weights: naive.Weights,
    clips: Tensor,
    spec: EncoderSpec,
    hidden: list[list[int]],
    heads: tuple[int, int],
    norm: bool,
) -> Tensor:
    """The loss of normalised clips ``(B, F * C, H, W)``, by the paper's definitions, one by one."""
    mean, std = (torch.tensor(each).double().view(-1, 1, 1) for each in (spec.mean, spec.std))
    encoder = naive.under(weights, "encoder")
    kernel, bias = encoder["patch_embed.proj.weight"], encoder["patch_embed.proj.bias"]
    errors = []
    for clip, unseen in zip(clips, hidden, strict=True):
        frames = clip.view(FRAMES, 3, *clip.shape[1:])
        tubelets = cubes(frames)
        seen = [number for number in range(len(tubelets)) if number not in unseen]
        tokens = []
        for number in seen:
            embedded = [(w.view(2, 3, SIZE, SIZE) * tubelets[number]).sum() for w in kernel]
            tokens.append(torch.stack(embedded) + bias + sinusoid(number, len(bias)))
        encoded = naive.transformer(naive.under(encoder, "blocks"), torch.stack(tokens), heads[0])
        encoded = naive.layer_norm(naive.under(encoder, "norm"), encoded)
        visible = encoded @ weights["encoder_to_decoder.weight"].T
        width = visible.shape[1]
        row = [token + sinusoid(number, width) for token, number in zip(visible, seen, strict=True)]
        row += [weights["mask_token"][0, 0] + sinusoid(number, width) for number in unseen]
        decoded = naive.transformer(
            naive.under(weights, "decoder_blocks"), torch.stack(row), heads[1]
        )
        decoded = naive.layer_norm(naive.under(weights, "decoder_norm"), decoded)
        predicted = naive.linear(naive.under(weights, "head"), decoded)[len(seen) :]
        pixels = cubes(frames * std + mean)
        for guess, number in zip(predicted, unseen, strict=True):
            target = pixels[number]
            if norm:
                channels = []
                for values in target.unbind(1):
                    count = values.numel()
                    centre = values.sum() / count
                    spread = ((values - centre).square().sum() / (count - 1)).sqrt()
                    channels.append((values - centre) / (spread + 1e-6))
                target = torch.stack(channels, dim=1)
            # A prediction has its values by row, column, frame and channel.
            errors.append((guess - target.permute(2, 3, 0, 1).flatten()).square().mean())
    return torch.stack(errors).mean()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize(
    "sampling,mask_ratio", [("tube", 0.9), ("tube", 0.5), ("frame", 0.5), ("random", 0.8)]
)
def test_loss_and_gradients_equal_the_naive_reference(
    clip_spec: EncoderSpec, sampling: str, mask_ratio: float, norm_pix_loss: bool
) -> None:
    how = {"sampling": sampling, "mask_ratio": mask_ratio, "norm_pix_loss": norm_pix_loss}
    method = build(clip_spec, **how)
    naive.randomise(method)
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(3, FRAMES * 3, 16, 16, generator=generator)
    noise = torch.rand(3, 32, generator=generator)
    hidden = [hidden_by(sampling, row.tolist(), mask_ratio) for row in noise]
    weights, inputs = naive.weights_of(method), clips.double().requires_grad_()
    expected = reference(weights, inputs, clip_spec, hidden, (2, 4), norm_pix_loss)
    expected.backward()

    clips.requires_grad_()
    loss = method.reconstruction_loss(clips, lambda _, count: noise[:, :count])
    loss.backward()
    assert naive.relative_error(loss, expected) < 1e-5
    assert naive.relative_error(clips.grad, inputs.grad) < 1e-5
    errors = naive.gradient_errors(method, weights)
    assert {"mask_token", "encoder_to_decoder.weight", "encoder.patch_embed.proj.bias"} <= {*errors}
    assert max(errors.values()) < 1e-5, max(errors, key=lambda name: errors[name])


def hidden_by(sampling: str, noise: list[float], ratio: float) -> list[int]:
    """The hidden tubelets of a clip of two pairs of 16: those whose unit has the most noise."""
    units: list[list[int]] = {
        "tube": [[place, 16 + place] for place in range(16)],
        "frame": [[*range(16)], [*range(16, 32)]],
        "random": [[number] for number in range(32)],
    }[sampling]
    order = sorted(range(len(units)), key=lambda unit: noise[unit])
    chosen = order[len(units) - math.floor(ratio * len(units)) :]
    return [number for unit in chosen for number in units[unit]]


@pytest.mark.parametrize("frames,side,kept", [(16, 224, 160), (16, 32, 16), (8, 32, 8)])
def test_a_tube_is_hidden_through_time(frames: int, side: int, kept: int) -> None:
    """At the paper's size 176 of 196 places are, which leaves 160 tubelets of 1,568."""
    size = 16 if side == 224 else 8
    spec = EncoderSpec("vit_nano", side, size, 3, (0.5,) * 3, (0.5,) * 3, frames=frames)
    method = build(spec, mask_ratio=0.9)
    drawn = torch.rand(5, method.units, generator=torch.Generator().manual_seed(0))
    keep_BK, hidden_BM = method.mask(lambda _, count: drawn[:, :count])
    places = (side // size) ** 2
    assert keep_BK.shape == (5, kept)
    assert torch.equal(torch.cat([keep_BK, hidden_BM], 1).sort().values[0], torch.arange(
        places * frames // 2))  # fmt: skip
    for row in keep_BK:
        by_pair = [
            set((row[row // places == pair] % places).tolist()) for pair in range(frames // 2)
        ]
        assert len(by_pair[0]) == kept * 2 // frames
        assert all(each == by_pair[0] for each in by_pair)
    assert not torch.equal(keep_BK[0], keep_BK[1])


def test_a_clip_of_one_pair_of_frames_is_too_short_for_their_masks(clip_spec: EncoderSpec) -> None:
    with pytest.raises(UserError, match=r"pair of frames.*--frames"):
        build(dataclasses.replace(clip_spec, frames=2), sampling="frame", mask_ratio=0.5)


def test_official_count_of_hidden_patches_is_rounded_down() -> None:
    assert masking.count_kept(196, 0.9, hides_fewer=True) == 20
    assert masking.count_kept(196, 0.9) == 19


def test_positions_are_the_published_ones() -> None:
    table = video.sinusoids(1568, 768)
    assert table.shape == (1568, 768)
    expected = torch.stack([sinusoid(number, 768) for number in (0, 1, 777, 1567)])
    torch.testing.assert_close(table[[0, 1, 777, 1567]].double(), expected, rtol=0, atol=1e-6)


def test_tubelets_come_back_as_clips(clip_spec: EncoderSpec) -> None:
    method = build(clip_spec)
    clips = torch.randn(2, FRAMES * 3, 16, 16)
    tubelets = method.tubelets(clips)
    assert torch.equal(method.clips(tubelets), clips)
    first = clips[1].view(FRAMES, 3, 16, 16)[2:4, :, 4:8, 8:12]  # of the second pair
    expected = first.permute(2, 3, 0, 1).flatten()
    assert torch.equal(tubelets[1, 16 + 1 * 4 + 2], expected)


def test_embedding_gathered_tubelets_is_embedding_all(clip_spec: EncoderSpec) -> None:
    method = build(clip_spec)
    naive.randomise(method)
    clips = torch.randn(2, FRAMES * 3, 16, 16)
    every = torch.arange(32).expand(2, -1)
    with torch.no_grad():
        gathered = encoders.encode_visible(method.encoder, method.tubelets(clips), every)
        torch.testing.assert_close(gathered, method.encoder.forward_features(clips))


def test_only_hidden_tubelets_are_drawn_anew(clip_spec: EncoderSpec, tiny: Dataset) -> None:
    """Each with its own mean and deviation: where 1 is predicted, one deviation above the mean."""
    method, moving = build(clip_spec), helpers.as_clips(tiny, FRAMES)
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.ones_(method.head.bias)
    rows = setup.pictures(method, moving, clip_spec, seed=0, count=2)
    original, masked, drawn = rows.values()
    is_hidden = masked.isnan()
    assert 0.7 < is_hidden.float().mean() < 0.8
    assert torch.equal(masked[~is_hidden], original[~is_hidden])
    assert torch.equal(drawn[~is_hidden], original[~is_hidden])
    for strips in zip(original, masked, drawn, strict=True):
        clips = [each.unflatten(-1, (FRAMES, 16)).movedim(-2, 0) for each in strips]
        for cube, hidden, found in zip(*map(cubes, clips), strict=True):
            if hidden.isnan().all():
                std, mean = torch.std_mean(cube, dim=(0, 2, 3), keepdim=True)
                expected = (mean + std).expand_as(found)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def image_encoder(path: Path, spec: EncoderSpec, **changes: Any) -> VisionTransformer:
    """An image encoder with weights as after some training, in a file."""
    image_spec = dataclasses.replace(spec, frames=1, **changes)
    encoder = backbones.build(image_spec, seed=1)
    naive.randomise(encoder)
    weights.export(encoder, image_spec, path)
    return encoder


def test_an_image_encoder_is_inflated_to_start_from(clip_spec: EncoderSpec, tmp_path: Path) -> None:
    """What stands still is embedded, and encoded, as its image is, but for positions."""
    path = tmp_path / "mae.safetensors"
    image = image_encoder(path, clip_spec)
    method = build(clip_spec, init=str(path))
    assert method.config.init_hash == weights.digest(image)[:16]
    still = torch.randn(2, 3, 16, 16)
    clip = still.repeat(1, FRAMES, 1, 1)
    with torch.no_grad():
        once = image.patch_embed(still)
        pairs = method.encoder.patch_embed(clip).unflatten(1, (FRAMES // 2, -1))
        for pair in pairs.unbind(1):
            torch.testing.assert_close(pair, once)
        tokens = image.norm(image.blocks(once))
        torch.testing.assert_close(method.encoder.norm(method.encoder.blocks(once)), tokens)
    fresh = build(clip_spec)
    assert torch.equal(method.encoder.pos_embed, fresh.encoder.pos_embed)
    assert torch.equal(method.head.weight, fresh.head.weight)
    assert torch.equal(build(clip_spec, **vars(method.config)).head.weight, method.head.weight)


def test_a_start_that_does_not_fit_is_one_line(clip_spec: EncoderSpec, tmp_path: Path) -> None:
    path, other = tmp_path / "mae.safetensors", tmp_path / "other.safetensors"
    image_encoder(path, clip_spec)
    image_encoder(other, clip_spec, patch_size=8)
    clips = tmp_path / "clips.safetensors"
    weights.export(backbones.build(clip_spec, seed=1), clip_spec, clips)
    for changes, message in (
        ({"init": str(other)}, "other.safetensors"),
        ({"init": str(clips)}, "clips"),
        ({"init": str(tmp_path / "none.pth")}, "none.pth"),
        ({"init": str(path), "init_hash": "0" * 16}, "0000"),
        ({"init_hash": "0" * 16}, "--init"),
    ):
        with pytest.raises(UserError, match=message) as error:
            build(clip_spec, **changes)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"none\.pth"):
        VIDEOMAE.load_class().refuses(VIDEOMAE.config(init="none.pth"), 4, 8, 1)


@pytest.mark.parametrize(
    "changes,what",
    [
        ({"mask_ratio": 0.01}, "mask-ratio 0.01"),
        ({"sampling": "frame", "mask_ratio": 0.4}, "pair of frames"),
        ({"decoder_heads": 5}, "decoder-embed-dim 32"),
    ],
)
def test_what_cannot_be_hidden_is_said(
    clip_spec: EncoderSpec, changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError, match=what):
        build(dataclasses.replace(clip_spec), **changes)


def test_weight_decay_spares_the_mask_token(clip_spec: EncoderSpec) -> None:
    method = build(clip_spec)
    groups = method.optimizer().optimizer.param_groups
    [decay] = [
        g["weight_decay"] for g in groups if any(p is method.mask_token for p in g["params"])
    ]
    assert decay == 0


def test_frames_are_shown_from_left_to_right() -> None:
    clip = torch.arange(3.0).repeat_interleave(2)[None, :, None, None].expand(1, 6, 2, 2)
    assert video.strips(clip, 3)[0, 1, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_layers_after_the_encoder_start_as_those_in_it(clip_spec: EncoderSpec) -> None:
    found = initial_values.of_method(build(clip_spec, decoder_embed_dim=96, decoder_heads=2))
    assert found["initial linear layers after the encoder"] == "Xavier uniform, bias 0"
