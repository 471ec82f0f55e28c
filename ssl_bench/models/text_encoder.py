"""BERT's encoder of texts, alone or beside an encoder of images.

Devlin, Chang, Lee, Toutanova: *BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding*, NAACL 2019, arXiv:1810.04805. Shapes: B texts, L tokens, D width, V words of the
vocabulary, S tokens of an image, H heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.errors import require
from ssl_bench.models.vocabulary import PAD, TextSpec

BERT = "bert"
"""The backbone of an `EncoderSpec` that reads captions instead of images."""


class Attention(nn.Module):
    """Attention of a sequence to itself, or to another one, in several heads."""

    def __init__(self, width: int, num_heads: int, dropout: float, source_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(source_width, width), nn.Linear(source_width, width)
        self.dropout = nn.Dropout(dropout)

    def weights(self, tokens_BLD: Tensor, source_BSD: Tensor, seen_BS: Tensor | None) -> Tensor:
        """How far each token attends to each of the source: ``(B, H, L, S)``, sums of 1."""
        query_BHLK, key_BHSK = (
            self._heads(self.query(tokens_BLD)),
            self._heads(self.key(source_BSD)),
        )
        scores_BHLS = query_BHLK @ key_BHSK.mT / math.sqrt(query_BHLK.shape[-1])
        if seen_BS is not None:
            scores_BHLS = scores_BHLS.masked_fill(~seen_BS[:, None, None], -torch.inf)
        return scores_BHLS.softmax(dim=-1)

    def forward(self, tokens_BLD: Tensor, source_BSD: Tensor, seen_BS: Tensor | None) -> Tensor:
        """What each token takes from the source, all or those that may be seen: ``(B, L, D)``."""
        weights_BHLS = self.dropout(self.weights(tokens_BLD, source_BSD, seen_BS))
        mixed_BHLK = weights_BHLS @ self._heads(self.value(source_BSD))
        return self.out(mixed_BHLK.transpose(1, 2).flatten(2))

    def _heads(self, rows_BLD: Tensor) -> Tensor:
        return rows_BLD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """A layer of BERT, its norms after each sum; with attention to an image between, if wanted."""

    def __init__(self, spec: TextSpec, image_width: int = 0) -> None:
        super().__init__()
        width, how = spec.width, (spec.num_heads, spec.dropout)
        self.attention, self.attention_norm = Attention(width, *how, width), _norm(width)
        if image_width:
            self.cross_attention = Attention(width, *how, image_width)
            self.cross_norm = _norm(width)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm, self.dropout = _norm(width), nn.Dropout(spec.dropout)

    def forward(
        self, hidden_BLD: Tensor, seen_BL: Tensor, image_BSD: Tensor | None = None
    ) -> Tensor:
        """The next hidden states; an image's tokens are passed by where there are none."""
        attended = self.attention(hidden_BLD, hidden_BLD, seen_BL)
        hidden_BLD = self.attention_norm(hidden_BLD + self.dropout(attended))
        if image_BSD is not None:
            crossed = self.cross_attention(hidden_BLD, image_BSD, None)
            hidden_BLD = self.cross_norm(hidden_BLD + self.dropout(crossed))
        grown = self.shrink(F.gelu(self.grow(hidden_BLD)))
        return self.norm(hidden_BLD + self.dropout(grown))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-12)


