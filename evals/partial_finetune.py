"""Partial fine-tuning: the last blocks and a linear classifier, trained on the labels.

He et al., *Masked Autoencoders Are Scalable Vision Learners*, arXiv:2111.06377, section 4.3 and
figure 9: how accurate an encoder becomes when its last k blocks are fine-tuned and everything
below them is frozen. 0 blocks is a linear probe, half a block is the MLP of the last one, and all
of them is fine-tuning, embeddings included. The norm before the classifier is always trained,
which leaves a probe linear. Each k starts from the same encoder and head and sees the same views,
those of ``finetune``, so that all blocks give its very result under the same recipe; the last
epoch is evaluated, on the test split, once.

What is frozen is run without gradients, and skipped by no drop path.

Deviation from the paper: every k is trained for the same number of epochs, where the paper takes
the best of 50, 100 and 200 for each (appendix A.1), since fewer blocks need more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from timm.layers import DropPath
from timm.models.vision_transformer import Block

from ssl_bench.api import Evaluation, FinetuningConfig, FrozenEncoder, Result
from ssl_bench.config.finetuning_settings import FINETUNING_PRESETS
from ssl_bench.data import Dataset
from ssl_bench.errors import require
from ssl_bench.evaluation import finetuning
from ssl_bench.evaluation.finetuning import Classifier
from ssl_bench.evaluation.metrics import accuracy
from ssl_bench.experiment import audit
from ssl_bench.models import encoders

_HALF = 0.5
_HEADLINE = 1.0


@dataclass(frozen=True, kw_only=True)
class Config(FinetuningConfig):
    """Flags of partial fine-tuning; the defaults are those of fine-tuning."""

    section: ClassVar[str] = "partial finetune"

    blocks: tuple[float, ...] = ()
    """Numbers of blocks to train, the last ones: 0 for a linear probe, 0.5 for the MLP of the last
    block. Default: 0, 0.5, 1, 2, half of them and all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for blocks in self.blocks:
            require(
                blocks == _HALF or (blocks >= 0 and float(blocks).is_integer()),
                f"--partial-finetune-blocks {blocks:g} is neither a whole number nor 0.5; "
                "0,0.5,1,2 would work",
            )


class PartialFineTuning(Evaluation):
    """The last blocks of the encoder, trained on the labels."""

    version = 1
    sharded = True
    compared_with = ("random",)
    presets = FINETUNING_PRESETS

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether there is a stack of blocks, of which the last ones can be trained."""
        return encoders.why_no_vit(encoder.trainable_copy())

    def audit(self, encoder: FrozenEncoder) -> str:
        """Check that there are as many blocks, and that freezing and the recipe take hold."""
        config = self.config
        exempts, numbers = not config.decay_norm_and_bias, _numbers(config, _depth(encoder))
        for blocks in sorted(numbers):
            model = _classifier(encoder, 2, config, blocks)
            groups = finetuning.optimizer(model, config).param_groups
            line = audit.weight_decay(model, groups, config.weight_decay, exempts)
        whole = finetuning.classifier(encoder, 2, config)
        groups = finetuning.optimizer(whole, config).param_groups
        audit.layer_decay(whole, groups, config.layer_decay)
        audit.drop_path(whole.encoder, config.drop_path)
        shown = ", ".join(f"{blocks:g}" for blocks in numbers)
        return f"the last {shown} blocks; with most of them {line}"

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Train each number of blocks on the training split, classify the test split.

        The headline and the predictions are those of one block, or of the first number asked for
        where one is not among them.
        """
        predictions = {}
        for blocks in _numbers(self.config, _depth(encoder)):
            model = _classifier(encoder, len(data.classes), self.config, blocks)
            finetuning.train(model, encoder, data.train, self.config)
            predictions[blocks] = finetuning.predict(model, encoder, data.test)
        headline = _HEADLINE if _HEADLINE in predictions else next(iter(predictions))
        in_order = {headline: predictions[headline], **predictions}
        labels_N = data.test.labels_N
        scores = {f"blocks_{blocks:g}": accuracy(p, labels_N) for blocks, p in in_order.items()}
        return Result(scores, predictions[headline])


def _depth(encoder: FrozenEncoder) -> int:
    return len(encoder.trainable_copy().blocks)


def _numbers(config: Config, depth: int) -> list[float]:
    """The numbers of blocks to train, each once."""
    default = [0, _HALF, *sorted({1, min(2, depth), max(1, depth // 2), depth})]
    numbers = list(dict.fromkeys(config.blocks or default))
    require(
        max(numbers) <= depth,
        f"--partial-finetune-blocks {max(numbers):g} is more than this encoder has; "
        f"at most {depth} would work",
    )
    return numbers


def _classifier(encoder: FrozenEncoder, classes: int, config: Config, blocks: float) -> Classifier:
    """A classifier of which the head and that many last blocks are trainable."""
    model = finetuning.classifier(encoder, classes, config)
    trunk = model.encoder
    depth = len(trunk.blocks)
    if blocks == depth:
        return model
    trunk.requires_grad_(False)
    trunk.norm.requires_grad_(True)
    trained = trunk.blocks[depth - int(blocks) :]
    trained.requires_grad_(True)
    frozen = list(trunk.blocks[: depth - int(blocks)])
    if blocks == _HALF:
        last = frozen.pop()
        require(
            isinstance(last, Block),
            f"a {type(last).__name__} has no MLP of its own to train alone; "
            "partial finetune blocks 0,1 would work",
        )
        for name in ("norm2", "mlp", "ls2"):
            getattr(last, name).requires_grad_(True)
        frozen.append(last.drop_path1)
    for part in frozen:
        for layer in part.modules():
            if isinstance(layer, DropPath):
                layer.drop_prob = 0.0
    return model
