"""Who runs: each contestant makes a function that does one whole training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.cases import Case

_IMAGES = 2048
Step = Callable[[], Tensor]


class Model(nn.Module):
    """What a contestant trains.

    Attributes:
        method: the networks, under the names of `plain` as far as they have them.
    """

    method: Any

    def loss(self, views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """The scalar to minimise, of views ``(B, 3, H, W)`` and mask noise ``(B, L)``."""
        raise NotImplementedError

    def update(self) -> None:
        """What comes after an optimiser step."""


@dataclass(frozen=True)
class Contestant:
    """One way to train.

    Attributes:
        title: for the table.
        precision: "fp32" or "bf16" autocast.
        fused: whether attention is torch's fused one.
        build: from a case to a model.
        batches: from a case to an endless source of views, loading and augmentation included.
    """

    title: str
    precision: str
    fused: bool
    build: Callable[[Case], Model]
    batches: Callable[[Case, torch.device], Iterator[tuple[Tensor, ...]]]


def stored_images(case: Case) -> Tensor:
    """uint8 noise ``(N, 3, H, W)``: what is in them costs nothing."""
    generator = torch.Generator().manual_seed(0)
    count = max(case.batch_size, min(_IMAGES, 16 * 2**20 // case.image_size**2))
    shape = (count, 3, case.image_size, case.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def step_of(contestant: Contestant, case: Case, device: torch.device) -> Step:
    """A function that loads, augments, and trains on, one batch."""
    timm.layers.set_fused_attn(contestant.fused)
    torch.manual_seed(0)
    model = contestant.build(case).to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05, fused=is_ours(contestant))
    batches = contestant.batches(case, device)
    patches = (case.image_size // case.patch_size) ** 2

    def step() -> Tensor:
        views = next(batches)
        noise = torch.rand(len(views[0]), patches, device=device)
        with autocast(contestant, device):
            loss = model.loss(views, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update()
        return loss.detach()

    return step


def autocast(contestant: Contestant, device: torch.device) -> Any:
    """Mixed precision, if the contestant has it."""
    if contestant.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def is_ours(contestant: Contestant) -> bool:
    """Whether it is this project's own."""
    return contestant.title.startswith("ssl-bench")


class _Ours(Model):
    """This project's method, with the weights' names of `plain`."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        from ssl_bench import plugins, pretrain
        from ssl_bench.encoders import EncoderSpec

        spec = EncoderSpec(
            "vit_base_patch16_224",
            case.image_size,
            case.patch_size,
            3,
            (0.5,) * 3,
            (0.25,) * 3,
            {"embed_dim": case.width, "depth": case.depth, "num_heads": case.heads},
        )
        plugin = plugins.find("method", case.method)
        names = ("decoder_width", "decoder_depth", "decoder_heads")
        settings: dict[str, Any] = dict(zip(names, case.decoder, strict=True))
        settings["mask_ratio"] = case.mask_ratio
        if case.method == "mocov3":
            settings = {
                "projector_width": case.projector[0],
                "projection_dim": case.projector[1],
            }
        code = plugin.load()
        self.method = pretrain.build_method(code.Pretraining, code.Config(**settings), spec, 10, 0)
        self.is_mae = case.method == "mae"

    def loss(self, views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        if self.is_mae:
            return self.method.reconstruction_loss(views[0], noise)
        from ssl_bench.contract import Batch
        from ssl_bench.draws import Draws

        index = torch.arange(len(views[0]), device=views[0].device)
        return self.method.loss(Batch(views, index, Draws(0, 0, index)))

    def update(self) -> None:
        self.method.after_step(0.0)


class _Plain(Model):
    """Plain PyTorch's."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.method = plain.MAE(case) if case.method == "mae" else plain.MoCoV3(case)
        self.is_mae = case.method == "mae"

    def loss(self, views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return self.method(views[0], noise) if self.is_mae else self.method(*views)

    def update(self) -> None:
        if not self.is_mae:
            self.method.update()


class _Lightly(_Plain):
    """lightly's modules, put together as its examples do."""

    def __init__(self, case: Case) -> None:
        nn.Module.__init__(self)
        from benchmarks import with_lightly

        self.is_mae = case.method == "mae"
        self.method = with_lightly.MAE(case) if self.is_mae else with_lightly.MoCoV3(case)


def _in_memory(case: Case, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """This project's batches: views made by the batch, where the images are."""
    from ssl_bench import pretrain
    from ssl_bench.data import Split
    from ssl_bench.encoders import EncoderSpec

    images = stored_images(case).to(device)
    split = Split(images, torch.zeros(len(images), dtype=torch.long, device=device))
    with torch.device("meta"):  # for its views alone
        method = _Ours(case).method
    spec = EncoderSpec(
        "vit_base_patch16_224", case.image_size, case.patch_size, 3, (0.5,) * 3, (0.25,) * 3
    )
    step = 0
    while True:
        order = torch.randperm(len(images))
        for index_B in order.split(case.batch_size):
            if len(index_B) == case.batch_size:
                yield pretrain.make_batch(method, split, spec, 0, step, index_B).views
                step += 1


class _Pictures(torch.utils.data.Dataset):
    """Images as Pillow has them, and a transform."""

    def __init__(self, case: Case, transform: Any) -> None:
        self.images, self.transform = stored_images(case), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        views = self.transform(Image.fromarray(self.images[index].permute(1, 2, 0).numpy()))
        return tuple(views) if isinstance(views, list | tuple) else (views,)


def _loaded(transform_of: Callable[[Case], Any]) -> Any:
    def batches(case: Case, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        loader = torch.utils.data.DataLoader(
            _Pictures(case, transform_of(case)),
            batch_size=case.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=2,
            persistent_workers=True,
        )
        while True:
            for views in loader:
                yield tuple(view.to(device) for view in views)

    return batches


def _lightly_transform(case: Case) -> Any:
    from benchmarks import with_lightly

    return with_lightly.transform(case)


CONTESTANTS: Mapping[str, Contestant] = {
    "ours": Contestant("ssl-bench, bf16", "bf16", False, _Ours, _in_memory),
    "ours-fp32": Contestant("ssl-bench, fp32", "fp32", False, _Ours, _in_memory),
    "plain": Contestant("plain PyTorch, fp32", "fp32", True, _Plain, _loaded(plain.transforms)),
    "plain-bf16": Contestant(
        "plain PyTorch, bf16", "bf16", True, _Plain, _loaded(plain.transforms)
    ),
    "plain-bf16-unfused": Contestant(
        "plain PyTorch, bf16, attention not fused",
        "bf16",
        False,
        _Plain,
        _loaded(plain.transforms),
    ),
    "lightly": Contestant("lightly, fp32", "fp32", True, _Lightly, _loaded(_lightly_transform)),
    "lightly-bf16": Contestant(
        "lightly, bf16", "bf16", True, _Lightly, _loaded(_lightly_transform)
    ),
}
