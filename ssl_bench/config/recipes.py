"""The recipes of optimisers and of linear probes: flags of methods and evaluations.

Nothing here imports torch, so that ``--help`` is fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ssl_bench.config.checked import CheckedConfig
from ssl_bench.errors import require


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(CheckedConfig):
    """The optimiser's recipe: AdamW, linear warm-up, then a cosine to zero, set every step."""

    base_lr: Annotated[float, "(0, inf)"] = 1.5e-4
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    weight_decay: Annotated[float, "[0, 1]"] = 0.05
    """AdamW's decoupled weight decay."""
    beta2: Annotated[float, "[0, 1)"] = 0.999
    """AdamW's decay of the second moment."""
    warmup: Annotated[float, "[0, 1)"] = 0.1
    """Share of the training during which the learning rate rises linearly from zero."""
    decay_norm_and_bias: bool = False
    """Apply weight decay to one-dimensional parameters too."""


@dataclass(frozen=True, kw_only=True)
class TextConfig(OptimizerConfig):
    """The same for a method that reads captions: its tokenizer and its text encoder."""

    text_width: Annotated[int, "[0, inf)"] = 0
    """Width of the text encoder; 0 takes the image encoder's, or 128 where there is none."""
    text_depth: Annotated[int, "[1, inf)"] = 6
    """Layers that read text alone."""
    text_heads: Annotated[int, "[1, inf)"] = 4
    """Attention heads of the text encoder."""
    text_dropout: Annotated[float, "[0, 1)"] = 0.1
    """Dropout of the text encoder, with draws of its own on each device."""
    max_tokens: Annotated[int, "[3, inf)"] = 64
    """Where longer captions are cut, in tokens."""
    vocabulary_size: Annotated[int, "[6, inf)"] = 8192
    """Words of the vocabulary that is learned from the training captions, where no tokenizer is
    given."""
    tokenizer: str = ""
    """A tokenizer to take instead: BERT's vocab.txt, or a tokenizer.json of WordPiece."""
    mask_share: Annotated[float, "(0, 1)"] = 0.15
    """Share of the tokens that are hidden and predicted."""


def check_losses(loss: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Require some of the known losses, each once.

    Raises:
        UserError: there is none, another one, or one twice.
    """
    require(
        bool(loss) and set(loss) <= set(known) and len(set(loss)) == len(loss),
        f"loss {','.join(loss)!r}: some of {','.join(known)} would work",
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerChoiceConfig(OptimizerConfig):
    """The same schedule for an optimiser of one's choice."""

    optimizer: Literal["adamw", "lars", "sgd"] = "adamw"
    """AdamW; or LARS or SGD, with momentum 0.9, which papers take for a ResNet."""
    final_lr: Annotated[float, "[0, 1]"] = 0.0
    """Where the cosine ends, as a share of the highest learning rate."""


@dataclass(frozen=True, kw_only=True)
class StepScheduleConfig(OptimizerChoiceConfig):
    """The same, or a learning rate that falls in steps."""

    step_schedule: bool = False
    """Divide the learning rate by 10 at some shares of the training, instead of along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.step_schedule or self.final_lr == 0,
            f"--final-lr {self.final_lr} is where a cosine ends, and --step-schedule has none",
        )


@dataclass(frozen=True, kw_only=True)
class SelfDistillationConfig(OptimizerChoiceConfig):
    """A student and its teacher, with heads of prototypes and crops of two sizes.

    The defaults are the official code's of DINO, for ViT-S on ImageNet.
    """

    base_lr: float = 5e-4
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    final_lr: float = 0.001
    """Where the cosine ends, as a share of the highest learning rate."""
    weight_decay: float = 0.04
    """AdamW's decoupled weight decay at the start."""
    final_weight_decay: Annotated[float, "[0, 1]"] = 0.4
    """The same in the end, along a half cosine."""
    prototypes: Annotated[int, "[2, inf)"] = 65536
    """What features are assigned to; small data do with 2,048 to 8,192."""
    head_hidden_dim: Annotated[int, "[1, inf)"] = 2048
    """Hidden width of the projection head."""
    head_bottleneck_dim: Annotated[int, "[1, inf)"] = 256
    """Width before the prototypes."""
    norm_last_layer: bool = True
    """Keep the prototypes' norms fixed, which stabilises the training."""
    freeze_last_layer: Annotated[int, "[0, 10000]"] = 1
    """Epochs at the start in which the prototypes stay as they are."""
    momentum: Annotated[float, "[0, 1]"] = 0.996
    """Momentum of the teacher at the start; it rises to 1 along a half cosine."""
    center_momentum: Annotated[float, "[0, 1]"] = 0.9
    """Momentum of the centre of the teacher's logits."""
    teacher_temp: Annotated[float, "[0.001, 10]"] = 0.04
    """Temperature of the teacher."""
    warmup_teacher_temp: Annotated[float, "[0.001, 10]"] = 0.04
    """Temperature of the teacher in the first epoch."""
    temp_warmup: Annotated[float, "[0, 1]"] = 0.3
    """Share of the training's epochs in which the teacher's temperature changes."""
    clip_grad: Annotated[float, "(0, inf)"] = 3.0
    """Largest norm of each parameter's own gradient."""
    drop_path: Annotated[float, "[0, 1)"] = 0.1
    """Stochastic depth of the student's last block."""
    local_crops: Annotated[int, "[0, 100]"] = 8
    """Small crops beside the two large ones."""
    crop_scale: Annotated[float, "(0.05, 1]"] = 0.4
    """Smallest share of an image's area that a large crop keeps, and the largest that a small one
    does."""

    def all_frozen(self, epochs: float) -> str | None:
        """Whether the prototypes would stay as they are to the end, in words; or None."""
        frozen = self.freeze_last_layer
        if frozen < epochs:
            return None
        return (
            f"--freeze-last-layer {frozen} leaves none of the {epochs:g} epochs to train the "
            f"prototypes in; --freeze-last-layer {math.ceil(epochs) - 1} would work"
        )


@dataclass(frozen=True)
class ProbeConfig(CheckedConfig):
    """The recipe of linear probes on frozen features, see `linear_probe.fit_best`."""

    section: ClassVar[str] = "probe"
    epochs: Annotated[int, "[1, inf)"] = 20
    """Passes over the training features."""
    batch_size: Annotated[int, "[1, inf)"] = 512
    """Features in a step of SGD."""
    learning_rates: Annotated[tuple[float, ...], "(0, inf)"] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Learning rates to choose from, at the start of the cosine."""
    weight_decays: Annotated[tuple[float, ...], "[0, 1]"] = (0.0, 1e-4, 1e-3)
    """Weight decays to choose from."""
    validation: Annotated[float, "(0, 1)"] = 0.1
    """Share of the training images to choose on."""
