"""Everyone's checkpoints: read, resized, and refused where they do not fit."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from foreign_weights import decoder, features, images, moco_state, vit
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from ssl_bench import load_encoder
from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import UserError
from ssl_bench.models import architecture, backbones, encoders, formats
from ssl_bench.models.checkpoints import read
from ssl_bench.models.formats import Weights

Call = Callable[..., tuple[int, str, str]]
State = dict[str, Tensor]


def assert_same_features(source: Path | str, model: VisionTransformer, **hints: Any) -> None:
    ours = load_encoder(source, **hints)
    assert not any(module.training for module in ours.modules())
    torch.testing.assert_close(features(ours, images()), features(model, images()))


def dino_state(model: VisionTransformer, prefix: str = "") -> State:
    state = {f"{prefix}backbone.{name}": value for name, value in model.state_dict().items()}
    for name in ("mlp.0.weight", "mlp.0.bias", "last_layer.weight_g", "last_layer.weight_v"):
        state[f"{prefix}head.{name}"] = torch.ones(2)
    return state


class TestFormats:
    """Files as their authors' code writes them."""

    def test_mae_encoder_alone(self, tmp_path: Path) -> None:
        model = vit()
        torch.save({"model": model.state_dict()}, tmp_path / "mae.pth")
        assert_same_features(tmp_path / "mae.pth", model, num_heads=3)

    def test_mae_in_full_with_the_flags_of_its_training(self, tmp_path: Path) -> None:
        model = vit()
        args = argparse.Namespace(norm_pix_loss=True, mask_ratio=0.6, model="mae_vit_base_patch16")
        content = {
            "model": model.state_dict() | decoder(width=512),
            "optimizer": {"state": {}, "param_groups": []},
            "epoch": 799,
            "args": args,
        }
        torch.save(content, tmp_path / "mae.pth")
        assert_same_features(tmp_path / "mae.pth", model, num_heads=3)
        checkpoint = read(str(tmp_path / "mae.pth"), WeightSettings(num_heads=3))
        assert checkpoint.decoder.keys() == decoder().keys()
        assert checkpoint.settings == {
            "norm_pix_loss": True,
            "mask_ratio": 0.6,
            "decoder_heads": 16,
        }

    def test_mae_fine_tuned_has_its_norm_after_the_pooling(self, tmp_path: Path) -> None:
        model = vit(global_pool="avg", num_classes=7)
        torch.save({"model": model.state_dict()}, tmp_path / "finetuned.pth")
        ours = load_encoder(tmp_path / "finetuned.pth", num_heads=3)
        torch.testing.assert_close(features(ours, images()), features(model, images()))
        pooled = ours.fc_norm(features(ours, images())[:, 1:].mean(1))
        torch.testing.assert_close(pooled, model.fc_norm(model.pool(features(model, images()))))

    @pytest.mark.parametrize("branch", [None, "base_encoder", "momentum_encoder"])
    def test_mocov3(self, branch: str | None, tmp_path: Path) -> None:
        base, momentum = vit(), vit()
        with torch.no_grad():
            momentum.cls_token[..., 0].add_(1)
        content = {"epoch": 300, "arch": "vit_small", "state_dict": moco_state(base, momentum)}
        torch.save(content, tmp_path / "vit-s-300ep.pth.tar")
        wanted = momentum if branch == "momentum_encoder" else base
        assert_same_features(tmp_path / "vit-s-300ep.pth.tar", wanted, num_heads=3, branch=branch)

    @pytest.mark.parametrize("branch", [None, "teacher", "student"])
    def test_dino(self, branch: str | None, tmp_path: Path) -> None:
        teacher, student = vit(), vit()
        with torch.no_grad():
            student.cls_token[..., 0].add_(1)
        content = {
            "student": dino_state(student, "module."),
            "teacher": dino_state(teacher),
            "args": argparse.Namespace(arch="vit_small", patch_size=16),
            "epoch": 100,
        }
        torch.save(content, tmp_path / "dino.pth")
        wanted = student if branch == "student" else teacher
        assert_same_features(tmp_path / "dino.pth", wanted, num_heads=3, branch=branch)

    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"num_classes": 10},
            {"reg_tokens": 4},
            {"reg_tokens": 2, "no_embed_class": True},
            {"init_values": 0.1},
            {"qkv_bias": False},
            {"mlp_ratio": 2.5},
            {"qk_norm": True},
            {"class_token": False, "global_pool": "avg"},
            {"class_token": False, "global_pool": "avg", "fc_norm": False},
            {"in_chans": 3, "patch_size": 4},
        ],
        ids=str,
    )
    def test_timm(self, more: Mapping[str, Any], tmp_path: Path) -> None:
        model = vit(**more)
        grid = (4, 4) if more.get("no_embed_class") else None
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        assert_same_features(tmp_path / "model.safetensors", model, num_heads=3, grid=grid)
        torch.save(model.state_dict(), tmp_path / "model.pth")
        assert_same_features(tmp_path / "model.pth", model, num_heads=3, grid=grid)

    def test_a_named_backbone_says_the_heads(self, tmp_path: Path) -> None:
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8).eval()
        torch.save(model.state_dict(), tmp_path / "model.pth")
        assert_same_features(tmp_path / "model.pth", model, backbone="vit_tiny_patch16_224")

    def test_run_folder(self, ssl_bench: Call, image_folder: Path, tmp_path: Path) -> None:
        flags = ("--epochs", 1, "--batch-size", 16, "--backbone", "vit_nano", "--evals", "none")
        code, _, err = ssl_bench(
            "run", "--data", image_folder, "--runs-dir", tmp_path / "runs", *flags
        )
        assert code == 0, err
        [folder] = [path.parent for path in (tmp_path / "runs").glob("*/encoder.json")]
        encoder = load_encoder(folder)
        assert features(encoder, images(16, 16)).shape == (2, 17, 64)
        assert encoder.spec.image_size == 16
        again = load_encoder(folder / "encoder.safetensors")
        torch.testing.assert_close(
            features(encoder, images(16, 16)), features(again, images(16, 16))
        )


