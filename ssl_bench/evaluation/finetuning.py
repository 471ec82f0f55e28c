"""Fine-tuning: an encoder and a linear classifier, trained on the labels.

The views, the mixing, the loss and the schedule of MAE (He et al., arXiv:2111.06377, appendix A.1,
table 9; ``main_finetune.py``, facebookresearch/mae ``efb2a80``) and of DeiT (Touvron et al.,
arXiv:2012.12877; ``main.py``, facebookresearch/deit ``0282d2a``). What is trained is whatever
requires a gradient: evaluations freeze the rest first.

On a GPU the blocks of a long training are compiled; on a single one a step is recorded, from the
mixing of its batch to the gradients (`training.captured`).

With several ranks, each trains on its share of every batch, and predicts for its share of a split;
what comes out is what one rank makes of the whole, but for rounding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from ssl_bench.api import optimizers
from ssl_bench.api.evaluation import FrozenEncoder, Training
from ssl_bench.api.optimizers import OptimizerSpec
from ssl_bench.api.step import Step
from ssl_bench.config.finetuning_settings import FinetuningConfig
from ssl_bench.data import Split
from ssl_bench.distributed import collectives
from ssl_bench.errors import UserError, require
from ssl_bench.evaluation.features import flip_of, prepare, share_of
from ssl_bench.models import encoders
from ssl_bench.models.backbones import Backbone, EncoderSpec
from ssl_bench.models.video import as_clips, as_frames
from ssl_bench.training import resume
from ssl_bench.training.captured import CapturedStep, Losses, Stored
from ssl_bench.training.schedule import Schedule
from ssl_bench.training.setup import compile_blocks
from ssl_bench.transforms.augmentations import Augmentation, augment, crop_and_flip
from ssl_bench.transforms.timm_augment import rand_augment, random_erase
from ssl_bench.utils import progress, rng
from ssl_bench.utils.rng import SampleRng

_STEPS_THAT_PAY = 1000  # for compiling, whose first step takes 6 to 18 s on an H200


class Diverged(UserError):
    """A fine-tuning whose loss became no number."""


class Classifier(nn.Module):
    """An encoder and a linear layer, on the mean of its patch tokens or on its class token.

    A ViT's mean is taken before the final norm, and gets a norm of its own (MAE); the class token
    is taken after it (DeiT). Another backbone is pooled as `encoders.pool` does.
    """

    def __init__(
        self,
        encoder: Backbone,
        classes: int,
        pooling: Literal["avg", "cls"] = "avg",
        head_std: float = 2e-5,
    ) -> None:
        super().__init__()
        require(
            pooling == "avg" or getattr(encoder, "cls_token", None) is not None,
            "this backbone has no class token to classify; pooling avg would work",
        )
        self.encoder, self.pooling = encoder, pooling
        self.fc_norm: nn.Module = nn.Identity()
        self._has_own_norm = pooling == "avg" and encoders.is_vit(encoder)
        if self._has_own_norm:
            encoder.norm = nn.Identity()
            self.fc_norm = nn.LayerNorm(encoder.embed_dim, eps=1e-6)
        self.head = nn.Linear(encoders.width(encoder), classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Class logits ``(B, classes)``."""
        features = self.encoder.forward_features(images_BCHW)
        if self._has_own_norm:
            pooled_BD = features[:, self.encoder.num_prefix_tokens :].mean(dim=1)
        elif encoders.is_vit(self.encoder):
            pooled_BD = features[:, 0]
        else:
            pooled_BD = encoders.pool(self.encoder, features)[self.pooling]
        return self.head(self.fc_norm(pooled_BD))

    def group_matcher(self, coarse: bool = False) -> Mapping[str, Any] | Callable[[str], Any]:
        """Names of the layers, for timm: its own groups of the encoder, then the head.

        Of a ViT the embeddings, each block, and the head with the norms: its own matcher has the
        last norm in the last block, and register tokens in the head.
        """
        if not encoders.is_vit(self.encoder) and hasattr(self.encoder, "group_matcher"):
            return _under_encoder(self.encoder.group_matcher(coarse=coarse))
        return {
            "stem": r"encoder\.(?:cls_token|reg_token|pos_embed|patch_embed|norm_pre)",
            "blocks": r"encoder\.blocks\.(\d+)\.",
            "head": r".",
        }


