"""What a method and an evaluation are. A file in ``methods/`` or ``evals/`` is its registration.

A method file defines ``Config``, a frozen dataclass whose fields become command-line flags, and
``Pretraining``, a subclass of `Method`. An evaluation file defines ``Config`` and a function
``evaluate(encoder, data, config) -> Result``. Either may define ``PRESETS``, a mapping from a
preset's name to the flags that it sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench.augment import Augmentation
from ssl_bench.draws import Draws


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
    draws: Draws


class Method(nn.Module):
    """A pre-training method: views of a batch, a loss of those views, an encoder to hand over.

    Attributes:
        encoder: the timm ViT that evaluations receive. A method that trains nothing has no
            parameter that requires a gradient.
    """

    encoder: VisionTransformer

    def __init__(self, config: Any, encoder: VisionTransformer, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder

    def augmentations(self, image_size: int) -> tuple[Augmentation, ...]:
        """The recipe of each view."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """The scalar to minimise."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step with the share of training done, in (0, 1]."""

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """Rows of images for a person to look at, by title: normalised ``(B,C,H,W)`` each."""
        return {}


@dataclass(frozen=True)
class Result:
    """What an evaluation found on the test split.

    Attributes:
        scores: percentages by name; the first one is the headline.
        predictions_N: int64 predicted class of each test image, in the data set's order.
        chosen: what was selected on the validation split, and what it scored there.
    """

    scores: Mapping[str, float]
    predictions_N: Tensor
    chosen: Mapping[str, Any] = field(default_factory=dict)
