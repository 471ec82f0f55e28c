"""BERT's objective: hide tokens of a text, and predict them.

Devlin, Chang, Lee, Toutanova: *BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding*, NAACL 2019, arXiv:1810.04805, section 3.1. Shapes: B texts, L tokens, V words.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.models.text_encoder import wide
from ssl_bench.models.vocabulary import CLS, MASK, PAD, SEP, TextSpec
from ssl_bench.utils.rng import SampleRng

_IGNORED = -100


class Masked(NamedTuple):
    """Texts with some tokens hidden.

    Attributes:
        ids_BL: int64, what the encoder sees.
        targets_BL: int64, the hidden tokens' own ids, -100 elsewhere.
    """

    ids_BL: Tensor
    targets_BL: Tensor


def mask_tokens(ids_BL: Tensor, spec: TextSpec, rng: SampleRng, share: float) -> Masked:
    """Hide each token with a probability of ``share``, but for [CLS], [SEP] and [PAD].

    Of the hidden ones 80 % become [MASK], 10 % any word of the vocabulary, special ones and the
    hidden one itself included, and 10 % stay (section 3.1).
    """
    pad, first, last = map(spec.id, (PAD, CLS, SEP))  # numbers: a tensor of them would be copied
    is_word_BL = (ids_BL != pad) & (ids_BL != first) & (ids_BL != last)
    length = ids_BL.shape[1]
    drawn = rng.uniforms({"hidden": length, "how": length, "word": length})
    hidden_BL = (drawn["hidden"] < share) & is_word_BL
    how_BL = drawn["how"]
    words_BL = (drawn["word"] * spec.size).long()
    seen_BL = torch.where(how_BL < 0.8, spec.id(MASK), ids_BL)
    seen_BL = torch.where(how_BL >= 0.9, words_BL, seen_BL)
    return Masked(torch.where(hidden_BL, seen_BL, ids_BL), torch.where(hidden_BL, ids_BL, _IGNORED))


def masked_loss(logits_BLV: Tensor, targets_BL: Tensor, soft_BLV: Tensor | None = None) -> Tensor:
    """The sum of the hidden tokens' cross-entropies, in float32: a scalar.

    Args:
        targets_BL: of `Masked`.
        soft_BLV: probabilities to be predicted instead of the tokens.
    """
    if soft_BLV is None:
        return F.cross_entropy(
            wide(logits_BLV).flatten(0, 1),
            targets_BL.flatten(),
            ignore_index=_IGNORED,
            reduction="sum",
        )
    each_BL = -(soft_BLV * wide(logits_BLV).log_softmax(dim=-1)).sum(dim=-1)
    return each_BL.where(targets_BL != _IGNORED, 0.0).sum()


def count_hidden(targets_BL: Tensor) -> Tensor:
    """How many tokens are hidden: a float32 scalar."""
    return (targets_BL != _IGNORED).sum().float()