class TestPrefixes:
    """Where an encoder lies in a file, and what lies beside it."""

    @pytest.mark.parametrize(
        "prefix",
        [
            *("model.", "net.", "encoder.", "backbone.", "backbone.vit.", "model.backbone."),
            *("model._orig_mod.", "backbone._orig_mod.", "module.backbone.module."),
            *("_forward_module.model.", "_fsdp_wrapped_module.vit._orig_mod.", "ema_model.module."),
        ],
    )
    @pytest.mark.parametrize("entries", [(), ("state_dict",), ("state_dict_ema",), ("a", "b")])
    def test_of_any_kind(self, prefix: str, entries: tuple[str, ...], tmp_path: Path) -> None:
        content: dict[str, Any] = {f"{prefix}{name}": t for name, t in vit().state_dict().items()}
        content |= {"gizmo": torch.ones(3), "decoder.weight": torch.ones(2), "queue": torch.ones(1)}
        for entry in reversed(entries):
            content = {entry: content, "epoch": 3}
        torch.save(content, tmp_path / "x.ckpt")
        assert_same_features(tmp_path / "x.ckpt", vit(), num_heads=3)
        [*_, told] = read(str(tmp_path / "x.ckpt"), WeightSettings(num_heads=3)).notes
        for name in ("gizmo (tensors: 1)", "decoder (tensors: 1)", "queue (tensors: 1)"):
            assert name in told
        assert ("epoch" in told) == bool(entries)

    @pytest.mark.parametrize("middle", ["module.", "_orig_mod.", "_checkpoint_wrapped_module."])
    def test_wrappers_of_single_blocks(self, middle: str, tmp_path: Path) -> None:
        """As torch.compile and FSDP put around blocks."""
        state = vit().state_dict()
        state = {re.sub(r"(blocks\.\d+\.)", rf"\1{middle}", name): t for name, t in state.items()}
        torch.save(state, tmp_path / "x.pth")
        assert_same_features(tmp_path / "x.pth", vit(), num_heads=3)

    def test_what_lies_below_the_encoders_own_is_an_error(self, tmp_path: Path) -> None:
        for name in ("backbone.gizmo", "backbone.blocks.1.gizmo"):
            state = {f"backbone.{name}": tensor for name, tensor in vit().state_dict().items()}
            torch.save({"state_dict": state | {name: torch.ones(1)}}, tmp_path / "x.ckpt")
            with pytest.raises(UserError, match=f"has {name!r} too"):
                load_encoder(tmp_path / "x.ckpt", num_heads=3)

    def test_two_weights_of_one_name_are_an_error(self, tmp_path: Path) -> None:
        state = vit().state_dict()
        torch.save({**state, "module.cls_token": state["cls_token"]}, tmp_path / "x.pth")
        with pytest.raises(UserError, match=r"'cls_token' and 'module\.cls_token' are both"):
            load_encoder(tmp_path / "x.pth", num_heads=3)

    def test_of_a_masked_autoencoder_with_its_decoder(self, tmp_path: Path) -> None:
        state = vit().state_dict() | decoder()
        torch.save({"state_dict": {f"model.{n}": t for n, t in state.items()}}, tmp_path / "x.ckpt")
        assert_same_features(tmp_path / "x.ckpt", vit(), num_heads=3)
        found = read(str(tmp_path / "x.ckpt"), WeightSettings(num_heads=3)).decoder
        assert found.keys() == decoder().keys()

    @pytest.mark.parametrize(
        "beside",
        [
            {"epoch": 5},
            {"epoch": torch.tensor(5)},
            {"best_acc": np.float64(0.5), "epoch": np.int64(3)},
            {"name": "x", "nothing": None, "losses": [1.0, 2.0], "flag": True},
            {"nothing": torch.empty(0)},
            {"args": argparse.Namespace(lr=1.0, tensor=torch.ones(2))},
            {"dino_loss": {"center": torch.ones(1, 4)}},
            {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1}]}},
        ],
        ids=lambda beside: "-".join(beside),
    )
    def test_what_is_no_weight_is_left_aside(
        self, beside: Mapping[str, Any], tmp_path: Path
    ) -> None:
        for content in (
            {**vit().state_dict(), **beside},
            {"model": vit().state_dict(), **beside},
            {"model": {**vit().state_dict(), **beside}},
        ):
            torch.save(content, tmp_path / "x.pth")
            assert_same_features(tmp_path / "x.pth", vit(), num_heads=3)
            [*_, told] = read(str(tmp_path / "x.pth"), WeightSettings(num_heads=3)).notes
            assert told.startswith("left out: ") and all(name in told for name in beside)

    def test_plain_number_in_the_place_of_a_weight(self, tmp_path: Path) -> None:
        torch.save({**vit().state_dict(), "blocks.0.norm1.bias": 0.5}, tmp_path / "x.pth")
        with pytest.raises(UserError, match=r"lacks 'blocks\.0\.norm1\.bias'"):
            load_encoder(tmp_path / "x.pth", num_heads=3)

    def test_weights_that_share_memory_are_refused(self, tmp_path: Path) -> None:
        state = vit().state_dict()
        state["blocks.1.norm1.bias"] = state["blocks.0.norm1.bias"]
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(UserError, match="same numbers in memory"):
            load_encoder(tmp_path / "x.pth", num_heads=3)

    @pytest.mark.parametrize(
        "names,default",
        [
            (("target_encoder", "encoder"), "target_encoder"),
            (("teacher.backbone", "student.backbone"), "teacher"),
            (("student.module.backbone", "teacher.backbone"), "teacher"),
            (("model", "model_ema"), None),
            (("state_dict", "state_dict_ema"), None),
            (("online.net", "target.net"), None),
        ],
    )
    def test_of_two_networks(
        self, names: tuple[str, str], default: str | None, tmp_path: Path
    ) -> None:
        models = {name: vit() for name in names}
        with torch.no_grad():
            for shift, model in enumerate(models.values()):
                model.cls_token[..., 0].add_(shift)
        content: dict[str, Any] = {"epoch": 1, "dino_loss": {"center": torch.ones(1, 8)}}
        for name, model in models.items():
            entry, _, prefix = name.partition(".")
            prefix = prefix + "." if prefix else ""
            content[entry] = {f"{prefix}{key}": t for key, t in model.state_dict().items()}
        torch.save(content, tmp_path / "x.pth")
        for name, model in models.items():
            branch = name.partition(".")[0]
            assert_same_features(tmp_path / "x.pth", model, num_heads=3, branch=branch)
            if branch == default:
                assert_same_features(tmp_path / "x.pth", model, num_heads=3)
        if default is None:
            with pytest.raises(UserError, match="holds several networks"):
                load_encoder(tmp_path / "x.pth", num_heads=3)

    def test_ijepa(self, tmp_path: Path) -> None:
        """As ``src/train.py`` saves it, whose ViT-Ti, like the others, has no class token."""
        how = {"class_token": False, "global_pool": "avg", "fc_norm": False}
        models = {name: vit(192, 12, 3, **how) for name in ("encoder", "target_encoder")}
        layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        blocks = [f"{block}.{layer}" for block in range(12) for layer in layers]
        both = [f"{name}.{kind}" for name in blocks for kind in ("weight", "bias")]
        around = [f"{name}.{kind}" for name in ("norm", "proj") for kind in ("weight", "bias")]
        own = {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", *around[:2]}
        own |= {f"blocks.{name}" for name in both}
        content: dict[str, Any] = {}
        for shift, (name, model) in enumerate(models.items()):
            encoders.fix_positions(model)
            model.patch_embed.proj.bias.data.add_(shift)
            state = model.state_dict()
            assert state.keys() == own
            content[name] = {f"module.{key}": tensor for key, tensor in state.items()}
        of_predictor = ["mask_token", "predictor_pos_embed"]
        of_predictor += [f"predictor_embed.{kind}" for kind in ("weight", "bias")]
        of_predictor += [f"predictor_{key}" for key in around]
        of_predictor += [f"predictor_blocks.{key}" for key in both]
        content["predictor"] = {f"module.{key}": torch.ones(1, 16, 4) for key in of_predictor}
        content |= {"opt": {"state": {}, "param_groups": []}, "scaler": {"scale": 1.0}}
        content |= {"epoch": 300, "loss": 0.2, "batch_size": 128, "world_size": 16, "lr": 1e-3}
        torch.save(content, tmp_path / "jepa-ep300.pth.tar")
        path = tmp_path / "jepa-ep300.pth.tar"
        assert_same_features(path, models["target_encoder"])
        assert_same_features(path, models["encoder"], branch="encoder")
        kind, *_, told = read(str(path), WeightSettings()).notes
        assert "I-JEPA, target encoder" in kind and "'num_heads': 4" not in kind
        assert f"encoder (tensors: {len(own)})" in told
        assert f"predictor (tensors: {len(of_predictor)})" in told
        content["target_encoder"]["module.blocks.0.attn.surplus"] = torch.ones(2)
        torch.save(content, path)
        with pytest.raises(UserError, match="surplus"):
            load_encoder(path)

    def test_eval_and_export_say_what_is_left_out(
        self, ssl_bench: Call, image_folder: Path, tmp_path: Path
    ) -> None:
        content = {"model": vit().state_dict(), "best": np.float64(0.5)}
        torch.save(content, tmp_path / "x.pth")
        flags = ("--num-heads", 3, "--evals", "knn", "--runs-dir", tmp_path / "runs")
        for command in (
            ("eval", "--weights", tmp_path / "x.pth", "--data", image_folder, *flags),
            ("export", tmp_path / "x.pth", "--num-heads", 3, "--output", tmp_path / "out"),
        ):
            code, out, err = ssl_bench(*command)
            assert code == 0, err
            assert "left out: best" in out


class TestDinov2:
    """Its own files, against timm's reading of them."""

    def theirs(self) -> tuple[VisionTransformer, State]:
        """A model of timm, and the same as DINOv2's code has it."""
        torch.manual_seed(0)
        sizes = {"img_size": 56, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 0}
        model = timm.create_model("vit_small_patch14_reg4_dinov2", **sizes).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.1)
        state = model.state_dict()
        state["register_tokens"] = state.pop("reg_token")
        position = torch.randn(1, 1, 48)  # DINOv2 adds it to the class token, as it runs
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - position
        return model, state | {"mask_token": torch.zeros(1, 48)}

    def assert_same(self, path: Path, model: VisionTransformer) -> None:
        ours, pictures = load_encoder(path, num_heads=3), images(56, 56)
        torch.testing.assert_close(features(ours, pictures), features(model, pictures))

    def test_registers(self, tmp_path: Path) -> None:
        model, state = self.theirs()
        torch.save(state, tmp_path / "reg4_pretrain.pth")
        self.assert_same(tmp_path / "reg4_pretrain.pth", model)

    def test_registers_as_timm_loads_them(self, tmp_path: Path) -> None:
        """By its own code for the official files."""
        torch.manual_seed(1)
        model = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, num_classes=0)
        state = {name: torch.randn_like(t) * 0.1 for name, t in model.state_dict().items()}
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.randn(1, 17, 384) * 0.1
        state["mask_token"] = torch.zeros(1, 384)
        torch.save(state, tmp_path / "vits14_reg4.pth")
        path = str(tmp_path / "vits14_reg4.pth")
        loaded = model.eval()
        loaded.load_state_dict(checkpoint_filter_fn(dict(state), loaded))
        pictures = images(56, 56)
        for hints in ({}, {"backbone": "vit_small_patch14_reg4_dinov2"}):
            ours = load_encoder(path, **hints)
            torch.testing.assert_close(
                features(ours, pictures), features(loaded, pictures), rtol=1e-4, atol=1e-4
            )

    def test_blocks_in_chunks(self, tmp_path: Path) -> None:
        model, state = self.theirs()
        chunked = {
            re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", name): tensor
            for name, tensor in state.items()
        }
        heads = {
            "dino_head.mlp.0.weight": torch.ones(2),
            "ibot_head.last_layer.weight": torch.ones(2),
        }
        teacher = {f"backbone.{name}": tensor for name, tensor in chunked.items()} | heads
        torch.save({"teacher": teacher}, tmp_path / "teacher_checkpoint.pth")
        self.assert_same(tmp_path / "teacher_checkpoint.pth", model)

    def test_blocks_that_each_chunk_counts_anew_are_refused(self, tmp_path: Path) -> None:
        _, state = self.theirs()
        chunked = {
            re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}.{int(m[1]) % 2}", n): t
            for n, t in state.items()
        }
        torch.save(chunked, tmp_path / "x.pth")
        with pytest.raises(UserError, match=r"are both 'blocks\.0\."):
            load_encoder(tmp_path / "x.pth", num_heads=3)

    @pytest.mark.parametrize("scale", [1e-5, 0.0], ids=["layer-scales", "none"])
    def test_gated_mlps(self, scale: float, tmp_path: Path) -> None:
        sizes = {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
        model = timm.create_model("vit_giant_patch14_dinov2", init_values=scale, **sizes).eval()
        assert any("gamma" in name for name in model.state_dict()) == (scale > 0)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.1)
        names = {".mlp.fc1.": ".mlp.w12.", ".mlp.fc2.": ".mlp.w3."}
        state = model.state_dict()
        for ours, theirs in names.items():
            state = {name.replace(ours, theirs): tensor for name, tensor in state.items()}
        torch.save(state | {"mask_token": torch.zeros(1, 48)}, tmp_path / "x.pth")
        self.assert_same(tmp_path / "x.pth", model)

    @pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "IJepa"])
    def test_of_transformers(self, kind: str, tmp_path: Path) -> None:
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=56, patch_size=14
        )
        torch.manual_seed(0)
        theirs = getattr(transformers, f"{kind}Model")(config).eval()
        theirs.save_pretrained(tmp_path / "x")
        pictures = images(56, 56)
        with torch.no_grad():
            expected = theirs(pictures).last_hidden_state
        ours = features(load_encoder(tmp_path / "x"), pictures)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


