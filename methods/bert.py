"""BERT's objective: predict the hidden words of a text and, if asked, which sentence comes next.

Devlin, Chang, Lee, Toutanova: *BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding*, NAACL 2019, arXiv:1810.04805, section 3.1. Texts are the sentences of a text file or
the captions of images, which are not looked at: the encoder that is handed over reads texts, and
evaluations get the features of those.

Two losses, of which ``--loss`` says which: hidden words (``mlm``), and with ``nsp`` the prediction
of the next sentence: with an even chance the second text of a pair is the next sentence of the
first one's document, or one of another document. Captions of one image are a document.

Deviations that give different numbers:

- Each token is hidden with a probability of 15 %, by draws of the step's own, as in RoBERTa (Liu et
  al., arXiv:1907.11692, section 4.1); the original hid as many in each text, the same ones at ten
  passes of forty.
- The loss is the mean over all hidden tokens of the batch, on all ranks.
- A text is one sentence, or two of them with ``nsp``; the original fills both segments with as many
  sentences as fit, and RoBERTa found that pairs of single ones cost accuracy.
- By default there is no prediction of the next sentence, which RoBERTa found to be of no use.
- Where the first sentence of a pair would be its document's last, the one before it is taken, so
  that the chance stays even; the original takes another document's sentence then.
- Of two texts that are too long together, the ends are cut, never the beginnings.
- Initial weights are normal, and not cut at two deviations.
- Vocabulary and encoder are as small as the captions, unless flags say otherwise; the recipe of the
  optimiser is that of the other methods here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.api import Batch, DataInfo, LogUniform, Method, Step, TextConfig, Uniform
from ssl_bench.config.recipes import check_losses
from ssl_bench.distributed import collectives
from ssl_bench.models import masked_tokens, vocabulary
from ssl_bench.transforms.augmentations import Augmentation

_LOSSES = ("mlm", "nsp")


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Flags of BERT's objective."""

    loss: tuple[str, ...] = ("mlm",)
    """Losses to add, separated by commas: mlm (hidden words), nsp (next sentence)."""
    base_lr: float = 5e-4
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_losses(self.loss, _LOSSES)

    @property
    def next_sentence(self) -> bool:
        """Whether texts are pairs of sentences."""
        return "nsp" in self.loss

    @property
    def predicts(self) -> bool:
        """Whether a head for hidden words is trained."""
        return "mlm" in self.loss


class BERT(Method):
    """A text encoder that predicts hidden words, and the next sentence."""

    version = 2
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
            "data": "./text.txt",
            "loss": ("mlm", "nsp"),
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

    @classmethod
    def refuses(cls, config: Config, batch_size: int, images: int, epochs: float) -> str | None:
        """A tokenizer that cannot be read, before any image is decoded."""
        vocabulary.given_vocabulary(config)
        return None

    def transforms(self) -> Mapping[str, Augmentation]:
        """No view of an image."""
        return {}

    def loss(self, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """The wanted ones of the two losses, by name; both read the text with hidden words."""
        assert batch.captions_BL is not None
        segments_BL = None
        if self.config.next_sentence:
            segments_BL = vocabulary.segments(batch.captions_BL, self.text)
        masked = masked_tokens.mask_tokens(
            batch.captions_BL, self.text, batch.rng, self.config.mask_share
        )
        hidden_BLD = self.encoder(masked.ids_BL, segments_BL)
        losses = {}
        if "mlm" in self.config.loss:
            summed = masked_tokens.masked_loss(self.encoder.predict(hidden_BLD), masked.targets_BL)
            count = collectives.mean(masked_tokens.count_hidden(masked.targets_BL)).clamp_min(1)
            losses["mlm"] = summed / count
        if self.config.next_sentence:
            assert batch.is_next_B is not None
            logits_B2 = self.encoder.next_sentence(hidden_BLD)
            losses["nsp"] = F.cross_entropy(logits_B2, (~batch.is_next_B).long())
        return losses

    search_space = {
        "base_lr": LogUniform(1e-4, 5e-3),
        "weight_decay": LogUniform(0.01, 0.3),
        "mask_share": Uniform(0.1, 0.4),
    }
