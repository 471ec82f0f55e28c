"""Checkpoints of ResNets: the official files of MoCo, SimSiam, Barlow Twins and VICReg, and others.

The files are made from the names that the official code gives to its weights (``moco/builder.py``,
``simsiam/builder.py``, ``main.py`` of Barlow Twins, ``main_vicreg.py``), around torchvision's
ResNet-18 for speed.
"""

from __future__ import annotations

import argparse
import functools
import os
import pickle
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_bench import load_encoder
from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import UserError
from ssl_bench.models import architecture, encoders
from ssl_bench.models.checkpoints import read
from ssl_bench.models.formats import Weights

Call = Callable[..., tuple[int, str, str]]
State = dict[str, Tensor]
PLAIN = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not outlive its test, for files of 45 MB."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@functools.cache
def resnet(seed: int = 0, name: str = "resnet18") -> nn.Module:
    """torchvision's without its classifier; its batch norms have seen data."""
    torch.manual_seed(seed)
    model = getattr(torchvision.models, name)()
    model.fc = nn.Identity()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for parameter in module.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                module(torch.randn(8, module.num_features, 2, 2) * 2 + 1)
    return model.eval()


def prefixed(prefix: str, *states: Mapping[str, Any] | nn.Module) -> dict[str, Any]:
    parts = [part.state_dict() if isinstance(part, nn.Module) else part for part in states]
    return {prefix + name: tensor for part in parts for name, tensor in part.items()}


def mlp(*layers: nn.Module) -> State:
    return nn.Sequential(*layers).state_dict()


def moco(query: nn.Module, key: nn.Module | None = None, version: int = 2) -> dict[str, Any]:
    """As ``main_moco.py`` saves it; its releases have no key encoder."""
    head = nn.Linear(512, 16)
    head_state = mlp(nn.Linear(512, 512), nn.ReLU(), head) if version == 2 else head.state_dict()
    state = prefixed("module.encoder_q.", query, prefixed("fc.", head_state))
    if key is not None:
        state |= prefixed("module.encoder_k.", key, prefixed("fc.", head_state))
    queue = {"module.queue": torch.randn(16, 32), "module.queue_ptr": torch.tensor([8])}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.03}]}
    weights = {"state_dict": state | queue, "optimizer": optimizer}
    return {"epoch": 200, "arch": "resnet50", **weights}


def simsiam(encoder: nn.Module) -> dict[str, Any]:
    projector = mlp(
        *(nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()),
        *(nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()),
        *(nn.Linear(512, 64), nn.BatchNorm1d(64, affine=False)),
    )
    predictor = mlp(
        *(nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU()), nn.Linear(16, 64)
    )
    state = prefixed("module.encoder.", encoder, prefixed("fc.", projector))
    state |= prefixed("module.predictor.", predictor)
    optimizer: dict[str, Any] = {"state": {}, "param_groups": []}
    return {"epoch": 100, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}


