"""What a pre-training method is. A file in ``methods/`` is its registration.

The file defines ``Config``, a frozen dataclass whose fields become command-line flags, and one
public subclass of `Method`, whose class attributes are those of `declarations.MethodDeclarations`.
What its paper publishes is in ``papers/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_bench.api.declarations import MethodDeclarations
from ssl_bench.api.optimizers import OptimizerSpec, recipe
from ssl_bench.api.step import Batch, Step
from ssl_bench.data import Split
from ssl_bench.errors import UserError
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.vocabulary import TextSpec
from ssl_bench.transforms.augmentations import Augmentation

Loss = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class DataInfo:
    """What a method is told about the data.

    Attributes:
        image_size: height and width of the images, in pixels.
        channels: 1 or 3, of each frame of a clip.
        mean, std: what the views are normalised with, by channel.
        num_classes: 0 without labels.
        frames: of each clip; 1 for images.
        text: vocabulary and sizes, where the method reads captions.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    frames: int = 1
    text: TextSpec | None = None

    @classmethod
    def of(cls, spec: EncoderSpec, num_classes: int) -> DataInfo:
        """The data that an encoder takes."""
        how = spec.image_size, spec.channels, spec.mean, spec.std
        return cls(*how, num_classes, spec.frames, spec.text)


class Method(MethodDeclarations, nn.Module):
    """A pre-training method: views of an image, a loss of those views, an encoder to hand over.

    What it keeps between steps (queues, centres, teachers) lives in parameters and buffers, so that
    a checkpoint holds it. With several ranks each has its share of a batch, and the mean of their
    losses counts: a method that compares images gathers them (`collectives.gather`, or
    `collectives.gather_with_gradient`), and a batch norm is over all ranks
    (`collectives.SyncBatchNorm1d`).

    Attributes:
        encoder: what evaluations receive, snapshots keep and exports write: the backbone, or its
            teacher. A method that trains nothing has no parameter that requires a gradient.
        text_side: what evaluations receive beside an encoder of images: an `ImageText`, or None
            where it is pre-trained without captions.
        watched_BD: this rank's latest features of `watch`.
        fixed_shapes: whether shapes may not depend on the data even on a CPU: a step's cost, which
            is counted then, stands for every step's.
    """

    encoder: Any
    text_side: Any
    watched_BD: Tensor | None = None
    fixed_shapes = False

    def __init__(self, config: Any, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.encoder, self.text_side = backbone, None

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def transforms(self) -> Mapping[str, Augmentation]:
        """How each view of an image is made, by the view's name; their sizes may differ."""
        raise UserError(f"{type(self).__name__} defines no 'transforms'")

    def loss(self, batch: Batch, step: Step) -> Loss:
        """The scalar to minimise, or several by name: their sum is minimised, each is logged.

        A function of the batch, of the step and of the method's parameters, buffers and own
        attributes: it is called more often than once in a step, to count its cost. Buffers change
        in `after_optimizer_step`; what the loss leaves for it in an attribute is a tensor, or
        several. On a GPU its operations are recorded and replayed (see `training.captured`): they
        must not wait for the GPU, nor depend on what else changes in Python.
        """
        losses = [total(term) for term in self.terms(batch, step)]
        return torch.stack(losses).sum()

    def terms(self, batch: Batch, step: Step) -> Iterator[Loss]:
        """Losses to minimise the sum of; each one's graph is freed before the next one is made.

        A method defines this one, which takes less memory, or `loss`.
        """
        if type(self).loss is Method.loss:
            raise UserError(f"{type(self).__name__} defines neither 'loss' nor 'terms'")
        yield self.loss(batch, step)

    def forward(self, terms: Iterator[Loss]) -> Loss | None:
        """The next of the terms; what wraps a method for several ranks sees nothing else of it."""
        return next(terms, None)

    def optimizer(self) -> OptimizerSpec:
        """How the parameters are updated: by default as the flags of ``OptimizerConfig`` say."""
        return recipe(self, self.config)

    @classmethod
    def refuses(cls, config: Any, batch_size: int, images: int, epochs: float) -> str | None:
        """Why nothing can be trained in this way, and what would work; or None.

        Called before any image is decoded, and again when all is known.

        Args:
            config: an instance of the ``Config``.
            batch_size: of all ranks.
            images: in the training split.
            epochs: passes over them; infinite as long as a budget is still to say how many.
        """
        return None

    def watch(self, features_BD: Tensor) -> None:
        """Have it logged how far the latest of these features are spread.

        For features that a loss compares, which may all become alike: a training whose features do
        is reported to have collapsed.
        """
        self.watched_BD = features_BD.detach()

    def before_training(self, train: Split, seed: int) -> None:
        """Called before the first step, and again before an interrupted training is resumed.

        For what a method needs to know of the training images, such as their principal components:
        a function of the arguments alone, kept in buffers.
        """

    def before_optimizer_step(self, step: Step) -> None:
        """Called with the gradients in place, which it may change, or drop for what is frozen."""

    def after_optimizer_step(self, step: Step) -> None:
        """Called after the parameters' update in this step."""

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


def total(loss: Loss) -> Tensor:
    """The scalar that is minimised."""
    return loss if isinstance(loss, Tensor) else torch.stack(list(loss.values())).sum()
