"""Checkpoints for other code: written, loaded there, and compared."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from foreign_weights import decoder, features, images, moco_state, vit
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from ssl_bench import load_encoder
from ssl_bench.cli.commands import export
from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import UserError
from ssl_bench.models import encoders
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.checkpoints import Checkpoint, read
from ssl_bench.transforms.augmentations import evaluation_view, normalize

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mae(tmp_path: Path) -> Checkpoint:
    """An MAE with its decoder, from a file."""
    torch.save({"model": vit().state_dict() | decoder(depth=2)}, tmp_path / "mae.pth")
    checkpoint = read(str(tmp_path / "mae.pth"), WeightSettings(num_heads=3))
    settings = {"decoder_heads": 4, "norm_pix_loss": True, "mask_ratio": 0.5}
    return dataclasses.replace(checkpoint, settings=settings)


@pytest.fixture
def moco(tmp_path: Path) -> Checkpoint:
    """An encoder without a decoder."""
    torch.save({"state_dict": moco_state(vit(), vit())}, tmp_path / "moco.pth")
    return read(str(tmp_path / "moco.pth"), WeightSettings(num_heads=3))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def executed(printed: str) -> list[Any]:
    """What the lines that say how to load something give."""
    lines = re.findall(r"^.*\bwith ((?:timm|transformers)\..*\))$", printed, re.MULTILINE)
    return [eval(line, {"timm": timm, "transformers": transformers}).eval() for line in lines]


def test_timm_loads_it_with_the_arguments_that_are_told(moco: Checkpoint, tmp_path: Path) -> None:
    note = export.to_timm(moco, tmp_path / "encoder.safetensors")
    [loaded] = executed(note)
    assert_close(features(moco.encoder, images()), features(loaded, images()))
    told = loaded.pretrained_cfg
    assert (told["mean"], told["std"]) == (moco.spec.mean, moco.spec.std)
    assert told["input_size"] == (3, 32, 32)


@pytest.mark.parametrize("size", [28, 224])
def test_timm_crops_a_larger_image_as_evaluations_do(size: int) -> None:
    told = EncoderSpec("vit_nano", size, 4, 3, (0.0,) * 3, (1.0,) * 3).pretrained_cfg()
    ramp = torch.linspace(0, 255, 2 * size).round().byte().expand(3, 2 * size, 2 * size)
    theirs = timm.data.create_transform(**told)(to_pil_image(ramp.contiguous()))
    torch.testing.assert_close(theirs, evaluation_view(ramp[None], size)[0], rtol=0, atol=0.02)


class OfficialFinetuning(VisionTransformer):
    """What the official fine-tuning code builds: a timm ViT whose pooled tokens are normed."""

    def __init__(self, global_pool: bool, **arguments: Any) -> None:
        norm = partial(nn.LayerNorm, eps=1e-6)
        super().__init__(norm_layer=norm, global_pool="token", fc_norm=False, **arguments)
        self.pools = global_pool
        if global_pool:
            self.fc_norm = norm(self.embed_dim)
            del self.norm


@pytest.mark.parametrize("global_pool", [True, False])
def test_official_finetuning_code_loads_it(
    global_pool: bool, mae: Checkpoint, tmp_path: Path
) -> None:
    """As its ``main_finetune.py`` does: ``['model']``, not strictly, and missing only the head."""
    export.to_mae(mae, tmp_path / "mae.pth")
    model = OfficialFinetuning(
        global_pool, img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5
    )
    checkpoint = torch.load(tmp_path / "mae.pth", map_location="cpu", weights_only=True)["model"]
    assert checkpoint["pos_embed"].shape == model.pos_embed.shape
    result = model.load_state_dict(checkpoint, strict=False)
    head = {"head.weight", "head.bias"}
    pooled = {"fc_norm.weight", "fc_norm.bias"}
    assert set(result.missing_keys) == (head | pooled if global_pool else head)
    surplus = {name for name in result.unexpected_keys if not name.startswith("decoder")}
    assert surplus == ({"norm.weight", "norm.bias"} if global_pool else set()) | {"mask_token"}
    model.norm = mae.encoder.norm
    assert_close(features(mae.encoder, images()), features(model.eval(), images()))


def test_what_was_written_as_mae_reads_back_without_a_hint(mae: Checkpoint, tmp_path: Path) -> None:
    export.to_mae(mae, tmp_path / "mae.pth")
    again = read(str(tmp_path / "mae.pth"), WeightSettings())
    assert_close(features(mae.encoder, images()), features(again.encoder, images()))
    assert again.settings == mae.settings
    assert all(torch.equal(again.decoder[name], mae.decoder[name]) for name in mae.decoder)


def test_transformers_loads_the_encoder(moco: Checkpoint, tmp_path: Path) -> None:
    from transformers import ViTModel

    export.to_transformers(moco, tmp_path / "hf")
    theirs, report = ViTModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert {name.partition(".")[0] for name in report["missing_keys"]} <= {"pooler"}
    assert not report["unexpected_keys"]
    with torch.no_grad():
        expected = theirs.eval()(images()).last_hidden_state
    assert_close(features(moco.encoder, images()), expected)
    assert_close(features(load_encoder(tmp_path / "hf"), images()), expected)


def test_transformers_is_told_how_wide_mlps_are_and_that_nothing_is_dropped(
    tmp_path: Path,
) -> None:
    torch.save(vit(mlp_ratio=2.0).state_dict(), tmp_path / "vit.pth")
    checkpoint = read(str(tmp_path / "vit.pth"), WeightSettings(num_heads=3))
    export.to_transformers(checkpoint, tmp_path / "hf")
    theirs = transformers.ViTModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False)
    with torch.no_grad():  # in training mode
        expected = theirs.train()(images()).last_hidden_state
    assert_close(features(checkpoint.encoder, images()), expected)


def test_a_decoder_without_mask_tokens_of_its_own_has_no_place(
    mae: Checkpoint, tmp_path: Path
) -> None:
    """Nor has one whose attention heads are not known."""
    for settings in ({"decoder_heads": 4, "encoder_mask_tokens": True}, {}):
        other = dataclasses.replace(mae, settings=settings)
        assert "encoder alone" in export.to_mae(other, tmp_path / "mae.pth")
        held = torch.load(tmp_path / "mae.pth", weights_only=True)["model"]
        assert held.keys() == mae.encoder.state_dict().keys()


def test_transformers_prepares_images_as_we_do(mae: Checkpoint, tmp_path: Path) -> None:
    """Of the encoder's size: scaled to [0, 1] and normalised; of another, resized bicubically."""
    from transformers import ViTImageProcessor

    own: dict[str, Any] = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    spec = dataclasses.replace(mae.spec, **own)
    export.to_transformers(dataclasses.replace(mae, spec=spec), tmp_path / "hf")
    processor = ViTImageProcessor.from_pretrained(tmp_path / "hf")
    size, generator = spec.image_size, torch.Generator().manual_seed(0)
    for side in (size, 2 * size):
        pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=generator)
        image = Image.fromarray(pixels.numpy())
        resized = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
        expected = torch.from_numpy(resized.copy()).permute(2, 0, 1)[None] / 255
        found = processor(image, return_tensors="pt")["pixel_values"]
        expected = normalize(expected, *own.values())
        # Where it resizes, torchvision rounds in other places than Pillow.
        torch.testing.assert_close(found, expected, atol=1e-5 if side == size else 0.02, rtol=0)


