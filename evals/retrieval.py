"""Retrieval: find an image's captions among all test captions, and a caption's image.

Li et al., *Align before Fuse*, arXiv:2107.07651, section 5; ``Retrieval.py``, salesforce/ALBEF
``b9727e4``. Pairs are ranked by the cosine of the contrast; the best few of each query are then
ranked anew by the head that was trained to match them, where there is one: by its logit that they
belong together. R@1, 5 and 10 are the shares of queries whose answer is among as many, in percent;
of an image any of its captions counts. The headline is the mean of the two R@1. Each has a 95 %
percentile bootstrap interval over test images.

Deviation that gives different numbers: the centre of an image is looked at, as everywhere here; the
official code squeezes the whole of it into a square.

Two images with a caption in common answer each other's query: it cannot tell them apart.

Nothing is chosen; ``chance`` is the mean R@1 of a random ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.evaluation.features import prepare
from ssl_bench.evaluation.texts import as_bytes
from ssl_bench.models import text_encoder, vocabulary
from ssl_bench.transforms.augmentations import evaluation_view
from ssl_bench.utils import progress, rng

_AT_ONCE = 256
_RANKS = (1, 5, 10)
_DRAWN, _ANSWERS = 5, 5
"""Captions that are drawn, and images for each."""


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of the retrieval."""

    section: ClassVar[str] = "retrieval"

    rerank: Annotated[int, "[0, inf)"] = 16
    """Best answers to each query that the matching head ranks anew; 0 leaves it out."""
    resamples: Annotated[int, "[1, inf)"] = 1000
    """Bootstrap samples of the interval."""


class Retrieval(Evaluation):
    """Images and captions ranked by how well they fit each other."""

    version = 2
    columns = frozenset({"image", "caption"})
    presets = {"albef-vitb16": {"rerank": 256}}

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether images and texts are compared."""
        return text_encoder.why_no_pair(encoder.pair)

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Rank all pairs of the test split.

        Arrays: ``found``, the best ten images of each caption, int64 ``(M, 10)``. Of the first
        captions of the first images: ``queries``, as `texts.as_bytes`; ``answers``, their best
        images as the encoder sees them, uint8 ``(Q, K, C, H, W)``, and ``is_right``, ``(Q, K)``.
        """
        pair, device = encoder.pair, encoder.hardware.device
        captions = data.test.captions
        assert captions is not None
        sentences = [each for own in captions for each in own]
        image_M = torch.repeat_interleave(
            torch.arange(len(captions)), torch.tensor([len(own) for own in captions])
        )
        is_right_NM = _answers(captions, sentences, image_M)
        ids_ML = vocabulary.tokenize(sentences, pair.text.spec).to(device)
        text_MD, hidden = _texts(encoder, ids_ML)
        score_NM = _images(encoder, data) @ text_MD.T
        by_image_NM, by_text_MN = score_NM.cpu(), score_NM.T.contiguous().cpu()
        if self.config.rerank and pair.text.spec.matches:
            for score_QA, is_of_text in ((by_image_NM, False), (by_text_MN, True)):
                _rerank(score_QA, is_of_text, self.config.rerank, encoder, data, hidden, ids_ML)
        hits_N3 = _hits(by_image_NM, is_right_NM)
        hits_M3 = _hits(by_text_MN, is_right_NM.T)
        of_both = 50 * (hits_N3[:, 0].mean() + hits_M3[:, 0].mean()).item()
        shares = {"mean_r1": of_both}
        for name, hits in (("text_of_image", hits_N3), ("image_of_text", hits_M3)):
            shares |= {
                f"{name}_r{rank}": 100 * share
                for rank, share in zip(_RANKS, hits.mean(dim=0).tolist(), strict=True)
            }
        ends_7E = _intervals(hits_N3, hits_M3, image_M, self.config.resamples, data.fingerprint)
        scores = dict[str, float]()
        for (name, share), (low, high) in zip(shares.items(), ends_7E.tolist(), strict=True):
            scores |= {name: share, f"{name}_low": low, f"{name}_high": high}
        scores["chance"] = 100 * int(is_right_NM.count_nonzero()) / is_right_NM.numel()
        found_MK = by_text_MN.topk(min(10, len(captions)), dim=1).indices
        first = [
            int((image_M == image).nonzero()[0]) for image in range(min(_DRAWN, len(captions)))
        ]
        best_QK = found_MK[first, :_ANSWERS]
        views_PCHW = evaluation_view(data.test.images(best_QK.flatten()), encoder.spec.image_size)
        answers_PCHW = (255 * views_PCHW).round().to(torch.uint8).cpu()
        return Result(
            scores,
            arrays={
                "found": found_MK,
                "queries": as_bytes([sentences[place] for place in first]),
                "answers": answers_PCHW.unflatten(0, best_QK.shape),
                "is_right": is_right_NM.T[first].gather(1, best_QK).to(torch.uint8),
            },
            unit="R@1, both ways (%)",
        )


