"""VideoMAE's encoders and decoders: official files and transformers', in and out."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
import transformers
from foreign_weights import State
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEModel

from ssl_bench import load_encoder
from ssl_bench.api import registry
from ssl_bench.api.method import DataInfo
from ssl_bench.cli.commands import export
from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import UserError
from ssl_bench.models.checkpoints import Checkpoint, read

Call = Callable[..., tuple[int, str, str]]
FRAMES, SIDE, SIZE = 4, 32, 8
TUBELETS = FRAMES // 2 * (SIDE // SIZE) ** 2


def theirs(**more: Any) -> VideoMAEForPreTraining:
    """transformers' model with weights of realistic scale."""
    sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    sizes |= {"image_size": SIDE, "patch_size": SIZE, "num_frames": FRAMES}
    sizes |= {"intermediate_size": 192, "use_mean_pooling": False, "layer_norm_eps": 1e-6}
    decoder = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
    decoder["intermediate_size"] = 256
    sizes |= {f"decoder_{name}": value for name, value in decoder.items()}
    model = VideoMAEForPreTraining(VideoMAEConfig(**{**sizes, **more}))
    naive.randomise(model)
    return model.eval()


def clips(channels: int = 3) -> Tensor:
    """Normalised, with the frames on an axis of their own: ``(2, F, C, H, W)``."""
    shape = 2, FRAMES, channels, SIDE, SIDE
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def features(encoder: Any) -> Tensor:
    with torch.no_grad():
        return encoder.eval().forward_features(clips(3).flatten(1, 2))


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert (ours - expected).norm() / expected.norm() < 1e-5


def loss_of(checkpoint: Checkpoint, noise_BU: Tensor, clips_BFCHW: Tensor) -> float:
    plugin = registry.find("method", "videomae")
    shown = plugin.load_class().settings_of(checkpoint.decoder)
    known = {"mask_ratio": 0.75, **shown, **checkpoint.settings}
    data = DataInfo.of(checkpoint.spec, 0)
    method = plugin.load_class()(plugin.load().Config(**known), checkpoint.encoder, data)
    encoder = {f"encoder.{k}": v for k, v in checkpoint.encoder.state_dict().items()}
    method.load_state_dict({**checkpoint.decoder, **encoder})
    with torch.no_grad():
        views_BCHW = clips_BFCHW.flatten(1, 2)
        return method.reconstruction_loss(views_BCHW, lambda _, count: noise_BU[:, :count]).item()


def hidden(noise_BU: Tensor, share: float = 0.75) -> Tensor:
    """The tubes with the most noise: bool ``(B, tubelets)``, as transformers takes them."""
    order_BU = noise_BU.argsort(dim=1).argsort(dim=1)
    is_hidden_BU = order_BU >= round(noise_BU.shape[1] * (1 - share))
    return is_hidden_BU.repeat(1, FRAMES // 2)


def official(model: VideoMAEForPreTraining, prefix: str = "encoder.") -> State:
    """transformers' weights as the official code names them: fused, with two biases."""
    found: State = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("videomae.embeddings.patch_embeddings.projection", "E.patch_embed.proj")
        name = name.replace("videomae.encoder.layer", "E.blocks")
        name = name.replace("videomae.layernorm", "E.norm").replace("decoder_layers", "blocks")
        for old, new in (
            ("attention.output.dense", "attn.proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.attention.query.bias", "attn.q_bias"),
            ("attention.attention.value.bias", "attn.v_bias"),
        ):
            name = name.replace(old, new)
        found[name.replace("E.", prefix)] = tensor
    for name in [name for name in found if name.endswith("attention.attention.query.weight")]:
        block = name.removesuffix("attention.attention.query.weight")
        parts = [
            found.pop(f"{block}attention.attention.{part}.weight")
            for part in ("query", "key", "value")
        ]
        found[f"{block}attn.qkv.weight"] = torch.cat(parts)
    return found


@pytest.fixture(params=["transformers", "transformers before 5", "official"])
def pretrained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Checkpoint]:
    """The model of transformers, and what is read of its weights in a file."""
    model = theirs()
    if request.param == "official":
        path = tmp_path / "checkpoint.pth"
        args = Namespace(num_frames=FRAMES, input_size=SIDE, mask_ratio=0.75)
        args.normlize_target = True
        torch.save({"model": official(model), "epoch": 3, "args": args}, path)
        return model, read(str(path), WeightSettings(num_heads=3))
    path = tmp_path / "hf"
    model.save_pretrained(path)
    names = json.loads((path / "config.json").read_text())
    assert names["model_type"] == "videomae"
    if request.param != "transformers":
        state = {
            name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): tensor
            for name, tensor in model.state_dict().items()
        }
        (path / "model.safetensors").unlink()
        torch.save(state, path / "pytorch_model.bin")
    return model, read(str(path), WeightSettings())


def test_features_are_those_of_transformers(pretrained: tuple[Any, Checkpoint]) -> None:
    model, checkpoint = pretrained
    assert (checkpoint.spec.frames, checkpoint.spec.image_size) == (FRAMES, SIDE)
    with torch.no_grad():
        expected = model.videomae(clips()).last_hidden_state
    assert_close(features(checkpoint.encoder), expected)
    assert "VideoMAE" in checkpoint.kind and "4 frames" in checkpoint.notes[1]


