"""Evaluations beside the papers' own and lightly's: the part ``evaluations``.

The linear probe is timed whole, features included, on the embedded data and the default encoder.
The papers' probe (``evals/linear_paper.py``: 90 epochs on augmented images) is timed on part of an
epoch, which 90 epochs take that many times; once on this project's engine, once in plain PyTorch
with Pillow and torchvision in a ``DataLoader``, in fp32, as the official code runs on a CPU. kNN is
timed on random features of width 192, lightly's with the 200 neighbours that it has by default,
ours with every number that it chooses from, 200 the highest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

NAMES: Mapping[str, str] = {
    "linear": "linear probe, ssl-bench: a grid on features extracted once",
    "linear-paper": "the papers' probe, 90 epochs, ssl-bench",
    "linear-plain": "the papers' probe, 90 epochs, plain PyTorch, fp32",
    "knn-50000": "kNN, 50,000 x 10,000, ssl-bench",
    "knn-50000-lightly": "kNN, 50,000 x 10,000, lightly",
    "knn-60000": "kNN, 60,000 x 10,000, ssl-bench",
    "knn-60000-lightly": "kNN, 60,000 x 10,000, lightly",
}
_EPOCHS = 90
_IMAGES = 16384
_WIDTH, _QUERIES, _CLASSES, _NEIGHBORS, _TEMPERATURE = 192, 10_000, 10, 200, 0.07


def measure(name: str, seconds: float) -> dict[str, float]:
    """One contestant, in a process that does nothing else.

    Args:
        name: one of `NAMES`.
        seconds: how long to measure at least, where the work can be repeated.

    Returns:
        ``seconds`` that the whole evaluation takes, and ``peak_mib``, resident, without data
        workers.
    """
    import torch

    from ssl_bench.distributed import device as hardware

    if name.startswith("knn-"):
        _, bank, *lightly = name.split("-")
        queries = knn_inputs(int(bank), _QUERIES)
        took = _median_time(lambda: (lightly_knn if lightly else our_knn)(*queries), seconds)
    else:
        took = {"linear": _linear, "linear-paper": _paper, "linear-plain": _plain}[name](seconds)
    return {"seconds": took, "peak_mib": hardware.peak_memory_mib(torch.device("cpu"))}


def beside(name: str) -> str:
    """This project's contestant that does what that one does."""
    return "linear" if name.startswith("linear") else "-".join(name.split("-")[:2])


def knn_inputs(bank: int, queries: int) -> tuple[Any, Any, Any]:
    """Normalised random features ``(N, D)``, their labels ``(N,)`` and queries ``(Q, D)``."""
    import torch

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(bank + queries, _WIDTH, generator=generator)
    features = torch.nn.functional.normalize(features, dim=1)
    labels = torch.randint(_CLASSES, (bank,), generator=generator)
    return features[:bank], labels, features[bank:]


def our_knn(bank_ND: Any, labels_N: Any, queries_QD: Any) -> Any:
    """Predictions ``(Q,)`` of `ssl_bench.evals.knn`."""
    import torch

    from ssl_bench.api import registry

    plugin = registry.find("eval", "knn")
    config = replace(plugin.config(), temperature=_TEMPERATURE)
    every = torch.arange(len(bank_ND))
    found = plugin.load()._predict(bank_ND, labels_N, every, queries_QD, config, _CLASSES)
    return found[_NEIGHBORS]


def lightly_knn(bank_ND: Any, labels_N: Any, queries_QD: Any) -> Any:
    """Predictions ``(Q,)`` of lightly, which gets queries in batches, as its classifier gives."""
    import torch
    from lightly.utils.benchmarking import knn_predict

    bank_DN = bank_ND.t().contiguous()
    parts = [
        knn_predict(chunk_PD, bank_DN, labels_N, _CLASSES, _NEIGHBORS, _TEMPERATURE)[:, 0]
        for chunk_PD in queries_QD.split(256)
    ]
    return torch.cat(parts)


def _median_time(work: Callable[[], object], seconds: float) -> float:
    work()
    durations: list[float] = []
    while sum(durations) < seconds or len(durations) < 3:
        before = time.perf_counter()
        work()
        durations.append(time.perf_counter() - before)
    return statistics.median(durations)


def _setting() -> tuple[Any, Any]:
    """The default encoder, untrained, which costs the same, and the embedded data."""
    from ssl_bench import data
    from ssl_bench.config.settings import Settings
    from ssl_bench.distributed import device as hardware
    from ssl_bench.evaluation.features import Encoder
    from ssl_bench.models import backbones
    from ssl_bench.models.backbones import EncoderSpec

    images, size = data.load("fashion-mnist"), 28
    patch_size = backbones.default_patch_size(Settings().backbone, size)
    spec = EncoderSpec(
        Settings().backbone, size, patch_size, images.channels, images.mean, images.std
    )
    return Encoder(backbones.build(spec, 0), spec, hardware.choose(), 0), images


def _linear(seconds: float) -> float:
    from ssl_bench.api import registry

    plugin = registry.find("eval", "linear")
    encoder, images = _setting()
    evaluation = plugin.load_class()(plugin.config())
    before = time.perf_counter()
    evaluation.evaluate(encoder, images)
    return time.perf_counter() - before


def _paper(seconds: float) -> float:
    from ssl_bench.api import registry
    from ssl_bench.data import Split

    plugin = registry.find("eval", "linear-paper")
    config = plugin.config(epochs=1)
    encoder, images = _setting()
    first, few = slice(_IMAGES), slice(256)
    part = replace(
        images,
        train=Split(images.train.images_NCHW[first], images.train.labels_N[first]),
        test=Split(images.test.images_NCHW[few], images.test.labels_N[few]),
    )
    evaluation = plugin.load_class()(config)
    took = _median_time(lambda: evaluation.evaluate(encoder, part), seconds)
    return took * _EPOCHS * len(images.train) / _IMAGES


def _plain(seconds: float) -> float:
    import timm.layers
    import torch
    from torch import nn

    encoder, images = _setting()
    device = encoder.hardware.device
    timm.layers.set_fused_attn(True)
    vit = encoder.trainable_copy().eval().requires_grad_(False)
    norm = nn.BatchNorm1d(vit.embed_dim, affine=False, eps=1e-6)
    head = nn.Sequential(norm, nn.Linear(vit.embed_dim, len(images.classes))).to(device)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    batches = _augmented(images)

    def step() -> None:
        views_BCHW, labels_B = next(batches)
        with torch.no_grad():
            tokens_BTD = vit.forward_features(views_BCHW.to(device))
        loss = nn.functional.cross_entropy(head(tokens_BTD[:, 0]), labels_B.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    for _ in range(4):  # workers fetch that many ahead
        step()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        step()
        count += 1
    per_image = (time.perf_counter() - begun) / count / 256
    return per_image * _EPOCHS * len(images.train)


def _augmented(images: Any) -> Iterator[Any]:
    """Batches of 256 views as the official code makes them, epoch after epoch."""
    import torch
    from PIL import Image
    from torchvision import transforms as T

    crop = T.RandomResizedCrop(images.size, interpolation=T.InterpolationMode.BICUBIC)
    normalize = T.Normalize(images.mean, images.std)
    view = T.Compose([crop, T.RandomHorizontalFlip(), T.ToTensor(), normalize])

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images.train)

        def __getitem__(self, index: int) -> Any:
            pixels = images.train.images_NCHW[index, 0].numpy()
            return view(Image.fromarray(pixels)), images.train.labels_N[index]

    loader = torch.utils.data.DataLoader(
        Pictures(), 256, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    while True:
        yield from loader
