"""Fine-tuning: the whole encoder and a linear classifier, trained on the labels.

The recipe of MAE (He et al., *Masked Autoencoders Are Scalable Vision Learners*, arXiv:2111.06377,
appendix A.1, table 9; ``main_finetune.py``, facebookresearch/mae ``efb2a80``): mean of the patch
tokens and a fresh norm after it, layer-wise learning-rate decay, RandAugment, random erasing,
mixup and cutmix, label smoothing, drop path. With ``pooling`` "cls" and no layer decay, that of
DeiT (Touvron et al., arXiv:2012.12877; ``main.py``, facebookresearch/deit), which MoCo v3
fine-tunes by. The last epoch is evaluated, on the test split, once.

Deviations from the official codes. The last epoch is reported instead of the best, which is chosen
on the test split. A batch larger than the training split shrinks to it, so that small data work.
The learning rate follows MAE's schedule for DeiT's recipe too, instead of steps by epoch from
1e-6, and no image is repeated within a batch: one schedule and one order for every recipe.
Views are made of the stored squares, whether these are in memory or streamed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench import audit as audits
from ssl_bench import draws, optim, progress
from ssl_bench.augment import augment, crop_and_flip
from ssl_bench.contract import FrozenEncoder, Result
from ssl_bench.data import Dataset, Split
from ssl_bench.draws import Draws
from ssl_bench.errors import above, require, within
from ssl_bench.features import prepare
from ssl_bench.scoring import accuracy
from ssl_bench.settings import OptimizerConfig, Published
from ssl_bench.timm_augment import rand_augment, random_erase

DEFAULT = True
PRESETS = {
    "quick": {
        "epochs": 2,
        "batch_size": 128,
        "base_lr": 4e-3,
        "scratch_lr": 2e-3,
        "min_lr": 0.0,
        "layer_decay": 0.75,
        "mixup": 0.0,
        "cutmix": 0.0,
        "drop_path": 0.0,
        "crop_scale": 1.0,
        "auto_augment": "",
        "random_erasing": 0.0,
    },
    "small": {
        "base_lr": 1e-3,
        "min_lr": 0.0,
        "layer_decay": 0.75,
        "batch_size": 256,
        "crop_scale": 0.4,
        "auto_augment": "",
        "random_erasing": 0.0,
    },
    "imagenet-mae-vitb": {},
    "imagenet-mae-vitl": {
        "epochs": 50,
        "base_lr": 1e-3,
        "warmup": 5 / 50,
        "layer_decay": 0.75,
        "drop_path": 0.2,
    },
    **{
        f"imagenet-mocov3-{size}": {
            "epochs": 150,
            "base_lr": 2.5e-4,
            "min_lr": 1e-5,
            "warmup": 5 / 150,
            "layer_decay": 1.0,
            "pooling": "cls",
            "head_std": 0.02,
        }
        for size in ("vits", "vitb")
    },
}
# Magnitude, operations, their chance, deviation and bound of the magnitude, increasing severity.
_RAND_AUGMENT = r"(rand(-(m\d+|n[1-9]\d*|p(0?\.\d+|[01])|mstd\d+(\.\d+)?|mmax\d+|inc[01]))*)?"


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
    min_lr: float = 1e-6
    """Learning rate that the head's cosine ends at."""
    warmup: float = 0.05
    """Share of the training during which the learning rate rises linearly from zero, in [0, 1)."""
    layer_decay: float = 0.65
    """Factor of the learning rate from each layer to the one below it, in (0, 1]."""
    pooling: Literal["avg", "cls"] = "avg"
    """What is classified: the mean of the patch tokens, normed anew, or the normed class token."""
    head_std: float = 2e-5
    """Standard deviation of the classifier's initial weights, at least 0."""
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
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAugment as timm writes it; an empty word switches it off."""
    random_erasing: float = 0.25
    """Chance of erasing a rectangle of an image, in [0, 1]."""

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
        within("finetune min lr", self.min_lr, "[0, inf)")
        within("finetune head std", self.head_std, "[0, inf)")
        within("finetune random erasing", self.random_erasing, "[0, 1]")
        require(
            bool(re.fullmatch(_RAND_AUGMENT, self.auto_augment)),
            f"finetune auto augment {self.auto_augment!r} is not understood; "
            "rand-m9-mstd0.5-inc1 would work, or '' for none",
        )


def baselines(config: Config) -> Mapping[str, tuple[str, Config]]:
    """Supervised training from scratch at the same budget, with its own learning rate."""
    scratch = replace(config, base_lr=config.scratch_lr, layer_decay=1.0)
    return {"from scratch": ("random", scratch)}


def audit(encoder: FrozenEncoder, config: Config) -> str:
    """Check on the real classifier that layer decay, drop path and weight decay take hold."""
    model, optimizer = _trained(encoder, 2, config)
    groups = optimizer.param_groups
    audits.drop_path(model.encoder, config.drop_path)
    audits.layer_decay(model, groups, config.layer_decay)
    return audits.weight_decay(model, groups, config.weight_decay, not config.decay_norm_and_bias)


class Classifier(nn.Module):
    """An encoder and a linear layer, on the mean of its patch tokens or on its class token.

    The mean is taken before the final norm, and gets a norm of its own (MAE); the class token is
    taken after it (DeiT).
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        classes: int,
        pooling: Literal["avg", "cls"] = "avg",
        head_std: float = 2e-5,
    ) -> None:
        super().__init__()
        require(
            pooling == "avg" or encoder.cls_token is not None,
            "this backbone has no class token to classify; finetune pooling avg would work",
        )
        self.encoder, self.pooling = encoder, pooling
        self.fc_norm: nn.Module = nn.Identity()
        if pooling == "avg":
            encoder.norm = nn.Identity()
            self.fc_norm = nn.LayerNorm(encoder.embed_dim, eps=1e-6)
        self.head = nn.Linear(encoder.embed_dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Class logits ``(B, classes)``."""
        tokens_BTD = self.encoder.forward_features(images_BCHW)
        if self.pooling == "avg":
            pooled_BD = tokens_BTD[:, self.encoder.num_prefix_tokens :].mean(dim=1)
        else:
            pooled_BD = tokens_BTD[:, 0]
        return self.head(self.fc_norm(pooled_BD))


def evaluate(encoder: FrozenEncoder, data: Dataset, config: Config) -> Result:
    """Fine-tune on the training split, classify the test split."""
    hardware, seed = encoder.hardware, encoder.seed
    model, optimizer = _trained(encoder, len(data.classes), config)
    batch_size = min(config.batch_size, len(data.train))
    schedule = optim.Schedule.of(
        len(data.train), batch_size, config.epochs, config, min_lr=config.min_lr
    )

    def order() -> Iterator[Tensor]:
        return (schedule.batch(step, seed, "finetune") for step in range(schedule.steps))

    model.train()
    with (
        closing(data.train.read(order())) as stored,
        progress.bar("fine-tune", schedule.steps) as bar,
    ):
        for step, (index_B, stored_BCHW) in enumerate(zip(order(), stored, strict=True)):
            optim.set_learning_rate(optimizer, schedule.learning_rate(step))
            step_draws = Draws(seed, step, index_B.to(hardware.device), "finetune/")
            images_BCHW = training_views(stored_BCHW, encoder, config, step_draws)
            labels_B = data.train.labels_N[index_B].to(hardware.device)
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
    predictions_N = _predict(model, encoder, data.test)
    return Result({"top1": accuracy(predictions_N, data.test.labels_N)}, predictions_N)


def training_views(
    images_BCHW: Tensor, encoder: FrozenEncoder, config: Config, step_draws: Draws
) -> Tensor:
    """Crop, flip, RandAugment and normalise uint8 images, erase in some: ``(B, C, S, S)``."""
    spec = encoder.spec
    recipe = crop_and_flip(spec.image_size, config.crop_scale, flip=0.5)

    def view(images_BCHW: Tensor) -> Tensor:
        views_BCHW = augment(images_BCHW, recipe, step_draws)
        if config.auto_augment:
            views_BCHW = rand_augment(views_BCHW, config.auto_augment, spec.mean, step_draws)
        return views_BCHW

    views_BCHW = prepare(images_BCHW, spec, encoder.hardware, view)
    if config.random_erasing:
        views_BCHW = random_erase(views_BCHW, config.random_erasing, step_draws)
    return views_BCHW


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


def _trained(
    encoder: FrozenEncoder, classes: int, config: Config
) -> tuple[Classifier, torch.optim.AdamW]:
    """What is trained, and its optimiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.key(encoder.seed, "finetune"))
        trunk = encoder.trainable_copy(drop_path_rate=config.drop_path)
        model = Classifier(trunk, classes, config.pooling, config.head_std)
    model = model.to(encoder.hardware.device)
    groups = optim.layer_decay_groups(model, config, config.layer_decay)
    return model, optim.adamw(groups, config.beta2)


