"""Steps of a GPU: one recorded graph beside operations that are sent one by one."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping
from typing import Any

_TITLES = {
    "mae": "MAE, ViT-Ti/4, 32 px",
    "mocov3": "MoCo v3, ViT-Ti/4, 32 px",
    "simclr": "SimCLR, ViT-Ti/4, 32 px",
    "dino": "DINO, ViT-Ti/4, 32 px",
    "mae-b16": "MAE, ViT-B/16, 224 px",
}
NAMES: Mapping[str, str] = {
    f"{name}{end}": f"{title}, {how}"
    for name, title in _TITLES.items()
    for end, how in {"": "recorded", "+": "one by one"}.items()
}
_BATCH, _IMAGES = 256, 1024
_FIRST, _PROFILED = 10, 5  # steps: until all is warm, and in which launches are counted


def beside(name: str) -> str:
    """The recorded steps of the same training."""
    return name.removesuffix("+")


def measure(name: str, seconds: float) -> dict[str, float]:
    """A training's whole steps, data included, at its method's `small` preset.

    Args:
        name: a key of `NAMES`.
        seconds: how long to measure, once training is under way.

    Returns:
        ``images_per_second``, ``launches`` in a step, ``gpu_busy``, the share of the step's time
        in which the GPU computes, ``peak_mib`` and ``seconds_to_first_step``.
    """
    import torch

    from ssl_bench.distributed.device import peak_memory_mib
    from ssl_bench.training.schedule import Schedule
    from ssl_bench.utils.rng import SampleRng

    trainer = _trainer(name)
    schedule = Schedule(_IMAGES, _BATCH, 1000)
    numbers = itertools.count()
    source = trainer.batches(
        SampleRng(0, number, schedule.batch(number, 0, "order")) for number in itertools.count()
    )

    def take(steps: int) -> None:
        for number in itertools.islice(numbers, steps):
            trainer.take(schedule.step(number), next(source))
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
        "peak_mib": peak_memory_mib(trainer.hardware.device),
        "seconds_to_first_step": first,
    }


def _trainer(name: str) -> Any:
    """What is measured, on random images."""
    import torch

    from ssl_bench.api import registry
    from ssl_bench.data import Split
    from ssl_bench.distributed.device import choose
    from ssl_bench.models.backbones import EncoderSpec
    from ssl_bench.training import setup

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
    images_NCHW = torch.randint(0, 256, (_IMAGES, 3, size, size), dtype=torch.uint8)
    train = Split(images_NCHW, torch.arange(_IMAGES) % 10).to(hardware.device)
    method = method.to(hardware.device).train()
    trainer = setup.prepare(method, hardware, spec, train, 0, None)
    return trainer if name == beside(name) else dataclasses.replace(trainer, captured=None)
