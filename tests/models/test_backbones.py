"""Backbones of timm that are no plain Vision Transformer: built, pooled, decayed, on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import CPU, random_images
from timm.models import group_parameters

from ssl_bench import load_encoder
from ssl_bench.api import optimizers
from ssl_bench.api.evaluation import FrozenEncoder
from ssl_bench.cli.commands.export import to_mae, to_timm, to_transformers
from ssl_bench.config.recipes import OptimizerConfig
from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import UserError
from ssl_bench.evaluation import finetuning
from ssl_bench.evaluation.features import Encoder
from ssl_bench.experiment import audit
from ssl_bench.models import backbones, checkpoints, encoders, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.utils import rng

SWIN = "swin_tiny_patch4_window7_224"
NAMED = (SWIN, "resnet18", "convnext_atto")
SMALL = ("test_resnet", "test_convnext", "test_coatnet")


def spec_of(backbone: str, size: int = 32, channels: int = 3) -> EncoderSpec:
    return EncoderSpec(backbone, size, None, channels, (0.5,) * channels, (0.25,) * channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("backbone", [*SMALL, "test_mambaout", "test_efficientnet"])
def test_the_mean_is_what_timm_classifies(backbone: str, channels: int) -> None:
    spec = spec_of(backbone, channels=channels)
    encoder = backbones.build(spec, seed=0).eval()
    with torch.no_grad():
        expected = encoder(random_images(spec))
        found = encoders.pool(encoder, encoder.forward_features(random_images(spec)))
        assert torch.equal(encoders.represent(encoder, random_images(spec)), expected)
    assert found.keys() == {"avg"}
    assert torch.equal(found["avg"], expected)
    assert expected.shape == (3, encoders.width(encoder))


@pytest.mark.parametrize("backbone", ["xcit_nano_12_p8_224", "deit_tiny_distilled_patch16_224"])
def test_a_class_token_stands_for_the_image_and_is_not_in_the_mean(backbone: str) -> None:
    spec = spec_of(backbone)
    encoder = backbones.build(spec, seed=0).eval()
    with torch.no_grad():
        tokens = encoder.forward_features(random_images(spec))
        found = encoders.pool(encoder, tokens)
        assert torch.equal(encoders.represent(encoder, random_images(spec)), tokens[:, 0])
    patches = tokens.shape[1] - (2 if "distilled" in backbone else 1)
    assert torch.equal(found["cls"], tokens[:, 0])
    torch.testing.assert_close(found["avg"], tokens[:, -patches:].mean(dim=1))


@pytest.mark.parametrize("registers", [0, 4])
def test_without_a_class_token_the_patches_stand_for_the_image(registers: int) -> None:
    shape: dict[str, Any] = {"embed_dim": 32, "depth": 1, "num_heads": 2, "class_token": False}
    shape |= {"reg_tokens": registers, "global_pool": "avg"}  # whose norm comes after the mean
    spec = EncoderSpec("vit_tiny_patch16_224", 16, 4, 3, (0.5,) * 3, (0.25,) * 3, shape)
    encoder = backbones.build(spec, seed=0).eval()
    torch.nn.init.constant_(encoder.fc_norm.weight, 3.0)
    with torch.no_grad():
        pooled = encoders.pool(encoder, encoder.forward_features(random_images(spec)))
        torch.testing.assert_close(encoders.represent(encoder, random_images(spec)), pooled["avg"])


@pytest.mark.parametrize("backbone", SMALL)
def test_weights_start_as_timm_has_them_under_the_seed(backbone: str) -> None:
    ours = backbones.build(spec_of(backbone), seed=3).state_dict()
    torch.manual_seed(rng.key(3, "encoder"))
    theirs = timm.create_model(**spec_of(backbone).timm_arguments()).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("size", [28, 32, 96, 224])
@pytest.mark.parametrize("backbone", NAMED)
def test_images_may_be_of_common_sizes(backbone: str, size: int) -> None:
    spec = spec_of(backbone, size, 1)
    if (backbone, size) == ("convnext_atto", 28):
        with pytest.raises(UserError, match=r"28 px.* --image-size 32, .* --patch-size 1 would"):
            backbones.check(spec)
        spec = dataclasses.replace(spec, patch_size=1)
    with torch.device("meta"):
        encoder = backbones.build(spec, seed=0)
        features = encoders.represent(encoder, torch.zeros(2, 1, size, size))
    assert features.shape == (2, encoders.width(encoder))


@pytest.mark.parametrize(
    ("backbone", "size", "expected"),
    [
        ("vit_micro", 28, 7),
        ("vit_micro", 32, 8),
        ("vit_micro", 64, 16),
        ("vit_micro", 96, 16),
        ("vit_micro", 224, 16),
        ("vit_micro", 8, 2),
        ("vit_tiny_patch16_224", 224, 16),
        ("vit_base_patch32_224", 224, 32),
        ("vit_small_patch8_224", 224, 8),
        ("vit_base_patch14_dinov2", 518, 14),
        ("vit_tiny_patch16_224", 32, 8),  # 2 x 2 patches would be too few
        ("vit_tiny_patch16_224", 100, 20),  # which 16 does not divide
        ("vit_tiny_patch16_224", 536, 8),  # half of 16, but nothing else divides it
    ],
)
def test_patches_are_as_the_name_says_or_suit_the_images(
    backbone: str, size: int, expected: int
) -> None:
    assert backbones.default_patch_size(backbone, size) == expected


@pytest.mark.parametrize(("size", "hint"), [(37, "36 or 40"), (41, "40 or 44"), (5, "4 or 8")])
def test_images_that_no_patch_divides_are_refused(size: int, hint: str) -> None:
    with pytest.raises(UserError, match=f"{size} has no divisor.* --image-size {hint} would"):
        backbones.default_patch_size("vit_tiny_patch16_224", size)


def test_nothing_is_dropped_at_random_unless_it_is_asked_for() -> None:
    with torch.device("meta"):
        plain = backbones.build(spec_of(SWIN), seed=0)
        dropping = backbones.build(spec_of(SWIN), seed=0, drop_path_rate=0.2)
    with pytest.raises(UserError, match="skips no block"):
        audit.drop_path(plain, 0.2)
    audit.drop_path(dropping, 0.2)
    assert encoders.drops(dropping.train()) and not encoders.drops(plain.train())
    vit = spec_of("vit_tiny_patch16_224")
    assert not encoders.drops(backbones.build(vit, seed=0, proj_drop_rate=0.5).train())


@pytest.mark.parametrize("backbone", [*NAMED, "test_coatnet"])
def test_layers_decay_in_timms_own_order(backbone: str) -> None:
    with torch.device("meta"):
        model = finetuning.Classifier(backbones.build(spec_of(backbone), seed=0), 3)
        theirs = timm.create_model(backbone, num_classes=3)
    layers = group_parameters(theirs, theirs.group_matcher(), reverse=True)
    top = max(layers.values())
    groups = optimizers.layer_decay_groups(model, OptimizerConfig(), 0.5)
    found = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        layer = layers[name.removeprefix("encoder.")] if name.startswith("encoder.") else top
        assert found[id(parameter)] == 0.5 ** (top - layer), name
    assert top > 4
    audit.layer_decay(model, groups, 0.5)
    with pytest.raises(UserError, match="matches no parameter of layer 2"):
        lost = [n for n, p in model.named_parameters() if found[id(p)] == 0.5 ** (top - 3)]
        optimizers.freeze(model, *lost)
        audit.layer_decay(model, optimizers.layer_decay_groups(model, OptimizerConfig(), 0.5), 0.5)


@pytest.mark.parametrize("backbone", SMALL)
def test_what_is_saved_or_exported_loads_again(backbone: str, tmp_path: Path) -> None:
    spec = spec_of(backbone)
    encoder = backbones.build(spec, seed=0).eval()
    weights.save(encoder, spec, tmp_path)
    told = to_timm(
        checkpoints.read(str(tmp_path), WeightSettings()), tmp_path / "exported.safetensors"
    )
    assert "exported.safetensors" in told
    arguments = json.loads((tmp_path / "encoder.json").read_text())["timm"]
    by_timm = timm.create_model(
        **arguments, checkpoint_path=str(tmp_path / "exported.safetensors")
    ).eval()
    with torch.no_grad():
        expected = encoder.forward_features(random_images(spec))
        assert torch.equal(by_timm.forward_features(random_images(spec)), expected)
        for source in (tmp_path, tmp_path / "exported.safetensors"):
            loaded = load_encoder(source)
            assert torch.equal(loaded.forward_features(random_images(spec)), expected)
            assert loaded.spec == spec


@pytest.mark.parametrize("write", [to_mae, to_transformers])
def test_formats_of_vision_transformers_say_so(write: Any, tmp_path: Path) -> None:
    weights.save(backbones.build(spec_of("test_resnet"), seed=0), spec_of("test_resnet"), tmp_path)
    with pytest.raises(UserError, match="Vision Transformer, not a ResNet"):
        write(checkpoints.read(str(tmp_path), WeightSettings()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_sizes_where_no_position_is_learned(tmp_path: Path) -> None:
    for backbone in ("test_resnet", "test_coatnet"):
        weights.save(backbones.build(spec_of(backbone), seed=0), spec_of(backbone), tmp_path)
        if backbone == "test_resnet":
            load_encoder(tmp_path, image_size=64)
        else:
            with pytest.raises(UserError, match="image-size"):
                load_encoder(tmp_path, image_size=64)


@pytest.mark.parametrize("backbone", ["hf-hub:x/y", "local-dir:/tmp", "resnet18.hf-hub:x/y", 3])
def test_a_file_cannot_name_something_to_fetch(backbone: Any, tmp_path: Path) -> None:
    spec = spec_of("test_resnet")
    weights.save(backbones.build(spec, seed=0), spec, tmp_path)
    stored = dataclasses.asdict(spec) | {"backbone": backbone}
    (tmp_path / "encoder.json").write_text(json.dumps(stored))
    with pytest.raises(UserError):
        load_encoder(tmp_path)


def test_a_classifier_of_pooled_features_starts_from_the_encoder() -> None:
    spec = spec_of("test_resnet")
    encoder: FrozenEncoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
    model = finetuning.Classifier(encoder.trainable_copy(), 3).eval()
    with torch.no_grad():
        expected = model.head(encoder.encode(random_images(spec))["avg"])
        torch.testing.assert_close(model(random_images(spec)), expected)
    with pytest.raises(UserError, match="no class token"):
        finetuning.Classifier(encoder.trainable_copy(), 3, "cls")


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        *((SWIN, "mocov3"), ("resnet18", "mocov3"), ("convnext_atto", "supervised")),
        *(("swin_nano", method) for method in ("supervised", "simclr", "simmim")),
    ],
)
def test_the_best_known_ones_from_training_to_export(
    backbone: str,
    method: str,
    ssl_bench: Callable[..., tuple[int, str, str]],
    image_folder: Path,
    tmp_path: Path,
) -> None:
    words = ["--image-size", 32, "--epochs", 0.1, "--batch-size", 6, "--precision", "fp32"]
    short = ["--linear-epochs", 1, "--finetune-epochs", 1, "--evals", "knn,linear,finetune"]
    if backbone == SWIN:
        short = ["--evals", "knn,attention"]
    where = ["--data", image_folder, "--runs-dir", tmp_path / "runs"]
    code, out, err = ssl_bench(
        *("run", "--method", method, "--backbone", backbone, *words, *short, *where)
    )
    assert code == 0, err
    [folder] = (tmp_path / "runs").glob(f"{method}-*")
    found = {path.name.split("-")[0] for path in folder.glob("evals/*")}
    assert found == ({"knn"} if backbone == SWIN else {"knn", "linear", "finetune"})
    exported = tmp_path / "exported.safetensors"
    code, _, err = ssl_bench("export", folder, "--format", "timm", "--output", exported)
    assert code == 0, err
    assert (backbone == SWIN) == ("attention" in out)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        first, second = (load_encoder(each).forward_features(image) for each in (folder, exported))
    assert torch.equal(first, second)
    assert not torch.equal(first[:1], first[1:])


@pytest.mark.parametrize("method", ["supervised", "mocov3"])
def test_batches_are_not_divided_under_batch_norms(
    method: str, ssl_bench: Callable[..., tuple[int, str, str]], image_folder: Path, tmp_path: Path
) -> None:
    words = ["--backbone", "test_resnet", "--batch-size", 12, "--micro-batch-size", 4]
    code, _, err = ssl_bench(
        *("run", "--method", method, *words, "--data", image_folder, "--runs-dir", tmp_path / "r")
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "--micro-batch-size 4" in err and "test_resnet" in err
    assert not list((tmp_path / "r").glob("*"))


def test_weights_that_were_changed_on_disk_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    weights.write(path, {"weight": torch.arange(8.0)}, "a test")
    assert weights.read_sealed(path)[1] == "a test"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of a number, and of nothing that says where numbers are
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        weights.read_sealed(path)
