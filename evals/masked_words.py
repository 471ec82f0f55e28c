"""Masked words: how many hidden words of the test captions an encoder predicts.

A word is a token of WordPiece, which spells a rare one in pieces. Each one of a test image's first
caption is hidden alone, the special tokens excepted, and counts where the most probable word of the
vocabulary is the right one (Devlin et al., arXiv:1810.04805, section 3.1, whose task is that of the
pre-training). Nothing is drawn, nothing is chosen, and nothing is trained: it needs an encoder that
was pre-trained so.

An encoder of images with a text encoder beside it looks at the caption's image, too, and the second
score is what it guesses beside the image of the next caption: the difference is what it sees. Maps
of where each word looks, in the last layer that attends to the image, are kept for a figure.

The lower bound ``frequent`` always names the most frequent word of the first captions of the
training images.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.evaluation import texts
from ssl_bench.evaluation.features import prepare
from ssl_bench.evaluation.metrics import subset
from ssl_bench.models import text_encoder, vocabulary
from ssl_bench.transforms.augmentations import evaluation_view
from ssl_bench.utils import progress

_TEXTS_AT_ONCE = 256
_DRAWN = 4
"""Captions whose words' attention is drawn."""


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of the masked words."""

    section: ClassVar[str] = "masked words"

    images: Annotated[int, "[1, inf)"] = 1000
    """Number of test images whose captions' words are hidden, the same images for every method."""


class MaskedWords(Evaluation):
    """The hidden words of the test captions, one at a time."""

    version = 1
    columns = frozenset({"caption"})
    compared_with = ("random",)

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether the encoder predicts words."""
        if encoder.text is None:
            return "it predicts words, and the encoder was pre-trained without captions"
        if not encoder.text.spec.predicts:
            return "it predicts words, and the weights have no head that does"
        if encoder.pair is not None and data.imageless:
            return f"the encoder looks at each caption's image, and {data.name} has none"
        return None

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Predict each word of the captions; the share of right ones, in percent.

        Arrays, of an encoder that looks at images: ``word_images``, uint8 ``(N, C, H, W)`` as it
        sees them; ``words``, their captions' tokens as `texts.as_bytes`, ``(N, L, bytes)``, empty
        after the last; ``word_maps``, float32 ``(N, L, rows, columns)``, how far each looks.
        """
        spec = encoder.text.spec
        index_N = subset(len(data.test), self.config.images, data.fingerprint)
        captions = data.test.first_captions
        ids_NL = vocabulary.tokenize([captions[index] for index in index_N.tolist()], spec)
        place_W2 = _words(ids_NL, spec)
        # With an image of its own, and with the next caption's.
        shifts = (0, 1) if encoder.pair is not None else (0,)
        right = dict.fromkeys(shifts, 0)
        done = 0
        with progress.bar("hidden words", len(place_W2)) as bar:
            for part_B2 in place_W2.split(_TEXTS_AT_ONCE):
                rows_B, columns_B = part_B2.unbind(1)
                for shift in shifts:
                    other_B = index_N[(rows_B + shift) % len(index_N)]
                    found_B = _predict(encoder, ids_NL[rows_B], columns_B, data, other_B)
                    right[shift] += int((found_B == ids_NL[rows_B, columns_B]).sum())
                done += len(part_B2)
                bar.update(done)
        train_NL = vocabulary.tokenize(data.train.first_captions, spec)
        counts_V = train_NL[tuple(_words(train_NL, spec).T)].bincount(minlength=spec.size)
        words_W = ids_NL[tuple(place_W2.T)]
        scores = {"accuracy": 100 * right[0] / len(place_W2)}
        if encoder.pair is not None:
            scores["accuracy_wrong_image"] = 100 * right[1] / len(place_W2)
        scores["frequent"] = 100 * (words_W == counts_V.argmax()).double().mean().item()
        looks = encoder.pair is not None and spec.fusion_depth
        shown = _looks(encoder, data, ids_NL[:_DRAWN], index_N[:_DRAWN]) if looks else {}
        return Result(scores, arrays=shown, unit="hidden words (%)")


@torch.no_grad()
def _looks(
    encoder: FrozenEncoder, data: Dataset, ids_BL: Tensor, image_B: Tensor
) -> dict[str, Tensor]:
    """The arrays of some captions and their own images."""
    module, reader = encoder.trainable_copy(), encoder.text
    ids_BL = ids_BL.to(encoder.hardware.device)
    images_BCSS = data.test.images(image_B)
    views_BCHW = evaluation_view(images_BCSS, encoder.spec.image_size)
    with encoder.hardware.autocast():
        tokens_BTD = encoder.tokens(prepare(images_BCSS, encoder.spec, encoder.hardware))
        map_BLT = text_encoder.attended(reader, reader(ids_BL), ids_BL, tokens_BTD).float().cpu()
    prefix, grid = module.num_prefix_tokens, module.patch_embed.grid_size
    place_W2, spec = _words(ids_BL.cpu(), reader.spec), reader.spec
    rows_W = place_W2[:, 0]
    counts_B = rows_W.bincount(minlength=len(ids_BL))
    number_W = torch.arange(len(rows_W)) - (counts_B.cumsum(0) - counts_B)[rows_W]
    shape = len(ids_BL), int(counts_B.max())
    map_BWP = torch.zeros(*shape, grid[0] * grid[1])
    map_BWP[rows_W, number_W] = map_BLT[tuple(place_W2.T)][:, prefix:]
    words = [[""] * shape[1] for _ in range(shape[0])]
    for row, number, word in zip(rows_W, number_W, ids_BL.cpu()[tuple(place_W2.T)], strict=True):
        words[row][number] = spec.words[word]
    return {
        "word_images": (255 * views_BCHW).round().to(torch.uint8).cpu(),
        "words": texts.as_bytes(list(chain.from_iterable(words))).unflatten(0, shape),
        "word_maps": map_BWP.unflatten(-1, grid),
    }


def _words(ids_NL: Tensor, spec: vocabulary.TextSpec) -> Tensor:
    """The text and the place of each token that is no special one: int64 ``(W, 2)``."""
    special = torch.tensor(
        [spec.id(each) for each in (vocabulary.PAD, vocabulary.CLS, vocabulary.SEP)]
    )
    return (~torch.isin(ids_NL, special)).nonzero()


@torch.no_grad()
def _predict(
    encoder: FrozenEncoder, ids_BL: Tensor, column_B: Tensor, data: Dataset, image_B: Tensor
) -> Tensor:
    """The word at one place of each text, hidden there, as the encoder guesses it: ``(B,)``.

    Args:
        image_B: test images, for an encoder that looks at one.
    """
    reader, place = encoder.text, (torch.arange(len(ids_BL)), column_B)
    hidden_BL = ids_BL.clone()
    hidden_BL[place] = reader.spec.id(vocabulary.MASK)
    hidden_BL = hidden_BL.to(encoder.hardware.device)
    with encoder.hardware.autocast():
        states_BLD = reader(hidden_BL)
        if encoder.pair is not None:
            views_BCHW = prepare(data.test.images(image_B), encoder.spec, encoder.hardware)
            states_BLD = reader.fuse(states_BLD, hidden_BL, encoder.tokens(views_BCHW))
        return reader.predict(states_BLD).argmax(dim=-1).cpu()[place]