def _under_encoder(matcher: Any) -> Any:
    """timm's way to tell the layers of a model, of one that is called "encoder" in another."""
    if callable(matcher):
        return lambda name: matcher(name.removeprefix("encoder."))
    if isinstance(matcher, Mapping):
        return {part: _under_encoder(patterns) for part, patterns in matcher.items()}
    if isinstance(matcher, list | tuple):
        return [(_under_encoder(pattern), suffix) for pattern, suffix in matcher]
    # Matching begins at the start of a name anyway; brackets hold a ^ of another meaning.
    return matcher and r"encoder\.(?:" + re.sub(r"(?<!\[)\^", "", matcher) + ")"


def classifier(encoder: FrozenEncoder, classes: int, config: FinetuningConfig) -> Classifier:
    """A copy of the encoder under a fresh head, on its device, every parameter trainable."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(encoder.seed, "finetune"))
        trunk = encoder.trainable_copy(drop_path_rate=config.drop_path)
        model = Classifier(trunk, classes, config.pooling, config.head_std)
    return model.to(encoder.hardware.device)


class SharedDropPath(DropPath):
    """timm's, where this rank has some rows of a batch: each is dropped as if all were here."""

    def __init__(self, like: DropPath, batch_size: int, rows_R: Tensor) -> None:
        super().__init__(like.drop_prob, like.scale_by_keep)
        self._batch_size, self._rows_R = batch_size, rows_R

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with some of its rows zero, the others scaled up to the same mean."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        kept_B = x.new_empty(self._batch_size).bernoulli_(keep)
        if keep > 0 and self.scale_by_keep:
            kept_B.div_(keep)
        return x * kept_B[self._rows_R].view(-1, *[1] * (x.ndim - 1))


def own_rows(batch_size: int) -> Tensor:
    """Which rows of a batch this rank has: int64, ascending, none twice and maybe none at all.

    With each row comes the one that is as far from the other end, so that what is `mix`ed stays
    together.
    """
    pairs = (batch_size + 1) // 2
    first_P = torch.arange(pairs)[collectives.shard(pairs)]
    return torch.cat([first_P, batch_size - 1 - first_P]).unique()


def optimizer(model: Classifier, config: FinetuningConfig) -> torch.optim.AdamW:
    """AdamW over what is trainable, with the recipe's layer and weight decay."""
    return optimizers.adamw(
        optimizers.layer_decay_groups(model, config, config.layer_decay), config.beta2
    )


def crop(spec: EncoderSpec, config: FinetuningConfig) -> Augmentation:
    """How training images are cropped and mirrored, before RandAugment."""
    return crop_and_flip(spec.image_size, config.crop_scale, flip_of(spec))


def training_of(model: Classifier, spec: EncoderSpec, config: FinetuningConfig) -> Training:
    """How `train` trains what is trainable in a classifier."""

    def learning_rate(step: Step) -> float:
        peak_lr = config.base_lr * step.batch_size / 256
        return optimizers.warmup_cosine(step, peak_lr, config.warmup, config.min_lr)

    how = OptimizerSpec(optimizer=optimizer(model, config), learning_rate=learning_rate)
    return Training(model, how, crop(spec, config))


