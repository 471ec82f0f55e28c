"""What an evaluation is. A file in ``evals/`` is its registration.

The file defines ``Config``, a frozen dataclass whose fields become command-line flags, and one
public subclass of `Evaluation`, whose class attributes are those of
`declarations.EvaluationDeclarations`. What papers publish of it is in ``papers/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor, nn

from ssl_bench.api.declarations import BASELINES, EvaluationDeclarations
from ssl_bench.api.optimizers import OptimizerSpec
from ssl_bench.data import Dataset, Split
from ssl_bench.distributed.device import Hardware
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.transforms.augmentations import Augmentation

if TYPE_CHECKING:
    from ssl_bench.training.resume import EvalCheckpoint


class FrozenEncoder(Protocol):
    """What an evaluation receives: `features.Encoder`, or raw pixels, which nothing can train.

    Attributes:
        spec: image size, channels and normalisation.
        hardware: where to compute.
        seed: of every draw of the evaluation.
        checkpoint: where a long training of the evaluation keeps its state, see `resume.training`;
            None for nowhere.
        pair: the `ImageText` that was pre-trained with an encoder of images, or None.
        text: the `TextEncoder` in that, or the encoder itself if it reads captions, or None.
    """

    spec: EncoderSpec
    hardware: Hardware
    seed: int
    checkpoint: EvalCheckpoint | None
    pair: Any
    text: Any

    def features(self, split: Split) -> Mapping[str, Tensor]:
        """Features of a split's images by pooling: float32 ``(N, D)`` each, extracted once."""

    def encode(self, images_BCHW: Tensor) -> Mapping[str, Tensor]:
        """Features of a batch of normalised images by pooling: float32 ``(B, D)`` each."""

    def patches(self, images_BCHW: Tensor) -> Tensor:
        """Features of the patches of a batch of normalised images: float32 ``(B, R, C, D)``."""

    def tokens(self, images_BCHW: Tensor) -> Tensor:
        """Tokens of a batch of normalised images, where there are any: float32 ``(B, T, D)``."""

    def trainable_copy(self, **overrides: Any) -> Any:
        """The encoder again, a `Backbone` to be trained; overrides go to ``timm.create_model``."""


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


@dataclass(frozen=True)
class Training:
    """What an evaluation trains, and on what: ``ssl-bench recipe`` reads its rows off these.

    Attributes:
        model: all that is trained.
        optimizer: of it; the learning rate is a function of the step.
        view: of the training images.
    """

    model: nn.Module
    optimizer: OptimizerSpec
    view: Augmentation


class Evaluation(EvaluationDeclarations):
    """What is asked of a frozen encoder, under the settings of a ``Config``."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Why this encoder or these data cannot be evaluated so, in a few words; None if they can.

        The evaluation is then left out. Called before anything is trained, with an untrained
        encoder on torch's meta device: only names and shapes are there to be looked at.
        """
        return None

    def audit(self, encoder: FrozenEncoder) -> str:
        """Check that what the config asks for reaches something; what to tell the user.

        Called like `supports`.

        Raises:
            UserError: it reaches nothing, see `ssl_bench.experiment.audit`.
        """
        return ""

    def baselines(self) -> Mapping[str, tuple[str, Any]]:
        """What to show beside an encoder: "pixels" or "random" and its ``Config``, by label.

        By default that is what ``compared_with`` names, under this evaluation's own settings.
        """
        return {BASELINES[name]: (name, self.config) for name in self.compared_with}

    def training(self, encoder: FrozenEncoder, classes: int) -> Training | None:
        """What `evaluate` trains on views of the training images; None where there are none.

        Called like `supports`, too, where nobody asks for more than names, shapes and schedules.
        """
        return None

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Evaluate the encoder; what is chosen is chosen on the training split alone."""
        raise NotImplementedError
