"""What a method and an evaluation are. A file in ``methods/`` or ``evals/`` is its registration.

A method file defines ``Config``, a frozen dataclass whose fields become command-line flags, and
``Pretraining``, a subclass of `Method`. An evaluation file defines ``Config`` and a function
``evaluate(encoder: FrozenEncoder, data: Dataset, config: Config) -> Result``.

A method may define ``settings_of(weights)``, which maps weights that are not an encoder's, by their
official names, to the fields of its ``Config`` that they show, or to None where they are not its
own: `reconstruct` restores anyone's weights with it.

Either may define ``PRESETS``, a mapping from a preset's name to the flags that it sets, a method's
those of `settings.Settings` too. The settings that a paper publishes, and what it varied, are no
code but TOML in a file of their own, which ``ssl-bench recipe`` and ``ablate`` show: see `papers`.

An evaluation may define ``DEFAULT = True``, to be run without being asked for, ``SPREAD = True``,
to be called by every rank at once instead of rank 0 alone (see `runner`), a function
``baselines(config)``, which maps a label to an encoder ("pixels" or "random") and the ``Config`` to
evaluate it with, and a function ``audit(encoder: FrozenEncoder, config: Config) -> str``, called
with an untrained encoder before anything is trained: it raises `UserError` where something that the
config asks for would reach nothing, and returns what to tell the user (see `audit`).

A method whose loss does not split defines ``ENCODES_IN_PARTS = True`` where it keeps the
activations of as many images as its encoders' ``images_at_once`` says: `encoders.class_token` does,
and `encoders.in_parts` helps.

A method may define ``SEARCH``, a mapping from a field of its ``Config`` to the range that
``ssl-bench sweep --search`` draws it from: `ranges.Uniform`, `ranges.LogUniform` or `ranges.OneOf`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench.data import Split
from ssl_bench.distributed.device import Hardware
from ssl_bench.models.encoders import EncoderSpec
from ssl_bench.transforms.augmentations import Augmentation
from ssl_bench.utils.rng import SampleRng

if TYPE_CHECKING:
    from ssl_bench.training.resume import EvalCheckpoint


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        views: one tensor for each of the method's augmentations: normalised float32 ``(B,C,H,W)``.
        labels_B: int64 class indices; only supervised baselines may look.
        draws: the step's random numbers, for masks and the like.
    """

    views: tuple[Tensor, ...]
    labels_B: Tensor
    draws: SampleRng

    def __len__(self) -> int:
        return len(self.labels_B)

    def split(self, parts: int) -> Iterator[Batch]:
        """The batch in that many parts of nearly equal size."""
        for part in torch.arange(len(self)).tensor_split(parts):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            views = tuple(view[rows] for view in self.views)
            yield Batch(views, self.labels_B[rows], self.draws.rows(rows))


class Method(nn.Module):
    """A pre-training method: views of a batch, a loss of those views, an encoder to hand over.

    With several ranks each has its share of a batch, and the mean of their losses counts: one that
    compares images gathers them (`collectives.gather`), and a batch norm is over all ranks
    (`parallel.SyncBatchNorm1d`).

    Attributes:
        encoder: the timm ViT that evaluations receive. A method that trains nothing has no
            parameter that requires a gradient.
        smallest_batch: images that a step needs at least.
        splits: whether the loss of a batch is the mean of its images' own losses, a function of
            the batch and the parameters that changes neither buffers nor torch's own random
            numbers, so that parts of a batch may be computed at the same time.
    """

    encoder: VisionTransformer
    smallest_batch: int = 1
    splits: bool = False

    def __init__(self, config: Any, encoder: VisionTransformer, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def augmentations(self, image_size: int) -> tuple[Augmentation, ...]:
        """The recipe of each view."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """The scalar to minimise."""
        return torch.stack(list(self.terms(batch))).sum()

    def terms(self, batch: Batch) -> Iterator[Tensor]:
        """Scalars whose sum is the loss; each one's graph is freed before the next one is made.

        A method defines this one or `loss`.
        """
        if type(self).loss is Method.loss:
            raise NotImplementedError(f"{type(self).__name__} defines neither loss nor terms")
        yield self.loss(batch)

    def forward(self, terms: Iterator[Tensor]) -> Tensor | None:
        """The next of the terms; what wraps a method for several ranks sees nothing else of it."""
        return next(terms, None)

    def before_training(self, train: Split, spec: EncoderSpec, seed: int) -> None:
        """Called before the first step, and again before an interrupted training goes on.

        For what a method needs to know of the training images, such as their principal components:
        a function of the arguments alone, kept in buffers, so that it is stored with the weights.
        """

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step with the share of training done, in (0, 1]."""

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """Rows of images for a person to look at, by title: normalised ``(B,C,H,W)`` each."""
        return {}


class FrozenEncoder(Protocol):
    """What an evaluation receives: `features.Encoder`, or raw pixels, which nothing can train.

    Attributes:
        spec: image size, channels and normalisation.
        hardware: where to compute.
        seed: of every draw of the evaluation.
        scratch: where a long training of the evaluation keeps its state, see `resume.training`;
            None for nowhere.
    """

    spec: EncoderSpec
    hardware: Hardware
    seed: int
    scratch: EvalCheckpoint | None

    def features(self, split: Split) -> Mapping[str, Tensor]:
        """Features of a split's images by pooling: float32 ``(N, D)`` each, extracted once."""

    def encode(self, images_BCHW: Tensor) -> Mapping[str, Tensor]:
        """Features of a batch of normalised images by pooling: float32 ``(B, D)`` each."""

    def trainable_copy(self, **overrides: Any) -> VisionTransformer:
        """The encoder again, to be trained; overrides go to ``timm.create_model``."""


@dataclass(frozen=True)
class Result:
    """What an evaluation found on the test split.

    Attributes:
        scores: numbers by name; the first one is the headline.
        predictions_N: int64 predicted class of each test image, in the data set's order, where
            the headline is the share of them that are right, in percent; else None.
        chosen: what was selected on the validation split, and what it scored there.
        arrays: what figures are drawn from, by name; stored beside the scores.
        unit: what the headline counts.
        better: which headline is the better one.
    """

    scores: Mapping[str, float]
    predictions_N: Tensor | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    unit: str = "top-1 accuracy (%)"
    better: Literal["higher", "lower", "neither"] = "higher"
