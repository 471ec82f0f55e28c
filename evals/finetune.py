"""Fine-tuning: the whole encoder and a linear classifier, trained on the labels.

He et al., *Masked Autoencoders Are Scalable Vision Learners*, arXiv:2111.06377, appendix A.1,
table 9; ``main_finetune.py``, facebookresearch/mae ``efb2a80``: mean of the patch tokens
and a fresh norm after it, layer-wise learning-rate decay, mixup and cutmix, label smoothing, drop
path. The last epoch is evaluated, on the test split, once.

Deviations from the official code: no RandAugment, no random erasing, and the learning rate falls to
zero instead of 1e-6. A batch larger than the training split shrinks to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench import draws, optim, progress
from ssl_bench.augment import augment, crop_and_flip, normalize
from ssl_bench.contract import FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.draws import Draws
from ssl_bench.errors import above, require, within
from ssl_bench.features import match_channels, prepare
from ssl_bench.scoring import accuracy
from ssl_bench.settings import OptimizerConfig

DEFAULT = True
PRESETS = {
    "quick": {
        "epochs": 2,
        "batch_size": 128,
        "base_lr": 4e-3,
        "scratch_lr": 2e-3,
        "layer_decay": 0.75,
        "mixup": 0.0,
        "cutmix": 0.0,
        "drop_path": 0.0,
        "crop_scale": 1.0,
    },
    "small": {"base_lr": 1e-3, "layer_decay": 0.75, "batch_size": 256, "crop_scale": 0.4},
}


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig):
    """Flags of fine-tuning; the defaults are MAE's for ViT-B on ImageNet."""

    epochs: int = 100
    """Passes over the training split."""
    batch_size: int = 1024
    """Images in an optimiser step."""
    base_lr: float = 5e-4
    """Learning rate of the head for a batch of 256."""
    scratch_lr: float = 5e-4
    """The same for the baseline trained from scratch, which has no layer decay."""
    warmup: float = 0.05
    """Share of the training during which the learning rate rises linearly from zero, in [0, 1)."""
    layer_decay: float = 0.65
    """Factor of the learning rate from each layer to the one below it, in (0, 1]."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes, in [0, 1)."""
    mixup: float = 0.8
    """Alpha of mixup's Beta distribution; 0 switches it off."""
    cutmix: float = 1.0
    """Alpha of cutmix's Beta distribution; 0 switches it off. With both, a coin decides."""
    drop_path: float = 0.1
    """Chance of skipping the last block, rising linearly from 0 at the first, in [0, 1)."""
    crop_scale: float = 0.08
    """Smallest share of an image's area that a random crop keeps, in (0, 1]; 1 crops nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        above("finetune epochs", self.epochs, 0)
        above("finetune batch size", self.batch_size, 0)
        above("finetune scratch lr", self.scratch_lr, 0)
        within("finetune layer decay", self.layer_decay, "(0, 1]")
        within("finetune label smoothing", self.label_smoothing, "[0, 1)")
        within("finetune drop path", self.drop_path, "[0, 1)")
        within("finetune crop scale", self.crop_scale, "(0, 1]")
        within("finetune mixup", self.mixup, "[0, inf)")
        within("finetune cutmix", self.cutmix, "[0, inf)")


def baselines(config: Config) -> Mapping[str, tuple[str, Config]]:
    """Supervised training from scratch at the same budget, with its own learning rate."""
    scratch = replace(config, base_lr=config.scratch_lr, layer_decay=1.0)
    return {"from scratch": ("random", scratch)}


class Classifier(nn.Module):
    """An encoder, the mean of its patch tokens before the final norm, a norm, a linear layer."""

    def __init__(self, encoder: VisionTransformer, classes: int) -> None:
        super().__init__()
        encoder.norm = nn.Identity()
        self.encoder = encoder
        self.fc_norm = nn.LayerNorm(encoder.embed_dim, eps=1e-6)
        self.head = nn.Linear(encoder.embed_dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Class logits ``(B, classes)``."""
        tokens_BTD = self.encoder.forward_features(images_BCHW)
        pooled_BD = tokens_BTD[:, self.encoder.num_prefix_tokens :].mean(dim=1)
        return self.head(self.fc_norm(pooled_BD))