class TextEncoder(nn.Module):
    """BERT's encoder and its head for hidden tokens, whose words are the embedded ones.

    Layers that attend to an image come last, where the spec has some. Weights are from N(0, 0.02),
    biases 0.
    """

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        require(
            spec.width % spec.num_heads == 0,
            f"a text encoder of width {spec.width} cannot have {spec.num_heads} heads; "
            f"{math.gcd(spec.width, spec.num_heads)} would work",
        )
        self.spec, self.num_features = spec, spec.width
        self.words = nn.Embedding(spec.size, spec.width)
        self.positions = nn.Embedding(spec.max_tokens, spec.width)
        if spec.next_sentence:
            self.segments = nn.Embedding(2, spec.width)
            self.pooler, self.follows = nn.Linear(spec.width, spec.width), nn.Linear(spec.width, 2)
        self.norm, self.dropout = _norm(spec.width), nn.Dropout(spec.dropout)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.depth))
        self.fusion = nn.ModuleList(Layer(spec, spec.image_width) for _ in range(spec.fusion_depth))
        if spec.predicts:
            self.transform = nn.Linear(spec.width, spec.width)
            self.transform_norm = _norm(spec.width)
            self.bias = nn.Parameter(torch.zeros(spec.size))
        self.apply(_initialise)

    def seen(self, ids_BL: Tensor) -> Tensor:
        """Which tokens are more than padding: bool ``(B, L)``."""
        return ids_BL != self.spec.id(PAD)

    def forward(self, ids_BL: Tensor, segments_BL: Tensor | None = None) -> Tensor:
        """The hidden states of texts after the layers that read text alone: ``(B, L, D)``.

        Args:
            segments_BL: `vocabulary.segments` of pairs; None of single texts.
        """
        hidden_BLD = self.words(ids_BL) + self.positions.weight[: ids_BL.shape[1]]
        if self.spec.next_sentence:
            of_single_BL = torch.zeros_like(ids_BL)
            segments_BL = of_single_BL if segments_BL is None else segments_BL
            hidden_BLD = hidden_BLD + self.segments(segments_BL)
        hidden_BLD = self.dropout(self.norm(hidden_BLD))
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD, self.seen(ids_BL))
        return hidden_BLD

    def fuse(self, hidden_BLD: Tensor, ids_BL: Tensor, image_BSD: Tensor) -> Tensor:
        """Those hidden states after the layers that attend to an image's tokens: ``(B, L, D)``."""
        for layer in self.fusion:
            hidden_BLD = layer(hidden_BLD, self.seen(ids_BL), image_BSD)
        return hidden_BLD

    def predict(self, hidden_BLD: Tensor) -> Tensor:
        """Logits of the words at each token: ``(B, L, V)``."""
        transformed_BLD = self.transform_norm(F.gelu(self.transform(hidden_BLD)))
        return F.linear(transformed_BLD, self.words.weight, self.bias)

    def next_sentence(self, hidden_BLD: Tensor) -> Tensor:
        """Logits that a pair's second text comes after its first, and that not: ``(B, 2)``."""
        return wide(self.follows(torch.tanh(self.pooler(hidden_BLD[:, 0]))))

    def pool(self, hidden_BLD: Tensor, ids_BL: Tensor) -> dict[str, Tensor]:
        """A vector of each text: ``avg``, its tokens' mean, and ``cls``; float32 ``(B, D)``."""
        hidden_BLD, seen_BL1 = wide(hidden_BLD), self.seen(ids_BL)[..., None]
        mean_BD = (hidden_BLD * seen_BL1).sum(dim=1) / seen_BL1.sum(dim=1)
        return {"avg": mean_BD, "cls": hidden_BLD[:, 0]}


def attended(encoder: TextEncoder, hidden_BLD: Tensor, ids_BL: Tensor, image_BSD: Tensor) -> Tensor:
    """How far each token attends to each of an image's, in the last layer that does.

    The mean over the heads: ``(B, L, S)``, sums of 1.

    Args:
        hidden_BLD: of the encoder's layers that read text alone.
    """
    seen_BL = encoder.seen(ids_BL)
    for layer in encoder.fusion[:-1]:
        hidden_BLD = layer(hidden_BLD, seen_BL, image_BSD)
    last: Any = encoder.fusion[-1]
    own_BLD = last.attention(hidden_BLD, hidden_BLD, seen_BL)
    query_BLD = last.attention_norm(hidden_BLD + own_BLD)
    return last.cross_attention.weights(query_BLD, image_BSD, None).mean(dim=1)


class ImageText(nn.Module):
    """What belongs to an image encoder that was pre-trained with captions.

    Attributes:
        text: reads captions, alone and beside an image.
        image_proj, text_proj: from class tokens to the space that images and texts are compared in.
        match: from a fused [CLS] to logits that its text and its image belong together.
    """

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.text = TextEncoder(spec)
        if spec.embed_dim:
            self.image_proj = nn.Linear(spec.image_width, spec.embed_dim)
            self.text_proj = nn.Linear(spec.width, spec.embed_dim)
        if spec.matches:
            self.match = nn.Linear(spec.width, 2)

    def embed_images(self, class_token_BD: Tensor) -> Tensor:
        """Where images are in the common space: float32 ``(B, embed_dim)`` of length 1."""
        return F.normalize(wide(self.image_proj(class_token_BD)), dim=1)

    def embed_texts(self, hidden_BLD: Tensor) -> Tensor:
        """Where texts are, of their hidden states: float32 ``(B, embed_dim)`` of length 1."""
        return F.normalize(wide(self.text_proj(hidden_BLD[:, 0])), dim=1)

    def matching(self, hidden_BLD: Tensor, ids_BL: Tensor, image_BSD: Tensor) -> Tensor:
        """Logits that a text and an image do not belong together, and that they do: ``(B, 2)``."""
        return wide(self.match(self.text.fuse(hidden_BLD, ids_BL, image_BSD)[:, 0]))


def why_no_pair(pair: ImageText | None) -> str | None:
    """Why images and texts cannot be compared, or None where they can."""
    if pair is None:
        return "it compares images with texts, and the encoder was not pre-trained with captions"
    if not pair.text.spec.embed_dim:
        return "it compares images with texts, which no loss of the pre-training did"
    return None


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def wide(numbers: Tensor) -> Tensor:
    """The same in float32 at least."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))
