"""Masked words: how many hidden words of the test captions an encoder predicts.

Each word of a test image's first caption is hidden alone, the special tokens excepted, and counts
where the most probable word of the vocabulary is the right one (Devlin et al., arXiv:1810.04805,
section 3.1, whose task is that of the pre-training). Nothing is drawn, nothing is chosen, and
nothing is trained: it needs an encoder that was pre-trained so.

The lower bound ``frequent`` always names the most frequent word of the training captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.evaluation.metrics import subset
from ssl_bench.models import text
from ssl_bench.utils import progress

_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of the masked words."""

    section: ClassVar[str] = "masked words"

    images: Annotated[int, "[1, inf)"] = 1000
    """Test images, the same ones for every method, the words of whose captions are hidden."""


class MaskedWords(Evaluation):
    """The hidden words of the test captions, one at a time."""

    version = 1
    columns = frozenset({"caption"})

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether the encoder predicts words."""
        if encoder.text is None:
            return "it predicts words, and the encoder was pre-trained without captions"
        return None

    def baselines(self) -> Mapping[str, tuple[str, Config]]:
        """What to show beside an encoder's score."""
        return {"random init": ("random", self.config)}

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Predict each word of the captions; the share of right ones, in percent."""
        spec, device = encoder.text.spec, encoder.hardware.device
        index_N = subset(len(data.test), self.config.images, data.fingerprint)
        texts = data.test.first_captions
        ids_NL = text.tokenize([texts[index] for index in index_N.tolist()], spec)
        place_W2 = _words(ids_NL, spec)
        right = 0
        with progress.bar("hidden words", len(place_W2)) as bar:
            for done, rows_B, columns_B in _parts(place_W2):
                hidden_BL = ids_NL[rows_B].clone()
                hidden_BL[torch.arange(len(rows_B)), columns_B] = spec.id(text.MASK)
                logits_BLV = _predict(encoder, hidden_BL.to(device))
                found_B = logits_BLV.argmax(dim=-1).cpu()[torch.arange(len(rows_B)), columns_B]
                right += int((found_B == ids_NL[rows_B, columns_B]).sum())
                bar.update(done)
        train_NL = text.tokenize(data.train.first_captions, spec)
        counts_V = train_NL[tuple(_words(train_NL, spec).T)].bincount(minlength=len(spec.words))
        words_W = ids_NL[tuple(place_W2.T)]
        return Result(
            scores={
                "accuracy": 100 * right / len(place_W2),
                "frequent": 100 * (words_W == counts_V.argmax()).double().mean().item(),
            },
            unit="hidden words (%)",
        )


def _words(ids_NL: Tensor, spec: text.TextSpec) -> Tensor:
    """The text and the place of each token that is no special one: int64 ``(W, 2)``."""
    special = torch.tensor([spec.id(each) for each in (text.PAD, text.CLS, text.SEP)])
    return (~torch.isin(ids_NL, special)).nonzero()


def _parts(place_W2: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """A few words at a time: how many are done by then, their texts and their places there."""
    done = 0
    for part_B2 in place_W2.split(_TEXTS_AT_ONCE):
        done += len(part_B2)
        yield done, *part_B2.unbind(1)


@torch.no_grad()
def _predict(encoder: FrozenEncoder, ids_BL: Tensor) -> Tensor:
    with encoder.hardware.autocast():
        return encoder.text.predict(encoder.text(ids_BL)).float()