class TestSeveralNetworks:
    """Files with more than one set of weights: which is taken is known or asked for."""

    def test_are_told_apart_by_their_entry(self, tmp_path: Path) -> None:
        model, ema = vit(), vit()
        with torch.no_grad():
            ema.cls_token[..., 0].add_(1)
        path = tmp_path / "deit.pth"
        torch.save({"model": model.state_dict(), "model_ema": ema.state_dict()}, path)
        with pytest.raises(UserError, match="holds several networks: model and model_ema; say"):
            load_encoder(path, num_heads=3)
        assert_same_features(path, model, num_heads=3, branch="model")
        assert_same_features(path, ema, num_heads=3, branch="model_ema")


class TestHarmless:
    """What training code leaves in its files."""

    @pytest.mark.parametrize(
        "args",
        [{"mask_ratio": "high"}, None, argparse.Namespace(output_dir=Path("x")), 3],
        ids=str,
    )
    def test_flags_of_any_kind(self, args: Any, tmp_path: Path) -> None:
        content = {"model": vit().state_dict() | decoder(), "args": args, "loss": np.float64(0.5)}
        torch.save(content, tmp_path / "mae.pth")
        assert_same_features(tmp_path / "mae.pth", vit(), num_heads=3)
        assert read(str(tmp_path / "mae.pth"), WeightSettings(num_heads=3)).settings == {}

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions_become_float32(self, dtype: torch.dtype, tmp_path: Path) -> None:
        torch.save(vit().to(dtype).state_dict(), tmp_path / "vit.pth")
        expected = vit().to(dtype).float()
        assert_same_features(tmp_path / "vit.pth", expected, num_heads=3)

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
    def test_wrappers(self, prefix: str, tmp_path: Path) -> None:
        state = {f"{prefix}{name}": value for name, value in vit().state_dict().items()}
        torch.save(state, tmp_path / "vit.pth")
        assert_same_features(tmp_path / "vit.pth", vit(), num_heads=3)

    def test_content_counts_not_the_suffix(self, tmp_path: Path) -> None:
        save_file(vit().state_dict(), tmp_path / "vit.pth")
        assert_same_features(tmp_path / "vit.pth", vit(), num_heads=3)
        torch.save(vit().state_dict(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
        assert_same_features(tmp_path / "old.bin", vit(), num_heads=3)


class TestHub:
    """Names on the Hugging Face hub, from a cache laid out as its library does it."""

    @pytest.fixture
    def cached(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

        def snapshot(name: str) -> Path:
            repository = tmp_path / f"models--{name.replace('/', '--')}"
            (repository / "refs").mkdir(parents=True)
            (repository / "refs/main").write_text("0" * 40)
            folder = repository / "snapshots" / ("0" * 40)
            folder.mkdir(parents=True)
            return folder

        return snapshot

    def test_model_of_transformers(self, cached: Callable[[str], Path]) -> None:
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=192,
            image_size=32,
            patch_size=8,
        )
        torch.manual_seed(0)
        theirs = ViTModel(config).eval()
        folder = cached("someone/vit")
        theirs.save_pretrained(folder)
        processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        with torch.no_grad():
            expected = theirs(images()).last_hidden_state
        for source in ("hf:someone/vit", folder):
            ours = load_encoder(source)
            torch.testing.assert_close(features(ours, images()), expected, rtol=1e-5, atol=1e-5)
            assert ours.spec.mean == (0.5, 0.4, 0.3)

    def test_model_of_timm(self, cached: Callable[[str], Path]) -> None:
        model = timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()
        folder = cached("someone/tiny")
        save_file(model.state_dict(), folder / "model.safetensors")
        cfg = {
            "architecture": "vit_tiny_patch16_224",
            "num_classes": 10,
            "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 10},
        }
        (folder / "config.json").write_text(json.dumps(cfg))
        ours = load_encoder("hf:someone/tiny")
        pictures = images(224, 224)
        torch.testing.assert_close(features(ours, pictures), features(model, pictures))
        assert ours.spec.mean == (0.5, 0.5, 0.5)

    def test_arguments_of_a_timm_model_count(self, cached: Callable[[str], Path]) -> None:
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0, num_heads=12).eval()
        folder = cached("someone/many-heads")
        save_file(model.state_dict(), folder / "model.safetensors")
        cfg = {
            "architecture": "vit_tiny_patch16_224",
            "num_classes": 0,
            "model_args": {"num_heads": 12},
            "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0},
        }
        (folder / "config.json").write_text(json.dumps(cfg))
        ours = load_encoder("hf:someone/many-heads")
        pictures = images(224, 224)
        torch.testing.assert_close(features(ours, pictures), features(model, pictures))

    def test_grid_of_transformers_and_shards(self, cached: Callable[[str], Path]) -> None:
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=192,
            image_size=[16, 64],
            patch_size=8,
        )
        torch.manual_seed(0)
        theirs = ViTModel(config).eval()
        folder = cached("someone/wide")
        theirs.save_pretrained(folder, max_shard_size="100KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
        pictures = images(16, 64)
        with torch.no_grad():
            expected = theirs(pictures).last_hidden_state
        ours = features(load_encoder("hf:someone/wide"), pictures)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)

    def test_hints_mean_nothing_to_what_tells_all(self, cached: Callable[[str], Path]) -> None:
        folder = cached("someone/any")
        (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
        for source in ("hf:someone/any", folder, "timm:vit_tiny_patch16_224"):
            with pytest.raises(UserError, match="tells its own architecture, so --num-heads"):
                load_encoder(source, num_heads=3)

    def test_damaged_folders(self, cached: Callable[[str], Path]) -> None:
        folder = cached("someone/damaged")
        save_file(vit().state_dict(), folder / "model.safetensors")
        config = {"model_type": "vit", "image_size": 32, "patch_size": 8, "num_attention_heads": 3}
        for broken in ([1], {**config, "num_attention_heads": "x"}, {"model_type": "vit"}):
            (folder / "config.json").write_text(json.dumps(broken))
            with pytest.raises(UserError, match=r"damaged|cannot be read"):
                load_encoder(folder)
        (folder / "config.json").write_text(json.dumps(config))
        for statistics in ({"image_mean": [0.5], "image_std": [1]}, {"image_mean": [0.5] * 3}):
            (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
            with pytest.raises(UserError, match=r"damaged|cannot have mean"):
                load_encoder(folder)

    def test_without_a_network_it_is_one_line(self, cached: Callable[[str], Path]) -> None:
        for source in ("hf:someone/else", "timm:vit_tiny_patch16_224"):
            with pytest.raises(UserError, match=rf"^{source} cannot be had: [^\n]+$"):
                load_encoder(source)
        with pytest.raises(UserError, match="timm has no model 'resnet50x'"):
            load_encoder("timm:resnet50x")

    def test_other_models_are_refused(self, cached: Callable[[str], Path]) -> None:
        folder = cached("someone/gpt2")
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        with pytest.raises(UserError, match="model of type 'gpt2'"):
            load_encoder("hf:someone/gpt2")
        told = {"model_type": "vit", "hidden_act": "relu"}
        (folder / "config.json").write_text(json.dumps(told))
        with pytest.raises(UserError, match="'relu'; only gelu"):
            load_encoder("hf:someone/gpt2")


def shapes_alone(
    width: int, depth: int, kind: str, first: str | None, heads: Mapping[Any, int]
) -> Weights:
    """The weights of a 224-pixel ViT/16 that take no memory, but for position embeddings."""
    with torch.device("meta"):
        model = timm.create_model(
            "vit_base_patch16_224", embed_dim=width, depth=depth, num_heads=1, num_classes=0
        )
    state = {name: torch.zeros(()).expand(t.shape) for name, t in model.state_dict().items()}
    if first:
        table = encoders.sincos_2d(width, 14, 14, 1, first)  # type: ignore[arg-type]
        # As after some fine-tuning: not the table any more, but close to it.
        state["pos_embed"] = (table + 0.1 * torch.randn(table.shape))[None]
    else:
        state["pos_embed"] = torch.randn(1, 197, width) * 0.02
    return Weights(kind, state, {}, heads)


class TestHeads:
    """Attention heads, which no shape shows."""

    @pytest.mark.parametrize(
        "width,depth,first,expected",
        [
            (192, 12, None, 3),
            (384, 12, None, 6),
            (384, 12, "row", 12),
            (768, 12, None, 12),
            (768, 12, "column", 12),
            (768, 12, "row", 12),
            (1024, 24, None, 16),
            (1024, 24, "column", 16),
            (1024, 24, "row", 16),
            (1280, 32, None, 16),
            (1280, 32, "column", 16),
            (1280, 32, "row", 16),
            (1408, 40, None, 16),
            (1536, 40, None, 24),
        ],
    )
    def test_of_known_encoders(
        self, width: int, depth: int, first: str | None, expected: int
    ) -> None:
        """I-JEPA's ViT-g, of 1,408, is an encoder of its files alone."""
        torch.manual_seed(0)
        table = formats._IJEPA_HEADS if width == 1408 else formats._VIT_HEADS
        weights = shapes_alone(width, depth, "timm", first, table)
        spec, grid = architecture.work_out(weights, "it", WeightSettings(), 1e-6)
        assert grid == (14, 14)
        with torch.device("meta"):
            model = timm.create_model(**spec.timm_arguments())
        assert model.blocks[0].attn.num_heads == expected
        assert (model.embed_dim, len(model.blocks)) == (width, depth)

    def test_of_a_masked_autoencoder_of_unofficial_size_are_asked_for(self) -> None:
        """MAE has no ViT-Ti or ViT-S of its own; others' have 3, 6 or 12 heads."""
        for width in (192, 384):
            weights = shapes_alone(width, 12, "timm", "column", formats._VIT_HEADS)
            with pytest.raises(UserError, match="does not tell its attention heads"):
                architecture.work_out(weights, "it", WeightSettings(), 1e-6)

    def test_are_asked_for_where_nothing_tells(self, tmp_path: Path) -> None:
        torch.save(vit().state_dict(), tmp_path / "odd.pth")
        with pytest.raises(UserError, match=r"48 wide with 2 blocks.*--num-heads, one of 1, 2, 3"):
            load_encoder(tmp_path / "odd.pth")
        with pytest.raises(UserError, match="5 attention heads do not divide its width of 48"):
            load_encoder(tmp_path / "odd.pth", num_heads=5)

    def test_of_mocov3_are_not_those_of_timms_vit_small(self) -> None:
        weights = shapes_alone(384, 12, "MoCo v3", "row", formats._MOCO_HEADS)
        with pytest.raises(UserError, match=r"12 attention heads.*'vit_small_patch16_224' has 6"):
            hints = WeightSettings(backbone="vit_small_patch16_224")
            architecture.work_out(weights, "it", hints, 1e-6)


class TestResolution:
    """Position embeddings at other sizes than the pre-training's."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        torch.save(vit(img_size=224, patch_size=16).state_dict(), tmp_path / "vit.pth")
        return tmp_path / "vit.pth"

    @pytest.mark.parametrize("size", [(32, 32), (224, 224), (384, 384), (96, 160), (160, 96)])
    def test_images_of_any_size_meet_interpolated_positions(
        self, size: tuple[int, int], file: Path
    ) -> None:
        height, width = size
        state = torch.load(file, weights_only=True)
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"], (height // 16, width // 16), (14, 14)
        )
        expected = vit(img_size=size, patch_size=16)
        expected.load_state_dict(state)
        pictures = images(height, width)
        for ours in (
            load_encoder(file, num_heads=3),
            load_encoder(file, num_heads=3, image_size=size),
        ):
            torch.testing.assert_close(features(ours, pictures), features(expected, pictures))

    def test_interpolation_keeps_each_axis_and_the_class_token(self) -> None:
        """A table that grows along one axis still does so along the same one."""
        model = vit(img_size=224, patch_size=16)
        rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
        with torch.no_grad():
            model.pos_embed[0, 0] = 7.0
            model.pos_embed[0, 1:, 0] = rows.flatten()
            model.pos_embed[0, 1:, 1] = columns.flatten()
        backbones.resize(model, (96, 320))
        grid = model.pos_embed[0, 1:].view(6, 20, -1)
        assert (model.pos_embed[0, 0] == 7.0).all()
        # Between the borders, positions are those of the patches' centres in the old grid.
        centres_y = (torch.arange(6) + 0.5) * 14 / 6 - 0.5
        centres_x = (torch.arange(20) + 0.5) * 14 / 20 - 0.5
        torch.testing.assert_close(
            grid[1:-1, :, 0], centres_y[1:-1, None].expand(-1, 20), atol=0.06, rtol=0
        )
        torch.testing.assert_close(
            grid[:, 3:-3, 1], centres_x[None, 3:-3].expand(6, -1), atol=0.06, rtol=0
        )

    def test_file_of_a_grid_that_is_no_square(self, tmp_path: Path) -> None:
        model = vit(img_size=(64, 48))
        torch.save(model.state_dict(), tmp_path / "wide.pth")
        with pytest.raises(UserError, match=r"49 positions.*--grid 8,6"):
            load_encoder(tmp_path / "wide.pth", num_heads=3)
        with pytest.raises(UserError, match="no grid of 7 x 6"):
            load_encoder(tmp_path / "wide.pth", num_heads=3, grid=(7, 6))
        ours = load_encoder(tmp_path / "wide.pth", num_heads=3, grid=(8, 6))
        pictures = images(64, 48)
        torch.testing.assert_close(features(ours, pictures), features(model, pictures))

    def test_table_of_a_grid_that_is_no_square_is_recognised(self, tmp_path: Path) -> None:
        """2 x 8 patches are as many as 4 x 4."""
        model = vit(img_size=(16, 64))
        with torch.no_grad():
            model.pos_embed.copy_(encoders.sincos_2d(48, 2, 8, 1)[None])
        torch.save(model.state_dict(), tmp_path / "wide.pth")
        ours = load_encoder(tmp_path / "wide.pth", num_heads=3)
        pictures = images(16, 64)
        torch.testing.assert_close(features(ours, pictures), features(model, pictures))

    def test_fixed_size_takes_no_other(self, file: Path) -> None:
        ours = load_encoder(file, num_heads=3, image_size=32)
        with pytest.raises(AssertionError):
            features(ours, images(384, 384))

    @pytest.mark.parametrize(("size", "works"), [(100, 96), (105, 112), (3, 16)])
    def test_size_that_patches_do_not_fill_is_refused(
        self, size: int, works: int, file: Path
    ) -> None:
        said = f"--image-size {size} is not a multiple of the 16 px patches; {works} would work"
        with pytest.raises(UserError, match=said):
            load_encoder(file, num_heads=3, image_size=size)

    def test_the_size_is_told_to_timm(self, file: Path) -> None:
        told = load_encoder(file, num_heads=3, image_size=(32, 48)).pretrained_cfg
        assert told["input_size"] == (3, 32, 48)
        told = load_encoder(file, num_heads=3).pretrained_cfg
        assert told["input_size"] == (3, 224, 224)
        assert told["interpolation"] == "bicubic"

    def test_eval_at_another_size(
        self, ssl_bench: Call, image_folder: Path, tmp_path: Path
    ) -> None:
        torch.save(vit().state_dict(), tmp_path / "vit.pth")
        common = ("--data", image_folder, "--runs-dir", tmp_path / "runs", "--evals", "knn")
        code, out, err = ssl_bench(
            "eval", "--weights", tmp_path / "vit.pth", "--num-heads", 3, "--image-size", 16, *common
        )
        assert code == 0, err
        assert "4 x 4 patches of 8 px" in out
        [folder] = (tmp_path / "runs").glob("weights-vit-*")
        stored = json.loads((folder / "encoder.json").read_text())
        assert stored["image_size"] == 16
        native = ("eval", tmp_path / "vit.pth", "--num-heads", 3)
        assert ssl_bench(*native, *common)[0] == 0
        assert len(list((tmp_path / "runs").glob("weights-vit-*"))) == 2
        code, _, err = ssl_bench("eval", folder, "--image-size", 32, *common[2:])
        assert code == 2 and "say what to evaluate" in err
        code, _, err = ssl_bench("eval", folder, "--image-size", 32, *common)
        assert code == 0, err
        [resized] = (tmp_path / "runs").glob("weights-weights-vit-*")
        assert json.loads((resized / "encoder.json").read_text())["image_size"] == 32


class _Evil:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


class TestRefusals:
    """One clear line, nothing run, nothing half-loaded."""

    @pytest.mark.parametrize(
        "change,message",
        [
            ({"norm.bias": None}, "lacks 'norm.bias'"),
            ({"blocks.1.mlp.fc1.weight": None}, "lacks 'blocks.1.mlp.fc1.weight'"),
            ({"blocks.1.gizmo": torch.ones(1)}, "has 'blocks.1.gizmo' too"),
            ({"norm.bias": torch.ones(3)}, r"'norm.bias' of shape \(3,\), not \(48,\)"),
            ({"patch_embed.proj.weight": torch.ones(2, 2)}, "should have 4 dimensions"),
            ({"patch_embed.proj.weight": torch.ones(48, 3, 8, 4)}, "patches of 8 x 4 pixels"),
            ({"patch_embed.proj.weight": torch.ones(48, 5, 8, 8)}, "5 channels"),
            ({"pos_embed": torch.ones(2)}, "should have 3 dimensions"),
            ({"pos_embed": None}, "'pos_embed'.*missing"),
            ({"patch_embed.proj.weight": None}, "holds no Vision Transformer"),
            ({"head.gizmo": torch.ones(1)}, "'head.gizmo' too"),
            ({"norm_pre.weight": torch.ones(48)}, "'norm_pre.weight'.*CLIP.*--backbone"),
            ({"dist_token": torch.ones(1, 1, 48)}, "'dist_token'.*not supported"),
            ({"norm.bias": torch.full((48,), torch.nan)}, "'norm.bias'.*not finite"),
            ({"norm.bias": torch.ones(48, dtype=torch.int8)}, "'norm.bias'.*type int8"),
            ({"norm.bias": torch.ones(48, dtype=torch.complex64)}, "'norm.bias'.*complex64"),
            ({"pos_embed": torch.ones(1, 0, 48)}, "damaged.*pos_embed"),
            ({"reg_token": torch.ones(48)}, "damaged.*reg_token"),
            ({"blocks.0.mlp.fc1.weight": torch.tensor(1.0)}, "damaged.*blocks.0.mlp.fc1.weight"),
            ({"blocks.3000.norm1.weight": torch.ones(48)}, r"has a block \[3000\], but 3 blocks"),
            ({7: torch.ones(1)}, "holds no weights"),
            ({"norm.bias": torch.ones(48).to_sparse()}, "holds no weights"),
        ],
        ids=str,
    )
    def test_weights_that_do_not_fit(
        self, change: Mapping[str, Tensor | None], message: str, tmp_path: Path
    ) -> None:
        state = {**vit().state_dict(), **change}
        content = {"model": {name: value for name, value in state.items() if value is not None}}
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(UserError, match=message) as raised:
            load_encoder(tmp_path / "weights.pth", num_heads=3)
        assert "\n" not in str(raised.value)

    def test_surplus_weights_have_their_name_in_the_file(self, tmp_path: Path) -> None:
        state = moco_state(vit(), vit())
        for name in ("module.base_encoder.gizmo", "module.momentum_encoder.gizmo", "gizmo"):
            torch.save({"state_dict": state | {name: torch.ones(1)}}, tmp_path / "moco.pth")
            with pytest.raises(UserError, match=f"has '{name}' too"):
                load_encoder(tmp_path / "moco.pth", num_heads=3)
        torch.save({"teacher": dino_state(vit()) | {"backbone.x": torch.ones(1)}}, tmp_path / "d")
        with pytest.raises(UserError, match=r"has 'backbone\.x' too"):
            load_encoder(tmp_path / "d", num_heads=3)

    def test_convolutional_stem_of_mocov3(self, tmp_path: Path) -> None:
        state = {f"module.base_encoder.patch_embed.proj.{i}.weight": torch.ones(1) for i in (0, 3)}
        torch.save({"state_dict": state}, tmp_path / "conv.pth")
        with pytest.raises(UserError, match=r"'patch_embed.proj.weight' is missing"):
            load_encoder(tmp_path / "conv.pth")

    def test_decoder_with_a_part_too_many(self, tmp_path: Path) -> None:
        state = vit().state_dict() | decoder() | {"decoder_gizmo": torch.ones(1)}
        torch.save({"model": state}, tmp_path / "mae.pth")
        with pytest.raises(UserError, match="has 'decoder_gizmo' too"):
            load_encoder(tmp_path / "mae.pth", num_heads=3)

    @pytest.mark.parametrize("name", ["decoder_norm.bias", "decoder_blocks.0.attn.qkv.weight"])
    def test_decoder_that_lacks_a_part(self, name: str, tmp_path: Path) -> None:
        state = vit().state_dict() | decoder()
        del state[name]
        torch.save({"model": state}, tmp_path / "mae.pth")
        with pytest.raises(UserError, match=f"decoder that lacks .*{name}"):
            load_encoder(tmp_path / "mae.pth", num_heads=3)

    @pytest.mark.parametrize(
        "content,message",
        [
            (b"<html>not found</html>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs"),
            (b"hello", "neither a PyTorch nor a safetensors file"),
            (b"\x89PNG\r\n", "neither a PyTorch nor a safetensors file"),
        ],
    )
    def test_other_files_are_told_what_they_are(
        self, content: bytes, message: str, tmp_path: Path
    ) -> None:
        (tmp_path / "weights.pth").write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_encoder(tmp_path / "weights.pth")

    def test_flipped_bit(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        torch.save(vit().state_dict(), path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(UserError, match="damaged"):
            load_encoder(path, num_heads=3)

    @pytest.mark.parametrize("protocol", [0, 2, 4, 5])
    def test_raw_pickles_with_code(
        self, protocol: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, evidence = tmp_path / "weights.pth", tmp_path / "evidence"
        path.write_bytes(pickle.dumps({"model": _Evil(evidence)}, protocol=protocol))
        with pytest.raises(UserError, match=r"holds pickled code \(posix\.mkdir\)"):
            load_encoder(path)
        assert not evidence.exists()
        assert not capsys.readouterr().err

    @pytest.mark.parametrize(
        "name,message",
        [
            ("layers.0.blocks.0.norm1.weight", "a Swin Transformer.*not supported"),
            ("encoder.layers.0.blocks.0.norm1.weight", "a Swin Transformer.*not supported"),
            ("blocks.0.attn.relative_position_bias_table", r"a BEiT.*shape \(48,\)"),
            ("rel_pos_bias.relative_position_bias_table", r"a BEiT.*shape \(48,\)"),
        ],
    )
    def test_other_transformers(self, name: str, message: str, tmp_path: Path) -> None:
        state = {**vit().state_dict(), name: torch.ones(48)}
        del state["pos_embed"]
        torch.save({"model": state}, tmp_path / "x.pth")
        with pytest.raises(UserError, match=message):
            load_encoder(tmp_path / "x.pth")

    def test_damaged_run_folder(self, tmp_path: Path) -> None:
        save_file(vit().state_dict(), tmp_path / "encoder.safetensors")
        good = {
            "backbone": "vit_base_patch16_224",
            "image_size": 32,
            "patch_size": 8,
            "channels": 3,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "architecture": {"embed_dim": 48, "depth": 2, "num_heads": 3},
        }
        for change in (
            {"mean": None},
            {"backbone": 3},
            {"image_size": "x"},
            {"architecture": {"pretrained": True}},
            {"patch_size": 0},
        ):
            (tmp_path / "encoder.json").write_text(json.dumps(good | change))
            with pytest.raises(UserError) as raised:
                load_encoder(tmp_path)
            assert "\n" not in str(raised.value)
        (tmp_path / "encoder.json").write_text(json.dumps([good]))
        with pytest.raises(UserError, match="no readable encoder"):
            load_encoder(tmp_path)
        (tmp_path / "encoder.json").write_text(json.dumps(good))
        assert_same_features(tmp_path, vit())

    def test_branch_that_is_not_there(self, tmp_path: Path) -> None:
        torch.save({"state_dict": moco_state(vit(), vit())}, tmp_path / "moco.pth")
        with pytest.raises(UserError, match="no branch 'teacher'; it has base_encoder and"):
            load_encoder(tmp_path / "moco.pth", branch="teacher")
        torch.save(vit().state_dict(), tmp_path / "plain.pth")
        with pytest.raises(UserError, match="holds one network"):
            load_encoder(tmp_path / "plain.pth", branch="teacher")

    @pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
    def test_what_is_no_checkpoint_or_cut_short(self, name: str, tmp_path: Path) -> None:
        path, state = tmp_path / name, vit().state_dict()
        if name.endswith("pth"):
            torch.save(state, path)
        else:
            save_file(state, path)
        whole = path.read_bytes()
        for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], whole[:-100]):
            path.write_bytes(content)
            with pytest.raises(UserError, match="cannot be read as weights") as raised:
                load_encoder(path, num_heads=3)
            assert "\n" not in str(raised.value)

    def test_checkpoint_without_weights(self, tmp_path: Path) -> None:
        for content in ({"epoch": 3}, [1, 2], {}, {"model": {"depth": 12}}):
            torch.save(content, tmp_path / "weights.pth")
            with pytest.raises(UserError, match="holds no weights"):
                load_encoder(tmp_path / "weights.pth")

    def test_no_code_from_the_file_is_run(self, tmp_path: Path) -> None:
        path, evidence = tmp_path / "weights.pth", tmp_path / "evidence"
        for content in ({"model": _Evil(evidence)}, {"args": _Evil(evidence), "model": {}}):
            torch.save(content, path)
            with pytest.raises(UserError, match=r"holds pickled code \(posix\.mkdir\)"):
                load_encoder(path)
            assert not evidence.exists()

    def test_eval_leaves_nothing_behind(
        self, ssl_bench: Call, image_folder: Path, tmp_path: Path
    ) -> None:
        torch.save({"model": vit().state_dict() | {"gizmo": torch.ones(1)}}, tmp_path / "bad.pth")
        code, _, err = ssl_bench(
            "eval",
            "--weights",
            tmp_path / "bad.pth",
            "--num-heads",
            3,
            "--data",
            image_folder,
            "--runs-dir",
            tmp_path / "runs",
        )
        assert code == 2
        assert "has 'gizmo' too" in err and err.count("\n") == 1
        assert not list(tmp_path.glob("runs/*"))


def test_position_order_is_worked_out() -> None:
    for first in ("column", "row"):
        table = encoders.sincos_2d(48, 4, 4, 1, first)
        assert architecture.position_order(table[None], (4, 4)) == first
    assert architecture.position_order(torch.randn(1, 17, 48), (4, 4)) is None