def test_transformers_is_told_what_norms_add(mae: Checkpoint, tmp_path: Path) -> None:
    for added in (1e-6, 1e-3):
        spec = dataclasses.replace(mae.spec, norm_eps=added)
        export.to_transformers(dataclasses.replace(mae, spec=spec), tmp_path / str(added))
        told = json.loads((tmp_path / str(added) / "config.json").read_text())
        assert told["layer_norm_eps"] == added
        assert read(str(tmp_path / str(added)), WeightSettings()).spec.norm_eps == added


def test_transformers_loads_the_whole_autoencoder(mae: Checkpoint, tmp_path: Path) -> None:
    """Its loss is that of the method with the same weights and noise."""
    from transformers import ViTMAEForPreTraining, ViTModel

    from ssl_bench.api import registry

    export.to_transformers(mae, tmp_path / "hf")
    theirs, report = ViTMAEForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    noise_BL = torch.rand(2, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = theirs.eval()(images(), noise=noise_BL).loss

    plugin = registry.find("method", "mae")
    shown = plugin.load_class().settings_of(mae.decoder)
    config = plugin.load().Config(**{**shown, **mae.settings})
    method = plugin.load_class()(config, mae.encoder, 0)
    method.load_state_dict(
        {**mae.decoder, **{f"encoder.{k}": v for k, v in mae.encoder.state_dict().items()}}
    )
    with torch.no_grad():
        ours = method.eval().reconstruction_loss(images(), noise_BL)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)

    encoder = ViTModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert_close(features(mae.encoder, images()), encoder(images()).last_hidden_state)

    again = read(str(tmp_path / "hf"), WeightSettings())
    assert again.settings == mae.settings
    assert all(torch.equal(again.decoder[name], mae.decoder[name]) for name in mae.decoder)