class Trainer:
    """What takes the steps of a fine-tuning; on a single GPU they are recorded after the first.

    Args:
        labels_N: of the split that the steps' images are of.
        weight: of this rank's mean loss in that of the batch.
    """

    def __init__(
        self,
        model: Classifier,
        encoder: FrozenEncoder,
        labels_N: Tensor,
        config: FinetuningConfig,
        weight: float = 1.0,
    ) -> None:
        self._model, self._encoder, self._labels_N = model, encoder, labels_N
        self._config, self._weight = config, weight
        self._classes = model.head.out_features
        self.recipe = training_of(model, encoder.spec, config).optimizer
        self._captured = CapturedStep(model, self._backward, progress.console.print)

    def take(self, step: Step, index_B: Tensor, stored_BCHW: Tensor) -> Tensor:
        """Take a step on what is stored of this rank's images; returns the loss of the batch."""
        hardware, config, seed = self._encoder.hardware, self._config, self._encoder.seed
        self.recipe.prepare(step)
        own_B = index_B.to(hardware.device, non_blocking=True)
        step_draws = SampleRng(seed, step.number, own_B, "finetune/")
        images_BCHW = training_views(stored_BCHW, self._encoder, config, step_draws)
        labels_B = self._labels_N[index_B].to(hardware.device, non_blocking=True)
        targets_BC = F.one_hot(labels_B, self._classes).float()
        shares = mixing(config, self._encoder.spec.image_size, seed, step.number)
        shares = tuple(share.to(hardware.device, non_blocking=True) for share in shares)
        stored = step_draws, (images_BCHW, targets_BC, *shares)
        if hardware.records_steps:
            self._captured.prepare(step, stored)
        torch.manual_seed(rng.key(seed, "finetune/dropout", step.number))
        loss = self._captured.take(step, stored)["loss"]
        collectives.add_gradients(self._model.parameters())
        loss = collectives.total(loss)
        self.recipe.update()
        return loss

    def _backward(self, stored: Stored, _: Step) -> Losses:
        images_BCHW, targets_BC = mix(*stored[1])
        with self._encoder.hardware.autocast():
            logits_BC = self._model(images_BCHW)
        smoothing = self._config.label_smoothing
        loss = F.cross_entropy(logits_BC.float(), targets_BC, label_smoothing=smoothing)
        loss = loss * self._weight
        loss.backward()
        return {"loss": loss.detach()}


def train(
    model: Classifier, encoder: FrozenEncoder, split: Split, config: FinetuningConfig
) -> None:
    """Train what is trainable in a classifier on a split, in place, by the recipe.

    A batch larger than the split shrinks to it. Input, hardware and seed are the encoder's.

    Raises:
        Diverged: the loss is no number at the end.
    """
    hardware, seed = encoder.hardware, encoder.seed
    batch_size = min(config.batch_size, len(split))
    rows_R = own_rows(batch_size)
    weight = len(rows_R) / batch_size  # of this rank's mean loss in that of the batch
    if not weight:
        rows_R = torch.zeros(1).long()  # a row to have gradients of, which do not count
    require(
        (batch_size + 1) // 2 >= collectives.world_size() or not collectives.has_batch_norm(model),
        f"a batch of {batch_size} images is too small for the batch norms of this backbone on "
        f"{collectives.world_size()} devices; fewer --devices would work",
    )
    if collectives.world_size() > 1:
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, DropPath):
                    shared = SharedDropPath(child, batch_size, rows_R.to(hardware.device))
                    setattr(parent, name, shared)
    schedule = Schedule(len(split), batch_size, config.epochs)

    def order(first: int) -> Iterator[Tensor]:
        steps = range(first, schedule.steps)
        return (schedule.batch(step, seed, "finetune")[rows_R] for step in steps)

    def drawn(first: int) -> Iterator[SampleRng]:
        return (SampleRng(seed, step, rows, "finetune/") for step, rows in
                enumerate(order(first), first))  # fmt: skip

    model.train()
    if hardware.compiled and schedule.steps >= _STEPS_THAT_PAY:
        compile_blocks(model)
    trainer = Trainer(model, encoder, split.labels_N, config, weight)
    optimizer = trainer.recipe.optimizer
    with (
        resume.training(encoder.checkpoint, model, optimizer, schedule.steps) as training,
        closing(split.read_drawn(drawn(training.start))) as stored,
        progress.bar(config.section.replace("finetune", "fine-tune"), schedule.steps) as bar,
    ):
        samples = enumerate(zip(order(training.start), stored, strict=True), training.start)
        for step, (index_B, stored_BCHW) in samples:
            loss = trainer.take(schedule.step(step), index_B, stored_BCHW)
            if step % 10 == 0 or step + 1 == schedule.steps:
                bar.update(step + 1, f"loss {loss.item():.4f}")
            training.after_step(step + 1, loss)
    last = training.last_loss
    if not math.isfinite(last):
        raise Diverged(
            f"fine-tuning diverged: its loss is {last}; a learning rate below {config.base_lr} "
            f"({config.section} {config.rates}) may help"
        )


