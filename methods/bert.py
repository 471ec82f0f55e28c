"""BERT's objective: predict the hidden words of a caption.

Devlin, Chang, Lee, Toutanova: *BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding*, NAACL 2019, arXiv:1810.04805, section 3.1. The images are not looked at: the encoder
that is handed over reads captions, and evaluations get the features of those.

Deviations that give different numbers:

- Each token is hidden with a probability of 15 %, by draws of the step's own, as in RoBERTa (Liu et
  al., arXiv:1907.11692, section 4.1); the original hid as many in each text, the same ones at ten
  passes of forty.
- The loss is the mean over all hidden tokens of the batch, on all ranks.
- A text is one caption, without a second segment, so that there is no prediction of the next
  sentence, which RoBERTa found to be of no use.
- Initial weights are normal, and not cut at two deviations.
- Vocabulary and encoder are as small as the captions, unless flags say otherwise; the recipe of the
  optimiser is that of the other methods here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ssl_bench.api import Batch, DataInfo, LogUniform, Method, Step, TextConfig, Uniform
from ssl_bench.distributed import collectives
from ssl_bench.models import text
from ssl_bench.transforms.augmentations import Augmentation


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Flags of BERT's objective."""

    base_lr: float = 5e-4
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""


class BERT(Method):
    """A text encoder that predicts hidden words."""

    version = 1
    paper = "Devlin et al., NAACL 2019"
    needs = ("captions",)
    columns = frozenset({"caption"})
    presets = {
        "quick": {
            "epochs": 2,
            "base_lr": 1e-3,
            "text_depth": 3,
            "text_dropout": 0.0,
            "data": "fashion-captions",
            "evals": ("masked-words", "linear", "knn"),
        },
        "small": {
            "data": "fashion-captions",
            "evals": ("masked-words", "linear", "knn"),
            "base_lr": 5e-4,
        },
        "bert-base": {
            "data": "./captions",
            "epochs": 40,
            "batch_size": 256,
            "base_lr": 1e-4,
            "weight_decay": 0.01,
            "warmup": 0.01,
            "text_width": 768,
            "text_depth": 12,
            "text_heads": 12,
            "max_tokens": 512,
            "vocabulary_size": 30000,
            "evals": ("masked-words",),
        },
    }

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, backbone, data)
        assert data.text is not None
        self.text = data.text

    def transforms(self) -> Mapping[str, Augmentation]:
        """No view of an image."""
        return {}

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """Mean cross-entropy of the hidden tokens."""
        assert batch.captions_BL is not None
        masked = text.mask_tokens(batch.captions_BL, self.text, batch.rng, self.config.mask_share)
        logits_BLV = self.encoder.predict(self.encoder(masked.ids_BL))
        hidden = collectives.mean(text.count_hidden(masked.targets_BL)).clamp_min(1)
        return text.masked_loss(logits_BLV, masked.targets_BL) / hidden

    search_space = {
        "base_lr": LogUniform(1e-4, 5e-3),
        "weight_decay": LogUniform(0.01, 0.3),
        "mask_share": Uniform(0.1, 0.4),
    }
