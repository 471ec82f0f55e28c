"""Who runs: each contestant makes a function that does one whole training step."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn

from benchmarks import masks, plain, plain_teachers
from benchmarks.cases import LOCAL_CROPS, QUEUE, Case

_IMAGES, _REPEATED = 2048, 100
Step = Callable[[], Tensor]
Batches = Iterator[tuple[tuple[Tensor, ...], Tensor]]
"""Endless views ``(B, 3, H, W)`` and mask noise ``(B, L)``."""
Backward = Callable[[tuple[Tensor, ...], Tensor], Tensor]


class Model(nn.Module):
    """What a contestant trains.

    Attributes:
        method: the networks.
    """

    method: Any

    def loss(self, views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """The scalar to minimise, of views ``(B, 3, H, W)`` and mask noise ``(B, L)``."""
        raise NotImplementedError

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW as it comes."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05)

    def update(self) -> None:
        """What comes after an optimiser step."""

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights, named as in `plain`; what they do not have keeps its value.

        Raises:
            ValueError: a weight has another shape.
        """
        renamed: dict[str, Tensor] = {}
        for name, own in self.state_dict().items():
            value = weights.get(self.plain_name(name), own)
            if value.shape != own.shape:
                raise ValueError(
                    f"{name!r} has the shape {tuple(own.shape)}, not {tuple(value.shape)}"
                )
            renamed[name] = value
        self.load_state_dict(renamed)

    def plain_name(self, name: str) -> str:
        """What `plain` calls a weight."""
        name = re.sub(r"^(target|key)_", "momentum_", name.removeprefix("method."))
        name = re.sub(r"^(momentum_)?head\.", r"\1projector.", name)
        name = re.sub(r"^((momentum_)?projector)\.mlp\.", r"\1.", name)
        return re.sub(r"^(\w+)\.layers\.", r"\1.", name).replace("queue.rows_KD", "queue")


@dataclass(frozen=True)
class Contestant:
    """One way to train.

    Attributes:
        title: for the table.
        precision: "fp32", or "bf16" or "fp16" under autocast, the last one with a scaled loss.
        fused: whether attention is torch's fused one; None is what this project does there.
        build: from a case to a model.
        batches: from a case to its `Batches`, loading and augmentation included.
        compile: whether ``torch.compile`` is given the loss; of ours, the blocks, which it is given
            anyway where this project would.
        needs: packages that it cannot do without.
        reference: of what it computes, where that is not what ours computes; from a case.
    """

    title: str
    precision: str
    fused: bool | None
    build: Callable[[Case], Model]
    batches: Callable[[Case, torch.device], Batches]
    compile: bool = False
    needs: tuple[str, ...] = ()
    reference: Callable[[Case], Model] | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's own."""
        return issubclass(self.build, _Ours) if isinstance(self.build, type) else False

    def obstacle(self, device: torch.device) -> str | None:
        """Why it cannot run here, if it cannot."""
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed"
        if self.precision == "fp16" and device.type == "cpu":
            return "fp16 is for GPUs"
        if self.compile:
            compilers = ("g++", "clang++", "c++")
            if device.type == "cpu" and not any(map(shutil.which, compilers)):
                return "there is no C++ compiler"
            if device.type == "cuda" and importlib.util.find_spec("triton") is None:
                return "triton is not installed"
        return None