@torch.no_grad()
def predict(model: nn.Module, encoder: FrozenEncoder, split: Split) -> Tensor:
    """The class of each of a split's images, seen whole: int64 ``(N,)`` on the CPU.

    Of several views of each, the probabilities are averaged.
    """
    model.eval()
    hardware, predictions = encoder.hardware, []
    # What was compiled for training need not compile for batches of other sizes.
    as_it_is = torch.compiler.set_stance("force_eager") if hardware.compiled else nullcontext()
    with as_it_is:
        for views in share_of(split, max(1, 500 // encoder.spec.frames)):
            scores = []
            for images_BCHW in views:
                with hardware.autocast():
                    scores.append(model(prepare(images_BCHW, encoder.spec, hardware)))
            if len(scores) > 1:
                scores = [torch.stack([logits.float().softmax(dim=1) for logits in scores]).mean(0)]
            predictions.append(scores[0].argmax(dim=1).cpu())
    return collectives.gather_shards(torch.cat(predictions), len(split))


def training_views(
    images_BCHW: Tensor, encoder: FrozenEncoder, config: FinetuningConfig, step_draws: SampleRng
) -> Tensor:
    """Crop, flip, RandAugment and normalise uint8 images, erase in some: ``(B, C, S, S)``."""
    spec = encoder.spec
    recipe = crop(spec, config)

    def view(images_BCHW: Tensor) -> Tensor:
        views_BCHW = augment(images_BCHW, recipe, step_draws)
        if not config.auto_augment:
            return views_BCHW
        # Alike in all frames of a clip, since draws are a function of the sample.
        frames = spec.frames if views_BCHW.shape[1] % spec.frames == 0 else 1
        samples_N = step_draws.samples_B.repeat_interleave(frames)
        how = config.auto_augment, spec.mean, replace(step_draws, samples_B=samples_N)
        return as_clips(rand_augment(as_frames(views_BCHW, frames), *how), frames)

    views_BCHW = prepare(images_BCHW, spec, encoder.hardware, view)
    if config.random_erasing:
        views_BCHW = random_erase(views_BCHW, config.random_erasing, step_draws)
    return views_BCHW


def mixing(config: FinetuningConfig, size: int, seed: int, step: int) -> tuple[Tensor, ...]:
    """How `mix` mixes a step's batch: by mixup (Zhang et al., 2018) or cutmix (Yun et al., 2019).

    Returns:
        The share of its own that each pixel of an image keeps, float32 ``(size, size)``, and the
        one that its target keeps, a float64 scalar; nothing where the recipe does not mix.
    """
    generator = rng.generator(seed, "mix", step)
    alphas = [alpha for alpha in (config.mixup, config.cutmix) if alpha > 0]
    if not alphas:
        return ()
    coin = int(torch.randint(len(alphas), (), generator=generator))
    is_cutmix = config.cutmix > 0 and (coin == 1 or config.mixup == 0)
    gammas = torch._standard_gamma(torch.full((2,), alphas[coin]), generator=generator)
    share = float(gammas[0] / gammas.sum())
    if not is_cutmix:
        kept_HW = torch.full((size, size), share)
    else:
        cut = (1 - share) ** 0.5
        center_y, center_x = torch.rand(2, generator=generator).tolist()
        top, bottom = _span(center_y, cut, size)
        left, right = _span(center_x, cut, size)
        kept_HW = torch.ones(size, size)
        kept_HW[top:bottom, left:right] = 0
        share = 1 - (bottom - top) * (right - left) / size**2
    return kept_HW, torch.tensor(share, dtype=torch.float64)


def mix(
    images_BCHW: Tensor,
    targets_BC: Tensor,
    kept_HW: Tensor | None = None,
    share: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The batch mixed with its reverse, by what `mixing` says; as it is by default."""
    if kept_HW is None or share is None:
        return images_BCHW, targets_BC
    mixed_BCHW = kept_HW * images_BCHW + (1 - kept_HW) * images_BCHW.flip(0)
    return mixed_BCHW, share * targets_BC + (1 - share) * targets_BC.flip(0)


def _span(center: float, share: float, size: int) -> tuple[int, int]:
    """A part of an axis around a centre, cut off at the borders."""
    middle, half = int(center * size), int(share * size) // 2
    return max(0, middle - half), min(size, middle + half)