def _answers(captions: Sequence[Sequence[str]], texts: Sequence[str], image_M: Tensor) -> Tensor:
    """Which text is right for which image, bool ``(N, M)``: its own, and any that is the same."""
    known = {each: number for number, each in enumerate(dict.fromkeys(texts))}
    text_M = torch.tensor([known[each] for each in texts])
    has_NT = torch.zeros(len(captions), len(known), dtype=torch.bool)
    has_NT[image_M, text_M] = True
    return has_NT[:, text_M]


def _images(encoder: FrozenEncoder, data: Dataset) -> Tensor:
    """The test images in the common space: float32 ``(N, E)``."""
    with torch.no_grad():
        return encoder.pair.embed_images(encoder.features(data.test)["cls"])


@torch.no_grad()
def _texts(encoder: FrozenEncoder, ids_ML: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The texts in the common space, float32 ``(M, E)``, and the hidden states of each one's tokens
    without padding, float32 ``(L, D)``."""
    embedded, hidden = list[Tensor](), list[Tensor]()
    for ids_BL in ids_ML.split(_AT_ONCE):
        with encoder.hardware.autocast():
            hidden_BLD = encoder.text(ids_BL).float()
        embedded.append(encoder.pair.embed_texts(hidden_BLD))
        seen_BL = encoder.text.seen(ids_BL)
        hidden += hidden_BLD[seen_BL].split(seen_BL.sum(dim=1).tolist())
    return torch.cat(embedded), hidden


@torch.no_grad()
def _rerank(
    score_QA: Tensor,
    is_of_text: bool,
    most: int,
    encoder: FrozenEncoder,
    data: Dataset,
    hidden: Sequence[Tensor],
    ids_ML: Tensor,
) -> None:
    """Put the best answers of each query first, in the order of the matching head's logits.

    Args:
        score_QA: of each query's answers, changed in place.
        is_of_text: whether captions are the queries, and images the answers.
        hidden: of the captions, as `_texts` gives them.
    """
    most = min(most, score_QA.shape[1])
    best_QK = score_QA.topk(most, dim=1).indices
    query_P, answer_P = torch.arange(len(score_QA)).repeat_interleave(most), best_QK.flatten()
    text_P, image_P = (query_P, answer_P) if is_of_text else (answer_P, query_P)
    logit_P, done = torch.empty(len(query_P)), 0
    direction = "images of texts" if is_of_text else "texts of images"
    with progress.bar(f"match {direction}", len(query_P)) as bar:
        # Pairs of one image side by side, so that it is encoded once.
        for pairs_B in image_P.argsort(stable=True).split(_AT_ONCE):
            different_I, place_B = image_P[pairs_B].unique(return_inverse=True)
            views_ICHW = prepare(data.test.images(different_I), encoder.spec, encoder.hardware)
            image_BSD = encoder.tokens(views_ICHW)[place_B.to(encoder.hardware.device)]
            texts_B = text_P[pairs_B]
            hidden_BLD = pad_sequence([hidden[text] for text in texts_B.tolist()], batch_first=True)
            ids_BL = ids_ML[texts_B.to(ids_ML.device), : hidden_BLD.shape[1]]
            with encoder.hardware.autocast():
                logits_B2 = encoder.pair.matching(hidden_BLD, ids_BL, image_BSD)
            logit_P[pairs_B] = logits_B2[:, 1].float().cpu()
            done += len(pairs_B)
            bar.update(done)
    order_QK = logit_P.view_as(best_QK).argsort(dim=1, descending=True, stable=True)
    # Above all that was not ranked anew; cosines are no larger than 1.
    points_K = 2.0 + torch.arange(most).flip(0)
    score_QA.scatter_(1, best_QK.gather(1, order_QK), points_K.expand_as(order_QK))


def _hits(score_QA: Tensor, is_right_QA: Tensor) -> Tensor:
    """Whether a right answer is among the best 1, 5 and 10 of each query: float64 ``(Q, 3)``."""
    best_QK = score_QA.topk(min(max(_RANKS), score_QA.shape[1]), dim=1).indices
    right_QK = is_right_QA.gather(1, best_QK)
    return torch.stack([right_QK[:, :rank].any(dim=1) for rank in _RANKS], dim=1).double()


def _intervals(
    hits_N3: Tensor, hits_M3: Tensor, image_M: Tensor, resamples: int, fingerprint: str
) -> Tensor:
    """The ends of 95 % intervals over samples of images, each with all of its captions.

    Returns:
        Float64 ``(7, 2)`` in percent: of the headline, of texts of images, of images of texts.
    """
    count = len(hits_N3)
    generator = rng.generator("retrieval", fingerprint)
    right_N3 = torch.zeros(count, 3, dtype=torch.float64).index_add(0, image_M, hits_M3)
    texts_N = image_M.bincount(minlength=count).double()
    drawn_RN = torch.randint(count, (resamples, count), generator=generator)
    texts_R = texts_N[drawn_RN].sum(dim=1)
    of_images = [hits_N[drawn_RN].mean(dim=1) for hits_N in hits_N3.T]
    of_texts = [right_N[drawn_RN].sum(dim=1) / texts_R for right_N in right_N3.T]
    share_7R = torch.stack([(of_images[0] + of_texts[0]) / 2, *of_images, *of_texts])
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return 100 * share_7R.quantile(ends, dim=1).T