def device() -> torch.device:
    """The GPU, if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def stored_images(case: Case) -> Tensor:
    """uint8 noise ``(N, 3, H, W)``: what is in them costs nothing."""
    generator = torch.Generator().manual_seed(0)
    count = max(case.batch_size, min(_IMAGES, 16 * 2**20 // case.image_size**2))
    shape = (count, 3, case.image_size, case.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def settle(contestant: Contestant, device: torch.device) -> None:
    """Make the global settings of torch and timm that the contestant would."""
    if contestant.is_ours:
        from ssl_bench.distributed import device as hardware

        hardware.choose()
    fused = device.type != "cpu" if contestant.fused is None else contestant.fused
    timm.layers.set_fused_attn(fused)


def step_of(
    contestant: Contestant, case: Case, device: torch.device, recorded: bool = True
) -> Step:
    """A function that loads, augments, and trains on, one batch, and returns the loss.

    Args:
        recorded: whether ours is recorded as a CUDA graph where this project would; what is
            computed within one cannot be counted.
    """
    settle(contestant, device)
    torch.manual_seed(0)
    model = contestant.build(case).to(device).train()
    if isinstance(model, _Ours):
        return model.step(contestant, device, recorded)
    optimizer = model.optimizer()
    scaler = torch.amp.GradScaler(device.type, enabled=contestant.precision == "fp16")
    backward = backward_function(contestant, model, device, scale=scaler.scale)
    batches = contestant.batches(case, device)

    def step() -> Tensor:
        loss = backward(*next(batches))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        model.update()
        return loss

    return step


def backward_function(
    contestant: Contestant,
    model: Model,
    device: torch.device,
    images_at_once: int | None = None,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> Backward:
    """What adds a batch's gradient to the parameters' and returns the loss.

    Args:
        images_at_once: of ours; what it would take where it is None.
        scale: what the others differentiate in place of the loss.
    """
    if isinstance(model, _Ours):
        return model.backward_function(contestant, device, images_at_once)
    loss_of = torch.compile(model.loss) if contestant.compile else model.loss

    def backward(views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        with autocast(contestant, device):
            loss = loss_of(views, noise)
        scale(loss).backward()
        return loss.detach()

    return backward


def autocast(contestant: Contestant, device: torch.device) -> Any:
    """Mixed precision, if the contestant has it."""
    if contestant.precision == "fp32":
        return nullcontext()
    dtype = torch.float16 if contestant.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype)


_TEACHERS_FIRST = {
    "encoder": "momentum_encoder",
    "student_head": "projector",
    "student": "encoder",
    "teacher_head": "momentum_projector",
    "masked_embed": "mask_token",
}
_OUR_NAMES = {
    "DINO": _TEACHERS_FIRST,
    "IBOT": _TEACHERS_FIRST,
    "IJEPA": {"encoder": "momentum_encoder", "context_encoder": "encoder"},
}
"""What `plain` calls the networks of methods whose encoder is the teacher."""


class _Ours(Model):
    """This project's method and optimiser."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        from ssl_bench.api import registry
        from ssl_bench.models.backbones import EncoderSpec
        from ssl_bench.training import setup

        self.case = case
        self.spec = EncoderSpec(
            "vit_base_patch16_224",
            case.image_size,
            case.patch_size,
            3,
            (0.5,) * 3,
            (0.25,) * 3,
            {"embed_dim": case.width, "depth": case.depth, "num_heads": case.heads},
        )
        plugin = registry.find("method", case.method)
        names = ("decoder_embed_dim", "decoder_depth", "decoder_heads")
        settings: dict[str, Any] = {
            **dict(zip(names, case.decoder, strict=True)),
            "mask_ratio": case.mask_ratio,
            "proj_hidden_dim": case.projector[0],
            "proj_output_dim": case.projector[1],
            "pred_hidden_dim": case.projector[0] // 4,
            "head_hidden_dim": case.projector[0],
            "prototypes": case.projector[1],
            "norm_last_layer": True,
            "teacher_temp": 0.04,
            "patch_temp": 0.04,
            "predictor_embed_dim": case.decoder[0],
            "predictor_depth": case.decoder[1],
            "drop_path": 0.0,
            "local_crops": LOCAL_CROPS,
            "queue_size": QUEUE,
        }
        Config = plugin.load().Config
        own = {field.name for field in fields(Config)}
        config = Config(**{name: value for name, value in settings.items() if name in own})
        self.method = setup.build_method(plugin.load_class(), config, self.spec, 10, 0)

    def plain_name(self, name: str) -> str:
        for ours, plains in _OUR_NAMES.get(type(self.method).__name__, {}).items():
            name = re.sub(rf"^method\.{ours}", plains, name)
        return super().plain_name(name)

    def backward_function(
        self, contestant: Contestant, device: torch.device, images_at_once: int | None
    ) -> Backward:
        """As in this project's own loop, of views and noise that are given."""
        from ssl_bench.api.step import Batch, Step
        from ssl_bench.training import gradients, setup

        hardware = self._hardware(contestant, device)
        at_once = images_at_once or hardware.images_at_once(self.case.patches)
        if hardware.compiled:
            setup.compile_blocks(self.method)

        def backward(views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
            given: Any = masks.Given(noise, torch.arange(len(noise), device=noise.device))
            batch = Batch(dict(zip(self.method.transforms(), views, strict=False)), given)
            step = Step(0, 2, 2, len(noise))
            return gradients.backward(self.method, batch, step, hardware, at_once)["loss"]

        return backward

    def step(self, contestant: Contestant, device: torch.device, recorded: bool) -> Step:
        """This project's own training, data included."""
        from ssl_bench.data import Split
        from ssl_bench.training import gradients, setup
        from ssl_bench.training.schedule import Schedule
        from ssl_bench.utils.rng import SampleRng

        images_NCHW = stored_images(self.case)
        train = Split(images_NCHW, torch.zeros(len(images_NCHW), dtype=torch.long)).to(device)
        hardware = self._hardware(contestant, device)
        at_once = hardware.images_at_once(self.case.patches)
        trainer = setup.prepare(self.method, hardware, self.spec, train, 0, at_once)
        if not recorded:
            trainer = replace(trainer, captured=None)
        schedule = Schedule(len(train), self.case.batch_size, 1000)
        source = trainer.batches(
            SampleRng(0, number, schedule.batch(number, 0, "order")) for number in itertools.count()
        )
        numbers = itertools.count()

        def step() -> Tensor:
            losses, _ = trainer.take(schedule.step(next(numbers)), next(source))
            return losses[gradients.TOTAL]

        return step

    def _hardware(self, contestant: Contestant, device: torch.device) -> Any:
        from ssl_bench.distributed.device import Hardware, choose

        precision: Any = contestant.precision
        return Hardware(device, precision, "", contestant.compile or choose().compiled)


_METHODS: Mapping[str, Any] = {
    "mae": plain.MAE,
    "simmim": plain.SimMIM,
    "ijepa": plain_teachers.IJEPA,
    "dino": plain_teachers.Crops,
    "ibot": plain_teachers.Crops,
}
"""Those that take noise; the others are `plain.Views`."""


class _Plain(Model):
    """Plain PyTorch's."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.method = self.build(case)

    def build(self, case: Case) -> nn.Module:
        """The method."""
        return _METHODS.get(case.method, plain.Views)(case)

    def loss(self, views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        if self.case.method not in _METHODS:
            return self.method(*views)
        few = views[:1] if self.case.takes_one_view else views
        return self.method(*few, noise=noise)

    def update(self) -> None:
        if hasattr(self.method, "update"):
            self.method.update()


class _Lightly(_Plain):
    """lightly's modules, put together as its examples do."""

    def build(self, case: Case) -> nn.Module:
        from benchmarks import with_lightly

        return with_lightly.build(case)

    def plain_name(self, name: str) -> str:
        name = re.sub(r"^(momentum_)?encoder\.vit\.", r"\1encoder.", super().plain_name(name))
        name = re.sub(r"^predictor\.decoder\.(?!mask)", "predictor.predictor_", name)
        name = re.sub(r"^predictor\.decoder\.", "predictor.", name)
        token = "decoder" if hasattr(self.method, "decoder") else r"encoder(?=\.mask_token)"
        return re.sub(rf"^{token}\.", "", name)

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Also take a queue, which is no part of its state; biases that only it has become zero."""
        zeros = {
            self.plain_name(name): torch.zeros_like(value)
            for name, value in self.state_dict().items()
            if name.endswith(".bias")
        }
        super().adopt(zeros | {**weights})
        if "queue" in weights:
            self.method.loss.memory_bank.bank.copy_(weights["queue"])


def _stable_pretraining(case: Case) -> Model:
    from benchmarks import with_stable_pretraining

    return with_stable_pretraining.build(case)


def _stable_pretraining_reference(case: Case) -> Model:
    from benchmarks import with_stable_pretraining

    return with_stable_pretraining.reference(case)


def in_memory(case: Case, device: torch.device) -> Batches:
    """This project's batches: views made by the batch, where the images are."""
    from ssl_bench.data import Split
    from ssl_bench.models.backbones import EncoderSpec
    from ssl_bench.training import setup

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
                batch = setup.make_batch(method, split, spec, 0, step, index_B)
                yield tuple(batch.views.values()), batch.rng.uniform("mask", case.noise)
                step += 1


def one_batch(case: Case, device: torch.device) -> Batches:
    """The same views again and again: a data path that costs nothing."""
    views = tuple(
        torch.randn(case.batch_size, 3, size, size, device=device) for size in case.view_sizes
    )
    while True:
        yield views, torch.rand(case.batch_size, case.noise, device=device)


class _Pictures(torch.utils.data.Dataset):
    """Images as Pillow has them, again and again, and a transform.

    Worker processes prepare nothing of the next epoch before it begins, so one has many batches, as
    a data set's has.
    """

    def __init__(self, case: Case, transform: Any) -> None:
        self.images, self.transform = stored_images(case), transform

    def __len__(self) -> int:
        return _REPEATED * len(self.images)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        image_CHW = self.images[index % len(self.images)]
        views = self.transform(Image.fromarray(image_CHW.permute(1, 2, 0).numpy()))
        return tuple(views) if isinstance(views, list | tuple) else (views,)


def loaded(transform_of: Callable[[Case], Any]) -> Callable[[Case, torch.device], Batches]:
    """Batches as users load them: pictures transformed one by one in worker processes."""

    def batches(case: Case, device: torch.device) -> Batches:
        on_gpu = device.type == "cuda"
        loader = torch.utils.data.DataLoader(
            _Pictures(case, transform_of(case)),
            batch_size=case.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=(os.cpu_count() or 2) if on_gpu else 2,
            persistent_workers=True,
            pin_memory=on_gpu,
        )
        while True:
            for views in loader:
                noise = torch.rand(case.batch_size, case.noise, device=device)
                yield tuple(view.to(device, non_blocking=True) for view in views), noise

    return batches


def _lightly_transform(case: Case) -> Any:
    from benchmarks import with_lightly

    return with_lightly.transform(case)


def _stable_pretraining_transform(case: Case) -> Any:
    from benchmarks import with_stable_pretraining

    return with_stable_pretraining.transform(case)


def _ours(title: str, precision: str, compile: bool = False) -> Contestant:
    return Contestant(f"ssl-bench, {title}", precision, None, _Ours, in_memory, compile)


def _plain(
    title: str, precision: str, fused: bool = True, compile: bool = False, load: bool = True
) -> Contestant:
    batches = loaded(plain.transforms) if load else one_batch
    needs = ("torchvision",) if load else ()
    return Contestant(f"plain PyTorch, {title}", precision, fused, _Plain, batches, compile, needs)


def _lightly(precision: str) -> Contestant:
    batches, needs = loaded(_lightly_transform), ("lightly",)
    title = f"lightly, {precision}"
    return Contestant(title, precision, True, _Lightly, batches, needs=needs)


def _stable(precision: str) -> Contestant:
    return Contestant(
        f"stable-pretraining, {precision}",
        precision,
        True,
        _stable_pretraining,
        loaded(_stable_pretraining_transform),
        needs=("stable_pretraining",),
        reference=_stable_pretraining_reference,
    )


CONTESTANTS: Mapping[str, Contestant] = {
    "ours": _ours("bf16", "bf16"),
    "ours-fp32": _ours("fp32", "fp32"),
    "ours-compiled": _ours("bf16, compiled", "bf16", compile=True),
    "plain": _plain("fp32", "fp32"),
    "plain-compiled": _plain("fp32, compiled", "fp32", compile=True),
    "plain-bf16": _plain("bf16", "bf16"),
    "plain-bf16-unfused": _plain("bf16, attention not fused", "bf16", fused=False),
    "plain-bf16-compiled": _plain(
        "bf16, attention not fused, compiled", "bf16", fused=False, compile=True
    ),
    "plain-fp16": _plain("fp16", "fp16"),
    "plain-fp16-no-data": _plain("fp16, no loading", "fp16", load=False),
    "plain-bf16-no-data": _plain("bf16, no loading", "bf16", load=False),
    "plain-bf16-compiled-no-data": _plain(
        "bf16, compiled, no loading", "bf16", compile=True, load=False
    ),
    "lightly": _lightly("fp32"),
    "lightly-bf16": _lightly("bf16"),
    "stable-pretraining": _stable("fp32"),
    "stable-pretraining-bf16": _stable("bf16"),
}
ON_CPU = (
    "ours", "plain", "plain-bf16-unfused", "plain-bf16-compiled", "lightly", "stable-pretraining"
)  # fmt: skip
ON_CPU_FP32 = ("ours-fp32", "plain", "plain-compiled", "lightly", "stable-pretraining")
ON_GROWTH = ("ours", "plain-bf16-unfused")
ON_GROWTH_FP32 = ("ours-fp32", "plain")
ON_METHODS = ("ours", "plain-bf16-unfused", "lightly")
ON_METHODS_FP32 = ("ours-fp32", "plain", "lightly")
ON_GPU = (
    "ours", "plain-fp16", "plain-fp16-no-data", "plain-bf16-no-data", "plain-bf16-compiled-no-data"
)  # fmt: skip
"""Who runs if nobody is named; those of fp32 are for CPUs without fast bf16."""