def _span(center: float, share: float, size: int) -> tuple[int, int]:
    """A part of an axis around a centre, cut off at the borders."""
    middle, half = int(center * size), int(share * size) // 2
    return max(0, middle - half), min(size, middle + half)


@torch.no_grad()
def _predict(model: nn.Module, encoder: FrozenEncoder, split: Split) -> Tensor:
    model.eval()
    predictions = []
    for images_BCHW in split.chunks(500):
        with encoder.hardware.autocast():
            logits_BC = model(prepare(images_BCHW, encoder.spec, encoder.hardware))
        predictions.append(logits_BC.argmax(dim=1).cpu())
    return torch.cat(predictions)


PAPER = {
    "imagenet-": {
        "batch_size": Published(1024, "MAE table 9; DeiT README, 4 x 256"),
        "weight_decay": Published(0.05, "MAE table 9; DeiT main.py"),
        "beta2": Published(0.999, "MAE table 9; torch's default"),
        "label_smoothing": Published(0.1, "MAE table 9; DeiT main.py"),
        "mixup": Published(0.8, "MAE table 9; DeiT main.py"),
        "cutmix": Published(1.0, "MAE table 9; DeiT main.py"),
        "crop_scale": Published(0.08, "timm create_transform"),
        "auto_augment": Published("rand-m9-mstd0.5-inc1", "MAE main_finetune.py; DeiT main.py"),
        "decay_norm_and_bias": Published(False, "util/lr_decay.py; timm create_optimizer"),
        "optimiser and beta1": Published("AdamW, 0.9", "MAE table 9; DeiT main.py"),
        "precision of training": Published(
            "fp16", "MAE engine_finetune.py; DeiT engine.py", "as --precision says"
        ),
        "gradient clipping": Published("none", "MAE main_finetune.py; DeiT main.py"),
        "interpolation of a crop": Published(
            "bicubic", "MAE main_finetune.py; DeiT main.py", unless={"crop_scale": 1.0}
        ),
        "views are made of": Published(
            "the whole photograph",
            "timm create_transform",
            "the stored square: of photographs, the centre",
        ),
        "RandAugment's order": Published(
            "after crop and flip", "timm create_transform", unless={"auto_augment": ""}
        ),
        "random erasing's filling": Published(
            "normal noise per pixel", "timm create_transform", unless={"random_erasing": 0.0}
        ),
        "choice of mixup or cutmix": Published(
            "a coin for each batch", "timm Mixup", unless={"mixup": 0.0, "cutmix": 0.0}
        ),
        "pixels normalised by": Published(
            "ImageNet's mean and deviation", "timm create_transform", "the training split's own"
        ),
        "position embedding": Published("trained", "MAE models_vit.py; DeiT models.py"),
        "epoch that is reported": Published(
            "best on the test split", "MAE main_finetune.py; DeiT main.py", "last"
        ),
    },
    "imagenet-mae-": {
        "sources": Published("He et al., arXiv:2111.06377, and facebookresearch/mae efb2a80", ""),
        "warmup": Published("5 epochs", "table 9"),
        "min_lr": Published(1e-6, "main_finetune.py"),
        "pooling": (Published("avg", "FINETUNE.md"), Published("cls", "appendix A.1")),
        "head_std": Published(2e-5, "main_finetune.py"),
        "random_erasing": (Published(0.25, "FINETUNE.md"), Published(0.0, "table 9: none")),
        "view for testing": Published(
            "larger images: 8/7 of the size, centre, bicubic", "util/datasets.py: 256 for 224"
        ),
        "learning rate's course": Published(
            "linear from 0, cosine to min lr, by step", "util/lr_sched.py"
        ),
        "repeated images in a batch": Published("none", "main_finetune.py"),
    },
    "imagenet-mae-vitb": {
        "epochs": Published(100, "table 9, FINETUNE.md"),
        "base_lr": (Published(5e-4, "FINETUNE.md"), Published(1e-3, "table 9")),
        "layer_decay": (Published(0.65, "FINETUNE.md"), Published(0.75, "table 9")),
        "drop_path": Published(0.1, "table 9, FINETUNE.md"),
    },
    "imagenet-mae-vitl": {
        "epochs": Published(50, "table 9, FINETUNE.md"),
        "base_lr": Published(1e-3, "table 9, FINETUNE.md"),
        "layer_decay": Published(0.75, "table 9, FINETUNE.md"),
        "drop_path": (Published(0.2, "FINETUNE.md"), Published(0.1, "table 9")),
    },
    "imagenet-mocov3-": {
        "sources": Published(
            "Touvron et al., arXiv:2012.12877, and facebookresearch/deit 0282d2a, "
            "whose recipe MoCo v3 takes",
            "",
        ),
        "epochs": Published(150, "MoCo v3 paper"),
        "base_lr": Published(2.5e-4, "DeiT main.py: 5e-4 for 512"),
        "min_lr": Published(1e-5, "DeiT main.py"),
        "warmup": Published("5 epochs", "DeiT main.py"),
        "layer_decay": Published(1.0, "DeiT main.py: none"),
        "pooling": Published("cls", "DeiT models.py"),
        "head_std": Published(0.02, "DeiT models.py, timm"),
        "drop_path": Published(0.1, "DeiT main.py"),
        "random_erasing": Published(0.25, "DeiT main.py"),
        "view for testing": Published(
            "larger images: 8/7 of the size, centre, bicubic", "DeiT datasets.py: 256 for 224"
        ),
        "learning rate's course": Published(
            "linear from 1e-6, cosine to min lr, by epoch",
            "DeiT main.py, timm create_scheduler",
            "linear from 0, cosine to min lr, by step",
        ),
        "repeated images in a batch": Published("3 views of each", "DeiT samplers.py", "none"),
    },
}
