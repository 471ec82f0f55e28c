"""What a pre-training method is. A file in ``methods/`` is its registration.

The file defines ``Config``, a frozen dataclass whose fields become command-line flags, and one
public subclass of `Method`, whose class attributes are those of `declarations.MethodDeclarations`.

It may define ``PAPER``, a mapping from the beginning of a preset's name to `settings.Published`
values by flag, which ``ssl-bench recipe`` shows; a name with a space in it is no flag but something
that the code fixes, and ``sources`` says what is quoted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench.api.declarations import MethodDeclarations
from ssl_bench.data import Split
from ssl_bench.models.encoders import EncoderSpec
from ssl_bench.transforms.augmentations import Augmentation
from ssl_bench.utils.rng import SampleRng


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


class Method(MethodDeclarations, nn.Module):
    """A pre-training method: views of a batch, a loss of those views, an encoder to hand over.

    With several ranks each has its share of a batch, and the mean of their losses counts: one that
    compares images gathers them (`collectives.gather`), and a batch norm is over all ranks
    (`parallel.SyncBatchNorm1d`).

    Attributes:
        encoder: the timm ViT that evaluations receive. A method that trains nothing has no
            parameter that requires a gradient.
    """

    encoder: VisionTransformer

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

    @staticmethod
    def settings_of(weights: Mapping[str, Tensor]) -> Mapping[str, Any] | None:
        """The fields of the ``Config`` that weights show; None where they are not this method's.

        ``ssl-bench reconstruct`` restores anyone's weights with it.

        Args:
            weights: those that are not the encoder's, by their official names.
        """
        return None