def test_transformers_is_told_what_official_code_does_without_flags(
    mae: Checkpoint, tmp_path: Path
) -> None:
    """Its ``--mask_ratio`` is 0.75, and pixels are normalised with ``--norm_pix_loss`` alone."""
    plain = dataclasses.replace(mae, settings={"decoder_heads": 4})
    export.to_transformers(plain, tmp_path / "hf")
    told = transformers.ViTMAEConfig.from_pretrained(tmp_path / "hf")
    assert (told.mask_ratio, told.norm_pix_loss) == (0.75, False)


def test_encoder_that_a_format_has_no_place_for(tmp_path: Path) -> None:
    for more, message in (
        ({"reg_tokens": 2}, "has 'reg_token'"),
        ({"init_values": 0.1}, "has 'blocks.0.ls1.gamma'"),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "has not both"),
    ):
        torch.save(vit(**more).state_dict(), tmp_path / "vit.pth")
        checkpoint = read(str(tmp_path / "vit.pth"), WeightSettings(num_heads=3))
        for write in (export.to_mae, export.to_transformers):
            with pytest.raises(UserError, match=message):
                write(checkpoint, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        export.to_timm(checkpoint, tmp_path / "timm.safetensors")


def test_what_the_official_code_fixes_is_not_exported_otherwise(tmp_path: Path) -> None:
    for more in ({"qkv_bias": False}, {"mlp_ratio": 2.0}):
        torch.save(vit(**more).state_dict(), tmp_path / "vit.pth")
        checkpoint = read(str(tmp_path / "vit.pth"), WeightSettings(num_heads=3))
        with pytest.raises(UserError, match="unlike this encoder"):
            export.to_mae(checkpoint, tmp_path / "mae.pth")
    spec = dataclasses.replace(checkpoint.spec, norm_eps=1e-3)
    other = dataclasses.replace(checkpoint, spec=spec)
    for write in (export.to_mae, export.to_timm):
        with pytest.raises(UserError, match="1e-06"):
            write(other, tmp_path / "out")


def test_folder_of_something_else_is_not_written_into(moco: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    with pytest.raises(UserError, match="folder of something else"):
        export.to_transformers(moco, tmp_path / "photos")


def test_prefix_without_a_position_gets_one_of_zeros(tmp_path: Path) -> None:
    torch.save(vit(no_embed_class=True).state_dict(), tmp_path / "vit.pth")
    checkpoint = read(str(tmp_path / "vit.pth"), WeightSettings(num_heads=3, grid=(4, 4)))
    export.to_mae(checkpoint, tmp_path / "mae.pth")
    again = load_encoder(tmp_path / "mae.pth")
    assert_close(features(checkpoint.encoder, images()), features(again, images()))


class TestCommands:
    """``ssl-bench export`` and ``reconstruct``, on a run and on files."""

    @pytest.fixture
    def run(self, ssl_bench: Call, image_folder: Path, tmp_path: Path) -> Path:
        flags = ("--epochs", 1, "--batch-size", 16, "--backbone", "vit_nano", "--evals", "none")
        code, _, err = ssl_bench(
            "run", "--data", image_folder, "--runs-dir", tmp_path / "runs", *flags
        )
        assert code == 0, err
        [folder] = [path.parent for path in (tmp_path / "runs").glob("*/encoder.json")]
        return folder

    def test_a_run_goes_out_and_comes_back(
        self, run: Path, ssl_bench: Call, image_folder: Path, tmp_path: Path
    ) -> None:
        pictures = sorted(image_folder.glob("test/*/*.png"))[:3]
        expected = features(load_encoder(run), images(16, 16))
        drawn = []
        for name in ("timm", "mae", "hf"):
            output = tmp_path / f"out-{name}{'.pth' if name == 'mae' else ''}"
            output = output.with_suffix(".safetensors") if name == "timm" else output
            code, out, err = ssl_bench("export", run, "--format", name, "--output", output)
            assert code == 0, err
            assert f"written: {output}" in out
            hints: dict[str, Any] = {"num_heads": 2} if name == "timm" else {}
            assert_close(features(load_encoder(output, **hints), images(16, 16)), expected)
            code, _, err = ssl_bench("export", run, "--format", name, "--output", output)
            assert code == 2 and "exists" in err
        for source in (run, tmp_path / "out-mae.pth", tmp_path / "out-hf"):
            picture = tmp_path / "picture.png"
            code, out, err = ssl_bench("reconstruct", source, *pictures, "--output", picture)
            assert code == 0, err
            assert "predicts normalised patches" in out
            drawn.append(picture.read_bytes())
        assert len(drawn[0]) > 5000

    def test_the_printed_lines_load_what_was_written(
        self, run: Path, ssl_bench: Call, image_folder: Path, tmp_path: Path
    ) -> None:
        ours = load_encoder(run)
        expected = features(ours, images(16, 16))
        flags = ("--epochs", 1, "--batch-size", 16, "--backbone", "vit_nano", "--evals", "none")
        data = ("--data", image_folder, "--runs-dir", run.parent)
        assert ssl_bench("run", "--method", "random-init", *data, *flags)[0] == 0
        [untrained] = run.parent.glob("random-init-*")

        [loaded] = executed(ssl_bench("export", run, "--output", tmp_path / "it.safetensors")[1])
        assert_close(features(loaded, images(16, 16)), expected)
        told = timm.data.resolve_model_data_config(loaded)
        assert told["mean"] == ours.spec.mean != (0.5, 0.5, 0.5)
        assert (told["std"], told["input_size"]) == (ours.spec.std, (3, 16, 16))

        out = ssl_bench("export", run, "--format", "hf", "--output", tmp_path / "mae")[1]
        encoder, autoencoder = executed(out)
        with torch.no_grad():
            theirs = encoder(images(16, 16)).last_hidden_state
            assert autoencoder(images(16, 16)).loss.isfinite()
        assert_close(theirs[:, 0], expected[:, 0])

        out = ssl_bench("export", untrained, "--format", "hf", "--output", tmp_path / "vit")[1]
        [encoder] = executed(out)
        with torch.no_grad():
            theirs = encoder(images(16, 16)).last_hidden_state
        assert_close(theirs, features(load_encoder(untrained), images(16, 16)))

    def test_reconstruction_follows_its_flags(
        self, run: Path, ssl_bench: Call, image_folder: Path, tmp_path: Path
    ) -> None:
        [picture] = sorted(image_folder.glob("test/a/0.png"))
        drawn = []
        for flags in ((), ("--seed", 1), ("--mask-ratio", 0.5), ("--sampling", "grid")):
            output = tmp_path / "picture.png"
            code, _, err = ssl_bench("reconstruct", run, picture, "--output", output, *flags)
            assert code == 0, err
            drawn.append(output.read_bytes())
        assert len(set(drawn)) == 4

    def test_target_of_an_unknown_decoder_is_worked_out(
        self, run: Path, ssl_bench: Call, image_folder: Path, tmp_path: Path
    ) -> None:
        pictures = sorted(image_folder.glob("test/*/*.png"))
        output = ("--output", tmp_path / "picture.png")
        assert ssl_bench("export", run, "--format", "mae", "--output", tmp_path / "a.pth")[0] == 0
        content = torch.load(tmp_path / "a.pth", weights_only=True)
        torch.save({"model": content["model"]}, tmp_path / "b.pth")
        code, _, err = ssl_bench("reconstruct", tmp_path / "b.pth", *pictures, *output)
        assert code == 2 and "--num-heads" in err
        words = ("reconstruct", tmp_path / "b.pth", *pictures, *output, "--num-heads", 2)
        code, _, err = ssl_bench(*words)
        assert code == 2 and "--decoder-heads" in err
        # Every patch of these pictures is the same, and of low contrast; the decoder says which.
        picture = np.tile(128 + np.arange(16).reshape(4, 4)[..., None], (4, 4, 3)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "tiled.png")
        words = ("reconstruct", tmp_path / "b.pth", tmp_path / "tiled.png", *words[-4:])
        spec = load_encoder(tmp_path / "b.pth", num_heads=2).spec
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        raw_BLP = encoders.patchify((pixels - mean) / std, 4)
        normalised = (raw_BLP - raw_BLP.mean(-1, keepdim=True)) / raw_BLP.std(-1, keepdim=True)
        for kind, patches in (("raw", raw_BLP), ("normalised", normalised)):
            state = dict(content["model"])
            state["decoder_pred.weight"] = torch.zeros_like(state["decoder_pred.weight"])
            state["decoder_pred.bias"] = patches.mean(dim=(0, 1))
            torch.save({"model": state}, tmp_path / "b.pth")
            code, out, err = ssl_bench(*words, "--decoder-heads", 2)
            assert code == 0, err
            assert f"taken to predict {kind} patches" in out
            assert "overrules" in out

    def test_mistakes_are_told_in_one_line(
        self, run: Path, ssl_bench: Call, image_folder: Path, tmp_path: Path
    ) -> None:
        picture = image_folder / "test/a/0.png"
        torch.save({"state_dict": moco_state(vit(), vit())}, tmp_path / "moco.pth")
        (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:40])
        out = ("--output", tmp_path / "out.png")
        for words, message in (
            (("reconstruct", run), "which images"),
            (("reconstruct", run, "nope.png", *out), "image 'nope.png' does not exist"),
            (("reconstruct", run, tmp_path / "broken.png", *out), "cannot read image"),
            (("reconstruct", run, picture, "--mask-ratio", 1.2, *out), "--mask-ratio 1.2"),
            (("reconstruct", run, picture, "--mask-ratio", 0.99, *out), "leaves no patch"),
            (("reconstruct", run, picture, "--decoder-heads", 5, *out), "5 decoder heads"),
            (("reconstruct", tmp_path / "moco.pth", picture, "--num-heads", 3), "no decoder"),
            (("reconstruct", run, picture, "--output", "/proc/nope/x.png"), "cannot write"),
            (("reconstruct", run, picture, "--grid", "8,6", *out), "tells its own architecture"),
            (("export",), "say what to export"),
            (("export", "nope.pth"), "file 'nope.pth' does not exist"),
            (("export", run, "--format", "onnx"), "onnx"),
            (("export", run, "--output", "/proc/nope/x"), "cannot write"),
        ):
            code, _, err = ssl_bench(*words)
            assert code == 2, words
            assert message in err and err.count("\n") == 1, err
            assert not (tmp_path / "out.png").exists()


def test_pixels_are_normalised_alike_after_a_way_through_mae(
    mae: Checkpoint, tmp_path: Path
) -> None:
    own: dict[str, Any] = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    spec = dataclasses.replace(mae.spec, **own)
    export.to_mae(dataclasses.replace(mae, spec=spec), tmp_path / "own.pth")
    back = read(str(tmp_path / "own.pth"), WeightSettings())
    assert (back.spec.mean, back.spec.std) == (own["mean"], own["std"])
