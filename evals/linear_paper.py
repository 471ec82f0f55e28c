"""Linear probe as the papers do it: a linear classifier on augmented images' frozen features.

MAE (He et al., arXiv:2111.06377, appendix A.1, table 10; ``main_linprobe.py`` and ``util/crop.py``,
facebookresearch/mae ``efb2a80``): batch normalisation without affine parameters before the
classifier, LARS, batches of 16,384. MoCo v3 (``main_lincls.py``, facebookresearch/moco-v3
``c349e6e``): no normalisation, SGD, a learning rate that changes by epoch. Both: the class token
after the final norm, random crops and flips, 90 epochs. Those who trained a ResNet do much the
same on its pooled features; ``ssl-bench recipe`` has each one's settings and their sources. The
last epoch is evaluated, on the test split, once.

Deviations from the official codes. The encoder is in evaluation mode, where MAE's is in training
mode: the same for a Vision Transformer without dropout. Batch statistics are those of the whole
batch, where MAE's are those of each GPU's share, which depend on how many there are. The last
epoch is reported instead of the best, which is chosen on the test split. A batch larger than the
training split shrinks to it, so that small data work, and what is left over of an epoch is left
out, where MoCo v3 trains on it as a smaller batch. Views are made of the stored squares, whether
these are in memory or streamed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.api import (
    CheckedConfig,
    Evaluation,
    FrozenEncoder,
    OptimizerSpec,
    Result,
    Step,
    Training,
    optimizers,
)
from ssl_bench.data import Dataset
from ssl_bench.distributed import collectives
from ssl_bench.errors import above, require
from ssl_bench.evaluation.features import flip_of, prepare
from ssl_bench.evaluation.metrics import accuracy
from ssl_bench.training import resume
from ssl_bench.training.schedule import Schedule
from ssl_bench.transforms.augmentations import Augmentation, augment, crop_and_flip
from ssl_bench.utils import progress, rng
from ssl_bench.utils.rng import SampleRng

_IMAGES_AT_ONCE = 1024
_SGD = {"optimizer": "sgd", "warmup": 0.0, "batch_norm": False}
_BY_EPOCH = {**_SGD, "per_epoch": True, "cut_crop": False, "interpolation": "bilinear"}
_DINO = {**_BY_EPOCH, "epochs": 100, "batch_size": 1024, "base_lr": 1e-3}
_RESNET = {**_BY_EPOCH, "epochs": 100, "batch_size": 256, "pooling": "avg"}


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Flags of the papers' linear probe; the defaults are MAE's on ImageNet."""

    section: ClassVar[str] = "linear paper"

    epochs: Annotated[int, "[1, inf)"] = 90
    """Passes over the training split."""
    batch_size: int = 16384
    """Images in an optimiser step."""
    optimizer: Literal["lars", "sgd"] = "lars"
    """LARS, or SGD; with momentum, either."""
    base_lr: Annotated[float, "(0, inf)"] = 0.1
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    warmup: Annotated[float, "[0, 1)"] = 10 / 90
    """Share of the training during which the learning rate rises linearly from zero."""
    per_epoch: bool = False
    """Change the learning rate at the start of an epoch alone, instead of every step."""
    momentum: Annotated[float, "[0, 1)"] = 0.9
    """The optimiser's momentum."""
    weight_decay: Annotated[float, "[0, 1]"] = 0.0
    """The optimiser's weight decay."""
    batch_norm: bool = True
    """Normalise the features by the batch's statistics first, without affine parameters."""
    head_std: Annotated[float, "[0, inf)"] = 0.01
    """Standard deviation of the classifier's initial weights."""
    pooling: Literal["cls", "avg"] = "cls"
    """What is classified: the class token or the mean of the patch tokens, after the norm."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.08
    """Smallest share of an image's area that a random crop keeps; 1 crops nothing."""
    cut_crop: bool = True
    """Cut a crop that does not fit off at the border, instead of drawing up to ten until one
    fits."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How crops are resized."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # One image has no batch statistics.
        above("--linear-paper-batch-size", self.batch_size, int(self.batch_norm))


class PaperLinearProbe(Evaluation):
    """A linear classifier on features of augmented images."""

    version = 1
    sharded = True
    compared_with = ("random",)
    presets = {
        "quick": {
            "epochs": 3,
            "batch_size": 256,
            "optimizer": "sgd",
            "base_lr": 0.5,
            "warmup": 0.1,
            "crop_scale": 1.0,
        },
        "small": {"batch_size": 1024, "crop_scale": 0.4},
        "imagenet-mae-vitb": {},
        "imagenet-mae-vitl": {},
        **{
            f"imagenet-mocov3-{size}": {**_BY_EPOCH, "batch_size": 1024, "base_lr": 3.0}
            for size in ("vits", "vitb")
        },
        "imagenet-moco-v1-resnet50": {**_RESNET, "base_lr": 30.0},
        "imagenet-moco-v2-resnet50": {**_RESNET, "base_lr": 30.0},
        "imagenet-simclr-resnet50": {
            **_SGD,
            "batch_size": 4096,
            "weight_decay": 1e-6,
            "head_std": 0.0,
            "pooling": "avg",
            "cut_crop": False,
        },
        "imagenet-byol-resnet50": {
            **_SGD,
            "epochs": 80,
            "batch_size": 1024,
            "base_lr": 0.2,
            "pooling": "avg",
        },
        "imagenet-simsiam-resnet50": {
            **_RESNET,
            "epochs": 90,
            "batch_size": 4096,
            "optimizer": "lars",
        },
        "imagenet-barlow-twins-resnet50": {**_RESNET, "weight_decay": 1e-6},
        "imagenet-vicreg-resnet50": {**_RESNET, "base_lr": 0.02, "weight_decay": 1e-6},
        "imagenet-dino-vits": _DINO,
        "imagenet-ibot-vits": _DINO,
        "imagenet-lejepa-vitl": {"weight_decay": 1e-6},
        **{
            f"imagenet-ijepa-{size}": {
                "epochs": 50,
                "base_lr": 0.05,
                "warmup": 0.0,
                "pooling": "avg",
                "cut_crop": False,
            }
            for size in ("vitb", "vith")
        },
    }

    def audit(self, encoder: FrozenEncoder) -> str:
        """Check that the encoder has the features that the probe is to be trained on."""
        return f"probe on {_width(encoder, self.config)} frozen features ({self.config.pooling})"

    def training(self, encoder: FrozenEncoder, classes: int) -> Training:
        """The probe, its optimiser, and the crops."""
        config, device = self.config, encoder.hardware.device
        probe = _probe(_width(encoder, config), classes, config, encoder.seed).to(device)

        def learning_rate(step: Step) -> float:
            if config.per_epoch:
                step = replace(step, number=step.number - step.number % step.per_epoch)
            peak_lr = config.base_lr * step.batch_size / 256
            return optimizers.warmup_cosine(step, peak_lr, config.warmup)

        how = OptimizerSpec(optimizer=_optimizer(probe, config), learning_rate=learning_rate)
        view = replace(
            crop_and_flip(encoder.spec.image_size, config.crop_scale, flip_of(encoder.spec)),
            interpolation=config.interpolation,
            cut_crop=config.cut_crop,
        )
        return Training(probe, how, view)

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Train the probe on augmented training images, classify the test split."""
        config = self.config
        device, seed = encoder.hardware.device, encoder.seed
        recipe = self.training(encoder, len(data.classes))
        probe, optimizer = recipe.model, recipe.optimizer
        count = len(data.train)
        schedule = Schedule(count, min(config.batch_size, count), config.epochs)

        def order(first: int) -> Iterator[Tensor]:
            return (
                schedule.batch(step, seed, "linear-paper") for step in range(first, schedule.steps)
            )

        def in_parts(first: int) -> Iterator[Tensor]:
            return (part_P for index_B in order(first) for part_P in _own_parts(index_B))

        probe.train()
        with (
            resume.training(
                encoder.checkpoint, probe, optimizer.optimizer, schedule.steps
            ) as training,
            closing(data.train.read(in_parts(training.start))) as stored,
            progress.bar("linear probe", schedule.steps) as bar,
        ):
            for step, index_B in enumerate(order(training.start), training.start):
                optimizer.prepare(schedule.step(step))
                how = recipe.view, config.pooling, step, index_B
                features_BD = _augmented_features(encoder, stored, *how)
                labels_B = data.train.labels_N[index_B].to(device)
                loss = F.cross_entropy(probe(features_BD), labels_B)
                loss.backward()
                optimizer.update()
                if step % 10 == 0 or step + 1 == schedule.steps:
                    bar.update(step + 1, f"loss {loss.item():.4f}")
                training.after_step(step + 1, loss)
        require(
            math.isfinite(training.last_loss),
            f"the linear probe diverged: its loss is {training.last_loss}; a linear paper base lr "
            f"below {config.base_lr} may help",
        )
        probe.eval()
        with torch.no_grad():
            logits_NC = probe(encoder.features(data.test)[config.pooling])
        predictions_N = logits_NC.argmax(dim=1).cpu()
        return Result({"top1": accuracy(predictions_N, data.test.labels_N)}, predictions_N)


