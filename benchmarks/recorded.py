"""Steps of a GPU: one recorded graph beside operations that are sent one by one."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

_TITLES = {
    "mae": "MAE, ViT-Ti/4, 32 px",
    "mocov3": "MoCo v3, ViT-Ti/4, 32 px",
    "simclr": "SimCLR, ViT-Ti/4, 32 px",
    "dino": "DINO, ViT-Ti/4, 32 px",
    "mae-b16": "MAE, ViT-B/16, 224 px",
}
_FINETUNING = "finetune"
NAMES: Mapping[str, str] = {
    **{
        f"{name}{end}": f"{title}, {how}"
        for name, title in _TITLES.items()
        for end, how in {"": "recorded", "+": "one by one"}.items()
    },
    _FINETUNING: "fine-tuning, ViT-Ti/4, 32 px, recorded",
    f"{_FINETUNING}+": "fine-tuning, ViT-Ti/4, 32 px, one by one and not compiled",
}
_BATCH, _IMAGES = 256, 1024
_FIRST, _PROFILED = 10, 5  # steps: until all is warm, and in which launches are counted


def beside(name: str) -> str:
    """The recorded steps of the same training."""
    return name.removesuffix("+")


def measure(name: str, seconds: float) -> dict[str, float]:
    """A training's whole steps, data included, at the `small` preset of its method, or its own.

    Args:
        name: a key of `NAMES`.
        seconds: how long to measure, once training is under way.

    Returns:
        ``images_per_second``, ``launches`` in a step, ``gpu_busy``, the share of the step's time
        in which the GPU computes, ``peak_mib`` and ``seconds_to_first_step``.
    """
    import torch

    from ssl_bench.distributed.device import choose, peak_memory_mib
    from ssl_bench.training.schedule import Schedule

    schedule = Schedule(_IMAGES, _BATCH, 1000)
    numbers = itertools.count()
    make = _fine_tuning if beside(name) == _FINETUNING else _pre_training
    take_one = make(name, schedule)

    def take(steps: int) -> None:
        for number in itertools.islice(numbers, steps):
            take_one(number)
        torch.cuda.synchronize()

    started = time.perf_counter()
    take(1)
    first = time.perf_counter() - started
    take(_FIRST)
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        take(5)
        steps += 5
    each = (time.perf_counter() - begun) / steps
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        take(_PROFILED)
    kernels = [
        event
        for event in profile.events()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    busy = sum(event.time_range.elapsed_us() for event in kernels) * 1e-6
    launches = sum(event.count for event in profile.key_averages() if "Launch" in event.key)
    return {
        "images_per_second": _BATCH / each,
        "launches": launches / _PROFILED,
        "gpu_busy": busy / _PROFILED / each,
        "peak_mib": peak_memory_mib(choose().device),
        "seconds_to_first_step": first,
    }


def _pre_training(name: str, schedule: Any) -> Callable[[int], object]:
    """What takes the step of a number, on random images."""
    import torch

    from ssl_bench.api import registry
    from ssl_bench.data import Split
    from ssl_bench.distributed.device import choose
    from ssl_bench.models.backbones import EncoderSpec
    from ssl_bench.training import setup
    from ssl_bench.utils.rng import SampleRng

    hardware = choose()
    backbone, size, patch = "vit_tiny_patch16_224", 32, 4
    if beside(name) == "mae-b16":
        backbone, size, patch = "vit_base_patch16_224", 224, 16
    plugin = registry.discover("method")[beside(name).removesuffix("-b16")]
    names = {field.name for field in dataclasses.fields(plugin.config)}
    small = plugin.presets()["small"]
    config = plugin.load().Config(**{k: v for k, v in small.items() if k in names})
    spec = EncoderSpec(backbone, size, patch, 3, (0.5,) * 3, (0.25,) * 3)
    method = setup.build_method(plugin.load_class(), config, spec, 10, 0)
    train = Split(_images(size), torch.arange(_IMAGES) % 10).to(hardware.device)
    method = method.to(hardware.device).train()
    trainer = setup.prepare(method, hardware, spec, train, 0, None)
    if name != beside(name):
        trainer = dataclasses.replace(trainer, captured=None)
    source = trainer.batches(
        SampleRng(0, number, schedule.batch(number, 0, "order")) for number in itertools.count()
    )
    return lambda number: trainer.take(schedule.step(number), next(source))


def _fine_tuning(name: str, schedule: Any) -> Callable[[int], object]:
    """What takes the step of a number, on random images."""
    import torch

    from ssl_bench.api import registry
    from ssl_bench.data import Split
    from ssl_bench.distributed.device import choose
    from ssl_bench.evaluation import finetuning
    from ssl_bench.evaluation.features import Encoder
    from ssl_bench.models import backbones
    from ssl_bench.models.backbones import EncoderSpec
    from ssl_bench.training.setup import compile_blocks

    hardware = choose(compilation="auto" if name == beside(name) else "off")
    spec = EncoderSpec("vit_tiny_patch16_224", 32, 4, 3, (0.5,) * 3, (0.25,) * 3)
    plugin = registry.find("eval", "finetune")
    config = plugin.config(**plugin.presets()["small"])
    encoder = Encoder(backbones.build(spec, 0), spec, hardware, seed=0)
    model = finetuning.classifier(encoder, 10, config).train()
    if hardware.compiled:
        compile_blocks(model)
    split = Split(_images(32), torch.arange(_IMAGES) % 10)
    trainer = finetuning.Trainer(model, encoder, split.labels_N, config)

    def take(number: int) -> object:
        index_B = schedule.batch(number, 0, "finetune")
        return trainer.take(schedule.step(number), index_B, split.images(index_B))

    return take


def _images(size: int) -> Any:
    """Random ones: uint8 ``(N, 3, size, size)``."""
    import torch

    return torch.randint(0, 256, (_IMAGES, 3, size, size), dtype=torch.uint8)