def barlow_twins(backbone: nn.Module) -> dict[str, Any]:
    projector = mlp(
        *(nn.Linear(512, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()),
        nn.Linear(64, 64, bias=False),
    )
    state = prefixed("module.backbone.", backbone) | prefixed("module.projector.", projector)
    state |= prefixed("module.bn.", nn.BatchNorm1d(64, affine=False))
    return {"epoch": 1000, "model": state, "optimizer": {"state": {}, "param_groups": []}}


def vicreg(backbone: nn.Module) -> dict[str, Any]:
    projector = mlp(
        *(nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU()), nn.Linear(64, 64, bias=False)
    )
    state = prefixed("module.backbone.", backbone) | prefixed("module.projector.", projector)
    return {"epoch": 1000, "model": state, "optimizer": {"state": {}, "param_groups": []}}


def assert_same(path: Path, theirs: nn.Module, name: str = "resnet18", **hints: Any) -> None:
    """The encoder computes what torchvision's and timm's do with these weights."""
    ours = load_encoder(path, **hints)
    by_timm = timm.create_model(name, num_classes=0).eval()
    by_timm.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = ours.forward_features(images)
        assert torch.equal(features, by_timm.forward_features(images))
        torch.testing.assert_close(
            encoders.represent(ours, images), theirs(images), rtol=1e-4, atol=1e-5
        )
    assert not torch.equal(features[0], features[1])


def teacher_of_dino() -> dict[str, Any]:
    return {
        "teacher": prefixed("backbone.", resnet()),
        "student": {"head.mlp.0.bias": torch.ones(2)},
    }


FILES: Mapping[str, tuple[Callable[[], Mapping[str, Any]], str]] = {
    "MoCo v1": (
        lambda: moco(resnet(), version=1),
        "epoch, arch, state_dict.queue (tensors: 1), state_dict.queue_ptr (tensors: 1), "
        "optimizer, fc (tensors: 2)",
    ),
    "MoCo v2": (
        lambda: moco(resnet(), resnet(1)),
        "epoch, arch, state_dict.encoder_k (tensors: 124), state_dict.queue (tensors: 1), "
        "state_dict.queue_ptr (tensors: 1), optimizer, fc (tensors: 4)",
    ),
    "SimSiam": (
        lambda: simsiam(resnet()),
        "epoch, arch, state_dict.predictor (tensors: 8), optimizer, fc (tensors: 17)",
    ),
    "Barlow Twins": (
        lambda: barlow_twins(resnet()),
        "epoch, model.projector (tensors: 7), model.bn (tensors: 3), optimizer",
    ),
    "VICReg": (lambda: vicreg(resnet()), "epoch, model.projector (tensors: 8), optimizer"),
    "DINO": (teacher_of_dino, "student (tensors: 1)"),
    "timm's": (lambda: resnet().state_dict(), ""),
    "timm's names": (
        lambda: timm.create_model("resnet18").state_dict() | resnet().state_dict(),
        "fc (tensors: 2)",
    ),
    "": (
        lambda: {"state_dict": prefixed("module.", resnet()), "best_acc1": np.float64(71)},
        "best_acc1",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_official_files(kind: str, tmp_path: Path) -> None:
    make, left_out = FILES[kind]
    content = make()
    torch.save(content, tmp_path / "x.pth.tar")
    assert_same(tmp_path / "x.pth.tar", resnet())
    checkpoint = read(str(tmp_path / "x.pth.tar"), WeightSettings())
    assert checkpoint.spec.backbone == "resnet18"
    assert checkpoint.spec.mean == (0.485, 0.456, 0.406)
    told, about, *rest = checkpoint.notes
    assert told.startswith(kind) and "resnet18" in about
    assert rest == ([f"left out: {left_out}"] if left_out else [])
    states = [content, *(part for part in content.values() if isinstance(part, dict))]
    tensors = sum(isinstance(value, Tensor) for state in states for value in state.values())
    counted = sum(int(count) for count in re.findall(r"tensors: (\d+)", left_out))
    assert len(checkpoint.encoder.state_dict()) + counted == tensors


def test_branches_of_moco(tmp_path: Path) -> None:
    torch.save(moco(resnet(0), resnet(1)), tmp_path / "moco.pth.tar")
    for branch, seed in ((None, 0), ("encoder_q", 0), ("encoder_k", 1)):
        assert_same(tmp_path / "moco.pth.tar", resnet(seed), branch=branch)
    with pytest.raises(UserError, match="no branch 'teacher'; it has encoder_q and encoder_k"):
        load_encoder(tmp_path / "moco.pth.tar", branch="teacher")
    torch.save(moco(resnet()), tmp_path / "released.pth.tar")
    assert_same(tmp_path / "released.pth.tar", resnet(), branch="encoder_q")
    with pytest.raises(UserError, match="holds one network, so --branch encoder_k"):
        load_encoder(tmp_path / "released.pth.tar", branch="encoder_k")


def test_bottlenecks(tmp_path: Path) -> None:
    torch.save(vicreg(resnet(name="resnet50")), tmp_path / "resnet50_fullckpt.pth")
    assert_same(tmp_path / "resnet50_fullckpt.pth", resnet(name="resnet50"), "resnet50")


@pytest.mark.parametrize("name", PLAIN)
def test_depths_are_worked_out(name: str) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    spec, grid = architecture.work_out(Weights("", state, {}, {}), "it", WeightSettings(), 1e-6)
    assert (spec.backbone, spec.image_size, grid) == (name, 224, None)


def test_other_resnets_of_timm_by_name(tmp_path: Path) -> None:
    for name in ("resnet26d", "seresnet18"):
        model = timm.create_model(name).eval()
        save_file(model.state_dict(), tmp_path / "x.safetensors")
        images = torch.randn(1, 3, 64, 64)
        with pytest.raises(UserError, match=r"--backbone|has 'layer1.0.se.*too"):
            load_encoder(tmp_path / "x.safetensors")
        ours = load_encoder(tmp_path / "x.safetensors", backbone=name)
        with torch.no_grad():
            assert torch.equal(ours.forward_features(images), model.forward_features(images))


def test_before_batches_were_counted(tmp_path: Path) -> None:
    state = resnet().state_dict()
    old = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "resnet18-5c106cde.pth")
    assert_same(tmp_path / "resnet18-5c106cde.pth", resnet())
    torch.save(old | {"bn1.num_batches_tracked": torch.tensor(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"lacks 'layer1\.0\.bn1\.num_batches_tracked'"):
        load_encoder(tmp_path / "x.pth")


def test_grey_images(tmp_path: Path) -> None:
    state = resnet().state_dict()
    state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
    torch.save(state, tmp_path / "grey.pth")
    ours = load_encoder(tmp_path / "grey.pth")
    assert (ours.spec.channels, ours.spec.mean, ours.spec.std) == (1, (0.449,), (0.226,))
    assert ours.forward_features(torch.randn(1, 1, 32, 32)).shape == (1, 512, 1, 1)


def test_eval_and_export(ssl_bench: Call, image_folder: Path, tmp_path: Path) -> None:
    path, exported = tmp_path / "moco_v2_200ep_pretrain.pth.tar", tmp_path / "out.safetensors"
    torch.save(moco(resnet(), resnet(1)), path)
    where = ("--data", image_folder, "--runs-dir", tmp_path / "runs", "--image-size", 32)
    code, out, err = ssl_bench("eval", "--weights", path, *where, "--evals", "knn")
    assert code == 0, err
    assert "MoCo v2" in out and "state_dict.encoder_k (tensors: 124)" in out
    [folder] = (tmp_path / "runs").glob("weights-*")
    assert [each.name.split("-")[0] for each in (folder / "evals").iterdir()] == ["knn"]
    assert_same(folder, resnet())
    code, _, err = ssl_bench("export", path, "--branch", "encoder_k", "--output", exported)
    assert code == 0, err
    assert_same(exported, resnet(1))
    code, _, err = ssl_bench("export", path, "--format", "mae", "--output", tmp_path / "mae.pth")
    assert (code, err.count("\n")) == (2, 1)
    assert "ResNet" in err


class TestRefusals:
    """One line that says why, and what would work."""

    @pytest.mark.parametrize("make", [moco, simsiam, barlow_twins, vicreg])
    def test_missing_and_surplus_weights(self, make: Any, tmp_path: Path) -> None:
        content = make(resnet())
        state: State = content.get("state_dict") or content["model"]
        [prefix] = {n.removesuffix("layer1.0.conv1.weight") for n in state if "layer1.0.conv1" in n}
        for change, message in (
            ({"layer3.1.bn2.bias": None}, r"lacks 'layer3\.1\.bn2\.bias'"),
            ({"layer1.0.gizmo": torch.ones(1)}, f"has '{prefix}layer1.0.gizmo' too"),
        ):
            self.assert_refused(state, change, message, prefix, tmp_path)

    @pytest.mark.parametrize(
        "change,message",
        [
            ({"gizmo": torch.ones(1)}, "has 'module.encoder_q.gizmo' too"),
            ({"bn1.bias": torch.ones(3)}, r"'module.encoder_q.bn1\.bias' of shape \(3,\)"),
            ({"bn1.bias": torch.full((64,), torch.nan)}, "not finite"),
            ({"layer4.0.downsample.0.weight": None}, r"lacks 'layer4\.0\.downsample\.0\.weight'"),
        ],
        ids=["surplus", "shape", "nan", "missing"],
    )
    def test_weights_that_do_not_fit(
        self, change: Mapping[str, Tensor | None], message: str, tmp_path: Path
    ) -> None:
        state = moco(resnet())["state_dict"]
        self.assert_refused(state, change, message, "module.encoder_q.", tmp_path)

    def assert_refused(
        self,
        state: State,
        change: Mapping[str, Tensor | None],
        message: str,
        prefix: str,
        folder: Path,
    ) -> None:
        """Change the encoder's weights; None takes one away."""
        changed: dict[str, Tensor | None] = {**state, **prefixed(prefix, change)}
        torch.save({"model": {n: t for n, t in changed.items() if t is not None}}, folder / "x.pth")
        with pytest.raises(UserError, match=message) as raised:
            load_encoder(folder / "x.pth")
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("name", ["module.gizmo", "module.encoder_k.gizmo"])
    def test_surplus_weights_beside_mocos(self, name: str, tmp_path: Path) -> None:
        content = moco(resnet(), resnet(1))
        content["state_dict"][name] = torch.ones(1)
        torch.save(content, tmp_path / "moco.pth.tar")
        with pytest.raises(UserError, match=f"has '{name}' too"):
            load_encoder(tmp_path / "moco.pth.tar")

    @pytest.mark.parametrize(
        "change,message",
        [
            ({"conv1.weight": torch.ones(64, 3, 3, 3)}, "64 channels of 3 x 3.*64 of 7 x 7"),
            ({"conv1.weight": torch.ones(128, 3, 7, 7)}, "128 channels of 7 x 7.*resnet50"),
            ({"conv1.weight": torch.ones(64, 4, 7, 7)}, "1 or 3 channels"),
            ({"conv1.weight": torch.ones(64)}, "1 or 3 channels"),
            ({"conv1.weight": None}, "without the convolution 'conv1.weight'"),
            ({"layer1.2.conv1.weight": torch.ones(1)}, r"3 \+ 2 \+ 2 \+ 2 blocks.*--backbone"),
            ({"layer1.0.conv1.weight": torch.ones(128, 64, 3, 3)}, "first of 128.*--backbone"),
            ({"layer1.0.conv1.weight": torch.tensor(1.0)}, "damaged"),
        ],
        ids=str,
    )
    def test_of_other_shapes(
        self, change: Mapping[str, Tensor | None], message: str, tmp_path: Path
    ) -> None:
        first = {"conv1.weight": torch.ones(64, 3, 7, 7)}
        first |= {"layer1.0.conv1.weight": torch.ones(64, 64, 3, 3)}
        state = {name: torch.ones(1) for name in resnet().state_dict()} | first
        self.assert_refused(state, change, message, "", tmp_path)

    def test_hints_that_do_not_fit(self, tmp_path: Path) -> None:
        torch.save(resnet().state_dict(), tmp_path / "x.pth")
        for hints, message in (
            ({"num_heads": 3}, "--num-heads means nothing"),
            ({"grid": (7, 7)}, "--grid means nothing"),
            ({"backbone": "vit_tiny_patch16_224"}, "holds a ResNet, not 'vit_tiny_patch16_224'"),
            ({"backbone": "resnet34"}, "is not that encoder: it lacks 'layer1.2"),
            ({"backbone": "resnet99"}, "unknown backbone 'resnet99'"),
        ):
            with pytest.raises(UserError, match=message):
                load_encoder(tmp_path / "x.pth", **hints)

    @pytest.mark.parametrize(
        "source", ["", "model.ckpt-250228", "model.ckpt-250228.index", "hub/saved_model.pb", "hub"]
    )
    def test_tensorflow(
        self, source: str, ssl_bench: Call, image_folder: Path, tmp_path: Path
    ) -> None:
        """As SimCLR's official code writes it."""
        folder = tmp_path / "ResNet50_1x"
        for name in ("data-00000-of-00001", "index", "meta"):
            (folder / "hub").mkdir(parents=True, exist_ok=True)
            (folder / f"model.ckpt-250228.{name}").write_bytes(b"\x00\x01\x02")
        (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-250228"')
        (folder / "hub/saved_model.pb").write_bytes(b"\x08\x01")
        code, _, err = ssl_bench(
            *("eval", "--weights", folder / source, "--data", image_folder),
            *("--runs-dir", tmp_path / "runs"),
        )
        assert (code, err.count("\n")) == (2, 1)
        assert "TensorFlow" in err and "SimCLR" in err and "torch.save" in err
        assert not list(tmp_path.glob("runs/*"))

    def test_what_only_looks_like_tensorflow_is_read(self, tmp_path: Path) -> None:
        torch.save(resnet().state_dict(), tmp_path / "model.index")
        torch.save(resnet().state_dict(), tmp_path / "model")
        for name in ("model.index", "model"):
            assert_same(tmp_path / name, resnet())

    def test_jax(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As BYOL's official code writes it, with classes of its own, or with arrays alone."""
        arrays = {"resnet50/~/initial_conv": {"w": np.ones((7, 7, 3, 64), np.float32)}}
        for module in ("haiku", "haiku._src", "haiku._src.data_structures"):
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        kind = type("FlatMapping", (dict,), {"__module__": "haiku._src.data_structures"})
        monkeypatch.setattr(sys.modules[kind.__module__], "FlatMapping", kind, raising=False)
        for params, message in ((kind(arrays), "JAX.*haiku.*BYOL.*"), (arrays, "pickle.*")):
            state = {"experiment_state": {"online_params": params}, "step": 1}
            (tmp_path / "pretrain_res50x1.pkl").write_bytes(pickle.dumps(state, protocol=2))
            with pytest.raises(
                UserError, match=f"{message}torch.save under timm's names"
            ) as raised:
                load_encoder(tmp_path / "pretrain_res50x1.pkl")
            assert "\n" not in str(raised.value)

    def test_pickled_code_is_not_run(self, tmp_path: Path) -> None:
        evidence = tmp_path / "evidence"
        content = moco(resnet()) | {"args": argparse.Namespace(x=1), "hook": _Evil(evidence)}
        torch.save(content, tmp_path / "moco.pth.tar")
        with pytest.raises(UserError, match=r"holds pickled code \(posix\.mkdir\)"):
            load_encoder(tmp_path / "moco.pth.tar")
        assert not evidence.exists()


class _Evil:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)