def _augmented_features(
    encoder: FrozenEncoder,
    stored: Iterator[Tensor],
    recipe: Augmentation,
    pooling: str,
    step: int,
    index_B: Tensor,
) -> Tensor:
    """Frozen features of one random view of each image: float32 ``(B, D)``, on every rank.

    Args:
        stored: this rank's images of those at the next indices, in parts.
    """
    parts = []
    for part_P in _own_parts(index_B):
        samples_P = part_P.to(encoder.hardware.device)
        step_draws = SampleRng(encoder.seed, step, samples_P, "linear-paper/")
        view = partial(augment, recipe=recipe, draws=step_draws)
        views_PCHW = prepare(next(stored), encoder.spec, encoder.hardware, view)
        parts.append(encoder.encode(views_PCHW)[pooling])
    return collectives.gather_shards(torch.cat(parts), len(index_B))


def _own_parts(index_B: Tensor) -> tuple[Tensor, ...]:
    """This rank's share of a batch, in parts."""
    return collectives.shard_rows(index_B).split(_IMAGES_AT_ONCE)


def _width(encoder: FrozenEncoder, config: Config) -> int:
    """How many features the encoder gives."""
    spec, device = encoder.spec, encoder.hardware.device
    blank = torch.zeros(1, spec.input_channels, spec.image_size, spec.image_size, device=device)
    features = encoder.encode(blank)
    require(
        config.pooling in features,
        f"this backbone has no class token to probe; linear paper pooling {', '.join(features)} "
        "would work",
    )
    return features[config.pooling].shape[1]


def _probe(width: int, classes: int, config: Config, seed: int) -> nn.Sequential:
    norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if config.batch_norm else nn.Identity()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "linear-paper"))
        head = nn.Linear(width, classes)
        nn.init.zeros_(head.weight)
        if config.head_std:
            nn.init.trunc_normal_(head.weight, std=config.head_std)
        nn.init.zeros_(head.bias)
    return nn.Sequential(norm, head)


def _optimizer(probe: nn.Module, config: Config) -> torch.optim.Optimizer:
    kind = optimizers.LARS if config.optimizer == "lars" else torch.optim.SGD
    return kind(
        probe.parameters(), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay
    )