def test_the_loss_is_that_of_transformers(pretrained: tuple[Any, Checkpoint]) -> None:
    model, checkpoint = pretrained
    noise_BU = torch.rand(2, TUBELETS // 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(clips(), bool_masked_pos=hidden(noise_BU)).loss.item()
    assert loss_of(checkpoint, noise_BU, clips()) == pytest.approx(expected, rel=1e-5)
    assert checkpoint.settings["decoder_heads"] == 1
    assert checkpoint.settings["norm_pix_loss"] is True


@pytest.mark.parametrize("more", [{}, {"num_channels": 1}])
def test_what_is_exported_transformers_loads_whole(more: dict[str, Any], tmp_path: Path) -> None:
    model = theirs(**more)
    model.save_pretrained(tmp_path / "in")
    checkpoint = read(str(tmp_path / "in"), WeightSettings())
    note = export.to_transformers(checkpoint, tmp_path / "out")
    again, report = VideoMAEForPreTraining.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    noise_BU = torch.rand(2, TUBELETS // 2, generator=torch.Generator().manual_seed(3))
    given = clips(more.get("num_channels", 3)), hidden(noise_BU)
    with torch.no_grad():
        assert_close(again.eval()(*given).logits, model(*given).logits)
    encoder, whole = (eval(line.split("with ")[1], {"transformers": transformers}) for line in
                      note.splitlines())  # fmt: skip
    assert isinstance(encoder, VideoMAEModel) and isinstance(whole, VideoMAEForPreTraining)
    back = read(str(tmp_path / "out"), WeightSettings())
    assert back.decoder.keys() == checkpoint.decoder.keys()
    assert all(torch.equal(back.decoder[name], checkpoint.decoder[name]) for name in back.decoder)
    processor = transformers.VideoMAEImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.crop_size == {"height": SIDE, "width": SIDE}
    assert processor.size["shortest_edge"] == SIDE and processor.do_center_crop
    assert processor.resample == transformers.VideoMAEImageProcessor().resample


def test_an_encoder_of_clips_goes_out_alone(tmp_path: Path) -> None:
    model = theirs()
    model.videomae.save_pretrained(tmp_path / "in")
    checkpoint = read(str(tmp_path / "in"), WeightSettings())
    assert not checkpoint.decoder
    export.to_transformers(checkpoint, tmp_path / "out")
    again = VideoMAEModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = model.videomae(clips()).last_hidden_state
        assert_close(again(clips()).last_hidden_state, expected)
    note = export.to_timm(checkpoint, tmp_path / "own.safetensors")
    assert "load_encoder" in note
    assert_close(features(load_encoder(tmp_path / "own.safetensors")), expected)
    with pytest.raises(UserError, match="--format hf"):
        export.to_mae(checkpoint, tmp_path / "mae.pth")


def test_without_a_last_norm_the_tokens_stay_as_they_are(tmp_path: Path) -> None:
    model = theirs(use_mean_pooling=True)
    model.save_pretrained(tmp_path / "in")
    checkpoint = read(str(tmp_path / "in"), WeightSettings())
    assert isinstance(checkpoint.encoder.norm, nn.Identity)
    with torch.no_grad():
        assert_close(features(checkpoint.encoder), model.videomae(clips()).last_hidden_state)


def test_a_fine_tuned_file_has_its_norm_after_the_mean(tmp_path: Path) -> None:
    model = theirs(use_mean_pooling=True)
    state = {name: t for name, t in official(model, "").items() if "decoder" not in name}
    del state["mask_token"]
    state |= {"fc_norm.weight": torch.full((48,), 2.0), "fc_norm.bias": torch.zeros(48)}
    state |= {"head.weight": torch.zeros(5, 48), "head.bias": torch.zeros(5)}
    torch.save({"module": state}, tmp_path / "fine.pth")
    told = WeightSettings(num_heads=3, frames=FRAMES, grid=(4, 4))
    checkpoint = read(str(tmp_path / "fine.pth"), told)
    assert checkpoint.encoder.fc_norm.weight.unique().tolist() == [2.0]
    with torch.no_grad():
        assert_close(features(checkpoint.encoder), model.videomae(clips()).last_hidden_state)


def test_what_a_bare_file_does_not_say_is_as_published(tmp_path: Path) -> None:
    state = official(theirs())
    torch.save({"model": state}, tmp_path / "bare.pth")
    checkpoint = read(str(tmp_path / "bare.pth"), WeightSettings(num_heads=3))
    assert (checkpoint.spec.frames, checkpoint.spec.image_size) == (16, 224)
    assert "16 frames" in checkpoint.notes[1]
    known = checkpoint.settings
    assert (known["mask_ratio"], known["norm_pix_loss"]) == (0.9, True)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"encoder.patch_embed.proj.weight": torch.ones(48, 3, 1, 8, 8)}, "tubelets of 1 frames"),
        ({"encoder.patch_embed.proj.weight": torch.ones(48, 2, 2, 8, 8)}, "384 values"),
        ({"decoder.head.weight": torch.ones(7, 64)}, "7 values"),
        ({"encoder.blocks.0.attn.v_bias": None}, "bias"),
        ({"encoder.norm3.weight": torch.ones(48)}, "norm3"),
    ],
)
def test_what_does_not_fit_is_one_line(
    change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    state = {**official(theirs()), **change}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    torch.save({"model": state}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=message) as error:
        read(str(tmp_path / "bad.pth"), WeightSettings(num_heads=3))
    assert "\n" not in str(error.value)


def test_frames_are_asked_for_in_pairs(tmp_path: Path) -> None:
    torch.save({"model": official(theirs())}, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="5 frames"):
        read(str(tmp_path / "bare.pth"), WeightSettings(num_heads=3, frames=5))