def evaluate(encoder: FrozenEncoder, data: Dataset, config: Config) -> Result:
    """Fine-tune on the training split, classify the test split."""
    spec, hardware, seed = encoder.spec, encoder.hardware, encoder.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.key(seed, "finetune"))
        trunk = encoder.trainable_copy(drop_path_rate=config.drop_path)
        model = Classifier(trunk, len(data.classes)).to(hardware.device)
    optimizer = optim.adamw(
        optim.layer_decay_groups(model, config, config.layer_decay), config.beta2
    )
    batch_size = min(config.batch_size, len(data.train))
    schedule = optim.Schedule.of(len(data.train), batch_size, config.epochs, config)
    recipe = crop_and_flip(spec.image_size, config.crop_scale, flip=0.5)
    images_NCHW, labels_N = data.train.images_NCHW, data.train.labels_N
    model.train()
    with progress.bar("fine-tune", schedule.steps) as bar:
        for step in range(schedule.steps):
            optim.set_learning_rate(optimizer, schedule.learning_rate(step))
            index_B = schedule.batch(step, seed, "finetune")
            step_draws = Draws(seed, step, index_B.to(hardware.device), "finetune/")
            images_BCHW = augment(images_NCHW[index_B].to(hardware.device), recipe, step_draws)
            images_BCHW = match_channels(images_BCHW, spec.channels)
            images_BCHW = normalize(images_BCHW, spec.mean, spec.std)
            labels_B = labels_N[index_B].to(hardware.device)
            targets_BC = F.one_hot(labels_B, len(data.classes)).float()
            images_BCHW, targets_BC = mix(images_BCHW, targets_BC, config, seed, step)
            torch.manual_seed(draws.key(seed, "finetune/dropout", step))
            with hardware.autocast():
                logits_BC = model(images_BCHW)
            smoothing = config.label_smoothing
            loss = F.cross_entropy(logits_BC.float(), targets_BC, label_smoothing=smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 10 == 0 or step + 1 == schedule.steps:
                bar.update(step + 1, f"loss {loss.item():.4f}")
    require(
        bool(loss.isfinite()),
        f"fine-tuning diverged: its loss is {loss.item()}; a learning rate below {config.base_lr} "
        "(finetune base lr, scratch lr for the baseline from scratch) may help",
    )
    predictions_N = _predict(model, encoder, data.test.images_NCHW)
    return Result({"top1": accuracy(predictions_N, data.test.labels_N)}, predictions_N)


def mix(
    images_BCHW: Tensor, targets_BC: Tensor, config: Config, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al., 2018) or cutmix (Yun et al., 2019) of the batch with its reverse."""
    generator = draws.generator(seed, "mix", step)
    alphas = [alpha for alpha in (config.mixup, config.cutmix) if alpha > 0]
    if not alphas:
        return images_BCHW, targets_BC
    coin = int(torch.randint(len(alphas), (), generator=generator))
    is_cutmix = config.cutmix > 0 and (coin == 1 or config.mixup == 0)
    gammas = torch._standard_gamma(torch.full((2,), alphas[coin]), generator=generator)
    share = float(gammas[0] / gammas.sum())
    others_BCHW = images_BCHW.flip(0)
    if not is_cutmix:
        mixed_BCHW = share * images_BCHW + (1 - share) * others_BCHW
    else:
        height, width = images_BCHW.shape[-2:]
        cut = (1 - share) ** 0.5
        center_y, center_x = torch.rand(2, generator=generator).tolist()
        top, bottom = _span(center_y, cut, height)
        left, right = _span(center_x, cut, width)
        mixed_BCHW = images_BCHW.clone()
        mixed_BCHW[..., top:bottom, left:right] = others_BCHW[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed_BCHW, share * targets_BC + (1 - share) * targets_BC.flip(0)


def _span(center: float, share: float, size: int) -> tuple[int, int]:
    """A part of an axis around a centre, cut off at the borders."""
    middle, half = int(center * size), int(share * size) // 2
    return max(0, middle - half), min(size, middle + half)


@torch.no_grad()
def _predict(model: nn.Module, encoder: FrozenEncoder, images_NCHW: Tensor) -> Tensor:
    model.eval()
    predictions = []
    for images_BCHW in images_NCHW.split(500):
        with encoder.hardware.autocast():
            logits_BC = model(prepare(images_BCHW, encoder.spec, encoder.hardware))
        predictions.append(logits_BC.argmax(dim=1).cpu())
    return torch.cat(predictions)
